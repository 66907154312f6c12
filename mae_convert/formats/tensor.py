"""Lazy tensors, whose elements are read on demand in C order, and digests of their bytes."""

import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mae_convert.errors import OutputError
from mae_convert.files.sequential import Checked, Mapped, SequentialArray

PIECE_BYTES = 1 << 20
"""The maximum number of bytes of each array that `LazyTensor.pieces` and `blocks` yield."""

CACHED_BYTES = 1 << 18
"""The number of bytes that are read and then checked at a time; they fit into a core's cache."""

BLOCK_BYTES = 1 << 24
"""The number of bytes that are copied at a time if an array is not contiguous in C order."""

TILE_ROWS, TILE_BYTES = 1024, 32
"""The size of the blocks in which a transposed matrix is copied: number of rows, bytes per row.

In the copy, the bytes of one row of a block are contiguous. They fill half a cache line; the next
block fills the other half while the line is still in the cache. Measured for matrices of ViT-B, L
and H, this is 1.1 to 1.5 times as fast as blocks of 512 rows that fill whole cache lines.
"""

SMALL_EXTENT = 256
"""A matrix with at most this number of rows or columns is transposed at once, not in blocks."""

LARGEST_EXTENT = 1 << 48
LARGEST_RANK = 32


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read on demand: name, shape, dtype, and a function that reads it."""

    name: str
    """The name of the tensor in its file."""

    shape: tuple[int, ...]
    """The shape of the tensor; empty for a scalar."""

    dtype: np.dtype
    """The NumPy dtype in native byte order (``ml_dtypes.bfloat16`` for bfloat16)."""

    load: Callable[[], np.ndarray]
    """A function that returns the array, which must not be modified. If the function is a
    `SequentialArray`, the elements can also be read in ranges."""

    unchecked: "LazyTensor | None" = None
    """The same tensor without the check that `checked` has added, to read the elements again. None
    if no check was added."""

    @property
    def nbytes(self) -> int:
        """The size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def renamed(self, name: str) -> "LazyTensor":
        """Return the same tensor under another name."""
        return replace(self, name=name)

    @classmethod
    def from_array(cls, name: str, array: np.ndarray) -> "LazyTensor":
        """Return an array as a lazy tensor, whose values are read in native byte order."""
        native = array.dtype.newbyteorder("=") if not array.dtype.isnative else array.dtype
        return cls(name, array.shape, native, lambda: array.astype(native, copy=False))

    def mapped(self, function: Callable[[np.ndarray], np.ndarray], dtype: np.dtype) -> "LazyTensor":
        """Return a tensor that, when read, applies `function` to the elements of this tensor.

        Args:
            function: computes an array of dtype `dtype` element by element, so that it can be
                applied to pieces of the tensor.
            dtype: the dtype of the result.
        """
        load = self.load
        if isinstance(load, SequentialArray):
            new: Callable[[], np.ndarray] = Mapped(self.shape, dtype, load, function)
        else:
            new = lambda: function(load())  # noqa: E731
        return replace(self, dtype=dtype, load=new, unchecked=None)

    def checked(self, function: Callable[[np.ndarray], np.ndarray]) -> "LazyTensor":
        """Return a tensor with the same elements, which `function` checks when they are read.

        Args:
            function: raises an error for an invalid element, or returns its argument.
        """
        if isinstance(self.load, SequentialArray):
            load: Callable[[], np.ndarray] = Checked(self.shape, self.dtype, self.load, function)
        else:
            load = self.mapped(function, self.dtype).load
        return replace(self, load=load, unchecked=self)

    def read_into(self, memory: np.ndarray) -> None:
        """Copy all elements in C order into `memory`.

        Args:
            memory: a flat contiguous array with the tensor's size and dtype.

        Raises:
            OutputError: `load` returns an array whose shape or dtype is not the tensor's.
        """
        load = self.load
        if isinstance(load, SequentialArray):
            self._check(load.shape, load.dtype)
            count = max(1, CACHED_BYTES // load.dtype.itemsize)
            for start in range(0, load.size, count):
                load.fill(memory[start : start + count], start)
        else:
            array = load()
            self._check(array.shape, array.dtype)
            _copy(array, memory.reshape(array.shape))

    def read_through(self) -> None:
        """Read all elements so that they are checked; at most a block is kept in memory at a time.

        Raises:
            OutputError: `load` returns an array whose shape or dtype is not the tensor's.
        """
        load = self.load
        if not isinstance(load, SequentialArray):
            for _ in self.pieces():
                pass
            return
        self._check(load.shape, load.dtype)
        block = np.empty(max(1, CACHED_BYTES // load.dtype.itemsize), load.dtype)
        for start in range(0, load.size, block.size):
            load.fill(block[: load.size - start], start)

    def pieces(self) -> Iterator[np.ndarray]:
        """Yield all elements in C order, in one-dimensional contiguous arrays.

        A `SequentialArray` is read piece by piece; any other array is loaded as a whole.

        Raises:
            OutputError: `load` returns an array whose shape or dtype is not the tensor's.
        """
        load = self.load
        if isinstance(load, SequentialArray):
            self._check(load.shape, load.dtype)
            count = max(1, PIECE_BYTES // load.dtype.itemsize)
            for start in range(0, load.size, count):
                yield from blocks(load.elements(start, min(start + count, load.size)))
        else:
            array = load()
            self._check(array.shape, array.dtype)
            yield from blocks(array)

    def _check(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if shape != self.shape or dtype != self.dtype:
            raise OutputError(
                f"{self.name} should be {self.dtype} of shape {self.shape} but is {dtype} of shape "
                f"{shape}"
            )


def possible_shape(shape: object) -> bool:
    """Return whether a value from a file is a valid shape: integers that NumPy supports."""
    return (
        isinstance(shape, tuple | list)
        and len(shape) <= LARGEST_RANK
        and all(type(extent) is int and 0 <= extent < LARGEST_EXTENT for extent in shape)
        and math.prod(extent for extent in shape if extent) < LARGEST_EXTENT
    )


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the elements of an array in C order, in one-dimensional contiguous arrays.

    The elements of a contiguous array are yielded as views. Other arrays are copied piece by piece,
    so that a large array is never in memory twice.
    """
    if array.size == 0:
        return
    if array.flags.c_contiguous:
        flat = array.reshape(-1)
        count = max(1, PIECE_BYTES // array.dtype.itemsize)
        for start in range(0, flat.size, count):
            yield flat[start : start + count]
    elif array.nbytes <= BLOCK_BYTES:
        yield from blocks(_contiguous(array))
    elif len(array) == 1:
        yield from blocks(array[0])
    else:
        rows = max(1, BLOCK_BYTES * len(array) // array.nbytes)
        for start in range(0, len(array), rows):
            yield from blocks(array[start : start + rows])


def _contiguous(array: np.ndarray) -> np.ndarray:
    """Return a copy in C order."""
    copied = np.empty(array.shape, array.dtype)
    _copy(array, copied)
    return copied


def _copy(array: np.ndarray, memory: np.ndarray) -> None:
    """Copy an array to memory in C order; a transposed matrix is copied in blocks for speed."""
    if array.ndim != 2 or min(array.shape) <= SMALL_EXTENT or array.strides[0] > array.strides[1]:
        memory[...] = array
        return
    columns = TILE_BYTES // array.dtype.itemsize
    for top in range(0, array.shape[0], TILE_ROWS):
        for left in range(0, array.shape[1], columns):
            part = (slice(top, top + TILE_ROWS), slice(left, left + columns))
            memory[part] = array[part]


def as_bytes(piece: np.ndarray) -> memoryview:
    """Return the bytes of a contiguous array."""
    return piece.reshape(-1).view(np.uint8).data


def sha256(tensor: LazyTensor) -> str:
    """Return the SHA-256 of a tensor's bytes, little-endian and in C order, as hexadecimal."""
    digest = hashlib.sha256()
    for piece in tensor.pieces():
        digest.update(as_bytes(piece))
    return digest.hexdigest()


class PassingDigest:
    """The SHA-256 of a tensor's bytes, computed while the tensor is written to a file.

    The file must be written from the lazy tensor `watched`, which has the same elements: the digest
    is computed when the elements of `watched` are read.

    Args:
        tensor: the tensor to hash.
    """

    def __init__(self, tensor: LazyTensor) -> None:
        self.tensor = tensor
        self._digest, self._next = hashlib.sha256(), 0
        self._result: str | None = None
        self._lock = threading.Lock()

    @property
    def watched(self) -> LazyTensor:
        """A lazy tensor with the same elements, which are hashed while they are read.

        If the elements are not read in order, `hexdigest` reads and hashes the tensor again.
        """
        load = self.tensor.load
        if isinstance(load, SequentialArray):
            return replace(
                self.tensor, load=_Watched(self.tensor.shape, self.tensor.dtype, load, self.take)
            )
        return replace(self.tensor, load=lambda: self.take(load(), 0))

    def take(self, array: np.ndarray, start: int) -> np.ndarray:
        """Hash elements if they are read in order, and return the elements unchanged.

        Elements are hashed if they are the first elements of the tensor or follow the last hashed
        elements.

        Args:
            array: consecutive elements in C order.
            start: the index of the first of these elements in the tensor.
        """
        with self._lock:
            if self._result is None and start in (0, self._next):
                if start == 0:  # the tensor is read from the beginning, perhaps again
                    self._digest, self._next = hashlib.sha256(), 0
                for piece in blocks(array):
                    self._digest.update(as_bytes(piece))
                self._next += array.size
                if self._next * self.tensor.dtype.itemsize == self.tensor.nbytes:
                    self._result = self._digest.hexdigest()
        return array

    def hexdigest(self) -> str:
        """Return the digest; a tensor that was not read in order is read now."""
        if self._result is None:
            self._result = sha256(self.tensor)
        return self._result


@dataclass(frozen=True, eq=False)
class _Watched(SequentialArray):
    """An array (the field `of`) whose elements pass through `take` when they are read.

    ``take`` gets consecutive elements and the index of the first, and returns the elements.
    """

    of: SequentialArray
    take: Callable[[np.ndarray, int], np.ndarray]

    def elements(self, start: int, stop: int) -> np.ndarray:
        """Return the elements from `start` to `stop` (exclusive) in C order, as a flat array."""
        return self.take(self.of.elements(start, stop), start)


def watched(
    tensors: Mapping[str, LazyTensor], digests: Mapping[str, PassingDigest]
) -> dict[str, LazyTensor]:
    """Return tensors that update `digests` while they are read; see `PassingDigest.watched`.

    Tensors whose name is not in `digests` are returned unchanged.
    """
    return {n: digests[n].watched if n in digests else tensor for n, tensor in tensors.items()}
