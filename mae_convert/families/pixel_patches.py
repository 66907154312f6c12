"""Images and videos as patches in NumPy, and the targets of a decoder's predictions."""

from typing import Any

import numpy as np

VARIANCE_FLOOR = 1e-6  # of the original MAE, where a patch is normalized

Statistics = tuple[np.ndarray, np.ndarray]


def cut(pixels: np.ndarray, shapes: Any) -> np.ndarray:
    """Return images (N, C, [T,] H, W) with each axis but the first two split into patches.

    Args:
        pixels: the images.
        shapes: has their ``grid_shape`` and ``patch_shape``.

    Returns:
        (N, C, [times, frames,] rows, height, columns, width).
    """
    split = [n for pair in zip(shapes.grid_shape, shapes.patch_shape, strict=True) for n in pair]
    return pixels.reshape(*pixels.shape[:2], *split)


def patch_axes(shapes: Any) -> tuple[int, ...]:
    """Return the axes of what `cut` returns that are pixels of a patch, without the channels."""
    return tuple(range(3, 3 + 2 * len(shapes.patch_shape), 2))


def over_patches(values: np.ndarray, shapes: Any) -> np.ndarray:
    """Return the mean of each patch (N, L) of what `cut` returns, all channels together."""
    means: np.ndarray = values.mean(axis=(1, *patch_axes(shapes))).reshape(len(values), -1)
    return means


def statistics_of_patches(pixels: np.ndarray, shapes: Any, *, per_channel: bool) -> Statistics:
    """Return mean and unbiased variance of each patch, which go with what `cut` returns."""
    axes = patch_axes(shapes) if per_channel else (1, *patch_axes(shapes))
    patches = cut(pixels.astype(np.float64), shapes)
    return patches.mean(axis=axes, keepdims=True), patches.var(axis=axes, ddof=1, keepdims=True)


def of_channels(values: Any, shapes: Any) -> np.ndarray:
    """Return a number for each channel with the axes of what `cut` returns."""
    return np.asarray(values, np.float64).reshape(1, -1, *[1] * (2 * len(shapes.patch_shape)))
