"""How far apart two results are, and from where on they count as different."""

import math

import numpy as np

FUNCTION_LIMIT = 1e-10  # relative L2 in float64: the same function, evaluated in another order


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """Return ‖a − b‖₂ / ‖b‖₂ in float64; 0/0 is 0, another shape infinite, NaN stays NaN."""
    if a.shape != b.shape:
        return math.inf
    exact_a, exact_b = (array.astype(np.float64, copy=False) for array in (a, b))
    with np.errstate(invalid="ignore", over="ignore"):
        distance, size = np.linalg.norm(exact_a - exact_b), np.linalg.norm(exact_b)
    if distance == 0:
        return 0.0
    return float(distance / size) if size != 0 else math.inf
