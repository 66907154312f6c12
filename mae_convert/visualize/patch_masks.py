"""Create masks that determine which patches are visible to a model.

A mask is specified by the order in which patches are removed: a higher mask ratio removes the same
patches and more. The order is passed to the model as noise: the model keeps the patches with the
lowest values.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae_convert.checkpoint.image_files import open_image
from mae_convert.errors import MaeConvertError
from mae_convert.families.family import Family

KINDS = ("random", "block", "grid")
SMALLEST_BLOCK = 16 / 196  # fraction of the image, as in BEiT (Bao et al. 2021, algorithm 1)
LARGEST_BLOCK = 0.25
MOST_ELONGATED = 1 / 0.3  # ratio of the longer to the shorter side of a block
REMOVED_FROM = 128  # patches with at least this grey level in a drawn mask are removed


def noise_of(kind: str, family: Family, config: Any, *, count: int, seed: int = 0) -> np.ndarray:
    """Return noise (count, L), float32, for a kind of mask.

    Args:
        kind: ``random``, as in the family's training; ``block``, which removes rectangles; or
            ``grid``, which keeps every fourth patch at a ratio of 0.75. ``random`` and ``block``
            are different for each image; ``block`` and ``grid`` are the same in all frames of a
            video.
        family: the family of the model.
        config: the configuration of the model.
        count: the number of images.
        seed: the seed of ``random`` and ``block``.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    rows, columns = config.grid_hw
    if kind == "random":
        return family.noise(config, count, generator)
    if kind == "grid":
        ranks = np.tile(_grid_ranks(rows, columns), (count, 1))
    else:
        ranks = np.stack([_block_ranks(rows, columns, generator) for _ in range(count)])
    return _as_noise(ranks, config)


def drawn_mask(path: Path, family: Family, config: Any, *, count: int) -> tuple[np.ndarray, float]:
    """Return the noise (count, L) and the mask ratio of a mask drawn as an image.

    The mask is used for each of `count` images or videos.

    The image is scaled to one pixel for each patch. Patches that are then white are removed, in all
    frames of a video.

    Raises:
        MaeConvertError: the file is not an image, or it removes all patches.
    """
    rows, columns = config.grid_hw
    drawn = open_image(path).convert("L").resize((columns, rows), Image.Resampling.BOX)
    removed = np.asarray(drawn).reshape(-1) >= REMOVED_FROM
    if removed.all():
        raise MaeConvertError(
            path,
            " removes every patch",
            hint="draw visible patches black and removed patches white",
        )
    ranks = np.empty(removed.size, np.int64)
    ranks[np.argsort(removed, kind="stable")] = np.arange(removed.size)
    visible = int((~removed).sum()) * (config.num_patches // removed.size)
    noise = _as_noise(np.tile(ranks, (count, 1)), config)
    return noise, family.ratio_that_keeps(visible, config)


def _as_noise(ranks: np.ndarray, config: Any) -> np.ndarray:
    """Return noise (N, L) that orders patches by ranks (N, rows x columns), the same in each frame.

    Patches at the same position in different frames follow each other in the order.
    """
    times = config.num_patches // ranks.shape[1]
    at_times = ranks[:, None, :] * times + np.arange(times)[:, None]  # (N, times, positions)
    noise = (at_times.reshape(len(ranks), -1) + 0.5) / config.num_patches
    return noise.astype(np.float32)


def _grid_ranks(rows: int, columns: int) -> np.ndarray:
    """Return the rank of each patch of a grid, (rows x columns,), from a Bayer matrix.

    For any n, the n patches with the lowest ranks are spread evenly over the grid.
    """
    order = np.zeros((1, 1), np.int64)
    while len(order) < max(rows, columns):
        order = np.block([[4 * order, 4 * order + 2], [4 * order + 3, 4 * order + 1]])
    thresholds = order[:rows, :columns].reshape(-1)
    return np.argsort(np.argsort(thresholds, kind="stable"), kind="stable")


def _block_ranks(rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    """Return ranks by which patches are removed in rectangular blocks, one block after the other.

    The patches that are removed first have the highest ranks.
    """
    removed: list[int] = []
    visible = np.ones((rows, columns), bool)
    positions = np.arange(rows * columns).reshape(rows, columns)
    while visible.any():
        area = rows * columns * generator.uniform(SMALLEST_BLOCK, LARGEST_BLOCK)
        shape = math.exp(generator.uniform(-1, 1) * math.log(MOST_ELONGATED))
        height = min(rows, max(1, round(math.sqrt(area * shape))))
        width = min(columns, max(1, round(math.sqrt(area / shape))))
        # The block contains a patch that is still visible, so that every block removes a patch.
        row, column = divmod(int(generator.choice(positions[visible])), columns)
        top, start = min(row, rows - height), min(column, columns - width)
        block = (slice(top, top + height), slice(start, start + width))
        removed += positions[block][visible[block]].tolist()
        visible[block] = False
    ranks = np.empty(rows * columns, np.int64)
    ranks[removed] = np.arange(rows * columns)[::-1]
    return ranks
