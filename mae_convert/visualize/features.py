"""Encoder features of images and videos, for retrieval, probing and clustering."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint, require_images
from mae_convert.checkpoint.clip_inputs import load_clips
from mae_convert.checkpoint.image_files import check_images
from mae_convert.checkpoint.preprocessing import load_images, preprocessing_of
from mae_convert.errors import Option
from mae_convert.files.atomic import replacing_file
from mae_convert.files.workers import overlapped
from mae_convert.runtime import load_model
from mae_convert.runtime.inputs import Arrays
from mae_convert.visualize.image_batch import ImageBatch

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Features:
    """Features of N images or videos; D is the width of the encoder and L the number of patches."""

    names: np.ndarray
    """(N,), paths of the images or videos, relative to the folder."""

    labels: np.ndarray
    """(N,), the subfolder of each image or video; "" if it is not in a subfolder."""

    mean: np.ndarray
    """(N, D), float32, the mean of the patch tokens after the final norm."""

    cls: np.ndarray | None = None
    """(N, D), float32, the class token after the final norm; None if there is no class token."""

    tokens: np.ndarray | None = None
    """(N, L, D), float32, the patch tokens after the final norm; None if not requested."""

    sampling: str = ""
    """A sentence about how the frames of videos were sampled; "" for images."""

    def save(self, path: Path, *, overwrite: bool) -> None:
        """Write the arrays to an ``.npz`` file.

        Raises:
            OutputError: the file exists and may not be replaced, or it cannot be written.
        """
        names = ("names", "labels", "cls", "mean", "tokens")
        arrays = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        with replacing_file(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


@dataclass(frozen=True)
class Extraction:
    """The options for computing features."""

    framework: str = "torch"
    """The framework: torch, tensorflow or jax."""

    device: str | None = None
    """The device: cpu or cuda; None for the default of the framework."""

    batch: int = 32
    """Batch size."""

    stride: int | None = None
    """The distance between consecutive frames of a clip, in frames of the video (see
    `Clips.stride`); None for the distance in the training of the model family."""

    tokens: bool = False
    """Whether to return the features of each patch too."""


def features_of(
    checkpoint: Checkpoint,
    folder: Path | None,
    paths: Sequence[Path],
    options: Extraction = Extraction(),
    *,
    inputs: ImageBatch | None = None,
    advance: Progress | None = None,
) -> Features:
    """Return the encoder's features of images or videos, computed without masking in float32.

    Args:
        checkpoint: a checkpoint with an encoder.
        folder: the folder that contains the images; names are paths relative to it, and the label
            of an image is its subfolder. None: names are the paths as passed.
        paths: the images, or videos for a video model.
        options: how to compute the features.
        inputs: preprocessed images, used instead of `paths`; their noise is not used.
        advance: called with the number of processed images after each batch.

    Raises:
        MaeConvertError: an image cannot be read or does not fit the model.
        MissingRequirementError: the framework or the device is not available.
    """
    require_images(checkpoint, "features")
    if inputs is None and checkpoint.family.takes_images:
        preprocessing_of(checkpoint)
        # Check all images first: the computation may take minutes.
        skip = Option("skip_unreadable", True)
        check_images(paths, ("correct or remove it, or skip such files with ", skip))
    framework, device = options.framework, options.device
    model = load_model(
        checkpoint, framework, task="encoder", dtype="float32", device=device, mmap=False
    )
    model.config = replace(model.config, mask_ratio=0.0)
    batches: list[dict[str, np.ndarray]] = []
    sampling = ""

    def encode(batch: tuple[dict[str, np.ndarray], str]) -> tuple[np.ndarray, str]:
        arrays, sampling = batch
        return _encoded(model, arrays, framework, device), sampling

    # Images are decoded in this thread, because messages of decoders in other threads are not
    # captured.
    for hidden, sampling in overlapped(encode, _batches(checkpoint, paths, inputs, options)):  # noqa: B007
        parts = checkpoint.family.features(hidden, model.config)
        parts["mean"] = parts["tokens"].mean(axis=1, dtype=np.float64)
        batches.append({name: part for name, part in parts.items()
                      if options.tokens or name != "tokens"})  # fmt: skip
        if advance is not None:
            advance(len(hidden))
    arrays: dict[str, Any] = {
        n: np.concatenate([p[n] for p in batches]).astype(np.float32) for n in batches[0]
    }
    if inputs is not None:
        return Features(np.array(inputs.labels), np.array([""] * len(inputs.labels)), **arrays)
    names = [path.relative_to(folder) for path in paths] if folder else list(paths)
    labels = [str(name.parent) if name.parent != Path() else "" for name in names]
    return Features(
        np.array([str(name) for name in names]), np.array(labels), sampling=sampling, **arrays
    )


def _batches(
    checkpoint: Checkpoint,
    paths: Sequence[Path],
    inputs: ImageBatch | None,
    options: Extraction,
) -> Iterator[tuple[dict[str, np.ndarray], str]]:
    """Yield batches of a model's inputs, each with a sentence about the sampling of frames.

    The masking noise is not among the inputs. The sentence is "" unless videos are read.

    Args:
        checkpoint: the checkpoint of the model.
        paths: the images or videos to read.
        inputs: preprocessed images, used instead of `paths`; None to read `paths`.
        options: the batch size, and the distance between frames.
    """
    for start in range(0, len(inputs.names if inputs else paths), options.batch):
        part = slice(start, start + options.batch)
        if inputs is not None:
            arrays = {"pixel_values": inputs.pixel_values, **inputs.additional}
            yield {name: array[part] for name, array in arrays.items()}, ""
        elif checkpoint.family.clips is not None:
            clips = load_clips(paths[part], checkpoint, stride=options.stride)
            yield {"pixel_values": clips.pixel_values}, clips.sampling
        else:
            yield {"pixel_values": load_images(paths[part], checkpoint)}, ""


def _encoded(
    model: Any, arrays: dict[str, np.ndarray], framework: str, device: str | None
) -> np.ndarray:
    """Return the encoder's output (N, tokens, D) for a batch, with all patches in order.

    Args:
        model: the model in `framework`.
        arrays: the inputs of the model, without noise.
        framework: "torch", "tensorflow" or "jax".
        device: the device of the model; None for the CPU in PyTorch, and for the default device in
            Keras.
    """
    in_order = np.arange(model.config.num_patches, dtype=np.float32)
    noise = np.tile(in_order, (len(arrays["pixel_values"]), 1))
    run = _run_torch if framework == "torch" else _run_keras
    return run(model, {**arrays, "noise": noise}, device)


def _run_torch(model: Any, inputs: Arrays, device: str | None) -> np.ndarray:
    import torch

    tensors = {name: torch.from_numpy(array).to(device or "cpu") for name, array in inputs.items()}
    with torch.inference_mode():
        hidden: np.ndarray = (
            model(tensors.pop("pixel_values"), tensors.pop("noise"), **tensors)
            .last_hidden_state.cpu()
            .numpy()
        )
    return hidden


def _run_keras(model: Any, inputs: Arrays, device: str | None) -> np.ndarray:
    from keras import ops

    from mae_convert.runtime.keras_backend import device as on_device

    with on_device(device) if device else nullcontext():
        tensors = {name: ops.convert_to_tensor(array) for name, array in inputs.items()}
        outputs = model(tensors.pop("pixel_values"), **tensors)
        hidden: np.ndarray = ops.convert_to_numpy(outputs.last_hidden_state)
    return hidden
