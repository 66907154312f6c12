"""Preprocess images like transformers' ViTImageProcessor.

Pillow resizes 8-bit pixels, which are then rescaled and normalized in float32. The results are
bit-identical to the outputs of ViTImageProcessor with its Pillow backend.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.image_files import brightness_problem, open_image
from mae_convert.errors import MaeConvertError, Option, as_field

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's modes by the number of channels
LARGEST_RESIZED = 1 << 28  # pixels
BICUBIC, BILINEAR = 3, 2  # Pillow's numbers, also used in preprocessor_config.json
WHERE = "in preprocessor_config.json or in the call"
Size = tuple[int, int]


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of an image; the operations are applied in the order of the fields."""

    channels: int
    """The number of channels of the model; images are converted to this number of channels."""

    resize: Size | None
    """Height and width to resize to; None if the image is not resized to a fixed size."""

    shortest_edge: int | None
    """The length to which the shorter side is resized; None if the shorter side does not determine
    the size."""

    resample: int
    """Pillow's number of the resampling filter."""

    crop: Size | None
    """Height and width of the centre crop; None if images are not cropped."""

    rescale: float
    """The factor by which pixels from 0 to 255 are multiplied; 1 if they are not rescaled."""

    mean: tuple[float, ...]
    """The mean of each channel, which is subtracted."""

    std: tuple[float, ...]
    """The standard deviation of each channel; pixels minus the mean are divided by it."""

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return an image as an input of the model (C, H, W), float32."""
        image = _in_channels(image, self.channels)
        if size := self._size_for(image):
            image = image.resize(size[::-1], Image.Resampling(self.resample))
        if self.crop is not None:
            image = _centre_crop(image, self.crop)
        return self.normalized(np.asarray(image))

    def normalized(self, pixels: np.ndarray) -> np.ndarray:
        """Rescale and normalize pixels (H, W) or (H, W, C), and return them as (C, H, W)."""
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels  # (H, W, C)
        scaled = (pixels.astype(np.float64) * self.rescale).astype(np.float32)
        normal = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1))

    def _size_for(self, image: Image.Image) -> Size | None:
        if self.shortest_edge is None:
            return self.resize
        short, long = sorted((image.height, image.width))
        other = int(self.shortest_edge * long / short)
        if other * self.shortest_edge > LARGEST_RESIZED:
            raise MaeConvertError(
                f"an image of {image.height}x{image.width} pixels would have a longer side of "
                f"{other * self.shortest_edge} pixels when its shorter side is resized to "
                f"{self.shortest_edge}",
                hint="crop it",
            )
        tall = image.height > image.width
        return (other, self.shortest_edge) if tall else (self.shortest_edge, other)


def preprocessing_of(checkpoint: Checkpoint, *, stretch: bool = False) -> Preprocessing:
    """Return the preprocessing that a checkpoint specifies, or else its family's preprocessing.

    For images, the family's preprocessing is bicubic resizing to the model's size; for frames see
    `mae_convert.families.clips`.

    Args:
        checkpoint: the checkpoint of the model.
        stretch: resize each image to the model's height and width without cropping it.

    Raises:
        MaeConvertError: a setting is invalid, or image files cannot have the model's number of
            channels.
    """
    settings, configuration = checkpoint.preprocessor, checkpoint.configuration
    model = configuration.model
    if model.num_channels not in MODES:
        raise MaeConvertError(
            (f"this model takes {model.num_channels} channels, but image files have fewer"),
            hint=("pass the pixels as an .npz file with ", Option("inputs")),
        )
    clips = checkpoint.family.clips
    if clips is not None and not settings:
        settings = clips.preprocessing(model.image_hw)
    if stretch:
        height, width = model.image_hw
        settings = {**settings, "size": {"height": height, "width": width}, "do_center_crop": False}
    statistics = configuration.image_mean, configuration.image_std
    return preprocessing_from_settings(settings, model.image_hw, statistics)


def described(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return a checkpoint's preprocessing as a dictionary; None if images cannot be its inputs.

    ``stated`` is whether the checkpoint itself specifies its preprocessing. If its settings cannot
    be applied, the dictionary contains only ``stated`` and ``problem``, the reason.
    """
    if checkpoint.configuration.model.num_channels not in MODES:
        return None
    is_stored = bool(checkpoint.preprocessor)
    try:
        return {**asdict(preprocessing_of(checkpoint)), "stated": is_stored}
    except MaeConvertError as error:
        return {"problem": error.render(as_field), "stated": is_stored}


