"""The distance of two arrays of floating-point numbers, for tests that compare arrays.

A sum of floating-point numbers depends on the order of its terms, which depends on the processor
and on the BLAS. Compared element by element, small elements that are sums of large terms differ by
more than any useful tolerance. Relative to the norm of the whole array, correct arrays differ by a
few units of roundoff on every processor.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

# The largest distance of two results that were computed from the same numbers in this precision.
FLOAT64_LIMIT = 1e-12
FLOAT32_LIMIT = 1e-6


def distance(measured: Any, expected: Any) -> float:
    """Return the relative L2 distance of two arrays or tensors of the same shape; 0/0 is 0.

    NaN in either makes it NaN, which is not below any limit.
    """
    measured, expected = (
        np.asarray(array.detach() if hasattr(array, "detach") else array).astype(np.float64)
        for array in (measured, expected)
    )
    assert measured.shape == expected.shape, (measured.shape, expected.shape)
    difference = np.linalg.norm(measured - expected)
    size = np.linalg.norm(expected)
    return float(difference / size) if size else float("inf" if difference else 0.0)


def assert_near(measured: Mapping[str, Any], expected: Mapping[str, Any], limit: float) -> None:
    """Require that gradients or weights, by name, are near, each relative to its own norm."""
    assert set(measured) == set(expected)
    for name, array in expected.items():
        assert distance(measured[name], array) <= limit, name
