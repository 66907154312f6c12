"""Masks: which patches a model sees.

A mask is an order in which patches are removed, so a mask at a lower ratio is contained in the mask
at a higher ratio. It is passed to the model as noise: the model keeps the patches with the lowest
values.
"""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from mae_convert.checkpoint.image_files import open_image
from mae_convert.errors import MaeConvertError
from reference_models.configuration import ViTMAEConfig

KINDS = ("random", "block", "grid")
SMALLEST_BLOCK = 16 / 196  # of the image, as BEiT (Bao et al. 2021, algorithm 1) takes it
LARGEST_BLOCK = 0.25
MOST_ELONGATED = 1 / 0.3  # width to height of a block, or height to width
REMOVED_FROM = 128  # grey level of a drawn mask from which on a patch is removed


def noise_of(kind: str, config: ViTMAEConfig, *, count: int, seed: int = 0) -> np.ndarray:
    """Return noise (count, L), float32, that makes a model remove patches in some manner.

    Args:
        kind: ``random``, for each image anew; ``block``, rectangles, for each image anew;
            ``grid``, which at a ratio of 0.75 keeps one patch of every four.
        config: of the model.
        count: number of images.
        seed: of ``random`` and ``block``.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    rows, columns = config.grid_hw
    if kind == "grid":
        ranks = np.tile(_grid_ranks(rows, columns), (count, 1))
    elif kind == "block":
        ranks = np.stack([_block_ranks(rows, columns, generator) for _ in range(count)])
    else:
        ranks = generator.permuted(np.tile(np.arange(rows * columns), (count, 1)), axis=1)
    return _as_noise(ranks)


def drawn_mask(path: Path, config: ViTMAEConfig, *, count: int) -> tuple[np.ndarray, float]:
    """Return noise (count, L) and the mask ratio of a mask that is drawn as an image.

    Where the image is white, patches are removed; it is scaled to the model's patches.

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
    return _as_noise(np.tile(ranks, (count, 1))), ratio_that_keeps(int((~removed).sum()), config)


def ratio_that_keeps(kept: int, config: ViTMAEConfig) -> float:
    """Return a mask ratio with which a model keeps this many patches."""
    return 0.0 if kept == config.num_patches else 1 - (kept + 0.5) / config.num_patches


def _as_noise(ranks: np.ndarray) -> np.ndarray:
    noise: np.ndarray = ((ranks + 0.5) / ranks.shape[1]).astype(np.float32)
    return noise


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