def preprocessing_from_settings(
    settings: Mapping[str, Any],
    image_hw: Size,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
) -> Preprocessing:
    """Return the preprocessing that a ``preprocessor_config.json`` specifies.

    Args:
        settings: the content of the file.
        image_hw: height and width in pixels, used if the file does not specify a size.
        statistics: the means and the standard deviations of the channels, used unless the file has
            ``do_normalize`` false.

    Raises:
        MaeConvertError: a setting is invalid.
    """
    resize, edge = _configured_size(settings, image_hw)
    crop = _pair(settings.get("crop_size")) if settings.get("do_center_crop") else None
    normalized = settings.get("do_normalize") is not False
    mean, std = statistics
    return Preprocessing(
        channels=len(mean),
        resize=resize if settings.get("do_resize") is not False else None,
        shortest_edge=edge if settings.get("do_resize") is not False else None,
        resample=_resample(settings),
        crop=crop,
        rescale=_rescale(settings),
        mean=mean if normalized else (0.0,) * len(mean),
        std=std if normalized else (1.0,) * len(mean),
    )


def _configured_size(settings: Mapping[str, Any], default: Size) -> tuple[Size | None, int | None]:
    """Return (size, None) to resize to a size, or (None, length) to resize the shorter side.

    `default` is the size if the settings do not contain a size.
    """
    size = settings.get("size", {"height": default[0], "width": default[1]})
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        edge = size["shortest_edge"]
        if type(edge) is int and edge > 0:
            return None, edge
    return _pair(size), None


def _pair(size: Any) -> Size:
    if isinstance(size, Mapping):
        sides = (size.get("height"), size.get("width"))
    else:
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise MaeConvertError(
            f"{size!r} is not an image size",
            hint=f"specify height and width, or shortest_edge, {WHERE}",
        )
    return sides[0], sides[1]  # type: ignore[return-value]


def _resample(settings: Mapping[str, Any]) -> int:
    """Return Pillow's number of the resampling filter.

    The default is bilinear, as in transformers, or bicubic if there are no settings at all.
    """
    number = settings.get("resample", BILINEAR if settings else BICUBIC)
    if type(number) is not int or number not in [int(kind) for kind in Image.Resampling]:
        filters = ", ".join(f"{int(kind)} ({kind.name.lower()})" for kind in Image.Resampling)
        raise MaeConvertError(
            f"resample is {number!r}, which is not a Pillow filter",
            hint=f"specify one of {filters} {WHERE}",
        )
    return number


def _rescale(settings: Mapping[str, Any]) -> float:
    if settings.get("do_rescale") is False:
        return 1.0
    factor = settings.get("rescale_factor", 1 / 255)
    is_number = isinstance(factor, float | int) and not isinstance(factor, bool)
    if not is_number or not math.isfinite(factor) or not factor:
        raise MaeConvertError(
            f"rescale_factor is {factor!r}, but it must be a finite number other than 0",
            hint=f"correct it {WHERE}",
        )
    return float(factor)


def _in_channels(image: Image.Image, channels: int) -> Image.Image:
    if problem := brightness_problem(image):
        raise MaeConvertError(problem)
    if image.mode.startswith("I;16"):  # Pillow would clip values above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def _centre_crop(image: Image.Image, crop: Size) -> Image.Image:
    """Return the centre crop of an image; pixels of the crop outside the image are black."""
    top, left = ((side - target) // 2 for side, target in zip(image.size[::-1], crop, strict=True))
    return image.crop((left, top, left + crop[1], top + crop[0]))


def load_images(paths: Sequence[Path], checkpoint: Checkpoint) -> np.ndarray:
    """Return images as inputs of a checkpoint's model: ``pixel_values`` (N, C, H, W), float32.

    Raises:
        MaeConvertError: a file is not an image, or does not have the model's size after
            preprocessing.
    """
    return np.stack([as_pixels(open_image(path), str(path), checkpoint) for path in paths])


def as_pixels(
    image: Image.Image,
    name: str,
    checkpoint: Checkpoint,
    prepare: Preprocessing | None = None,
) -> np.ndarray:
    """Return an image as an input (C, H, W) of a checkpoint's model, float32.

    Args:
        image: the image.
        name: the name of the image in error messages.
        checkpoint: the checkpoint of the model.
        prepare: the preprocessing; default: the checkpoint's preprocessing.

    Raises:
        MaeConvertError: the image does not have the model's size after preprocessing.
    """
    image_hw = checkpoint.configuration.model.image_hw
    try:
        pixels = (prepare or preprocessing_of(checkpoint))(image)
    except MaeConvertError as error:
        raise MaeConvertError(f"{name}: ", error) from error
    if pixels.shape[1:] != image_hw:
        raise MaeConvertError(
            f"{name} has {pixels.shape[1]}x{pixels.shape[2]} pixels after the preprocessing of "
            f"preprocessor_config.json, but the model takes {image_hw[0]}x{image_hw[1]}",
            hint="correct the size in preprocessor_config.json, or resize the image",
        )
    return pixels
