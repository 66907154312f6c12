"""A tensor that is not read until it is asked for, and the order of its bytes."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from mae_convert.errors import OutputError

BLOCK_BYTES = 1 << 24
"""Bytes that are copied at once where an array does not lie in memory as it is written."""

LARGEST_EXTENT = 1 << 48
LARGEST_RANK = 32


@dataclass(frozen=True)
class LazyTensor:
    """A name, a shape, a dtype, and a way to get the array.

    Attributes:
        name: the tensor's name in its container.
        shape: its extents; empty for a scalar.
        dtype: its NumPy dtype in native byte order (``ml_dtypes.bfloat16`` for bfloat16).
        load: returns the array, of that shape and dtype, read-only where it is a view of a
            memory map.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """The size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def renamed(self, name: str) -> "LazyTensor":
        """Return the same tensor under another name."""
        return replace(self, name=name)

    @classmethod
    def from_array(cls, name: str, array: np.ndarray) -> "LazyTensor":
        """Return an array as a tensor; one of foreign byte order is swapped when it is loaded."""
        native = array.dtype.newbyteorder("=") if not array.dtype.isnative else array.dtype
        return cls(name, array.shape, native, lambda: array.astype(native, copy=False))


def possible_shape(shape: object) -> bool:
    """Tell whether a value read from a file can be a shape: integers that NumPy can hold."""
    return (
        isinstance(shape, tuple | list)
        and len(shape) <= LARGEST_RANK
        and all(type(extent) is int and 0 <= extent < LARGEST_EXTENT for extent in shape)
        and math.prod(extent for extent in shape if extent) < LARGEST_EXTENT
    )


def blocks(array: np.ndarray) -> Iterator[memoryview]:
    """Yield the bytes of an array in C order.

    A contiguous array is yielded as views of itself. A transposed one is copied piece by piece,
    so that a large view of a memory map never stands in memory as a whole.
    """
    if array.size == 0:
        return
    if array.flags.c_contiguous:
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, BLOCK_BYTES):
            yield flat[start : start + BLOCK_BYTES].data
    elif array.nbytes <= BLOCK_BYTES:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    elif len(array) == 1:
        yield from blocks(array[0])
    else:
        rows = max(1, BLOCK_BYTES * len(array) // array.nbytes)
        for start in range(0, len(array), rows):
            yield from blocks(array[start : start + rows])


def sha256(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's bytes, little-endian and in C order, as hexadecimal."""
    digest = hashlib.sha256()
    for block in blocks(array):
        digest.update(block)
    return digest.hexdigest()


class Digests:
    """The SHA-256 of tensors, computed while their bytes pass on their way into a file."""

    def __init__(self) -> None:
        self.by_name: dict[str, str] = {}

    def pieces(self, tensor: LazyTensor) -> Iterator[memoryview]:
        """Load a tensor and yield its bytes, little-endian and in C order.

        Raises:
            OutputError: the array is not what the tensor promised.
        """
        array = tensor.load()
        if array.shape != tensor.shape or array.dtype != tensor.dtype:
            raise OutputError(
                f"{tensor.name} was to be {tensor.dtype} of shape {tensor.shape} and is "
                f"{array.dtype} of shape {array.shape}"
            )
        digest = hashlib.sha256()
        for block in blocks(array):
            digest.update(block)
            yield block
        self.by_name[tensor.name] = digest.hexdigest()
