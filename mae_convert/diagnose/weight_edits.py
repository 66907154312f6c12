"""Weight edits: computations of a tensor's new values from its own values or other tensors.

Operations are specified by name, so that an edit can be sent to a child process as JSON. They
accept NumPy arrays of any dtype, so that the result can be compared exactly with a stored tensor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from reference_models.positions import sincos_position_embedding

BFLOAT16_DROPS = 16  # the number of bits of float32 that bfloat16 does not have


@dataclass(frozen=True)
class WeightEdit:
    """A possible change of one canonical tensor between A and B."""

    target: str
    """The changed canonical tensor."""

    operation: str
    """The name of the operation in ``OPERATIONS``."""

    sources: tuple[str, ...]
    """The canonical tensors to which the operation is applied."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the operation."""

    def apply(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return the changed array.

        Args:
            arrays: the arrays of the tensors in `sources`, in this order.

        Raises:
            ValueError: the operation does not fit the shapes.
        """
        return OPERATIONS[self.operation](*arrays, **self.options)


def copied(array: np.ndarray) -> np.ndarray:
    """Return the array unchanged, for an edit that replaces one tensor with another tensor."""
    return array


def permuted(
    array: np.ndarray,
    axes: Sequence[int],
    view: Sequence[int] | None = None,
    flipped: Sequence[int] = (),
) -> np.ndarray:
    """Return the array with permuted axes, reshaped to the original shape.

    If the permutation does not change the shape, the result is the transposed array. If it changes
    the shape, the result is what a program gets if it reshapes the transposed array to the original
    shape by mistake, instead of transposing it back.

    Args:
        array: the tensor.
        axes: the new order of the axes.
        view: a shape to which the array is reshaped first; default: the shape of the array.
        flipped: axes that are reversed first.
    """
    reversed_ = np.flip(array, tuple(flipped)) if flipped else array
    return reversed_.reshape(view or array.shape).transpose(axes).reshape(array.shape)


def reordered(array: np.ndarray, axis: int, order: Sequence[int]) -> np.ndarray:
    """Return the array with its entries along `axis` in the order of the indices `order`."""
    return array.take(order, axis=axis)


def filled(array: np.ndarray, value: float) -> np.ndarray:
    """Return an array of the same shape in which every element is `value`.

    A tensor that was not loaded and kept its initial value can be such an array.
    """
    return np.full_like(array, value)


def multiplied(array: np.ndarray, factor: float) -> np.ndarray:
    """Return the array multiplied by a number."""
    return (array * np.asarray(factor, array.dtype)).astype(array.dtype)


def added(array: np.ndarray, amount: float) -> np.ndarray:
    """Return the array plus a number."""
    return (array + np.asarray(amount, array.dtype)).astype(array.dtype)


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return the array rounded to a narrower dtype and converted back to its dtype."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return array.astype(np.float16).astype(array.dtype)
    return to_bfloat16(array.astype(np.float32)).astype(array.dtype)


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Return float32 values rounded to bfloat16: to nearest, ties to even."""
    bits = array.view(np.uint32).astype(np.uint64)
    dropped, one = np.uint64(BFLOAT16_DROPS), np.uint64(1)
    half = (one << (dropped - one)) - one
    rounded_bits = (bits + half + ((bits >> dropped) & one)) >> dropped << dropped
    return rounded_bits.astype(np.uint32).view(np.float32)


def fused_as_groups(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, part: int, groups: int
) -> np.ndarray:
    """Return q, k or v as read from a fused matrix in the wrong order (groups, 3, rows).

    The matrix has the order (3, rows): it consists of all rows of q, then of k, then of v.

    Args:
        query: the correct tensor of q.
        key: the correct tensor of k.
        value: the correct tensor of v.
        part: the returned tensor: 0 for q, 1 for k, 2 for v.
        groups: the number of groups of rows, such as the number of heads.
    """
    fused = np.concatenate([query, key, value])
    rows = fused.reshape(groups, 3, -1, *fused.shape[1:])
    return rows[:, part].reshape(query.shape)


def split_as_groups(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, part: int, groups: int
) -> np.ndarray:
    """Return q, k or v as read from a fused matrix in the wrong order (3, rows).

    The matrix has the order (groups, 3, rows): each group consists of rows of q, then of k, then
    of v. The arguments are the same as for `fused_as_groups`.
    """
    apart = np.stack([x.reshape(groups, -1, *x.shape[1:]) for x in (query, key, value)], axis=1)
    return apart.reshape(3, *query.shape)[part]


def class_position_multiplied(array: np.ndarray, factor: float) -> np.ndarray:
    """Return the position embedding with the class token's row multiplied by a factor: 0 or 2."""
    return np.concatenate([array[:, :1] * np.asarray(factor, array.dtype), array[:, 1:]], axis=1)


def sincos_positions(array: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """Return the fixed sine-cosine position embedding of a grid, in the shape of `array`."""
    table = sincos_position_embedding(array.shape[-1], (grid[0], grid[1]))
    return table.astype(np.float32).astype(array.dtype)


OPERATIONS: Mapping[str, Callable[..., np.ndarray]] = {
    operation.__name__: operation
    for operation in (
        copied,
        permuted,
        reordered,
        filled,
        multiplied,
        added,
        rounded,
        fused_as_groups,
        split_as_groups,
        class_position_multiplied,
        sincos_positions,
    )
}

# Indices by description; the tensor in the wrong order is ``tensor.take(indices, axis)``.
Orders: TypeAlias = Mapping[str, np.ndarray]


def distinct(orders: Orders) -> dict[str, np.ndarray]:
    """Return the orders of elements, by description, without duplicates.

    The order that leaves all elements in their places is left out.
    """
    seen = {tuple(range(len(order))) for order in orders.values()}
    different = {}
    for description, order in orders.items():
        if tuple(order) not in seen:
            seen.add(tuple(order))
            different[description] = order
    return different


def head_orders(width: int, heads: int) -> dict[str, np.ndarray]:
    """Return wrong orders of the channels of q, k and v: arrays of indices, by description.

    The correct order is (heads, channels).
    """
    size = width // heads
    channels = np.arange(width)
    apart = channels.reshape(heads, size)
    return distinct(
        {
            "arranged as (channels, heads)": apart.T.ravel(),
            "stored as (channels, heads) and read as (heads, channels)": channels.reshape(
                size, heads
            ).T.ravel(),
            "with the heads shifted forward by one": np.roll(apart, 1, axis=0).ravel(),
            "with the heads shifted back by one": np.roll(apart, -1, axis=0).ravel(),
            "with the heads in reverse order": apart[::-1].ravel(),
            "with the halves of each head exchanged": np.roll(apart, size // 2, axis=1).ravel(),
        }
    )


def pixel_orders(height: int, width: int, channels: int) -> dict[str, np.ndarray]:
    """Return wrong orders of the values of a patch: arrays of indices, by description.

    The correct order is (row, column, channel).
    """
    numbers = np.arange(height * width * channels)
    apart = numbers.reshape(height, width, channels)
    other = numbers.reshape(channels, height, width)
    return distinct(
        {
            "arranged as (channel, row, column)": apart.transpose(2, 0, 1).ravel(),
            "stored as (channel, row, column) and read as (row, column, channel)": other.transpose(
                1, 2, 0
            ).ravel(),
            "with the channels reversed (RGB and BGR)": apart[..., ::-1].ravel(),
            "arranged as (column, row, channel)": apart.transpose(1, 0, 2).ravel(),
            "upside down": apart[::-1].ravel(),
            "mirrored": apart[:, ::-1].ravel(),
        }
    )


def position_orders(rows: int, columns: int) -> dict[str, np.ndarray]:
    """Return wrong orders of the position embeddings of a class token and a grid of patches.

    Each order is an array of row indices, by its description.
    """
    grid = np.arange(1, 1 + rows * columns).reshape(rows, columns)
    positions = np.arange(1 + rows * columns)
    return distinct(
        {
            "shifted forward by one, including the class token": np.roll(positions, 1),
            "shifted back by one, including the class token": np.roll(positions, -1),
            "with the grid transposed": np.r_[0, grid.T.ravel()],
            "read as if stored column by column": np.r_[0, grid.reshape(columns, rows).T.ravel()],
            "with the grid upside down": np.r_[0, grid[::-1].ravel()],
            "with the grid mirrored": np.r_[0, grid[:, ::-1].ravel()],
            "with the patches in reverse order": np.r_[0, positions[:0:-1]],
        }
    )


def sincos_orders(width: int) -> dict[str, np.ndarray]:
    """Return wrong orders of the channels of a sine-cosine position embedding.

    Each order is an array of channel indices, by its description.
    """
    channels = np.arange(width)
    quarters = channels[: width // 4 * 4].reshape(4, -1)
    interleaved = quarters.reshape(2, 2, -1).swapaxes(1, 2)
    apart = quarters.reshape(2, -1, 2).swapaxes(1, 2)
    orders = {
        "with the channels of rows and of columns exchanged": quarters[[2, 3, 0, 1]],
        "with sines and cosines exchanged": quarters[[1, 0, 3, 2]],
        "with sines and cosines interleaved": interleaved,
        "with interleaved sines and cosines read as separate halves": apart,
    }
    rest = channels[quarters.size :]
    return distinct({text: np.r_[order.ravel(), rest] for text, order in orders.items()})
