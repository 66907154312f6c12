"""Tube masking and running cell masking of videos, implemented in NumPy."""

import numpy as np
import numpy.typing as npt


def tube_noise(noise: npt.NDArray[np.floating], time_steps: int) -> npt.NDArray[np.floating]:
    """Repeat noise, so that a video model removes the same positions at all time steps.

    This is the tube masking of Tong et al. 2022 (arXiv:2203.12602, section 3.2).

    Args:
        noise: (N, positions), the noise of one time step.
        time_steps: the number of time steps.

    Returns:
        Noise (N, time steps x positions).
    """
    return np.tile(noise, (1, time_steps))


def running_cells(
    grid_shape: tuple[int, int, int], phase: int, decoded: int = 2
) -> npt.NDArray[np.int64]:
    """Return the ascending indices (M,) of the patches that VideoMAE decodes with dual masking.

    This is the running cell masking of Wang et al. 2023 (arXiv:2303.16727, section 3.2): in each
    cell of 2 x 2 positions, the decoded positions are shifted by one at every time step.

    Args:
        grid_shape: patches along time, height and width; height and width are even.
        phase: the shift of the decoded positions at the first time step, 0 to 3.
        decoded: number of positions in each cell that are decoded, 1 to 3.
    """
    time, row, column = np.indices(grid_shape)
    index_in_cell = 2 * (row % 2) + column % 2
    order = (index_in_cell + time + phase + 1) % 4
    return np.flatnonzero(order >= 4 - decoded)
