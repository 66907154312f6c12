"""Fixed position embeddings: sines and cosines of the positions of patches."""

import numpy as np
import numpy.typing as npt

_LONGEST_PERIOD = 10000.0


def sincos_position_embedding(width: int, grid_hw: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Return the embedding (1, 1 + rows x columns, width) of a class token and a grid of patches.

    Each axis is embedded as in Vaswani et al. 2017 (arXiv:1706.03762, section 3.5); He et al. 2021
    use these embeddings too (appendix A.1). The first quarter of the channels contains the sines of
    the column, the second its cosines, the third the sines of the row and the fourth its cosines.
    The class token has no position: its embedding is zero. If the width is not divisible by 4, the
    remaining channels are zero too.
    """
    rows, columns = np.indices(grid_hw, dtype=np.float64).reshape(2, -1)  # each (L,)
    quarter = width // 4
    frequencies = _LONGEST_PERIOD ** -(np.arange(quarter) / max(quarter, 1))
    table = np.zeros((1, 1 + rows.size, width))
    for axis, positions_on_axis in enumerate((columns, rows)):
        angles = np.outer(positions_on_axis, frequencies)  # (L, width / 4)
        start = 2 * axis * quarter
        table[0, 1:, start : start + quarter] = np.sin(angles)
        table[0, 1:, start + quarter : start + 2 * quarter] = np.cos(angles)
    return table


def interleaved_position_embedding(width: int, positions: int) -> npt.NDArray[np.float64]:
    """Return the embedding (1, positions, width) of consecutive positions.

    Positions are embedded as in Vaswani et al. 2017 (arXiv:1706.03762, section 3.5): even channels
    are sines and odd channels are cosines; the frequency decreases with the channel.
    """
    # The powers are computed one by one, as in the original: NumPy can round the powers of an array
    # differently, and embeddings in float32 would then differ from the original embeddings.
    periods = np.array([_LONGEST_PERIOD ** (2 * (j // 2) / width) for j in range(width)])
    angles = np.arange(positions)[:, None] / periods
    return np.where(np.arange(width) % 2 == 0, np.sin(angles), np.cos(angles))[None]


def spacetime_position_embedding(
    width: int, grid_shape: tuple[int, int, int]
) -> npt.NDArray[np.float64]:
    """Return the embedding (1, 1 + L, width) of a class token and a grid of time, row and column.

    The channels are divided into three consecutive parts: 6/16 of the channels encode the column,
    6/16 the row and 4/16 the time (Szwarcman et al. 2024, arXiv:2412.02732). Each part contains
    first sines and then cosines; the frequency decreases with the channel. If the width is not
    divisible by 16, the remaining channels are zero. The class token has no position: its embedding
    is zero.
    """
    time, row, column = np.indices(grid_shape, dtype=np.float64).reshape(3, -1)  # each (L,)
    table = np.zeros((1, 1 + time.size, width))
    start = 0
    for coordinates, share in ((column, 6), (row, 6), (time, 4)):
        channels = width // 16 * share
        angles = np.outer(coordinates, sincos_frequencies(channels))
        table[0, 1:, start : start + channels] = np.hstack([np.sin(angles), np.cos(angles)])
        start += channels
    return table


def sincos_frequencies(channels: int) -> npt.NDArray[np.float64]:
    """Return the frequencies (channels / 2,) of the embedding of one coordinate."""
    return _LONGEST_PERIOD ** -(np.arange(channels // 2) / max(channels / 2, 1))
