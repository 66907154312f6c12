"""A file as a read-only memory map, from which only what lies inside it can be taken."""

import math
import mmap
import weakref
from pathlib import Path

import numpy as np

from mae_convert.containers.messages import damaged


class MappedFile:
    """A file in memory: nothing is read until it is looked at, and nothing beyond its end.

    The map outlives the file's name: a file that is replaced while it is open is still read as
    it was.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.stream = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.size = len(self.stream)

    def raw(self, offset: int, count: int) -> bytes:
        """Return a copy of `count` bytes.

        Raises:
            CheckpointError: they are not all in the file.
        """
        self.check(offset, count)
        return self.stream[offset : offset + count]

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return an array whose data begin at `offset`: a view where they are aligned.

        Raises:
            CheckpointError: the data are not all in the file.
        """
        count = math.prod(shape)
        self.check(offset, count * dtype.itemsize)
        if count == 0:
            return np.empty(shape, dtype)
        flat = np.frombuffer(self.stream, dtype, count, offset)
        self._forget_with(flat, offset, flat.nbytes)
        return flat.reshape(shape) if flat.flags.aligned else flat.reshape(shape).copy()

    def _forget_with(self, array: np.ndarray, offset: int, count: int) -> None:
        """Let the pages go when the array and its views are gone, so that few are held at once."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = offset - offset % mmap.PAGESIZE
            length = offset + count - start
            forget = weakref.finalize(array, self.stream.madvise, mmap.MADV_DONTNEED, start, length)
            forget.atexit = False

    def check(self, offset: int, count: int) -> None:
        """Require that `count` bytes from `offset` on are in the file.

        Raises:
            CheckpointError: they are not.
        """
        if offset < 0 or count < 0 or offset + count > self.size:
            raise damaged(self.path, f"data at {offset} to {offset + count} of {self.size} bytes")
