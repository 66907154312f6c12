"""Reconstruction losses of candidate configurations on crops of images or clips."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.preprocessing import MODES
from mae_convert.families.family import Family
from mae_convert.families.pixel_patches import cut, over_patches
from mae_convert.runtime.loading import ModelRequest, make_model

BATCH = 16
SMALLEST_CROP = 0.2
"""The smallest area of a crop relative to the image, as in the training of MAE (He et al. 2021,
appendix A.1)."""
MOST_MOVED = 0.35
"""In a clip that is made from one image, the crop moves from a random box towards another random
box. It moves at most this fraction of the distance between the two boxes."""


@dataclass(frozen=True)
class Losses:
    """Mean squared errors on removed patches; each array has the shape (images, crops)."""

    pixels: np.ndarray
    """Error of the pixels, the loss of a model with ``norm_pix_loss=False``."""

    normalized: np.ndarray
    """Error of the normalized patches, the loss of a model with ``norm_pix_loss=True``."""

    one_colour: np.ndarray
    """Error of the pixels if every prediction is the mean colour of the visible patches."""

    zero: np.ndarray
    """Error of the normalized patches if every prediction is zero."""

    def relative(self, *, norm_pix_loss: bool) -> np.ndarray:
        """Return the loss (images, crops), divided by the loss of a constant prediction.

        The loss of the constant prediction is its mean over all images and crops. The prediction
        is `zero` if `norm_pix_loss`, else `one_colour`.
        """
        if norm_pix_loss:
            return self.normalized / self.zero.mean()
        return self.pixels / self.one_colour.mean()


@dataclass(frozen=True)
class Crops:
    """Crops of images or clips, and the noise that determines their masks."""

    pixels: np.ndarray
    """The crops (images, crops, [T,] H, W, C): uint8 colours, or floating-point satellite data."""

    noise: np.ndarray
    """The noise that determines the masks, (images, crops, L), float32."""

    def first(self, crops: int) -> "Crops":
        """Return the first `crops` crops of each image or clip."""
        return Crops(self.pixels[:, :crops], self.noise[:, :crops])


def make_crops(
    images: Sequence[Image.Image], family: Family, config: Any, *, crops: int, seed: int
) -> Crops:
    """Return random crops of images, as in training, each with its own mask.

    A video model gets a clip instead of each crop: the crop moves across the image.

    Args:
        images: the images.
        family: the family of the model.
        config: the configuration of the model.
        crops: number of crops of each image.
        seed: the seed of crops and masks.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    height, width = config.image_hw
    frames = 1 if family.clips is None else config.num_frames
    pixels = []
    for image in images:
        in_channels = image.convert(MODES[config.num_channels])
        for _ in range(crops):
            clip = []
            for box in _moving(image.size, height / width, frames, generator):
                resized = in_channels.resize((width, height), Image.Resampling.BICUBIC, box=box)
                clip.append(np.asarray(resized).reshape(height, width, -1))
            pixels.append(np.stack(clip) if family.clips is not None else clip[0])
    shape = len(images), crops
    return Crops(
        np.stack(pixels).reshape(*shape, *pixels[0].shape),
        family.noise(config, len(pixels), generator).reshape(*shape, -1),
    )


