"""Patterns in the difference between two results; they may be inexact by rounding errors.

The results are float64 arrays (N, T, D): images, tokens, channels.
"""

from collections.abc import Iterator

import numpy as np

ROUNDING = 1e-9  # smaller differences, relative to the largest value, are ignored


def near(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two arrays of the same shape are equal up to rounding."""
    size = max(float(np.abs(a).max(initial=0.0)), float(np.abs(b).max(initial=0.0)))
    return bool(np.abs(a - b).max(initial=0.0) <= ROUNDING * size)


def differing(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    """Return the indices along an axis at which two arrays differ by more than rounding."""
    others = tuple(i for i in range(a.ndim) if i != axis % a.ndim)
    largest = np.abs(a - b).max(axis=others)
    return np.flatnonzero(~(largest <= ROUNDING * max(float(np.abs(a).max()), 1e-300)))


def same_vector(difference: np.ndarray) -> bool:
    """Return whether all vectors along the last axis are the same."""
    vectors = difference.reshape(-1, difference.shape[-1])
    size = float(np.abs(vectors).max(initial=0.0))
    return len(vectors) > 1 and bool(np.abs(vectors - vectors[0]).max() <= ROUNDING * size)


def same_by_position(difference: np.ndarray, positions: np.ndarray) -> bool:
    """Return whether vectors (N, T, D) are equal wherever the position indices (N, T) are equal.

    The result is False if no position occurs twice, because nothing can then be compared.
    """
    vectors = difference.reshape(-1, difference.shape[-1])
    size = float(np.abs(vectors).max(initial=0.0))
    flat = positions.ravel()
    repeated = False
    for position in np.unique(flat):
        alike = vectors[flat == position]
        if len(alike) > 1:
            repeated = True
            if np.abs(alike - alike[0]).max() > ROUNDING * size:
                return False
    return repeated


def factor(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return x with ``b == x * a``, or None if ``b`` is not a multiple of ``a``."""
    size = float(np.vdot(a, a))
    if size == 0:
        return None
    ratio = float(np.vdot(a, b)) / size
    return ratio if ratio != 0 and near(a * ratio, b) else None


def permutation_between(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray | None:
    """Return the permutation along an axis that turns ``a`` into ``b``.

    Returns:
        Indices with ``b == a.take(indices, axis)``; None if there is no such permutation, or
        if it is the identity.
    """
    count = a.shape[axis]
    parts_a, parts_b = (np.moveaxis(x, axis, 0).reshape(count, -1) for x in (a, b))
    weights = np.random.default_rng(0).standard_normal(parts_a.shape[1])
    sums_a, sums_b = parts_a @ weights, parts_b @ weights
    order = np.empty(count, dtype=np.int64)
    order[np.argsort(sums_b, kind="stable")] = np.argsort(sums_a, kind="stable")
    fits = count > 1 and near(parts_a[order], parts_b)
    return order if fits and not np.array_equal(order, np.arange(count)) else None


def dropout_probability(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return the dropout probability if ``b`` is ``a`` after dropout, else None."""
    zero = (b == 0) & (a != 0)
    if not 0 < zero.mean() < 1:
        return None
    ratio = factor(a[~zero], b[~zero])
    if ratio is None or ratio <= 1:
        return None
    return 1 - 1 / ratio


def index_ranges(indices: np.ndarray) -> str:
    """Return indices as text with ranges abbreviated: "0, 3-5"."""
    return ", ".join(
        str(first) if first == last else f"{first}-{last}" for first, last in _ranges(indices)
    )


def _ranges(indices: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the first and the last index of each range of consecutive indices."""
    pieces = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
    for piece in pieces:
        if len(piece):
            yield int(piece[0]), int(piece[-1])
