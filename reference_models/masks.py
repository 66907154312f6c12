"""Masks of videos that are drawn or laid out by other rules than uniform noise; no framework."""

import numpy as np
import numpy.typing as npt


def tube_noise(noise: npt.NDArray[np.floating], time_steps: int) -> npt.NDArray[np.floating]:
    """Return noise (N, time steps x positions) that removes the same positions at all times.

    A video model that sorts it keeps "tubes" (Tong et al. 2022, arXiv:2203.12602, section 3.2).
    """
    return np.tile(noise, (1, time_steps))


def running_cells(
    grid_shape: tuple[int, int, int], phase: int, decoded: int = 2
) -> npt.NDArray[np.int64]:
    """Return the patches (M,), ascending, that a dual-masked VideoMAE decodes.

    They run through each cell of 2 x 2 positions over time (Wang et al. 2023, arXiv:2303.16727,
    section 3.2).

    Args:
        grid_shape: patches along time, height and width; height and width are even.
        phase: the offset of the cells, 0 to 3.
        decoded: positions of each cell that are decoded, 1 to 3.
    """
    time, row, column = np.indices(grid_shape)
    place_in_cell = 2 * (row % 2) + column % 2
    turn = (place_in_cell + time + phase + 1) % 4
    return np.flatnonzero(turn >= 4 - decoded)
