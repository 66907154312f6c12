"""Position embeddings for another image size: resampled on the grid of patches, or recomputed.

Every embedding is canonical, (1, 1 + rows x columns, width): that of the class token, then those of
the patches row by row. The class token has no position on the grid, so its embedding is unchanged.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mae_convert.dtypes import rounded
from mae_convert.errors import ConfigurationError, Option
from mae_convert.formats.tensor import LazyTensor
from reference_models.positions import sincos_position_embedding

Grid = tuple[int, int]

POSITION_EMBEDDINGS = ("encoder.position_embedding", "decoder.position_embedding")
SHARPNESS = -0.75
"""The free parameter of cubic convolution (Keys 1981, doi:10.1109/TASSP.1981.1163711, there a)."""


def resampled(tensor: LazyTensor, grid: Grid, new_grid: Grid) -> LazyTensor:
    """Return a position embedding for another grid: bicubic, as fine-tuning the original does it.

    He et al. 2021 fine-tune at other sizes by resampling in two dimensions (as Dosovitskiy et al.
    2020, section 3.2). It is computed in float64 and rounded to the tensor's dtype.
    """

    def load() -> np.ndarray:
        embedding = tensor.load().astype(np.float64)
        patches = bicubic(embedding[0, 1:].reshape(*grid, -1), new_grid)
        tokens = np.concatenate([embedding[0, :1], patches.reshape(-1, patches.shape[-1])])
        return rounded(tokens[None], tensor.dtype)

    return _on_grid(tensor, new_grid, load)


def bicubic(picture: np.ndarray, size: Grid) -> np.ndarray:
    """Resample (rows, columns, width) to (*size, width), pixel centres at halves, no antialiasing.

    This is ``torch.nn.functional.interpolate(mode="bicubic", align_corners=False)``.
    """
    vertical, horizontal = (
        resampling_matrix(old, new) for old, new in zip(picture.shape, size, strict=False)
    )
    return np.einsum("yr,xc,rcd->yxd", vertical, horizontal, picture, optimize=True)


def resampling_matrix(old: int, new: int) -> np.ndarray:
    """Return the matrix (new, old) that resamples one axis; the border is repeated outwards."""
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    before = np.floor(centres).astype(int)
    matrix = np.zeros((new, old))
    for neighbour in (before - 1, before, before + 1, before + 2):
        inside = neighbour.clip(0, old - 1)
        np.add.at(matrix, (np.arange(new), inside), _kernel(np.abs(centres - neighbour)))
    return matrix


def _kernel(distance: np.ndarray) -> np.ndarray:
    """Return the weight of a sample at a distance of 0 to 2 (Keys 1981, equation 4)."""
    a, x = SHARPNESS, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, far)


def regenerated(tensor: LazyTensor, grid: Grid, new_grid: Grid) -> LazyTensor:
    """Return the fixed sine-cosine embedding of another grid, to replace that of this grid.

    Reads the tensor.

    Raises:
        ConfigurationError: the tensor is not the fixed embedding, so trained values would be lost.
    """
    precision = fixed_precision(tensor, grid)
    if precision is None:
        table = sincos_position_embedding(tensor.shape[-1], grid)
        away = np.abs(tensor.load().astype(np.float64) - table).max()
        raise ConfigurationError(
            f"{tensor.name} is not the fixed sine-cosine embedding (it is up to {away:.1g} away),",
            *(" so ", Option("sincos_positions", True), " would lose what was learned"),
            hint="leave it out to resample the embedding",
        )

    def load() -> np.ndarray:
        return _fixed(tensor, new_grid, precision)

    return _on_grid(tensor, new_grid, load)


def fixed_precision(tensor: LazyTensor, grid: Grid) -> np.dtype | None:
    """Return the dtype to which a fixed embedding was rounded before it got that of the tensor.

    The original computes in float64 and stores float32, whatever became of it later. None where the
    tensor, which is read, is not exactly the fixed embedding of the grid.
    """
    stored = tensor.load()
    for precision in (np.dtype(np.float32), tensor.dtype):
        if np.array_equal(_fixed(tensor, grid, precision), stored):
            return precision
    return None


def _fixed(tensor: LazyTensor, grid: Grid, precision: np.dtype) -> np.ndarray:
    table = sincos_position_embedding(tensor.shape[-1], grid)
    return rounded(rounded(table, precision), tensor.dtype)


def _on_grid(tensor: LazyTensor, grid: Grid, load: Callable[[], np.ndarray]) -> LazyTensor:
    return replace(tensor, shape=(1, 1 + grid[0] * grid[1], tensor.shape[-1]), load=load)
