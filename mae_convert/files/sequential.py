"""Arrays whose elements are read in ranges, in C order, so that no array is entirely in memory.

Tensors that are copied, rounded, split or concatenated along their first axis are read, written and
compared in this way. A transpose needs another order of the elements and loads the whole array: at
most 26 MB in float32 for the largest official model, a ViT-H.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class SequentialArray(ABC):
    """An array of a shape and a dtype; calling it returns the whole array."""

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


@dataclass(frozen=True, eq=False)
class ArrayRange(SequentialArray):
    """A contiguous range of the elements of another array, from `first` on."""

    of: SequentialArray
    first: int

    def elements(self, start: int, stop: int) -> np.ndarray:
        """Return elements of the other array."""
        return self.of.elements(self.first + start, self.first + stop)


@dataclass(frozen=True, eq=False)
class Joined(SequentialArray):
    """The concatenated elements of several arrays."""

    parts: Sequence[SequentialArray]

    def elements(self, start: int, stop: int) -> np.ndarray:
        """Return the elements from the parts that contain them."""
        pieces, first = [], 0
        for part in self.parts:
            low, high = max(start - first, 0), min(stop - first, part.size)
            if low < high:
                pieces.append(part.elements(low, high))
            first += part.size
        if not pieces:
            return np.empty(0, self.dtype)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


@dataclass(frozen=True, eq=False)
class Mapped(SequentialArray):
    """Another array with a function applied to each element, which returns `dtype`."""

    of: SequentialArray
    function: Callable[[np.ndarray], np.ndarray]

    def elements(self, start: int, stop: int) -> np.ndarray:
        """Return the mapped elements."""
        return self.function(self.of.elements(start, stop))


def split(array: SequentialArray, shapes: Sequence[tuple[int, ...]]) -> list[SequentialArray]:
    """Return arrays of these shapes that are consecutive ranges of another array."""
    first = itertools.accumulate(map(math.prod, shapes), initial=0)
    return [
        ArrayRange(shape, array.dtype, array, at) for shape, at in zip(shapes, first, strict=False)
    ]
