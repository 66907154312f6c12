"""Arrays whose elements are read in ranges, in C order, so that no array is entirely in memory.

Tensors that are copied, rounded, split or concatenated along their first axis are read, written and
compared in this way. A transpose changes the order of the elements, so it loads the whole array: at
most 26 MB in float32 for the largest official model, a ViT-H.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from mae_convert.files.byte_ranges import ByteFile


class FilePosition(NamedTuple):
    """The position of bytes in an open file."""

    file: "ByteFile"
    """The whole file."""

    offset: int
    """The offset in the file of the first of these bytes."""


@dataclass(frozen=True, eq=False)
class SequentialArray(ABC):
    """An array whose elements can be read in ranges; calling it returns the whole array."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def __call__(self) -> np.ndarray:
        """Return the whole array, which must not be modified."""
        return self.elements(0, self.size).reshape(self.shape)

    @abstractmethod
    def elements(self, start: int, stop: int) -> np.ndarray:
        """Return the elements from `start` to `stop` (exclusive) in C order, as a flat array."""

    def fill(self, memory: np.ndarray, start: int) -> None:
        """Fill a flat contiguous array of the same dtype with the elements from `start` on."""
        memory[:] = self.elements(start, start + len(memory))

    def stored_at(self, start: int, stop: int) -> FilePosition | None:
        """Return where the elements from `start` to `stop` (exclusive) are stored in a file.

        Returns:
            The position of the element at index `start`; None if the elements are not stored
            contiguously, in this order and with these values, in one file.
        """
        del start, stop
        return None


@dataclass(frozen=True, eq=False)
class ArrayRange(SequentialArray):
    """A contiguous range of the elements of an array (the field `of`), from index `first` on."""

    of: SequentialArray
    first: int

    def elements(self, start: int, stop: int) -> np.ndarray:
        """Return the elements from `start` to `stop` (exclusive) of this range."""
        return self.of.elements(self.first + start, self.first + stop)

    def fill(self, memory: np.ndarray, start: int) -> None:
        """Fill a flat contiguous array with elements of this range, from number `start` on."""
        self.of.fill(memory, self.first + start)

    def stored_at(self, start: int, stop: int) -> FilePosition | None:
        """Return where elements of this range are stored; see `SequentialArray.stored_at`."""
        return self.of.stored_at(self.first + start, self.first + stop)


@dataclass(frozen=True, eq=False)
class Joined(SequentialArray):
    """The concatenated elements of several arrays."""

    parts: Sequence[SequentialArray]

    def elements(self, start: int, stop: int) -> np.ndarray:
        """Return the elements from `start` to `stop` (exclusive) of the concatenated array."""
        pieces = [part.elements(low, high) for part, low, high in self._ranges(start, stop)]
        if not pieces:
            return np.empty(0, self.dtype)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def fill(self, memory: np.ndarray, start: int) -> None:
        """Fill a flat contiguous array with the elements from index `start` on, part by part."""
        filled = 0
        for part, low, high in self._ranges(start, start + len(memory)):
            part.fill(memory[filled : filled + high - low], low)
            filled += high - low

    def _ranges(self, start: int, stop: int) -> Iterator[tuple[SequentialArray, int, int]]:
        """Yield each part that overlaps a range of elements, and where it overlaps.

        Yields:
            The part, and the start and the (exclusive) stop of the overlap within the part.
        """
        first = 0
        for part in self.parts:
            low, high = max(start - first, 0), min(stop - first, part.size)
            if low < high:
                yield part, low, high
            first += part.size

    def stored_at(self, start: int, stop: int) -> FilePosition | None:
        """Return where the elements are stored; None unless the parts are adjacent in one file."""
        begins: FilePosition | None = None
        expected: FilePosition | None = None
        for part, low, high in self._ranges(start, stop):
            position = part.stored_at(low, high)
            if position is None or (begins is not None and position != expected):
                return None
            begins = begins or position
            expected = position._replace(
                offset=position.offset + (high - low) * self.dtype.itemsize
            )
        return begins


@dataclass(frozen=True, eq=False)
class Mapped(SequentialArray):
    """An array of the results of `function` for the elements of another array, the field `of`."""

    of: SequentialArray
    function: Callable[[np.ndarray], np.ndarray]

    def elements(self, start: int, stop: int) -> np.ndarray:
        """Return the results of `function` for the elements from `start` to `stop` (exclusive)."""
        return self.function(self.of.elements(start, stop))


@dataclass(frozen=True, eq=False)
class Checked(Mapped):
    """An array (the field `of`) whose elements `function` checks when they are read.

    `function` returns the elements that it receives, or raises an error if an element is invalid.
    """

    def fill(self, memory: np.ndarray, start: int) -> None:
        """Fill a flat contiguous array with the elements from index `start` on, and check them.

        `function` raises an error if an element is invalid.
        """
        self.of.fill(memory, start)
        self.function(memory)

    def stored_at(self, start: int, stop: int) -> FilePosition | None:
        """Return where the elements are stored; see `SequentialArray.stored_at`."""
        return self.of.stored_at(start, stop)


def split(array: SequentialArray, shapes: Sequence[tuple[int, ...]]) -> list[SequentialArray]:
    """Return arrays of the given shapes that are consecutive ranges of `array`."""
    first = itertools.accumulate(map(math.prod, shapes), initial=0)
    return [
        ArrayRange(shape, array.dtype, array, at) for shape, at in zip(shapes, first, strict=False)
    ]