def make_clips(
    clips: Sequence[np.ndarray], family: Family, config: Any, *, crops: int, seed: int
) -> Crops:
    """Return random crops of clips, each with its own mask.

    Args:
        clips: the frames (T, H, W, C) of each clip. Crops are resized to the model's image size,
            except crops of measurements (floating-point values), which are cut at this size.
        family: the family of the model.
        config: the configuration of the model.
        crops: number of crops of each clip.
        seed: the seed of crops and masks.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    assert family.clips is not None
    cutting = _measured_crop if family.clips.measured else _resized_crop
    pixels = [cutting(clip, config.image_hw, generator) for clip in clips for _ in range(crops)]
    shape = len(clips), crops
    return Crops(
        np.stack(pixels).reshape(*shape, *pixels[0].shape),
        family.noise(config, len(pixels), generator).reshape(*shape, -1),
    )


def _measured_crop(
    clip: np.ndarray, size: tuple[int, int], generator: np.random.Generator
) -> np.ndarray:
    rows, columns = clip.shape[1:3]
    top = int(generator.integers(rows - size[0] + 1))
    left = int(generator.integers(columns - size[1] + 1))
    return clip[:, top : top + size[0], left : left + size[1]]


def _resized_crop(
    clip: np.ndarray, size: tuple[int, int], generator: np.random.Generator
) -> np.ndarray:
    rows, columns = clip.shape[1:3]
    box = _crop((columns, rows), size[0] / size[1], generator)
    frames = (Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame) for frame in clip)
    resized = [f.resize(size[::-1], Image.Resampling.BICUBIC, box=box) for f in frames]
    return np.stack([np.asarray(frame).reshape(*size, -1) for frame in resized])


def _moving(
    size: tuple[int, int], shape: float, frames: int, generator: np.random.Generator
) -> list[tuple[float, float, float, float]]:
    """Return a crop box for each frame; the boxes move from one random crop towards another.

    Args:
        size: the width and height of the image.
        shape: the ratio of height to width of the boxes.
        frames: the number of frames.
        generator: the random number generator.

    Returns:
        The boxes (left, top, right, bottom) in pixels of the image.
    """
    start = _crop(size, shape, generator)
    if frames == 1:
        return [start]
    end, far = _crop(size, shape, generator), generator.uniform(0, MOST_MOVED)
    boxes = (np.array(start) + (np.array(end) - start) * t for t in np.linspace(0, far, frames))
    return [(float(b[0]), float(b[1]), float(b[2]), float(b[3])) for b in boxes]


def _crop(
    size: tuple[int, int], shape: float, generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """Return a random crop box (left, top, right, bottom).

    Args:
        size: the width and height of the image.
        shape: the ratio of height to width of the box.
        generator: the random number generator.
    """
    width, height = size
    largest = min(width, height / shape)
    wide = largest * generator.uniform(SMALLEST_CROP, 1) ** 0.5
    left = generator.uniform(0, width - wide)
    top = generator.uniform(0, height - wide * shape)
    return left, top, left + wide, top + wide * shape


class Runner:
    """Runs one checkpoint's weights with candidate configurations, in float32."""

    def __init__(self, framework: str, device: str | None) -> None:
        self._framework, self._device = framework, device
        self._model: Any = None

    def losses(self, checkpoint: Checkpoint, crops: Crops) -> Losses:
        """Return the losses of the model with the checkpoint's configuration.

        Args:
            checkpoint: the weights with a candidate configuration.
            crops: the inputs.
        """
        configuration, family = checkpoint.configuration, checkpoint.family
        model, config = self._model_for(checkpoint), checkpoint.configuration.model
        mean, std = (
            np.array(v, np.float32) for v in (configuration.image_mean, configuration.image_std)
        )
        scale = 1 if family.clips is not None and family.clips.measured else 255
        images, count = crops.noise.shape[:2]
        pixels = crops.pixels.reshape(images * count, *crops.pixels.shape[2:])
        noise = crops.noise.reshape(images * count, -1)
        parts = []
        for start in range(0, len(pixels), BATCH):
            batch = (pixels[start : start + BATCH].astype(np.float32) / scale - mean) / std
            channels_first = np.ascontiguousarray(np.moveaxis(batch, -1, 1))
            predicted, mask = self._run(model, channels_first, noise[start : start + BATCH])
            target = family.predicted_pixels(channels_first, config)
            parts.append(_losses(predicted, target, mask, family, config))
        return Losses(*(np.concatenate(x).reshape(images, count) for x in zip(*parts, strict=True)))

    def _model_for(self, checkpoint: Checkpoint) -> Any:
        if self._framework == "torch" and self._model is not None:
            from mae_convert.runtime.torch_model import with_config

            self._model = with_config(self._model, checkpoint.configuration.model)
        else:
            request = ModelRequest(self._framework, "pretrain", "float32", self._device)
            self._model = make_model(checkpoint, request)
        return self._model

    def _run(
        self, model: Any, pixels: np.ndarray, noise: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the unpatchified output (N, C, [T,] H, W) of the decoder, and the mask (N, L)."""
        if self._framework == "torch":
            import torch

            from mae_convert.runtime.run_pytorch import all_patches

            with torch.inference_mode():
                outputs = model(*(torch.from_numpy(a).to(self._device) for a in (pixels, noise)))
                predicted = model.unpatchify(all_patches(outputs.logits, outputs.mask))
            return predicted.cpu().numpy(), outputs.mask.cpu().numpy()
        from keras import ops

        from mae_convert.runtime.run_keras import all_patches as all_patches_of_keras

        outputs = model(ops.convert_to_tensor(pixels), noise=ops.convert_to_tensor(noise))
        predicted = model.unpatchify(all_patches_of_keras(outputs.logits, outputs.mask))
        return ops.convert_to_numpy(predicted), ops.convert_to_numpy(outputs.mask)


def _losses(
    predicted: np.ndarray, pixels: np.ndarray, mask: np.ndarray, family: Family, config: Any
) -> tuple[np.ndarray, ...]:
    """Return the four losses of `Losses` for each image, (N,)."""
    shapes = family.prediction(config)
    prediction = cut(predicted, shapes)
    plain, normalized = (
        _target(pixels, family, replace(config, norm_pix_loss=flag)) for flag in (False, True)
    )
    # The mean of each channel over the visible patches.
    visible = (1 - mask).reshape(len(mask), 1, *shapes.grid_shape)
    for axis in range(len(shapes.patch_shape)):
        visible = np.expand_dims(visible, 3 + 2 * axis)  # the axes of the result of `cut`
    axes = tuple(range(2, plain.ndim))
    weights = np.broadcast_to(visible, (len(plain), 1, *plain.shape[2:]))
    colour = (plain * weights).sum(axes, keepdims=True) / weights.sum(axes, keepdims=True)

    def loss(error: np.ndarray) -> np.ndarray:
        of_patches = over_patches(np.square(error, dtype=np.float64), shapes)
        result: np.ndarray = (of_patches * mask).sum(1) / mask.sum(1)
        return result

    errors = (prediction - plain, prediction - normalized, plain - colour, normalized)
    return tuple(loss(error) for error in errors)


def _target(pixels: np.ndarray, family: Family, config: Any) -> np.ndarray:
    """Return the patches to be predicted, normalized with the family's ``target_statistics``."""
    mean, deviation = family.target_statistics(pixels, config)
    target: np.ndarray = (cut(pixels, family.prediction(config)) - mean) / deviation
    return target.astype(np.float32)
