"""Open a checkpoint: a file, or a directory with weights and their configuration."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mae_convert.errors import CheckpointError, Option
from mae_convert.files.byte_ranges import ByteFile
from mae_convert.formats.contents import KERAS, check_plausible, json_in
from mae_convert.formats.directory import find_weights, is_of_model_directory, left_aside
from mae_convert.formats.identify import read_contents
from mae_convert.formats.registry import FORMATS
from mae_convert.formats.tensor import LazyTensor
from mae_convert.formats.wrappers import NoSuchKeyError, check_not_flat

CONFIG, PREPROCESSOR, PROCESSOR = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
JSON_NAMES = (CONFIG, PREPROCESSOR, "conversion.json", "adapter_config.json", PROCESSOR)
IMAGE_STATISTICS = ("image_mean", "image_std")


@dataclass(frozen=True)
class Container:
    """A checkpoint that is open: its tensors are read when they are asked for.

    Attributes:
        path: what the user named.
        kind: the format, a key of `registry.FORMATS`: "pth", "safetensors", "tf_h5" (legacy Keras,
            as `tf_model.h5`), "keras_h5" (Keras 3's `.weights.h5`), "keras_archive" (its `.keras`),
            "npz", or "dcp" (PyTorch's distributed checkpoints).
        weights_file: the file that holds the tensors, or says which others do.
        opened: all files that it takes to read the tensors, open for reading.
        tensors: by name, in stored order.
        config: `config.json` beside, or the configuration inside the file, as found; else None.
        config_source: where it was found, for a person.
        preprocessor: how images are prepared: what `processor_config.json` beside says of its
            image processor, else `preprocessor_config.json`, or `image_mean` and `image_std` of the
            configuration; else None.
        training_args: arguments of the training run that made the file, or None.
        conversion: the record of the conversion that made it, or None.
        ignored: what the file holds besides, by name, each with a short description.
        passed_over: dotted names in a pickle that were neither imported nor called, because no
            weight needs what they make; PyTorch's own reader refuses such a file.
        wrapper: the key under which the tensors stand ("model", dotted where it is deeper), or None
            where nothing stands around them.
        state_key: the key that the user said, or None.
        is_directory: the user named a directory.
        epoch: of the training run that made the file, where it states it.
        beside: the JSON files beside the weights that were read, open for reading.
        adapter: `adapter_config.json` beside the weights, or None.
        preprocessor_source: the file that ``preprocessor`` was found in, or None.
        other_preprocessor: there is a `preprocessor_config.json` beside that says something else
            than `processor_config.json`; version 4 of transformers reads it.
    """

    path: Path
    kind: str
    weights_file: Path
    opened: tuple[ByteFile, ...]
    tensors: Mapping[str, LazyTensor]
    config: Mapping | None
    config_source: str | None
    preprocessor: Mapping | None
    training_args: Mapping | None
    conversion: Mapping | None
    ignored: Mapping[str, str]
    wrapper: str | None
    state_key: str | None
    is_directory: bool
    passed_over: tuple[str, ...] = ()
    epoch: int | None = None
    beside: tuple[ByteFile, ...] = ()
    adapter: Mapping | None = None
    preprocessor_source: str | None = None
    other_preprocessor: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The paths of all files needed to read the tensors."""
        return tuple(file.path for file in self.opened)


def open_container(path: Path | str, state_key: str | None = None) -> Container:
    """Open a file or a model directory; its content and not its suffix decides what it is.

    Args:
        path: a checkpoint file, an index of several, or a directory.
        state_key: the key of the weights in a PyTorch checkpoint, where it is not plain.

    Raises:
        NoSuchKeyError: there are no tensors at `state_key`.
        CheckpointError: it does not exist, is not a checkpoint, is damaged, would run code, or
            is a directory in which no file, or more than one, holds weights.
    """
    path = Path(path)
    is_directory = path.is_dir()
    weights_file = find_weights(path)
    contents = read_contents(weights_file, state_key)
    if state_key is not None and not FORMATS[contents.kind].has_keys:
        raise NoSuchKeyError(
            f"{path} has no top-level keys ({contents.kind})",
            hint=("leave ", Option("state_key"), " out"),
            path=path,
        )
    check_not_flat(path, contents.tensors)
    check_plausible(path, contents)
    belongs = is_directory or is_of_model_directory(path)
    paths = [weights_file.with_name(name) for name in JSON_NAMES] if belongs else []
    files = {path.name: ByteFile(path) for path in paths if os.path.lexists(path)}
    beside, preprocessor, conversion, adapter, processor = (
        _read_json(files[name]) if name in files else None for name in JSON_NAMES
    )
    nested = _image_processor(files[PROCESSOR].path, processor) if processor else None
    named = PROCESSOR if nested is not None else PREPROCESSOR if preprocessor else None
    config = contents.config if beside is None else beside
    if beside is not None and "registered_name" in beside:  # Keras's own, as in its archives
        config = {**(contents.config or {}), KERAS: beside}
    inside = f"{contents.config_place} of {weights_file.name}"
    return Container(
        path=path,
        kind=contents.kind,
        weights_file=weights_file,
        opened=contents.files,
        tensors=contents.tensors,
        config=config,
        config_source=None if config is None else "config.json" if beside is not None else inside,
        preprocessor=nested or preprocessor or _image_statistics(config),
        training_args=contents.training_args,
        conversion=conversion or contents.conversion,
        ignored={**contents.ignored, **left_aside(weights_file)},
        wrapper=contents.wrapper,
        state_key=state_key,
        is_directory=is_directory,
        passed_over=contents.passed_over,
        epoch=contents.epoch,
        beside=tuple(files.values()),
        adapter=adapter,
        preprocessor_source=named,
        other_preprocessor=None not in (nested, preprocessor) and nested != preprocessor,
    )


def _read_json(file: ByteFile) -> dict:
    value = json_in(file, "correct or remove it")
    if not isinstance(value, dict):
        raise CheckpointError(file.path, " is not a JSON object", hint="correct or remove it")
    return value


def _image_processor(path: Path, processor: Mapping) -> Mapping | None:
    """Return the image processor in `processor_config.json`, which version 5 of transformers takes.

    Older files have none there, and then `preprocessor_config.json` has it.
    """
    nested = processor.get("image_processor")
    if nested is None or isinstance(nested, Mapping):
        return nested
    raise CheckpointError(
        path, ": image_processor is not a JSON object", hint="correct or remove it"
    )


def _image_statistics(config: Mapping | None) -> dict | None:
    if config is None or not all(name in config for name in IMAGE_STATISTICS):
        return None
    return {name: config[name] for name in IMAGE_STATISTICS}
