"""Convert normalized pixels to colours, and paste predicted patches into images and videos."""

import math
from typing import Any

import numpy as np

from mae_convert.families.configuration import Configuration
from mae_convert.families.family import Family
from mae_convert.families.pixel_patches import cut

GREY = 0.5  # colour of removed patches, and of a difference of 0


def as_colours(pixel_values: np.ndarray, configuration: Configuration) -> np.ndarray:
    """Return normalized pixels (N, 3, [T,] H, W) as colours (N, [T,] H, W, 3) in [0, 1]."""
    mean, std = (np.float64(configuration.value(name)) for name in ("image_mean", "image_std"))
    return np.clip(np.moveaxis(pixel_values, 1, -1) * std + mean, 0, 1)


def in_pixels(
    reconstruction: np.ndarray, pixel_values: np.ndarray, family: Family, config: Any
) -> np.ndarray:
    """Return a reconstruction (N, C, [T,] H, W) in the scale of the original pixels.

    If the model predicts normalized patches, the mean and standard deviation of each patch are
    taken from the original.

    Args:
        reconstruction: the prediction of the model.
        pixel_values: the inputs of the model, for the frames that it predicts.
        family: the family of the model.
        config: the configuration of the model.
    """
    mean, deviation = family.target_statistics(pixel_values, config)
    patches = cut(reconstruction.astype(np.float64), family.prediction(config))
    return (patches * deviation + mean).reshape(pixel_values.shape)


def mask_of_pixels(mask: np.ndarray, shapes: Any) -> np.ndarray:
    """Return a mask of patches (N, L) as a mask of pixels (N, [T,] H, W, 1).

    Args:
        mask: 1 where a patch is removed.
        shapes: an object with the attributes ``grid_shape`` and ``patch_shape``.
    """
    pixels = mask.reshape(len(mask), *shapes.grid_shape)
    for axis, length in enumerate(shapes.patch_shape, 1):
        pixels = pixels.repeat(length, axis=axis)
    return pixels[..., None]


def pasted(
    original: np.ndarray, predicted: np.ndarray, mask: np.ndarray, shapes: Any
) -> np.ndarray:
    """Return the original with predicted pixels in removed patches, (N, [T,] H, W, 3).

    Args:
        original: the colours of the original images, (N, [T,] H, W, 3).
        predicted: the colours of the predictions, (N, [T,] H, W, 3).
        mask: (N, L), 1 where a patch is removed.
        shapes: an object with the attributes ``grid_shape`` and ``patch_shape``.
    """
    return np.where(mask_of_pixels(mask, shapes) > 0, predicted, original)


def amplified_difference(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float]:
    """Return b - a as colours (N, [T,] H, W, C), grey where it is 0, and the amplification factor.

    The factor is infinite if there is no difference; NaN is shown as the largest difference.
    """
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        difference = np.nan_to_num(b.astype(np.float64) - a, nan=math.inf, posinf=math.inf)
    finite = np.abs(difference[np.isfinite(difference)])
    largest = float(finite.max(initial=0.0))
    factor = GREY / largest if largest else math.inf
    with np.errstate(invalid="ignore"):
        if largest:
            shown = GREY + difference * factor
        else:  # only zeros and infinities
            shown = GREY + np.where(np.isfinite(difference), 0.0, difference)
    return np.clip(np.moveaxis(shown, 1, -1), 0, 1), factor


def eight_bits(colours: np.ndarray) -> np.ndarray:
    """Return colours in [0, 1] as 8-bit values; NaN is black."""
    return np.rint(np.nan_to_num(colours, nan=0.0) * 255).astype(np.uint8)
