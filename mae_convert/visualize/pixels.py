"""Convert normalised pixels to images, and assemble them to panels."""

import math

import numpy as np

from mae_convert.families.configuration import Configuration

GAP = 4  # white pixels between the images of a panel
GREY = 0.5  # shows removed patches, and no difference
VARIANCE_FLOOR = 1e-6  # the original's, where a patch is normalised


def as_colours(pixel_values: np.ndarray, configuration: Configuration) -> np.ndarray:
    """Return normalised pixels (N, 3, H, W) as colours (N, H, W, 3) in [0, 1]."""
    mean, std = (np.float64(configuration.value(name)) for name in ("image_mean", "image_std"))
    return np.clip(pixel_values.transpose(0, 2, 3, 1) * std + mean, 0, 1)


def in_pixels(
    reconstruction: np.ndarray, pixel_values: np.ndarray, configuration: Configuration
) -> np.ndarray:
    """Return a reconstruction (N, C, H, W) in the scale of the original's pixels.

    A model with ``norm_pix_loss`` predicts normalised patches; the mean and standard deviation of
    each patch are taken from the original.
    """
    if not configuration.model.norm_pix_loss:
        return reconstruction
    (rows, columns), (height, width) = configuration.model.grid_hw, configuration.model.patch_hw
    images, channels = pixel_values.shape[:2]
    shape = (images, channels, rows, height, columns, width)
    patches = pixel_values.astype(np.float64).reshape(shape)
    axes = (1, 3, 5)
    mean = patches.mean(axis=axes, keepdims=True)
    deviation = np.sqrt(patches.var(axis=axes, ddof=1, keepdims=True) + VARIANCE_FLOOR)
    return (reconstruction.reshape(shape) * deviation + mean).reshape(pixel_values.shape)


def mask_of_pixels(mask: np.ndarray, configuration: Configuration) -> np.ndarray:
    """Return a mask of patches (N, L) as a mask of pixels (N, H, W, 1)."""
    rows, columns = configuration.model.grid_hw
    height, width = configuration.model.patch_hw
    grid = mask.reshape(len(mask), rows, columns)
    return grid.repeat(height, axis=1).repeat(width, axis=2)[..., None]


def pasted(
    original: np.ndarray, painted: np.ndarray, mask: np.ndarray, configuration: Configuration
) -> np.ndarray:
    """Return colours (N, H, W, 3): the original with predicted pixels in removed patches."""
    return np.where(mask_of_pixels(mask, configuration) > 0, painted, original)


def amplified_difference(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float]:
    """Return b - a as colours (N, H, W, C) around grey, and the amplification factor.

    The factor is infinite if there is no difference; NaN is shown as the largest difference.
    """
    with np.errstate(invalid="ignore"):  # of infinity and infinity
        away = np.nan_to_num(b.astype(np.float64) - a, nan=math.inf, posinf=math.inf)
    finite = np.abs(away[np.isfinite(away)])
    largest = float(finite.max(initial=0.0))
    factor = GREY / largest if largest else math.inf
    with np.errstate(invalid="ignore"):
        shown = GREY + (away * factor if largest else np.where(np.isfinite(away), 0.0, away))
    return np.clip(shown, 0, 1).transpose(0, 2, 3, 1), factor


def eight_bits(colours: np.ndarray) -> np.ndarray:
    """Return colours in [0, 1] as 8-bit values; NaN is black."""
    return np.rint(np.nan_to_num(colours, nan=0.0) * 255).astype(np.uint8)
