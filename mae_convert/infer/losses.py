"""Reconstruction losses of a model on crops of images, for candidate configurations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mae_convert.checkpoint.open import Checkpoint
from mae_convert.checkpoint.preprocessing import MODES
from mae_convert.runtime.loading import Wanted, make_model
from reference_models.configuration import ViTMAEConfig

BATCH = 16
SMALLEST_CROP = 0.2
"""Range of the crop area relative to the image; MAE is trained on such crops (He et al. 2021,
appendix A.1)."""
VARIANCE_FLOOR = 1e-6
"""Added to the variance of a patch, as in the loss of the original."""


@dataclass(frozen=True)
class Losses:
    """Losses on removed patches, each array (images, crops); mean squared errors.

    Attributes:
        pixels: against the pixels, as a model with ``norm_pix_loss`` False is trained.
        normalized: against pixels normalised in each patch, as one with True is trained.
        one_colour: against the pixels, of the mean colour of the patches that are visible.
        zero: against normalised pixels, of zeros.
    """

    pixels: np.ndarray
    normalized: np.ndarray
    one_colour: np.ndarray
    zero: np.ndarray

    def relative(self, *, norm_pix_loss: bool) -> np.ndarray:
        """Return the loss relative to the mean loss of a constant, (images, crops)."""
        if norm_pix_loss:
            return self.normalized / self.zero.mean()
        return self.pixels / self.one_colour.mean()


@dataclass(frozen=True)
class Crops:
    """Crops of images, and the noise that masks each.

    Attributes:
        pixels: (images, crops, H, W, C), uint8.
        noise: (images, crops, L), float32.
    """

    pixels: np.ndarray
    noise: np.ndarray

    def first(self, crops: int) -> "Crops":
        """Return the first crops of each image."""
        return Crops(self.pixels[:, :crops], self.noise[:, :crops])


def make_crops(
    images: Sequence[Image.Image], config: ViTMAEConfig, *, crops: int, seed: int
) -> Crops:
    """Cut crops at random out of images, as in training, each with a mask of its own."""
    generator = np.random.Generator(np.random.Philox(seed))
    height, width = config.image_hw
    pixels = []
    for image in images:
        in_channels = image.convert(MODES[config.num_channels])
        for _ in range(crops):
            box = _crop(image.size, height / width, generator)
            resized = in_channels.resize((width, height), Image.Resampling.BICUBIC, box=box)
            pixels.append(np.asarray(resized).reshape(height, width, -1))
    shape = len(images), crops
    noise = generator.permuted(
        np.tile(np.arange(config.num_patches), (len(pixels), 1)), axis=1
    ).astype(np.float32)
    return Crops(
        np.stack(pixels).reshape(*shape, height, width, -1),
        (noise / config.num_patches).reshape(*shape, -1),
    )


def _crop(
    size: tuple[int, int], shape: float, generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """Return the box of a crop with the height to width ratio ``shape``."""
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
        """Return the losses of the model that a configuration gives.

        Args:
            checkpoint: the same weights with a configuration that is tried.
            crops: what the model is shown.
        """
        configuration = checkpoint.configuration
        model = self._model_for(checkpoint)
        mean, std = (
            np.array(v, np.float32) for v in (configuration.image_mean, configuration.image_std)
        )
        images, count = crops.noise.shape[:2]
        pixels = crops.pixels.reshape(images * count, *crops.pixels.shape[2:])
        noise = crops.noise.reshape(images * count, -1)
        parts = []
        for start in range(0, len(pixels), BATCH):
            batch = (pixels[start : start + BATCH].astype(np.float32) / 255 - mean) / std
            channels_first = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
            predicted, mask = self._run(model, channels_first, noise[start : start + BATCH])
            parts.append(_losses(predicted, _patches(batch, configuration.model), mask))
        return Losses(*(np.concatenate(x).reshape(images, count) for x in zip(*parts, strict=True)))

    def _model_for(self, checkpoint: Checkpoint) -> Any:
        if self._framework == "torch" and self._model is not None:
            from mae_convert.runtime.torch_model import with_config

            self._model = with_config(self._model, checkpoint.configuration.model)
        else:
            wanted = Wanted(self._framework, "pretrain", "float32", self._device)
            self._model = make_model(checkpoint, wanted)
        return self._model

    def _run(
        self, model: Any, pixels: np.ndarray, noise: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the predicted patches (N, L, P) and the mask (N, L)."""
        if self._framework == "torch":
            import torch

            with torch.inference_mode():
                outputs = model(*(torch.from_numpy(a).to(self._device) for a in (pixels, noise)))
            return outputs.logits.cpu().numpy(), outputs.mask.cpu().numpy()
        from keras import ops

        outputs = model(ops.convert_to_tensor(pixels), noise=ops.convert_to_tensor(noise))
        return ops.convert_to_numpy(outputs.logits), ops.convert_to_numpy(outputs.mask)


def _patches(pixels: np.ndarray, config: ViTMAEConfig) -> np.ndarray:
    """Return images (N, H, W, C) as patches (N, L, h, w, C), in the order of the model's tokens."""
    (rows, columns), (height, width) = config.grid_hw, config.patch_hw
    cut = pixels.reshape(len(pixels), rows, height, columns, width, -1).swapaxes(2, 3)
    return cut.reshape(len(pixels), rows * columns, height, width, -1)


def _losses(predicted: np.ndarray, patches: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the four losses of `Losses` for each image, (N,)."""
    visible = (1 - mask)[..., None, None, None]
    area = visible.sum((1, 2, 3), keepdims=True) * patches[0, 0, :, :, 0].size
    colour = (patches * visible).sum((1, 2, 3), keepdims=True) / area
    flat = patches.reshape(*patches.shape[:2], -1)
    variance = flat.var(-1, ddof=1, keepdims=True)
    normalized = (flat - flat.mean(-1, keepdims=True)) / np.sqrt(variance + VARIANCE_FLOOR)

    def loss(error: np.ndarray) -> np.ndarray:
        of_patches = np.square(error, dtype=np.float64).mean(-1)
        result: np.ndarray = (of_patches * mask).sum(1) / mask.sum(1)
        return result

    one_colour = (patches - colour).reshape(flat.shape)
    return loss(predicted - flat), loss(predicted - normalized), loss(one_colour), loss(normalized)
