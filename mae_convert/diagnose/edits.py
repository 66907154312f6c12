"""What may have happened to a tensor on its way: an edit makes one canonical array of others.

Edits are named, so that they can be sent to a child process as plain data, and work on NumPy arrays
of any dtype, so that they are compared bit for bit with what a file holds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reference_models.positions import sincos_position_embedding

BFLOAT16_DROPS = 16  # bits of float32 that bfloat16 has not


@dataclass(frozen=True)
class Change:
    """One canonical tensor made of others: what B would hold if this happened to A.

    Attributes:
        target: the canonical tensor that is changed.
        edit: how, a name in ``EDITS``.
        sources: the canonical tensors that it is made of.
        options: arguments of the edit.
    """

    target: str
    edit: str
    sources: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return the changed array; ``arrays`` are those of ``sources``.

        Raises:
            ValueError: the edit does not fit the shapes.
        """
        return EDITS[self.edit](*arrays, **self.options)


def same(array: np.ndarray) -> np.ndarray:
    """Return another tensor as it is."""
    return array


def axes_reordered(
    array: np.ndarray,
    axes: Sequence[int],
    view: Sequence[int] | None = None,
    flipped: Sequence[int] = (),
) -> np.ndarray:
    """Return the array seen in a shape (its own), with its axes in another order, in its own shape.

    Where the shapes agree this is a transposition, else what becomes of an array that is reshaped
    where it has to be transposed. Some axes may be run through backwards before.
    """
    turned = np.flip(array, tuple(flipped)) if flipped else array
    return turned.reshape(view or array.shape).transpose(axes).reshape(array.shape)


def taken(array: np.ndarray, axis: int, order: Sequence[int]) -> np.ndarray:
    """Return rows, columns or channels in another order."""
    return array.take(order, axis=axis)


def filled(array: np.ndarray, value: float) -> np.ndarray:
    """Return one value everywhere: a tensor that was never loaded."""
    return np.full_like(array, value)


def multiplied(array: np.ndarray, factor: float) -> np.ndarray:
    """Return the array times a number."""
    return (array * np.asarray(factor, array.dtype)).astype(array.dtype)


def added(array: np.ndarray, amount: float) -> np.ndarray:
    """Return the array plus a number."""
    return (array + np.asarray(amount, array.dtype)).astype(array.dtype)


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return values that were stored in less precision, in the array's own dtype."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return array.astype(np.float16).astype(array.dtype)
    return to_bfloat16(array.astype(np.float32)).astype(array.dtype)


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Return float32 values rounded to bfloat16's eight bits, to the nearest, ties to even."""
    bits = array.view(np.uint32).astype(np.uint64)
    dropped, one = np.uint64(BFLOAT16_DROPS), np.uint64(1)
    half = (one << (dropped - one)) - one
    kept = (bits + half + ((bits >> dropped) & one)) >> dropped << dropped
    return kept.astype(np.uint32).view(np.float32)


def fused_otherwise(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, part: int, groups: int
) -> np.ndarray:
    """Return a part of a fused q, k, v matrix that is taken as (groups, 3, rows) for (3, rows)."""
    fused = np.concatenate([query, key, value])
    rows = fused.reshape(groups, 3, -1, *fused.shape[1:])
    return rows[:, part].reshape(query.shape)


def split_otherwise(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, part: int, groups: int
) -> np.ndarray:
    """Return a part of a matrix that is stored as (groups, 3, rows) and taken as (3, rows)."""
    apart = np.stack([x.reshape(groups, -1, *x.shape[1:]) for x in (query, key, value)], axis=1)
    return apart.reshape(3, *query.shape)[part]


def first_row(array: np.ndarray, factor: float) -> np.ndarray:
    """Return positions whose class token's row is multiplied: left out (0) or added twice (2)."""
    return np.concatenate([array[:, :1] * np.asarray(factor, array.dtype), array[:, 1:]], axis=1)


def sines_and_cosines(array: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """Return the fixed position embedding of this shape, made anew."""
    table = sincos_position_embedding(array.shape[-1], (grid[0], grid[1]))
    return table.astype(np.float32).astype(array.dtype)


EDITS: Mapping[str, Callable[..., np.ndarray]] = {
    edit.__name__: edit
    for edit in (
        same,
        axes_reordered,
        taken,
        filled,
        multiplied,
        added,
        rounded,
        fused_otherwise,
        split_otherwise,
        first_row,
        sines_and_cosines,
    )
}
