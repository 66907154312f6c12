"""Encoder features of images: one vector each, for retrieval, probing and clustering."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.checkpoint.image_files import check_images
from mae_convert.checkpoint.open import Checkpoint, require_images
from mae_convert.checkpoint.preprocessing import load_pictures, preprocessing_of
from mae_convert.errors import Option
from mae_convert.files.atomic import replacing_file
from mae_convert.runtime import load_model
from mae_convert.visualize.image_batch import ImageBatch

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Features:
    """Features of N images, with D the width of the encoder.

    Attributes:
        names: (N,), paths of the images within their folder.
        labels: (N,), the folder that each lies in, within that folder; empty where there is none.
        cls: (N, D), float32, the class token after the final norm.
        mean: (N, D), float32, the mean of the patches after the final norm.
    """

    names: np.ndarray
    labels: np.ndarray
    cls: np.ndarray
    mean: np.ndarray

    def save(self, path: Path, *, overwrite: bool) -> None:
        """Write an ``.npz`` file with these arrays."""
        with replacing_file(path, overwrite=overwrite) as place, place.open("wb") as file:
            np.savez(
                file, names=self.names, labels=self.labels, cls=self.cls, mean=self.mean,
                allow_pickle=False,
            )  # fmt: skip


def features_of(
    checkpoint: Checkpoint,
    folder: Path | None,
    paths: Sequence[Path],
    *,
    inputs: ImageBatch | None = None,
    framework: str = "torch",
    device: str | None = None,
    batch: int = 32,
    advance: Progress | None = None,
) -> Features:
    """Run a checkpoint's encoder on images, none of whose patches is left out, in float32.

    Args:
        checkpoint: any with an encoder.
        folder: what names and labels are told from.
        paths: images in it.
        inputs: preprocessed images, in place of a folder's; their noise is not used.
        framework: "torch", "tensorflow" or "jax".
        device: "cpu" or "cuda"; None is where the framework puts it.
        batch: images that go through the encoder together.
        advance: called with the number of images that were done.

    Raises:
        MaeConvertError: an image cannot be read, or does not fit the model.
        MissingRequirementError: the framework or the device is not there.
    """
    require_images(checkpoint, "features")
    if inputs is None:
        preprocessing_of(checkpoint)
        # Before minutes of work.
        skip = Option("skip_unreadable", True)
        check_images(paths, ("correct or remove it, or leave such files out with ", skip))
    model = load_model(checkpoint, framework, task="encoder", dtype="float32", device=device)
    model.config = replace(model.config, mask_ratio=0.0)
    run = _run_torch if framework == "torch" else _run_keras
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for pixels in _batches(checkpoint, paths, inputs, batch):
        in_order = np.arange(model.config.num_patches, dtype=np.float32)
        hidden = run(model, pixels, np.tile(in_order, (len(pixels), 1)), device)
        found.append((hidden[:, 0], hidden[:, 1:].mean(axis=1, dtype=np.float64)))
        if advance is not None:
            advance(len(pixels))
    cls, mean = (np.concatenate(part).astype(np.float32) for part in zip(*found, strict=True))
    if inputs is not None:
        return Features(np.array(inputs.labels), np.array([""] * len(cls)), cls, mean)
    names = [path.relative_to(folder) for path in paths] if folder else list(paths)
    labels = [str(name.parent) if name.parent != Path() else "" for name in names]
    return Features(np.array([str(name) for name in names]), np.array(labels), cls, mean)


def _batches(
    checkpoint: Checkpoint, paths: Sequence[Path], inputs: ImageBatch | None, size: int
) -> Iterator[np.ndarray]:
    """Yield batches of pixels."""
    if inputs is not None:
        for start in range(0, len(inputs.names), size):
            yield inputs.pixel_values[start : start + size]
        return
    for start in range(0, len(paths), size):
        yield load_pictures(paths[start : start + size], checkpoint)


def _run_torch(model: Any, pixels: np.ndarray, noise: np.ndarray, device: str | None) -> np.ndarray:
    import torch

    given = (torch.from_numpy(array).to(device or "cpu") for array in (pixels, noise))
    with torch.inference_mode():
        hidden: np.ndarray = model(*given).last_hidden_state.cpu().numpy()
    return hidden


def _run_keras(model: Any, pixels: np.ndarray, noise: np.ndarray, device: str | None) -> np.ndarray:
    from keras import ops

    from mae_convert.runtime.keras_backend import device as on_device

    with on_device(device) if device else nullcontext():
        outputs = model(ops.convert_to_tensor(pixels), noise=ops.convert_to_tensor(noise))
        hidden: np.ndarray = ops.convert_to_numpy(outputs.last_hidden_state)
    return hidden
