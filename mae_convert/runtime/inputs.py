"""The inputs of a comparison: images and noise, identical for both sides."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint, require_images
from mae_convert.checkpoint.clip_inputs import clips_below, load_clips
from mae_convert.checkpoint.image_files import images_in
from mae_convert.checkpoint.preprocessing import load_images
from mae_convert.errors import CheckpointError, MaeConvertError
from mae_convert.families import families
from mae_convert.families.family import Family
from mae_convert.files.byte_ranges import ByteFile
from mae_convert.formats.archive import Archive
from mae_convert.formats.npz import arrays_in
from mae_convert.formats.tensor import LazyTensor

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class InputChoice:
    """The choice of the images and the noise of a run."""

    file: Path | None = None
    """An .npz file with the inputs: ``pixel_values``, ``noise`` and additional inputs of the
    family. If it is None, the inputs are created from ``images`` and ``seed``."""

    images: Path | None = None
    """A folder of images, which are preprocessed for the model. The images are random if neither
    this folder nor ``file`` is specified."""

    seed: int = 0
    """The seed of random images and of the noise."""

    batch: int | None = None
    """The number of random images (default: 2), or the maximum number of images of a folder
    (default: 16)."""


RANDOM_BATCH = 2
MOST_IMAGES = 16


def make_inputs(choice: InputChoice, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Return the inputs of a run: ``pixel_values`` (N, C, H, W) and ``noise`` (N, L), float32.

    Videos are (N, C, T, H, W). The inputs are random, or `choice` specifies an .npz file of inputs
    or a folder of images. Random inputs include the additional inputs of the model, such as
    coordinates, and an .npz file may include them.

    Raises:
        MaeConvertError: the .npz file or the folder cannot be used for this model.
    """
    model = checkpoint.configuration.model
    if choice.file is not None:
        return load_inputs(choice.file, checkpoint.family, model)
    if choice.images is None:
        batch = choice.batch or RANDOM_BATCH
        return random_inputs(checkpoint.family, model, batch=batch, seed=choice.seed)
    require_images(checkpoint, "a folder of images")
    most = choice.batch or MOST_IMAGES
    if checkpoint.family.clips is not None:
        pixels = load_clips(clips_below(choice.images, checkpoint)[:most], checkpoint).pixel_values
    else:
        pixels = load_images(images_in(choice.images)[:most], checkpoint)
    made_up = random_inputs(checkpoint.family, model, batch=len(pixels), seed=choice.seed)
    return {"pixel_values": pixels, "noise": made_up["noise"]}


