"""The dtypes of weights; round weights to a dtype, and measure the rounding errors."""

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from mae_convert.formats.registry import NUMPY_DTYPES

BLOCK = 1 << 17
"""Number of elements that are processed at a time in float64 (1 MiB)."""

INFINITY_BITS: Mapping[str, int] = {"float16": 0x7C00, "bfloat16": 0x7F80}
"""The bits of infinity as an unsigned integer, for floats of 16 bits. Without the sign bit, the
bits of NaN are larger."""


class DtypesByName(Mapping[str, np.dtype]):
    """NumPy dtypes by name.

    ml_dtypes defines the dtypes that NumPy does not have, such as bfloat16. It is imported when one
    of them is requested, because its import takes 3 % of the time of `inspect`.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def __getitem__(self, name: str) -> np.dtype:
        """Return the dtype with this name.

        Raises:
            KeyError: the mapping does not contain the name.
        """
        if name not in self._names:
            raise KeyError(name)
        if name in NUMPY_DTYPES:
            return np.dtype(name)
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


DTYPES = DtypesByName(("float64", "float32", "float16", "bfloat16"))
"""The dtypes that weights can have."""


def all_finite(array: np.ndarray) -> bool:
    """Return whether all values are finite, that is, neither NaN nor infinite.

    The bits of 16-bit floats are compared with the bits of infinity, which takes a tenth of the
    time of `np.isfinite`.
    """
    infinity = INFINITY_BITS.get(array.dtype.name) if array.itemsize == 2 else None
    if infinity is None:
        return bool(np.isfinite(array).all())
    return bool((array.view(np.uint16) & 0x7FFF).max(initial=0) < infinity)


def rounded(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return an array in another dtype, each value rounded once: to nearest, ties to even.

    Values that are too large become infinite; the caller must check for infinite values.
    """
    with np.errstate(over="ignore"):
        if array.dtype == np.float64 and dtype == DTYPES["bfloat16"]:
            # ml_dtypes converts by way of float32, where a value just above a tie becomes the tie.
            array = _float32_rounded_to_odd(array)
        return array.astype(dtype, copy=False)


def _float32_rounded_to_odd(array: np.ndarray) -> np.ndarray:
    """Round float64 values to float32 such that a second rounding, to bfloat16, is correct.

    A value that float32 cannot represent becomes the adjacent float32 value whose last bit is one.
    This value is never a tie in a format with at least two fewer bits (Boldo and Melquiond 2008,
    doi:10.1109/TC.2007.70819).
    """
    near = array.astype(np.float32)
    ends_in_zero = near.view(np.uint32) & 1 == 0
    other_side = np.nextafter(near, np.where(array > near, np.inf, -np.inf).astype(np.float32))
    return np.where((near != array) & ends_in_zero, other_side, near)


class MeasuredRounding:
    """Rounds a tensor to a dtype in consecutive parts, and can measure the rounding errors.

    A conversion reads a tensor twice: to write it, and to compare it with the written file. To
    measure the errors only once, they are measured from a call of `begin` until `size` elements
    have been rounded.

    Args:
        dtype: the dtype to round to.
        size: the number of elements of the tensor.
    """

    def __init__(self, dtype: np.dtype, size: int) -> None:
        self.dtype = dtype
        self._size, self._left = size, 0
        self._absolute = self._relative = 0.0

    def begin(self) -> None:
        """Set the errors to 0, and start to measure them; a whole tensor is measured."""
        self._left, self._absolute, self._relative = self._size, 0.0, 0.0

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Round the next elements of the tensor, and update the errors if they are measured."""
        made = rounded(array, self.dtype)
        if self._left > 0:
            error = rounding_error(array, made)
            self._absolute = max(self._absolute, error["absolute"])
            self._relative = max(self._relative, error["relative"])
            self._left -= array.size
        return made

    def error(self) -> dict[str, float]:
        """Return the largest errors since the last call of `begin`.

        The dictionary has the same keys as the result of `rounding_error`.
        """
        return {"absolute": self._absolute, "relative": self._relative}


def rounding_error(array: np.ndarray, rounded_values: np.ndarray) -> dict[str, float]:
    """Return the largest rounding errors of an array.

    Args:
        array: the values before rounding.
        rounded_values: the values after rounding.

    Returns:
        ``absolute``, the largest absolute error, and ``relative``, the largest error relative to
        the value before rounding; they may be errors of different elements.
    """
    absolute = relative = 0.0
    for before, after in zip(blocks(array), blocks(rounded_values), strict=True):
        exact = before.astype(np.float64)
        with np.errstate(invalid="ignore"):
            away = np.abs(after.astype(np.float64) - exact)
            far = np.divide(away, np.abs(exact), out=np.zeros_like(away), where=exact != 0)
        absolute = max(absolute, float(away.max(initial=0.0)))
        relative = max(relative, float(far.max(initial=0.0)))
    return {"absolute": absolute, "relative": relative}


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the elements of an array in C order, in flat arrays of limited size."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        yield flat[start : start + BLOCK]
