"""The distance between two results, and the limit above which they differ."""

import math

import numpy as np

FUNCTION_LIMIT = 1e-10  # relative L2 in float64 below which two models are the same function
# Norms outside these bounds are computed again on scaled values: the squares of values below 1e-154
# underflow, and those of values above 1e154 overflow.
SMALLEST_NORM, LARGEST_NORM = 1e-140, 1e140
# An element counts as at least as large as this quantile of the nonzero elements.
SMALL_QUANTILE = 0.25


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """Return ‖a − b‖₂ / ‖b‖₂ in float64; 0 for 0/0, infinity for different shapes, NaN for NaN."""
    if a.shape != b.shape:
        return math.inf
    exact_a, exact_b = (array.astype(np.float64, copy=False) for array in (a, b))
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        size = np.linalg.norm(exact_b)
        if not SMALLEST_NORM < size < LARGEST_NORM:
            largest = max(_largest(exact_a), _largest(exact_b))
            if largest > 0 and math.isfinite(largest):
                exact_a, exact_b = exact_a / largest, exact_b / largest
                size = np.linalg.norm(exact_b)
        distance = np.linalg.norm(exact_a - exact_b)
        if distance == 0:
            return 0.0
        return float(distance / size) if size != 0 else math.inf


def function_error(a: np.ndarray, b: np.ndarray) -> float:
    """Return the relative L2 distance between two float64 results, or the error of an element.

    The result is compared with ``FUNCTION_LIMIT``. A few very large elements can hide the errors of
    the other elements. Therefore, if the distance is within the limit but the error of an element
    is not, the error of the element is returned (see ``element_error``).
    """
    error = relative_error(a, b)
    if not error <= FUNCTION_LIMIT:
        return error
    worst = element_error(a, b, FUNCTION_LIMIT)
    return error if worst <= FUNCTION_LIMIT else worst


def element_error(a: np.ndarray, b: np.ndarray, negligible: float = 0.0) -> float:
    """Return the largest error of an element of ``a``, relative to the same element of ``b``.

    A very small element, such as a sum whose terms cancel, has a large error relative to itself, so
    no error is divided by less than the lower quartile of the absolute values of the nonzero
    elements of ``b``.

    Args:
        a: an array with the shape of ``b``.
        b: the exact values, all finite.
        negligible: if no relative error is larger than this, 0 may be returned, which is faster.
    """
    difference, size = np.abs(a - b), np.abs(b)
    largest = difference.max(initial=0.0)
    if largest == 0:
        return 0.0
    nonzero = np.count_nonzero(size)
    if negligible:
        small = np.count_nonzero(size < largest / negligible) - (size.size - nonzero)
        if small <= SMALL_QUANTILE * (nonzero - 1):
            return 0.0
    typical = np.quantile(size[size > 0], SMALL_QUANTILE, method="higher") if nonzero else 0.0
    with np.errstate(divide="ignore", over="ignore"):
        return float((difference / np.maximum(size, typical)).max())


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0.0))
