"""Edits of weights: how one canonical tensor is made of others.

Operations are named, so that an edit can be sent to a child process as plain data. They work on
NumPy arrays of any dtype, so that the result can be compared bit for bit with what a file holds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

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


Orders: TypeAlias = Mapping[str, np.ndarray]


def distinct(orders: Orders) -> dict[str, np.ndarray]:
    """Return the orders that change anything, each once."""
    seen = {tuple(range(len(order))) for order in orders.values()}
    kept = {}
    for what, order in orders.items():
        if tuple(order) not in seen:
            seen.add(tuple(order))
            kept[what] = order
    return kept


def head_orders(width: int, heads: int) -> dict[str, np.ndarray]:
    """Return other orders of the channels of q, k and v, which are (heads, channels)."""
    size = width // heads
    channels = np.arange(width)
    apart = channels.reshape(heads, size)
    return distinct(
        {
            "as (channels, heads)": apart.T.ravel(),
            "as (channels, heads) read as (heads, channels)": channels.reshape(
                size, heads
            ).T.ravel(),
            "with the heads moved on by one": np.roll(apart, 1, axis=0).ravel(),
            "with the heads moved back by one": np.roll(apart, -1, axis=0).ravel(),
            "with the heads in reverse order": apart[::-1].ravel(),
            "with the halves of each head exchanged": np.roll(apart, size // 2, axis=1).ravel(),
        }
    )


def pixel_orders(height: int, width: int, channels: int) -> dict[str, np.ndarray]:
    """Return other orders of the numbers of a patch, which are (row, column, channel)."""
    numbers = np.arange(height * width * channels)
    apart = numbers.reshape(height, width, channels)
    other = numbers.reshape(channels, height, width)
    return distinct(
        {
            "as (channel, row, column)": apart.transpose(2, 0, 1).ravel(),
            "as (channel, row, column) read as (row, column, channel)": other.transpose(
                1, 2, 0
            ).ravel(),
            "with the channels reversed (RGB and BGR)": apart[..., ::-1].ravel(),
            "as (column, row, channel)": apart.transpose(1, 0, 2).ravel(),
            "upside down": apart[::-1].ravel(),
            "mirrored": apart[:, ::-1].ravel(),
        }
    )


def position_orders(rows: int, columns: int) -> dict[str, np.ndarray]:
    """Return other orders of the class token's place and those of a grid of patches."""
    grid = np.arange(1, 1 + rows * columns).reshape(rows, columns)
    places = np.arange(1 + rows * columns)
    return distinct(
        {
            "shifted by the class token's place": np.roll(places, 1),
            "shifted back by the class token's place": np.roll(places, -1),
            "with the grid transposed": np.r_[0, grid.T.ravel()],
            "read as a grid of columns": np.r_[0, grid.reshape(columns, rows).T.ravel()],
            "with the grid upside down": np.r_[0, grid[::-1].ravel()],
            "with the grid mirrored": np.r_[0, grid[:, ::-1].ravel()],
            "with the patches in reverse order": np.r_[0, places[:0:-1]],
        }
    )


def sincos_orders(width: int) -> dict[str, np.ndarray]:
    """Return other orders of the channels of fixed positions: sine and cosine of column and row."""
    channels = np.arange(width)
    quarters = channels[: width // 4 * 4].reshape(4, -1)
    in_turn = quarters.reshape(2, 2, -1).swapaxes(1, 2)
    apart = quarters.reshape(2, -1, 2).swapaxes(1, 2)
    orders = {
        "with the channels of rows and of columns exchanged": quarters[[2, 3, 0, 1]],
        "with sines and cosines exchanged": quarters[[1, 0, 3, 2]],
        "with sines and cosines in turn": in_turn,
        "with sines and cosines in turn, read one after the other": apart,
    }
    rest = channels[quarters.size :]
    return distinct({what: np.r_[order.ravel(), rest] for what, order in orders.items()})
