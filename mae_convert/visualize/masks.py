"""Masks: which patches a model sees.

A mask is an order in which patches are removed, so a mask at a lower ratio is contained in the mask
at a higher ratio. It is passed to the model as noise: the model keeps the patches with the lowest
values.
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
SMALLEST_BLOCK = 16 / 196  # of the image, as BEiT (Bao et al. 2021, algorithm 1) takes it
LARGEST_BLOCK = 0.25
MOST_ELONGATED = 1 / 0.3  # width to height of a block, or height to width
REMOVED_FROM = 128  # grey level of a drawn mask from which on a patch is removed


def noise_of(kind: str, family: Family, config: Any, *, count: int, seed: int = 0) -> np.ndarray:
    """Return noise (count, L), float32, that makes a model remove patches in some manner.

    Args:
        kind: ``random``, as models of the family are trained, for each image anew; ``block``,
            rectangles, for each image anew; ``grid``, which at a ratio of 0.75 keeps one patch of
            every four. Of a video, the last two are the same at all times.
        family: of the model.
        config: of the model.
        count: number of images.
        seed: of ``random`` and ``block``.
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
    """Return noise (count, L) and the mask ratio of a mask that is drawn as an image.

    Where the image is white, patches are removed, of a video at all times; it is scaled to the
    model's patches.

    Raises:
        MaeConvertError: the file is no image, or it leaves no patch.
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
    kept = int((~removed).sum()) * (config.num_patches // removed.size)
    noise = _as_noise(np.tile(ranks, (count, 1)), config)
    return noise, family.ratio_that_keeps(kept, config)


def _as_noise(ranks: np.ndarray, config: Any) -> np.ndarray:
    """Return ranks of the patches (N, rows x columns) as noise (N, L), the same at all times."""
    times = config.num_patches // ranks.shape[1]
    at_times = ranks[:, None, :] * times + np.arange(times)[:, None]  # (N, times, places)
    noise = (at_times.reshape(len(ranks), -1) + 0.5) / config.num_patches
    return noise.astype(np.float32)


def _grid_ranks(rows: int, columns: int) -> np.ndarray:
    """Return each patch's rank in an ordered dither (Bayer 1973), which is always evenly spread."""
    order = np.zeros((1, 1), np.int64)
    while len(order) < max(rows, columns):
        order = np.block([[4 * order, 4 * order + 2], [4 * order + 3, 4 * order + 1]])
    wanted = order[:rows, :columns].reshape(-1)
    return np.argsort(np.argsort(wanted, kind="stable"), kind="stable")


def _block_ranks(rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    """Return ranks that remove rectangular blocks one after the other."""
    removed: list[int] = []
    left = np.ones((rows, columns), bool)
    places = np.arange(rows * columns).reshape(rows, columns)
    while left.any():
        area = rows * columns * generator.uniform(SMALLEST_BLOCK, LARGEST_BLOCK)
        shape = math.exp(generator.uniform(-1, 1) * math.log(MOST_ELONGATED))
        height = min(rows, max(1, round(math.sqrt(area * shape))))
        width = min(columns, max(1, round(math.sqrt(area / shape))))
        # A corner that is still there is in it, so that every block removes something.
        row, column = divmod(int(generator.choice(places[left])), columns)
        top, start = min(row, rows - height), min(column, columns - width)
        block = (slice(top, top + height), slice(start, start + width))
        removed += places[block][left[block]].tolist()
        left[block] = False
    ranks = np.empty(rows * columns, np.int64)
    ranks[removed] = np.arange(rows * columns)[::-1]
    return ranks
