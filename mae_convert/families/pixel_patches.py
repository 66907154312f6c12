"""Divide images and videos into patches with NumPy, and compute the statistics of patches."""

from typing import Any

import numpy as np

VARIANCE_FLOOR = 1e-6  # the original MAE adds this to the variance when it normalizes a patch

Statistics = tuple[np.ndarray, np.ndarray]


def cut(pixels: np.ndarray, shapes: Any) -> np.ndarray:
    """Return images (N, C, [T,] H, W) with each axis but the first two split into patches.

    Args:
        pixels: the images.
        shapes: an object with the ``grid_shape`` and the ``patch_shape`` of the images.

    Returns:
        An array (N, C, [times, frames,] rows, height, columns, width), where height, width and
        frames are the size of a patch.
    """
    split = [n for pair in zip(shapes.grid_shape, shapes.patch_shape, strict=True) for n in pair]
    return pixels.reshape(*pixels.shape[:2], *split)


def patch_axes(shapes: Any) -> tuple[int, ...]:
    """Return the axes of the result of `cut` that index the pixels within a patch."""
    return tuple(range(3, 3 + 2 * len(shapes.patch_shape), 2))


def over_patches(values: np.ndarray, shapes: Any) -> np.ndarray:
    """Return the mean of the values of each patch, (N, L).

    Args:
        values: a result of `cut`.
        shapes: the argument `shapes` that was passed to `cut`.
    """
    means: np.ndarray = values.mean(axis=(1, *patch_axes(shapes))).reshape(len(values), -1)
    return means


def statistics_of_patches(pixels: np.ndarray, shapes: Any, *, per_channel: bool) -> Statistics:
    """Return the mean and the unbiased variance of each patch.

    The shapes of both arrays broadcast to the shape of the result of `cut`.

    Args:
        pixels: the images (N, C, [T,] H, W).
        shapes: an object with the ``grid_shape`` and the ``patch_shape`` of the images.
        per_channel: whether the statistics are computed for each channel separately.
    """
    axes = patch_axes(shapes) if per_channel else (1, *patch_axes(shapes))
    patches = cut(pixels.astype(np.float64), shapes)
    return patches.mean(axis=axes, keepdims=True), patches.var(axis=axes, ddof=1, keepdims=True)


def of_channels(values: Any, shapes: Any) -> np.ndarray:
    """Return one number per channel as an array that broadcasts to the result of `cut`.

    Args:
        values: the numbers, one for each channel.
        shapes: the object that was passed to `cut`.
    """
    return np.asarray(values, np.float64).reshape(1, -1, *[1] * (2 * len(shapes.patch_shape)))
