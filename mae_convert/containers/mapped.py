"""A file as a read-only memory map, from which only what lies inside it can be taken."""

import copy
import io
import math
import mmap
import weakref
from pathlib import Path
from typing import Any

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
        self.start, self.size = 0, len(self.stream)

    @property
    def is_whole(self) -> bool:
        """Whether this is all of the file, and not a part of it."""
        return self.size == len(self.stream)

    def part(self, offset: int, size: int) -> "MappedFile":
        """Return some of the bytes as a file of their own, on the same map.

        Raises:
            CheckpointError: they are not all in the file.
        """
        self.check(offset, size)
        part = copy.copy(self)
        part.start, part.size = self.start + offset, size
        return part

    def raw(self, offset: int, count: int) -> bytes:
        """Return a copy of `count` bytes.

        Raises:
            CheckpointError: they are not all in the file.
        """
        self.check(offset, count)
        begin = self.start + offset
        return self.stream[begin : begin + count]

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return an array whose data begin at `offset`: a view where they are aligned.

        Raises:
            CheckpointError: the data are not all in the file.
        """
        count = math.prod(shape)
        self.check(offset, count * dtype.itemsize)
        if count == 0:
            return np.empty(shape, dtype)
        flat = np.frombuffer(self.stream, dtype, count, self.start + offset)
        self._forget_with(flat, self.start + offset, flat.nbytes)
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


class Window(io.RawIOBase):
    """A mapped file as a stream, for a parser that wants one."""

    def __init__(self, mapped: MappedFile) -> None:
        self._mapped = mapped
        self._position = 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be read from anywhere."""
        return True

    def tell(self) -> int:
        """Return where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; before the beginning there is none."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._mapped.size}
        if base[whence] + offset < 0:
            raise OSError("a place before the beginning")
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as there are bytes."""
        count = max(0, min(len(buffer), self._mapped.size - self._position))
        buffer[:count] = self._mapped.raw(min(self._position, self._mapped.size), count)
        self._position += count
        return count
