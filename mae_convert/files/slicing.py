"""Ways to an array that can also give a part of it, so that no large array stands in memory whole.

An array is looked at as a matrix here: its first axis by all the others. What cannot be said of
parts is said of the whole: a way to an array is called, and returns it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Block = Callable[[slice, slice], np.ndarray]


@dataclass(frozen=True, eq=False)
class Sliceable(ABC):
    """A way to an array of a shape and a dtype, whole or in part."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def in_order(self) -> bool:
        """Whether rows are as cheap one by one as together, because they lie so in a file."""
        return False

    @property
    def rows(self) -> int:
        """The extent of the first axis; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        """The product of the other extents."""
        return math.prod(self.shape[1:])

    def __call__(self) -> np.ndarray:
        """Return the whole array; it is not to be written to."""
        return self.block(slice(0, self.rows), slice(0, self.columns)).reshape(self.shape)

    @abstractmethod
    def block(self, rows: slice, columns: slice) -> np.ndarray:
        """Return some rows and some columns of these, as a matrix; both slices have both ends."""


@dataclass(frozen=True, eq=False)
class Rows(Sliceable):
    """Some rows of another array, from `first` on."""

    of: Sliceable
    first: int

    @property
    def in_order(self) -> bool:
        """Whether the other array is."""
        return self.of.in_order

    def block(self, rows: slice, columns: slice) -> np.ndarray:
        """Return rows of the other array."""
        return self.of.block(slice(self.first + rows.start, self.first + rows.stop), columns)


@dataclass(frozen=True, eq=False)
class Joined(Sliceable):
    """Several arrays, one after the other along the first axis."""

    parts: Sequence[Sliceable]

    @property
    def in_order(self) -> bool:
        """Whether all parts are."""
        return all(part.in_order for part in self.parts)

    def block(self, rows: slice, columns: slice) -> np.ndarray:
        """Return rows of the parts that have them."""
        found, first = [], 0
        for part in self.parts:
            start, stop = max(rows.start - first, 0), min(rows.stop - first, part.rows)
            if start < stop:
                found.append(part.block(slice(start, stop), columns))
            first += part.rows
        return found[0] if len(found) == 1 else np.concatenate(found)


@dataclass(frozen=True, eq=False)
class Turned(Sliceable):
    """The transpose of a matrix."""

    of: Sliceable

    def block(self, rows: slice, columns: slice) -> np.ndarray:
        """Return the transposed view of columns of the other matrix."""
        return self.of.block(columns, rows).T


@dataclass(frozen=True, eq=False)
class Each(Sliceable):
    """Another array with every element mapped to one of `dtype`."""

    of: Sliceable
    function: Callable[[np.ndarray], np.ndarray]

    @property
    def in_order(self) -> bool:
        """Whether the other array is."""
        return self.of.in_order

    def block(self, rows: slice, columns: slice) -> np.ndarray:
        """Return the mapped elements."""
        return self.function(self.of.block(rows, columns))
