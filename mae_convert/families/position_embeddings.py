"""Position embeddings for another image size: resampled on the grid of patches, or recomputed.

All embeddings have the canonical shape (1, F + T x H x W, width), for F tokens that are not patches
(1 for a class token, else 0) and, at each of T time steps, a grid of H x W patches. The patches are
in the order time, row, column. A class token has no position on the grid, so its embedding is
unchanged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from mae_convert.errors import ConfigurationError, Option
from mae_convert.formats.dtypes import DTYPES, rounded
from mae_convert.formats.tensor import LazyTensor
from reference_models.positions import sincos_position_embedding, spacetime_position_embedding

Grid = tuple[int, int]
Shape = tuple[int, ...]

POSITION_EMBEDDINGS = ("encoder.position_embedding", "decoder.position_embedding")
# Functions that return the fixed embedding, by the axes of the grid (a value of
# `Family.fixed_positions`).
FIXED: Mapping[str, Callable[[int, Any], np.ndarray]] = {
    "rows and columns": sincos_position_embedding,
    "times, rows and columns": spacetime_position_embedding,
}
RECOMPUTE = Option("sincos_positions", True)
BICUBIC, CORNERS_ALIGNED = "bicubic", "bicubic, align_corners=True"
FLOAT32_NOISE = 1e-5
"""Maximum error of a fixed embedding that was computed in float32; its values are at most 1."""

SHARPNESS = -0.75
"""The parameter a of cubic convolution (Keys 1981, doi:10.1109/TASSP.1981.1163711)."""


@dataclass(frozen=True)
class PositionTable:
    """The structure of a position embedding (1, `first` + `times` x rows x columns, width)."""

    first: int = 1
    """The number of rows before the rows of the patches: 1 for a class token, else 0."""

    times: int = 1
    """The number of time steps, each with its own grid of rows and columns."""


def resampled(
    tensor: LazyTensor,
    grid: Grid,
    new_grid: Grid,
    table: PositionTable | None = None,
    kind: str = BICUBIC,
) -> LazyTensor:
    """Return a position embedding that is resampled for another grid of patches.

    As in the fine-tuning by the authors' code, the interpolation is bicubic in two dimensions
    (Dosovitskiy et al. 2020, section 3.2). It is computed in float64 and rounded to the tensor's
    dtype. The grids of different time steps are resampled separately.

    Args:
        tensor: the embedding.
        grid: rows and columns of patches.
        new_grid: the grid after resampling.
        table: the structure of the embedding; default: a class token and the grid of an image.
        kind: ``BICUBIC``; or ``CORNERS_ALIGNED``, which is bicubic too, but leaves the embeddings
            of the corner patches unchanged.
    """
    table = table or PositionTable()

    def load() -> np.ndarray:
        embedding = tensor.load().astype(np.float64)
        before = embedding[0, table.first :].reshape(table.times, *grid, -1)
        aligned = kind == CORNERS_ALIGNED
        patches = np.stack([bicubic(each, new_grid, aligned=aligned) for each in before])
        rows = patches.reshape(-1, patches.shape[-1])
        return rounded(np.concatenate([embedding[0, : table.first], rows])[None], tensor.dtype)

    length = table.first + table.times * new_grid[0] * new_grid[1]
    return replace(tensor, shape=(1, length, tensor.shape[-1]), load=load)


def bicubic(image: np.ndarray, size: Grid, *, aligned: bool = False) -> np.ndarray:
    """Resample (rows, columns, width) to (*size, width), without antialiasing.

    The result is equal to the result of ``torch.nn.functional.interpolate(mode="bicubic",
    align_corners=aligned)``.
    """
    vertical, horizontal = (
        resampling_matrix(old, new, aligned=aligned)
        for old, new in zip(image.shape, size, strict=False)
    )
    return np.einsum("yr,xc,rcd->yxd", vertical, horizontal, image, optimize=True)


def resampling_matrix(old: int, new: int, *, aligned: bool = False) -> np.ndarray:
    """Return the matrix (new, old) that resamples one axis; the border values are repeated.

    By default, the samples of both axes are at the centres of equal cells. If `aligned`, the first
    samples of both axes have the same position, and so have the last samples.
    """
    if aligned:
        centres = np.arange(new) * ((old - 1) / max(new - 1, 1))
    else:
        centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    before = np.floor(centres).astype(int)
    matrix = np.zeros((new, old))
    for neighbour in (before - 1, before, before + 1, before + 2):
        inside = neighbour.clip(0, old - 1)
        np.add.at(matrix, (np.arange(new), inside), _kernel(np.abs(centres - neighbour)))
    return matrix


def _kernel(distance: np.ndarray) -> np.ndarray:
    """Return the weights of samples at distances of 0 to 2 cells (Keys 1981, equation 4)."""
    a, x = SHARPNESS, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, far)


def regenerated(
    tensor: LazyTensor,
    grid: Shape,
    new_grid: Shape,
    axes: str = "rows and columns",
    option: Option = RECOMPUTE,
) -> LazyTensor:
    """Return the fixed sine-cosine position embedding of another grid of patches.

    It replaces a fixed embedding: the tensor is loaded to check that it is the fixed embedding of
    the old grid, and to determine the dtype to which the embedding was rounded.

    Args:
        tensor: the embedding.
        grid: the number of patches along each axis.
        new_grid: the new grid, in the same form.
        axes: the axes of the grid, such as "rows and columns"; a key of ``FIXED``.
        option: the option that requests the computation, for the error message.

    Raises:
        ConfigurationError: the tensor is not the fixed embedding, so trained values would be lost.
    """
    precision = fixed_precision(tensor, grid, axes)
    if precision is None:
        table = FIXED[axes](tensor.shape[-1], grid)
        away = np.abs(tensor.load().astype(np.float64) - table).max()
        raise ConfigurationError(
            f"{tensor.name} is not the fixed sine-cosine embedding (the largest difference is"
            f" {away:.1g}), so ",
            option,
            " would discard trained values",
            hint="leave it out" + (" to resample the embedding" if option == RECOMPUTE else ""),
        )

    def load() -> np.ndarray:
        return _fixed(tensor, new_grid, axes, precision)

    return replace(tensor, shape=(1, 1 + prod(new_grid), tensor.shape[-1]), load=load)


def fixed_precision(
    tensor: LazyTensor, grid: Shape, axes: str = "rows and columns"
) -> np.dtype | None:
    """Return the dtype to which a fixed embedding was rounded before it was stored.

    The authors' code computes the embedding in float64 and rounds it to float32; the stored dtype
    may differ. The tensor is loaded; if it is not exactly the rounded fixed embedding of the grid,
    the result is None.

    Args:
        tensor: the embedding.
        grid: the number of patches along each axis.
        axes: the axes of the grid, such as "rows and columns"; a key of ``FIXED``.
    """
    stored = tensor.load()
    for precision in (np.dtype(np.float32), tensor.dtype):
        if np.array_equal(_fixed(tensor, grid, axes, precision), stored):
            return precision
    return None


def position_in_words(tensor: LazyTensor, grid: Grid) -> str:
    """Return a phrase that compares a position embedding with the fixed sine-cosine embedding.

    Args:
        tensor: the position embedding (1, 1 + L, D).
        grid: rows and columns of patches, L in total.
    """
    fixed = f"the fixed sine-cosine embedding of {grid[0]} x {grid[1]} patches"
    if fixed_precision(tensor, grid) is not None:
        return f"is exactly {fixed}"
    import ml_dtypes

    stored = tensor.load().astype(np.float64)
    if not np.isfinite(stored).all():
        return f"is not {fixed}: it is not finite"
    width = tensor.shape[-1]
    table = sincos_position_embedding(width, grid)
    halves = np.split(table, [width // 2], axis=-1)
    alike = {
        f"is {fixed} up to rounding": table,
        f"is {fixed} with rows and columns exchanged": np.concatenate(halves[::-1], axis=-1),
        f"is the embedding of {grid[1]} x {grid[0]} patches, reshaped in row-major order to "
        f"{grid[0]} x {grid[1]}": sincos_position_embedding(width, grid[::-1]),
    }
    noise = max(FLOAT32_NOISE, float(ml_dtypes.finfo(DTYPES[str(tensor.dtype)]).eps))
    for words, other in alike.items():
        if np.abs(stored - other).max() <= noise:
            return words
    return f"is not {fixed}; the largest difference is {np.abs(stored - table).max():.1g}"


def _fixed(tensor: LazyTensor, grid: Shape, axes: str, precision: np.dtype) -> np.ndarray:
    return rounded(rounded(FIXED[axes](tensor.shape[-1], grid), precision), tensor.dtype)
