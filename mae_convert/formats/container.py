"""Open a checkpoint: a file, or a directory with weights and their configuration.

The format of a file is recognised by its first bytes.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mae_convert.errors import CheckpointError, Option
from mae_convert.files.byte_ranges import ByteFile
from mae_convert.formats.archive import Archive
from mae_convert.formats.contents import KERAS, Contents, check_plausible, json_in
from mae_convert.formats.directory import find_weights, is_of_model_directory, unread_files
from mae_convert.formats.registry import FORMATS, INDEX_SUFFIX, METADATA, SPECIFY, ZIP, Signature
from mae_convert.formats.shards import read_sharded
from mae_convert.formats.tensor import LazyTensor
from mae_convert.formats.wrappers import NoSuchKeyError, check_not_flat

HEAD_BYTES = 512
LOOKALIKES = (
    (re.compile(rb"version https://git-lfs"), "a git-lfs pointer and not the file itself",
     "download the file with `git lfs pull`"),
    (re.compile(rb"\s*(<!doctype html|<html|<\?xml|<error)", re.IGNORECASE),
     "a web page and not a checkpoint", "download the file again from its direct URL"),
    (re.compile(rb"\s*[{\[]\s*[\"{\[]"), "a JSON file and not weights", SPECIFY),
    (re.compile(rb"\x1f\x8b"), "compressed with gzip", "unpack it with gunzip"),
    (re.compile(rb"BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf"), "a compressed file", "unpack it"),
    (re.compile(rb"(?s).{257}ustar"), "a tar archive",
     "unpack it and specify the checkpoint in it"),
)  # fmt: skip
"""Kinds of files that users often specify instead of a checkpoint: for each kind, a pattern of the
first bytes, a description of the file, and a hint."""


def read_contents(path: Path, state_key: str | None = None) -> Contents:
    """Read a file of any format; tensors are not loaded.

    Args:
        path: the file.
        state_key: the key of the weights in a PyTorch checkpoint; None to recognise the weights.

    Raises:
        CheckpointError: the file does not exist, is not a checkpoint, is damaged, or contains a
            pickle that would run code.
    """
    if path.name.endswith(INDEX_SUFFIX) and path.is_file():
        return read_sharded(path, read_file)
    if path.name == METADATA and path.is_file():
        from mae_convert.formats.dcp import read_dcp

        return read_dcp(path.parent, state_key)
    return read_file(path, state_key)


def read_file(path: Path, state_key: str | None = None) -> Contents:
    """Read a file that contains tensors; an index of sharded weights is not accepted.

    Args:
        path: the file.
        state_key: the key of the weights in a PyTorch checkpoint; None to recognise the weights.

    Raises:
        CheckpointError: see `read_contents`.
    """
    file = ByteFile(path)
    head = file.raw(0, min(HEAD_BYTES, file.size))
    archive = Archive(file) if ZIP.match(head) else None
    for form in FORMATS.values():
        for signature in form.signatures:
            if signature.begins.match(head) and _is_archived(signature, archive):
                keys = (state_key,) if form.has_keys else ()
                contents: Contents = signature.read(archive or file, *keys)
                return contents
    for pattern, what, advice in LOOKALIKES:
        if pattern.match(head):
            raise CheckpointError(path, f" is {what}", hint=advice)
    raise CheckpointError(path, f" is not a checkpoint: it begins with {head[:8]!r}", hint=SPECIFY)


def _is_archived(signature: Signature, archive: Archive | None) -> bool:
    """Return whether a file is the kind of zip archive that a signature requires.

    If the signature requires no archive, return whether the file is not an archive.
    """
    if archive is None or signature.members is None:
        return archive is None and signature.members is None
    return signature.members(archive.path.name, archive.records.keys())


CONFIG, PREPROCESSOR, PROCESSOR = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
JSON_NAMES = (CONFIG, PREPROCESSOR, "conversion.json", "adapter_config.json", PROCESSOR)
SIGNATURE_NAMES = ("attestation.json", "model.sig")
IMAGE_STATISTICS = ("image_mean", "image_std")


@dataclass(frozen=True)
class Container:
    """An open checkpoint, whose tensors are read on demand."""

    path: Path
    """The path that the user specified."""

    kind: str
    """The format, a key of `registry.FORMATS`: "pth", "safetensors", "tf_h5" (legacy Keras, as
    `tf_model.h5`), "keras_h5" (Keras 3's `.weights.h5`), "keras_archive" (Keras 3's `.keras`),
    "npz", or "dcp" (PyTorch's distributed checkpoints)."""

    weights_file: Path
    """The file that contains the tensors, or the index of the files that contain them."""

    opened: tuple[ByteFile, ...]
    """All files that are needed to read the tensors, open for reading."""

    tensors: Mapping[str, LazyTensor]
    """The tensors by name, in stored order."""

    config: Mapping | None
    """The content of `config.json` in the directory of the weights, else the configuration inside
    the file, else None."""

    config_source: str | None
    """The source of ``config``, for messages; None if ``config`` is None."""

    preprocessor: Mapping | None
    """The settings of the image processor: from `processor_config.json` in the directory of the
    weights, else `preprocessor_config.json`, else `image_mean` and `image_std` of the
    configuration, else None."""

    training_args: Mapping | None
    """Arguments of the training run that created the file; None if the file contains none."""

    conversion: Mapping | None
    """The record of the conversion that created the checkpoint; None if there is no record."""

    ignored: Mapping[str, str]
    """The contents of the file that mae-convert does not use. Maps the name of each to a short
    description."""

    wrapper: str | None
    """The key that contains the tensors ("model", or a dotted path of keys), or None if they are at
    the top level."""

    state_key: str | None
    """The key of the weights in the file, if the user specified a key; otherwise None."""

    is_directory: bool
    """Whether the user specified a directory."""

    passed_over: tuple[str, ...] = ()
    """Dotted names in a pickle that were neither imported nor called, because no weight needs them;
    `torch.load` with `weights_only=True` refuses a file with such names."""

    epoch: int | None = None
    """The epoch of the training run that created the file, if it is stored."""

    beside: tuple[ByteFile, ...] = ()
    """The JSON files that were read from the directory of the weights, open for reading."""

    adapter: Mapping | None = None
    """The content of `adapter_config.json` in the directory of the weights; None if there is no
    such file."""

    preprocessor_source: str | None = None
    """The name of the file that contains ``preprocessor``; None if ``preprocessor`` is None or does
    not come from a file of its own."""

    other_preprocessor: bool = False
    """Whether there is also a `preprocessor_config.json` that contradicts `processor_config.json`;
    version 4 of transformers reads only `preprocessor_config.json`."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The paths of all files needed to read the tensors."""
        return tuple(file.path for file in self.opened)


def open_container(path: Path | str, state_key: str | None = None) -> Container:
    """Open a file or a model directory; the format is recognised by content, not by suffix.

    Args:
        path: a checkpoint file, an index of several files, or a directory.
        state_key: the key of the weights in a PyTorch checkpoint; None to recognise the weights.

    Raises:
        NoSuchKeyError: there are no tensors at `state_key`.
        CheckpointError: the path does not exist, is not a checkpoint, is damaged, would run code,
            or is a directory in which no file, or more than one, contains weights.
    """
    path = Path(path)
    is_directory = path.is_dir()
    weights_file = find_weights(path)
    contents = read_contents(weights_file, state_key)
    if state_key is not None and not FORMATS[contents.kind].has_keys:
        raise NoSuchKeyError(
            f"{path} has no top-level keys, because its format is {contents.kind}",
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
    # Without settings in it, a file is not the source of the preprocessing.
    nested = (_image_processor(files[PROCESSOR].path, processor) if processor else None) or None
    named = PROCESSOR if nested else PREPROCESSOR if preprocessor else None
    config = contents.config if beside is None else beside
    if beside is not None and "registered_name" in beside:  # the config.json of a Keras model
        config = {**(contents.config or {}), KERAS: beside}
    inside = f"{contents.config_location} of {weights_file.name}"
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
        ignored={**contents.ignored, **unread_files(weights_file)},
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
    """Return the settings of the image processor in `processor_config.json`.

    The result is None if the file contains no such settings.

    Version 5 of transformers writes this file; version 4 writes `preprocessor_config.json`.

    Args:
        path: the path of the file, for messages.
        processor: the content of the file.

    Raises:
        CheckpointError: the settings are not a JSON object.
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