def random_inputs(
    family: Family, config: Any, *, batch: int = 2, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return normally distributed images or videos, and noise in which all values are distinct.

    Returns:
        ``pixel_values`` (batch, channels, [frames,] height, width), ``noise`` (batch, patches) and
        the additional inputs of the model, float32.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    size = (batch, *config.pixel_shape)
    noise = family.noise(config, batch, generator)
    pixels = generator.standard_normal(size, dtype=np.float32)
    additional = family.draw_additional(config, batch, generator)
    return {"pixel_values": pixels, "noise": noise, **additional}


def in_order(inputs: Arrays) -> dict[str, np.ndarray]:
    """Return the inputs with their noise sorted, so that the patches keep their order."""
    noise = np.sort(inputs["noise"], axis=1)
    return {**inputs, "noise": noise}


def load_inputs(path: Path, family: Family, config: Any) -> dict[str, np.ndarray]:
    """Return the inputs in an .npz file, checked against a model's configuration.

    If the file has no noise, noise that keeps the patches in order is added. If it has no
    additional inputs, the model is run without them.

    Raises:
        MaeConvertError: the file is not an .npz file of inputs, or shapes, dtypes or values do not
            fit the model.
    """
    arrays = read_inputs(path, family, config)
    if "noise" not in arrays:
        arrays["noise"] = _noise_in_order(len(arrays["pixel_values"]), config)
    return arrays


def read_inputs(path: Path, family: Family, config: Any) -> dict[str, np.ndarray]:
    """Read and check ``pixel_values``, and ``noise`` and additional inputs if the file has them.

    Raises:
        MaeConvertError: see `load_inputs`.
    """
    tensors = _tensors_in(path, family)
    _check_shapes(path, tensors, family, config)
    arrays = {name: _read(path, tensor) for name, tensor in tensors.items()}
    made_up = _noise_in_order(len(arrays["pixel_values"]), config)
    check_inputs(path, {"noise": made_up, **arrays}, family, config)
    return arrays


def _noise_in_order(count: int, config: Any) -> np.ndarray:
    """Return noise (count, L) that keeps the patches in order."""
    row = (np.arange(config.num_patches) + 0.5) / config.num_patches
    return np.tile(row.astype(np.float32), (count, 1))


def check_inputs(path: Path, arrays: Arrays, family: Family, config: Any) -> None:
    """Check that arrays are inputs of a model: ``pixel_values``, ``noise``, additional inputs.

    Args:
        path: the file that contains them, for the message.
        arrays: the arrays.
        family: the family of the model.
        config: the configuration of the model.

    Raises:
        MaeConvertError: an array is missing, or shapes, dtypes or values do not fit.
    """
    _check_shapes(path, arrays, family, config)
    if "noise" not in arrays:
        raise MaeConvertError(
            path, " contains no noise (N, L)", hint="save it as an array with the name noise"
        )
    for name, array in arrays.items():
        _check_dtype(path, name, array)
        if not np.isfinite(array).all():
            raise MaeConvertError(path, f": {name} has NaN or infinite values", hint="remove them")
    if any(len(np.unique(row)) < len(row) for row in arrays["noise"]):
        raise MaeConvertError(
            path,
            ": noise contains equal values, so the order of patches is undefined",
            hint="make them distinct",
        )


def _check_shapes(path: Path, arrays: Mapping[str, Any], family: Family, config: Any) -> None:
    """Check that inputs have the shapes that the model requires.

    The inputs are arrays, or tensors that have not been read.
    """
    if "pixel_values" not in arrays:
        raise MaeConvertError(
            path,
            " contains no pixel_values (N, C, H, W)",
            hint="save the images as an array with the name pixel_values",
        )
    shape, expected = arrays["pixel_values"].shape, config.pixel_shape
    if len(shape) != 1 + len(expected) or shape[1:] != expected or not shape[0]:
        raise MaeConvertError(
            f"{path}: pixel_values has shape {shape}",
            hint=("this model takes (N, " + ", ".join(map(str, expected)) + ")"),
        )
    patches = (shape[0], config.num_patches)
    if "noise" in arrays and arrays["noise"].shape != patches:
        raise MaeConvertError(
            path, f": noise has shape {arrays['noise'].shape}", hint=f"{patches} is needed"
        )
    taken = family.additional_shapes(config)
    for name in _additional_names(family):
        if name in arrays and name not in taken:
            raise MaeConvertError(
                path, f" contains {name}, which this model does not take", hint="leave it out"
            )
        if name in arrays and arrays[name].shape != (shape[0], *taken[name]):
            needed = (shape[0], *taken[name])
            raise MaeConvertError(
                path, f": {name} has shape {arrays[name].shape}", hint=f"{needed} is needed"
            )


def _additional_names(family: Family) -> list[str]:
    """Return the names of all additional inputs: of `family`, then of the other families."""
    every = (family, *families().values())
    return list(dict.fromkeys(name for each in every for name in each.additional_inputs))


def _check_dtype(path: Path, name: str, array: Any) -> None:
    if array.dtype != np.float32:
        raise MaeConvertError(
            path, f": {name} must be float32, not {array.dtype}", hint="convert it to float32"
        )


def _tensors_in(path: Path, family: Family) -> dict[str, LazyTensor]:
    """Return the arrays of an .npz file that are inputs of a model, without reading their values.

    Inputs that only other families have are returned too, so that the caller refuses them and does
    not ignore them.

    Args:
        path: the .npz file.
        family: the family of the model.

    Raises:
        MaeConvertError: the file is not an .npz file, or the inputs are not arrays of numbers.
    """
    try:
        names = ("pixel_values", "noise", *_additional_names(family))
        return arrays_in(Archive(ByteFile(path)), names)
    except CheckpointError as error:
        raise MaeConvertError(
            error,
            ". An .npz file of inputs must contain pixel_values (N, C, H, W) and may contain noise "
            "(N, L), both as float32",
            hint="write it with numpy.savez",
        ) from error


def _read(path: Path, tensor: LazyTensor) -> np.ndarray:
    """Read an array of inputs.

    Raises:
        MaeConvertError: the array is not float32, or does not fit into memory.
    """
    _check_dtype(path, tensor.name, tensor)
    try:
        return np.array(tensor.load())  # a copy, which PyTorch may modify
    except MemoryError as error:
        raise MaeConvertError(
            path,
            f": {tensor.name} takes {tensor.nbytes} bytes, which is more than the available memory",
            hint="use fewer images",
        ) from error


def inputs_sha256(inputs: Arrays) -> str:
    """Return the SHA-256 of all names, dtypes, shapes and bytes; it identifies a trace's inputs."""
    digest = hashlib.sha256()
    for name in sorted(inputs):
        array = np.ascontiguousarray(inputs[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()
