"""A file as a read-only memory map, from which only what lies inside it can be taken."""

import math
import mmap
from pathlib import Path

import numpy as np

from mae_convert.errors import CheckpointError


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
        array = np.frombuffer(self.stream, dtype, count, offset).reshape(shape)
        return array if array.flags.aligned else array.copy()

    def check(self, offset: int, count: int) -> None:
        """Require that `count` bytes from `offset` on are in the file.

        Raises:
            CheckpointError: they are not.
        """
        if offset < 0 or count < 0 or offset + count > self.size:
            raise CheckpointError(
                f"{self.path} is truncated or damaged: it has {self.size} bytes, and data are said "
                f"to lie at {offset} to {offset + count}; copy or download it again"
            )
