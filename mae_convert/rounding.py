"""The dtypes of weights: rounding to one of them, and how far it moves a tensor."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES: Mapping[str, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": BFLOAT16,
}


def rounded(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return an array in another dtype, each value rounded once: to the nearest, ties to even.

    What is too large becomes infinite; whoever writes the array has to look for that.
    """
    with np.errstate(over="ignore"):
        if array.dtype == np.float64 and dtype == BFLOAT16:
            # ml_dtypes goes by way of float32, where what lies just above a tie becomes the tie.
            array = _float32_rounded_to_odd(array)
        return array.astype(dtype, copy=False)


def _float32_rounded_to_odd(array: np.ndarray) -> np.ndarray:
    """Return float64 values as float32 such that rounding again is as if it were the first time.

    What float32 cannot hold becomes the neighbour whose last bit is one, which is never a tie of a
    format with at least two bits less (Boldo and Melquiond 2008, doi:10.1109/TC.2007.70819).
    """
    near = array.astype(np.float32)
    ends_in_zero = near.view(np.uint32) & 1 == 0
    other_side = np.nextafter(near, np.where(array > near, np.inf, -np.inf).astype(np.float32))
    return np.where((near != array) & ends_in_zero, other_side, near)


def rounding_error(array: np.ndarray, dtype: np.dtype) -> dict[str, float]:
    """Return the largest distance by which rounding moves a value of an array.

    Returns:
        ``absolute``, and ``relative`` to the value that was moved; values need not be the same.
    """
    exact = array.astype(np.float64)
    with np.errstate(invalid="ignore"):
        away = np.abs(rounded(array, dtype).astype(np.float64) - exact)
        relative = np.divide(away, np.abs(exact), out=np.zeros_like(away), where=exact != 0)
    return {
        "absolute": float(away.max(initial=0.0)),
        "relative": float(relative.max(initial=0.0)),
    }
