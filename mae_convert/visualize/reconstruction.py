"""A model's reconstructions of masked images and videos."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.image_files import open_image
from mae_convert.checkpoint.preprocessing import as_pixels
from mae_convert.errors import MaeConvertError
from mae_convert.families.pixel_patches import cut, over_patches
from mae_convert.runtime import load_model
from mae_convert.runtime.inputs import Arrays
from mae_convert.runtime.running import Request, Run, run_together
from mae_convert.runtime.sides import Side
from mae_convert.visualize.pixels import in_pixels

BATCH_SIZE = 8
BOTH = ("torch", "tensorflow")


@dataclass(frozen=True)
class Reconstruction:
    """The reconstructions of images or clips."""

    pixel_values: np.ndarray
    """(N, C, [T,] H, W), the original images, normalized as for the model; for clips, only the
    frames that the model predicts."""

    mask: np.ndarray
    """(N, L), 1 where a patch was removed."""

    predicted: dict[str, np.ndarray]
    """All predicted patches as images (N, C, [T,] H, W) by framework, normalized like
    ``pixel_values``."""

    loss: dict[str, np.ndarray]
    """The mean squared error (N,) over removed patches, in normalized pixel units, of each
    framework."""

    shapes: Any
    """An object with the attributes ``grid_shape`` and ``patch_shape``."""

    only_removed: bool = False
    """Whether the model predicts removed patches only; values of other patches are meaningless."""


def crop_to_shape(image: Image.Image, image_hw: tuple[int, int]) -> Image.Image:
    """Return the largest centre crop of an image with the aspect ratio of the model's images."""
    height, width = image_hw
    scale = min(image.height / height, image.width / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))


def load_cropped(paths: Sequence[Path], checkpoint: Checkpoint, *, stretch: bool) -> np.ndarray:
    """Return images as model inputs (N, C, H, W).

    Args:
        paths: the image files.
        checkpoint: the checkpoint of the model.
        stretch: resize whole images instead of cropping them to the model's aspect ratio.

    Raises:
        MaeConvertError: a file is not an image or does not fit the model.
    """
    image_hw = checkpoint.configuration.model.image_hw
    pixels = []
    for path in paths:  # one at a time, because photographs are large
        image = open_image(path)
        image = image if stretch else crop_to_shape(image, image_hw)
        pixels.append(as_pixels(image, str(path), checkpoint))
    return np.stack(pixels)


class Reconstructor:
    """A checkpoint's model, loaded once and run with any mask ratio, in float32."""

    def __init__(self, checkpoint: Checkpoint, framework: str, device: str | None = None) -> None:
        """Load the model.

        Args:
            checkpoint: a checkpoint with a decoder.
            framework: "torch", "tensorflow", "jax" or "both"; "both" runs PyTorch and TensorFlow in
                separate processes.
            device: "cpu" or "cuda"; None for the default of the framework.

        Raises:
            MaeConvertError: the checkpoint has no decoder.
            MissingRequirementError: the framework or the device is not available.
        """
        if checkpoint.task != "pretrain":
            raise MaeConvertError(
                f"{checkpoint.name} has no decoder, which is required for a reconstruction",
                hint="use a checkpoint with a decoder; `mae-convert catalog` lists checkpoints",
            )
        self._checkpoint, self._framework, self._device = checkpoint, framework, device
        self._model: Any = None
        if framework != "both":
            self._model = load_model(
                checkpoint, framework, dtype="float32", device=device, mmap=False
            )

    def __call__(self, inputs: Arrays, ratio: float) -> Reconstruction:
        """Return the reconstructions of a batch.

        Args:
            inputs: ``pixel_values`` (N, C, [T,] H, W), ``noise`` (N, L), and additional inputs of
                the model.
            ratio: the mask ratio.
        """
        pixels = inputs["pixel_values"]
        parts = [
            self._run_batch({n: a[start : start + BATCH_SIZE] for n, a in inputs.items()}, ratio)
            for start in range(0, len(pixels), BATCH_SIZE)
        ]
        family, model = self._checkpoint.family, self._checkpoint.configuration.model
        mask, shapes = np.concatenate([mask for mask, _ in parts]), family.prediction(model)
        target = family.predicted_pixels(pixels, model)
        predicted = {
            name: in_pixels(np.concatenate([p[name] for _, p in parts]), target, family, model)
            for name in parts[0][1]
        }
        loss = {name: removed_error(p, target, mask, shapes) for name, p in predicted.items()}
        return Reconstruction(
            target, mask, predicted, loss, shapes, only_removed=family.predicts_removed_only
        )

    def _run_batch(self, inputs: Arrays, ratio: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the mask and the predictions of each framework for a batch."""
        if self._framework == "both":
            return self._both(inputs, ratio)
        run = _run_torch if self._framework == "torch" else _run_keras
        _set_ratio(self._model, ratio)
        mask, images = run(self._model, inputs, self._device)
        return mask, {self._framework: images}

    def _both(self, inputs: Arrays, ratio: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        request = Request(dtypes=("float32",), taps=False, mask_ratio=ratio)
        sides = [Side(name, self._device or "cpu") for name in BOTH]
        runs = [Run(self._checkpoint, side, request) for side in sides]
        traces = run_together(runs, inputs)
        return traces[0].arrays["mask"], {
            name: trace.arrays["float32/reconstruction"]
            for name, trace in zip(BOTH, traces, strict=True)
        }


def removed_error(
    predicted: np.ndarray, pixels: np.ndarray, mask: np.ndarray, shapes: Any
) -> np.ndarray:
    """Return the mean squared error (N,) over removed patches; NaN if no patch was removed.

    Args:
        predicted: (N, C, [T,] H, W), the predicted pixels.
        pixels: (N, C, [T,] H, W), the original pixels.
        mask: (N, L), 1 where a patch is removed.
        shapes: an object with the attributes ``grid_shape`` and ``patch_shape``.
    """
    errors = over_patches(np.square(cut(predicted - pixels, shapes)), shapes)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = (errors * mask).sum(1) / mask.sum(1)
    return mean


def _set_ratio(model: Any, ratio: float) -> None:
    """Set the mask ratio of a model and of its encoder, which may do the masking."""
    config = model.config
    for part in (model, getattr(model, "encoder", None)):
        if part is not None and getattr(part, "config", None) == config:
            part.config = replace(config, mask_ratio=ratio)


def _run_torch(model: Any, inputs: Arrays, device: str | None) -> tuple[np.ndarray, np.ndarray]:
    import torch

    from mae_convert.runtime.run_pytorch import all_patches

    tensors = {name: torch.from_numpy(array).to(device or "cpu") for name, array in inputs.items()}
    with torch.inference_mode():
        outputs = model(tensors.pop("pixel_values"), tensors.pop("noise"), **tensors)
        images = model.unpatchify(all_patches(outputs.logits, outputs.mask))
        return outputs.mask.cpu().numpy(), images.cpu().numpy()


def _run_keras(model: Any, inputs: Arrays, device: str | None) -> tuple[np.ndarray, np.ndarray]:
    from keras import ops

    from mae_convert.runtime.keras_backend import device as on_device
    from mae_convert.runtime.run_keras import all_patches

    with on_device(device) if device else nullcontext():
        tensors = {name: ops.convert_to_tensor(array) for name, array in inputs.items()}
        outputs = model(tensors.pop("pixel_values"), **tensors)
        images = model.unpatchify(all_patches(outputs.logits, outputs.mask))
        return ops.convert_to_numpy(outputs.mask), ops.convert_to_numpy(images)
