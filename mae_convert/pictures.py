"""Pictures in and out: pixels as the models take them, and panels that a person can look at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mae_convert.configuration import Configuration
from mae_convert.errors import MaeConvertError

GAP = 4  # white pixels between the pictures of a panel
GREY = 0.5  # shows removed patches


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures in a folder, by name.

    Raises:
        MaeConvertError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise MaeConvertError(f"{folder} is not a folder; name one that holds pictures")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise MaeConvertError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    return found


def load_pictures(paths: Sequence[Path], configuration: Configuration) -> np.ndarray:
    """Read pictures, resize them (bicubic), scale them to [0, 1] and normalise them.

    Returns:
        ``pixel_values`` (N, 3, H, W), float32.

    Raises:
        MaeConvertError: a file is no picture, or the model does not take three channels.
    """
    if configuration.model.num_channels != 3:
        raise MaeConvertError(
            f"pictures have 3 channels, and this model takes {configuration.model.num_channels}"
        )
    height, width = configuration.model.image_hw
    pixels = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                resized = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        except (OSError, UnidentifiedImageError) as error:
            raise MaeConvertError(f"{path} is not a picture that can be read: {error}") from error
        pixels.append(np.asarray(resized, dtype=np.float32) / 255)  # (H, W, 3)
    mean, std = (np.float32(configuration.value(name)) for name in ("image_mean", "image_std"))
    return ((np.stack(pixels) - mean) / std).transpose(0, 3, 1, 2)


def as_colours(pixel_values: np.ndarray, configuration: Configuration) -> np.ndarray:
    """Return normalised pixels (N, 3, H, W) as colours (N, H, W, 3) in [0, 1]."""
    mean, std = (np.float64(configuration.value(name)) for name in ("image_mean", "image_std"))
    return np.clip(pixel_values.transpose(0, 2, 3, 1) * std + mean, 0, 1)


def mask_of_pixels(mask: np.ndarray, configuration: Configuration) -> np.ndarray:
    """Return a mask of patches (N, L) as a mask of pixels (N, H, W, 1)."""
    rows, columns = configuration.model.grid_hw
    height, width = configuration.model.patch_hw
    grid = mask.reshape(len(mask), rows, columns)
    return grid.repeat(height, axis=1).repeat(width, axis=2)[..., None]


def reconstruction_panel(
    pixel_values: np.ndarray,
    reconstruction: np.ndarray,
    mask: np.ndarray,
    configuration: Configuration,
    *,
    scale: int = 2,
) -> Image.Image:
    """Return a panel with a row for each picture.

    A row shows the original, the masked picture, the reconstruction, and the reconstruction with
    the visible patches put back.

    Args:
        pixel_values: (N, 3, H, W), normalised.
        reconstruction: (N, 3, H, W), normalised.
        mask: (N, L), 1 where a patch is removed.
        configuration: the model's, for patches and normalisation.
        scale: pixels on the screen for each of the model's.
    """
    original, painted = (as_colours(x, configuration) for x in (pixel_values, reconstruction))
    removed = mask_of_pixels(mask, configuration)
    masked = np.where(removed > 0, GREY, original)
    pasted = np.where(removed > 0, painted, original)
    rows = [
        _joined(list(row), axis=1) for row in zip(original, masked, painted, pasted, strict=True)
    ]
    colours = np.rint(_joined(rows, axis=0) * 255).astype(np.uint8)
    panel = Image.fromarray(colours)
    return panel.resize((panel.width * scale, panel.height * scale), Image.Resampling.NEAREST)


def _joined(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    shape = list(parts[0].shape)
    shape[axis] = GAP
    gap = np.ones(shape)
    return np.concatenate([x for part in parts for x in (part, gap)][:-1], axis=axis)
