"""The arithmetic of the steps in conversion records, implemented without the conversion's code.

Position embeddings are resampled with Hermite polynomials instead of a convolution kernel, sines
and cosines come from a complex exponential, the weights of input channels are computed by a matrix
product, and rounding works on the significand.
"""

import math

import ml_dtypes
import numpy as np

Grid = tuple[int, int]

TANGENT = 0.75  # slope at a sample / difference of its neighbours: bicubic with a = -0.75
HALF_PRECISION = 2.0**-7  # larger than the rounding error of values up to 1 in any weight dtype
SLACK = 1e-12  # float64 difference allowed between two algorithms, relative to the largest value


def round_half_even(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return float64 values rounded once to another dtype: to nearest, ties to even."""
    if dtype == np.float64:
        return values
    limits = ml_dtypes.finfo(dtype)
    _, exponents = np.frexp(values)  # significands are in [0.5, 1)
    last_place = np.maximum(exponents - (limits.nmant + 1), limits.minexp - limits.nmant)
    integers = np.rint(np.ldexp(values, -last_place))
    with np.errstate(over="ignore"):
        return np.ldexp(integers, last_place).astype(dtype)


def accept_either_rounding(
    exact: np.ndarray, rounded: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Return `rounded`, replaced by `target` where `target` is at least as close to `exact`.

    Two algorithms can compute float64 values on opposite sides of the midpoint between two values
    of the stored dtype, and then round differently; both roundings are accepted.

    Args:
        exact: the float64 values before rounding.
        rounded: `exact`, rounded to the dtype of the stored tensor.
        target: the values that are stored in the target checkpoint.
    """
    if (target.shape, target.dtype) != (rounded.shape, rounded.dtype):
        return rounded
    error, allowed = (np.abs(array.astype(np.float64) - exact) for array in (target, rounded))
    return np.where(error <= allowed + SLACK * np.abs(exact).max(), target, rounded)


def resampled_positions(
    embedding: np.ndarray, grid: Grid, new_grid: Grid, first: int = 1, *, aligned: bool = False
) -> np.ndarray:
    """Return a position embedding (1, first + t h w, width) resampled bicubically to another grid.

    Each of the t time steps is resampled separately; t is determined from the number of rows.

    Args:
        embedding: the position embedding.
        grid: h and w of the embedding.
        new_grid: h and w after resampling.
        first: number of rows before the rows of the patches; the first rows are copied.
        aligned: whether the centres of the corner patches of both grids coincide; otherwise, the
            outer edges of the two grids coincide.
    """
    width = embedding.shape[-1]
    before = embedding[0, first:].reshape(-1, *grid, width)  # (t, h, w, width)
    grids = before.transpose(1, 2, 0, 3).reshape(*grid, -1)
    for size in new_grid:
        grids = _hermite(grids, size, aligned=aligned).swapaxes(0, 1)
    after = grids.reshape(*new_grid, -1, width).transpose(2, 0, 1, 3)
    return np.concatenate([embedding[:, :first], after.reshape(1, -1, width)], axis=1)


def _hermite(samples: np.ndarray, size: int, *, aligned: bool) -> np.ndarray:
    """Resample the first of three axes with cubic Hermite polynomials between the samples.

    If the number of samples changes from old to new, the centre of the new sample i is at the
    position ((2 i + 1) old / new - 1) / 2 or, with aligned corners, i (old - 1) / (new - 1). The
    positions are computed exactly in integers.
    """
    if aligned:
        position, unit = np.arange(size) * (len(samples) - 1), max(size - 1, 1)
    else:
        position, unit = (2 * np.arange(size) + 1) * len(samples) - size, 2 * size
    index, remainder = np.divmod(position, unit)
    t = (remainder / unit)[:, None, None]
    padded = np.pad(samples, ((2, 2), (0, 0), (0, 0)), mode="edge")
    before, left, right, after = (padded[index + offset] for offset in (1, 2, 3, 4))
    slope_left, slope_right = TANGENT * (right - before), TANGENT * (after - left)
    from_left = (1 + 2 * t) * left + t * slope_left
    from_right = (3 - 2 * t) * right - (1 - t) * slope_right
    return (1 - t) ** 2 * from_left + t**2 * from_right


def fixed_positions(
    embedding: np.ndarray, grid: tuple[int, ...], new_grid: tuple[int, ...]
) -> np.ndarray:
    """Return the fixed sine-cosine position embedding for another grid.

    If `embedding` is not the fixed embedding of `grid`, for example because it was trained, the
    result is `embedding` resampled to the new grid. A target in which the fixed embedding wrongly
    replaced a trained embedding therefore differs from the result. If the number of patches along
    time differs, resampling is not possible, and all values of the result are NaN.

    Args:
        embedding: (1, 1 + L, width).
        grid: patches along [time,] height and width.
        new_grid: the new grid, in the same form.
    """
    if np.abs(_sines_and_cosines(embedding.shape[-1], grid) - embedding).max() <= HALF_PRECISION:
        return _sines_and_cosines(embedding.shape[-1], new_grid)
    if grid[:-2] != new_grid[:-2]:
        return np.full((1, 1 + math.prod(new_grid), embedding.shape[-1]), np.nan)
    (rows, columns), (new_rows, new_columns) = grid[-2:], new_grid[-2:]
    return resampled_positions(embedding, (rows, columns), (new_rows, new_columns))


def _sines_and_cosines(width: int, grid: tuple[int, ...]) -> np.ndarray:
    """Return the sines and cosines of grid positions, (1, 1 + L, width); zero for the class token.

    The first channels encode the column, the next channels the row and, on a grid with three axes,
    the last channels the time. On two axes, each axis has half of the channels; on three axes,
    column and row have 6/16 of the channels each, and time has 4/16.
    """
    unit, shares = (width // 16, (6, 6, 4)) if len(grid) == 3 else (width // 4, (2, 2))
    indices = np.unravel_index(np.arange(math.prod(grid)), grid)
    parts = []
    for coordinates, share in zip(indices[::-1], shares, strict=True):
        half = unit * share // 2
        rotations = np.exp(
            1j * np.outer(coordinates, np.exp(-math.log(10000) * np.arange(half) / max(half, 1)))
        )
        parts += [rotations.imag, rotations.real]
    table = np.concatenate(parts, axis=1)
    return np.pad(table, ((1, 0), (0, width - table.shape[1])))[None]


def mixed_channels(weight: np.ndarray, count: int) -> np.ndarray:
    """Return the weight (width, channels, [t,] h, w) of a patch embedding for `count` channels.

    For one channel, the weights of all channels are added. For several channels, the weights of
    the channels are repeated in order and multiplied by channels / count.
    """
    old = weight.shape[1]
    copies = np.eye(old)[np.arange(count) % old] * (old / count)
    return np.einsum("nc,oc...->on...", np.ones((1, old)) if count == 1 else copies, weight)
