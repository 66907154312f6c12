"""The arithmetic of declared steps, implemented independently of the conversion.

Positions are resampled with Hermite polynomials instead of a convolution kernel, sines and cosines
come from a complex exponential, channels are mixed by a matrix product, and rounding works on the
significand.
"""

import math

import ml_dtypes
import numpy as np

Grid = tuple[int, int]

TANGENT = 0.75  # slope at a sample over the difference of its neighbours: cubic with a = -0.75
HALF_PRECISION = 2.0**-7  # more than the rounding of a value up to 1 in any dtype of weights
SLACK = 1e-12  # how far two ways to compute a tensor in float64 may part, of its largest value


def round_half_even(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return float64 values rounded once to another dtype: to nearest, ties to even."""
    if dtype == np.float64:
        return values
    limits = ml_dtypes.finfo(dtype)
    _, exponents = np.frexp(values)  # of significands of at least 0.5 and below 1
    last_place = np.maximum(exponents - (limits.nmant + 1), limits.minexp - limits.nmant)
    whole = np.rint(np.ldexp(values, -last_place))
    with np.errstate(over="ignore"):
        return np.ldexp(whole, last_place).astype(dtype)


def settled(exact: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return exact values rounded here or, where it is equally near, as another rounded them.

    Two ways to compute a number may end on either side of a rounding midpoint; both roundings are
    then accepted.
    """
    if (theirs.shape, theirs.dtype) != (ours.shape, ours.dtype):
        return ours
    away, allowed = (np.abs(side.astype(np.float64) - exact) for side in (theirs, ours))
    return np.where(away <= allowed + SLACK * np.abs(exact).max(), theirs, ours)


def resampled_positions(embedding: np.ndarray, grid: Grid, new_grid: Grid) -> np.ndarray:
    """Return a position embedding (1, 1 + h w, width) for another grid of patches, bicubic."""
    picture = embedding[0, 1:].reshape(*grid, -1)
    for size in new_grid:
        picture = _hermite(picture, size).swapaxes(0, 1)
    return np.concatenate([embedding[:, :1], picture.reshape(1, -1, picture.shape[-1])], axis=1)


def _hermite(samples: np.ndarray, size: int) -> np.ndarray:
    """Resample the first of three axes with cubic Hermite polynomials between the samples.

    The centre of new sample i is at ((2 i + 1) old / new - 1) / 2; integers keep this exact.
    """
    place = (2 * np.arange(size) + 1) * len(samples) - size
    index, rest = np.divmod(place, 2 * size)
    t = (rest / (2 * size))[:, None, None]
    edged = np.pad(samples, ((2, 2), (0, 0), (0, 0)), mode="edge")
    before, left, right, after = (edged[index + offset] for offset in (1, 2, 3, 4))
    slope_left, slope_right = TANGENT * (right - before), TANGENT * (after - left)
    from_left = (1 + 2 * t) * left + t * slope_left
    from_right = (3 - 2 * t) * right - (1 - t) * slope_right
    return (1 - t) ** 2 * from_left + t**2 * from_right


def fixed_positions(embedding: np.ndarray, grid: Grid, new_grid: Grid) -> np.ndarray:
    """Return the fixed position embedding of another grid, to replace that of this grid.

    A table that is not fixed is resampled, so that a target in which it was replaced is detected.
    """
    if np.abs(_sines_and_cosines(embedding.shape[-1], grid) - embedding).max() > HALF_PRECISION:
        return resampled_positions(embedding, grid, new_grid)
    return _sines_and_cosines(embedding.shape[-1], new_grid)


def _sines_and_cosines(width: int, grid: Grid) -> np.ndarray:
    """Return sines and cosines of column and row, (1, 1 + h w, width); zero for the class token."""
    quarter = width // 4
    rates = np.exp(-math.log(10000) * np.arange(quarter) / max(quarter, 1))
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    turns = [np.exp(1j * np.outer(place, rates)) for place in (column, row)]
    table = np.concatenate([part for turn in turns for part in (turn.imag, turn.real)], axis=1)
    return np.pad(table, ((1, 0), (0, width - 4 * quarter)))[None]


def mixed_channels(weight: np.ndarray, count: int) -> np.ndarray:
    """Return a patch embedding (width, channels, h, w) for another number of channels."""
    old = weight.shape[1]
    copies = np.eye(old)[np.arange(count) % old] * (old / count)
    return np.einsum("nc,ochw->onhw", np.ones((1, old)) if count == 1 else copies, weight)
