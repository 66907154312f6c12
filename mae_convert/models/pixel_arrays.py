"""Arrays and tensors of pixels as inputs of the image processor."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae_convert.checkpoint.image_files import open_image
from mae_convert.checkpoint.preprocessing import MODES, Preprocessing
from mae_convert.errors import ImageError

AXES = {"channels_first": "first", "channels_last": "last"}
CHANNELS = (1, 3, 4)  # possible numbers of channels of an image


def axes_named(name: Any, argument: str) -> str | None:
    """Return the position of the channel axis, "first" or "last", that an argument specifies.

    Args:
        name: the value of the argument; if it is None, the result is None.
        argument: the name of the argument, for the message.

    Raises:
        ImageError: the argument is neither "channels_first" nor "channels_last".
    """
    if name is None:
        return None
    text = str(getattr(name, "value", name))
    if text not in AXES:
        raise ImageError(f"{argument} must be {' or '.join(map(repr, AXES))}, not {text!r}")
    return AXES[text]


def single_images(images: Any) -> list[Any]:
    """Return a list of single images: Pillow images, paths, and arrays with two or three axes.

    Args:
        images: an image, a batch of images (an array with four axes), or a nested list of these.

    Raises:
        ImageError: an object is not an image.
    """
    if isinstance(images, list | tuple):
        return [single for image in images for single in single_images(image)]
    if isinstance(images, Image.Image | str | Path):
        return [images]
    array = _as_array(images)
    return list(array) if array.ndim == 4 else [array]


def _as_array(image: Any) -> np.ndarray:
    if not (hasattr(image, "__array__") and hasattr(image, "shape")):
        raise ImageError(
            f"{_kind(image)} is not an image",
            hint="pass Pillow images, paths, arrays or tensors",
        )
    if hasattr(image, "detach"):  # NumPy cannot convert a PyTorch tensor that requires a gradient
        image = image.detach().cpu()
        image = image.float() if str(image.dtype) == "torch.bfloat16" else image
    array = np.asarray(image)
    array = array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    if array.dtype.kind not in "buif":
        raise ImageError(
            f"an array of {array.dtype} is not an image", hint="pass numbers from 0 to 255"
        )
    if array.ndim not in (2, 3, 4):
        raise ImageError(
            f"an image has 2 or 3 axes and a batch has 4, but this array has {array.ndim}",
            hint="pass a list of images, or a batch",
        )
    if not array.size:
        raise ImageError(f"an array of shape {array.shape} contains no pixels", hint="leave it out")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ImageError("the pixels contain NaN or infinity", hint="correct them first")
    return array


def _kind(image: Any) -> str:
    return "None" if image is None else f"an object of type {type(image).__name__}"


def prepared(image: Any, prepare: Preprocessing, axes: str | None) -> np.ndarray:
    """Return an image as an input of the model, (C, H, W), float32.

    Args:
        image: a Pillow image, a path, or an array. An array contains whole numbers from 0 to 255,
            of any dtype, or fractions from 0 to 1 if the preprocessing does not rescale.
        prepare: the preprocessing.
        axes: whether channels are "first" or "last" in an array; None if its shape determines it.

    Raises:
        ImageError: the array cannot be prepared in this way.
        MaeConvertError: the file cannot be read.
    """
    if isinstance(image, str | Path):
        image = open_image(Path(image))
    if isinstance(image, Image.Image):
        return prepare(image)
    pixels = _channels_last(image, axes, prepare.channels)
    _refuse_scaled_twice(pixels, prepare)
    many = prepare.channels not in MODES
    if many or (pixels.shape[-1] == prepare.channels and not _is_resizing(prepare)):
        return _normalized(pixels, prepare)
    if not _is_whole(pixels):
        pixels = _eight_bits(pixels)
        prepare = replace(prepare, rescale=1 / 255)
    elif pixels.min() < 0 or pixels.max() > 255:
        raise ImageError(
            "pixels must be from 0 to 255 to be resized or converted",
            hint="pass the image before it is normalized, or do_resize=False",
        )
    pixels = pixels.astype(np.uint8)
    return prepare(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))


def _is_resizing(prepare: Preprocessing) -> bool:
    return bool(prepare.resize or prepare.shortest_edge or prepare.crop)


def _channels_last(pixels: np.ndarray, axes: str | None, channels: int) -> np.ndarray:
    """Return an array (H, W), (H, W, C) or (C, H, W) as (H, W, C).

    If `axes` is "first" or "last", it is the position of the axis of channels. If `axes` is None,
    the first or the last axis is chosen: the axis whose size is the model's number of channels,
    or else the axis whose size is another number of channels that images have. If the two axes
    qualify equally, the first is chosen.
    """
    if pixels.ndim == 2:
        return pixels[..., None]
    axis_of = {"first": 0, "last": 2}
    likely = [
        name
        for counts in ((channels,), CHANNELS if channels in MODES else ())
        for name, axis in axis_of.items()
        if pixels.shape[axis] in counts and axes in (None, name)
    ]
    if not likely:
        which = "first or last axis" if axes is None else f"{axes} axis"
        possible = sorted({*CHANNELS, channels}) if channels in MODES else [channels]
        raise ImageError(
            f"an array of shape {pixels.shape} has no {which} of"
            f" {' or '.join(map(str, possible))} channels",
            hint="pass input_data_format, or convert the image",
        )
    return np.ascontiguousarray(pixels.transpose(1, 2, 0) if likely[0] == "first" else pixels)


def _is_whole(pixels: np.ndarray) -> bool:
    """Return whether all pixels are whole numbers, within the tolerance of ``np.allclose``."""
    return pixels.dtype.kind != "f" or np.allclose(pixels, pixels.astype(np.int64))


def _refuse_scaled_twice(pixels: np.ndarray, prepare: Preprocessing) -> None:
    """Raise an error for pixels in [0, 1], which a second rescaling would reduce to almost zero."""
    scaled = not _is_whole(pixels) and pixels.min() >= 0 and pixels.max() <= 1
    if scaled and prepare.rescale != 1.0:
        raise ImageError(
            "these pixels are already in the range from 0 to 1", hint="pass do_rescale=False"
        )


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Return pixels in [0, 1] as float32 in [0, 255], not rounded.

    Raises:
        ImageError: a pixel is not in [0, 1].
    """
    if pixels.min() < 0 or pixels.max() > 1:
        raise ImageError(
            "floating-point pixels must be in the range from 0 to 1 to be resized",
            hint="pass 8-bit values",
        )
    return (pixels.astype(np.float64) * 255).astype(np.float32)


def _normalized(pixels: np.ndarray, prepare: Preprocessing) -> np.ndarray:
    """Normalize pixels that already have the model's image size and number of channels."""
    if prepare.resize not in (None, pixels.shape[:2]) or prepare.shortest_edge or prepare.crop:
        raise ImageError(
            f"images with {prepare.channels} channels cannot be resized",
            hint="resize the images to the model's image size first",
        )
    return prepare.normalized(pixels)
