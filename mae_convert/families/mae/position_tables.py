"""Determine the grid of patches from the values of a fixed position embedding.

A fixed position embedding (here: a fixed table) encodes each patch's row and column in sines and
cosines; other position embeddings are trained. The two halves of a patch's embedding encode its row
and its column, in either order, so there are two fixed tables for each grid of rows x columns.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mae_convert.errors import ConfigurationError, Option
from mae_convert.formats.tensor import LazyTensor
from reference_models.positions import sincos_position_embedding

Grid = tuple[int, int]

TABLES = ("encoder.position_embedding", "decoder.position_embedding")
# The largest difference from the exact value, for tables that are stored in these dtypes; they are
# computed in float64 or float32, with angles up to the number of patches. The tables of two grids
# differ by about 1.
TOLERANCE: Mapping[str, float] = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-3}
LARGEST_TOLERANCE = 1e-2  # bfloat16
LARGEST_COUNT = 1 << 16  # maximum number of patches; larger tables have too many possible grids


@dataclass(frozen=True)
class TableGrid:
    """The grid of patches for which a fixed position table was computed."""

    grid: Grid
    """Rows and columns."""

    where: str
    """A phrase that names the table, for messages."""

    @property
    def words(self) -> str:
        """The grid as text, for messages."""
        return f"{self.grid[0]} x {self.grid[1]} patches"


def grids(count: int) -> Iterator[Grid]:
    """Yield all grids of rows x columns for a number of patches, the most square grid first."""
    ways = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    yield from sorted(ways, key=lambda grid: abs(grid[0] - grid[1]))


def grid_of_tables(tables: Mapping[str, LazyTensor], count: int) -> TableGrid | None:
    """Load the position tables of encoder and decoder, and return the grid of the fixed tables.

    The result is None if no table is fixed: trained tables do not determine a grid.

    Args:
        tables: the tables, of shape (1, 1 + count, width), by canonical name.
        count: the number of patches.

    Raises:
        ConfigurationError: the tables of encoder and decoder have different grids.
    """
    candidates = [
        TableGrid(grid, f"the fixed position table of the {name.partition('.')[0]}")
        for name in TABLES
        if name in tables and (grid := grid_of_table(tables[name], count)) is not None
    ]
    if len(candidates) == 2 and candidates[0].grid != candidates[1].grid:
        raise ConfigurationError(
            f"{candidates[0].where} is for {candidates[0].words}, but"
            f" {candidates[1].where} is for {candidates[1].words}",
            hint=("specify the image size with ", Option("source_image_size", placeholder="HxW")),
        )
    return candidates[0] if candidates else None


def grid_of_table(table: LazyTensor, count: int) -> Grid | None:
    """Load the position embedding of `count` patches and a class token, and return its grid.

    The result is None if it is not a sine-cosine embedding.
    """
    if (
        not 2 <= count <= LARGEST_COUNT
        or table.shape != (1, 1 + count, table.shape[-1])
        or table.shape[-1] < 4
    ):
        return None
    stored = table.load()[0, 1:].astype(np.float64)
    tolerance = TOLERANCE.get(str(table.dtype), LARGEST_TOLERANCE)
    if not _begins_fixed(stored, tolerance):
        return None
    for grid in grids(count):
        last = _last_patch(stored.shape[-1], grid)
        if not any(_equal(stored[-1], row, tolerance) for row in (last, _halves_exchanged(last))):
            continue
        exact = sincos_position_embedding(stored.shape[-1], grid)[0, 1:]
        if any(_equal(stored, rows, tolerance) for rows in (exact, _halves_exchanged(exact))):
            return grid
    return None


def _begins_fixed(stored: np.ndarray, tolerance: float) -> bool:
    """Return whether the first patch encodes row 0 and column 0, as in every fixed table.

    This quick check excludes nearly every trained table.
    """
    first = sincos_position_embedding(stored.shape[-1], (1, 1))[0, 1:]
    return _equal(stored[:1], first, tolerance)


def _last_patch(width: int, grid: Grid) -> np.ndarray:
    """Return the last row (width,) of a sine-cosine table, without computing the other rows."""
    half = 2 * (width // 4)
    column = sincos_position_embedding(width, (1, grid[1]))[0, -1]
    row = sincos_position_embedding(width, (grid[0], 1))[0, -1]
    return np.concatenate([column[:half], row[half:]])


def _halves_exchanged(table: np.ndarray) -> np.ndarray:
    """Return a copy of a table with the halves of its last axis exchanged.

    MAE encodes the column of a patch in the first half; mmpretrain and MoCo v3 encode the row in
    the first half.
    """
    half = 2 * (table.shape[-1] // 4)
    parts = [table[..., half : 2 * half], table[..., :half], table[..., 2 * half :]]
    return np.concatenate(parts, axis=-1)


def _equal(stored: Any, exact: np.ndarray, tolerance: float) -> bool:
    return bool(np.abs(stored - exact).max() <= tolerance)  # the comparison is False for NaN
