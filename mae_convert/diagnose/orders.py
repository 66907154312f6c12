"""Orders in which the channels, heads, pixels and places of a tensor are mistaken for each other.

Each is an index array: the mistaken tensor is ``tensor.take(order, axis)``.
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

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


def of_heads(width: int, heads: int) -> dict[str, np.ndarray]:
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


def of_pixels(height: int, width: int, channels: int) -> dict[str, np.ndarray]:
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


def of_places(rows: int, columns: int) -> dict[str, np.ndarray]:
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


def of_sines(width: int) -> dict[str, np.ndarray]:
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
