"""Determine which file to read for a path, which may be a directory or one file of several."""

import re
from pathlib import Path

from mae_convert.errors import CheckpointError
from mae_convert.formats.contents import reading
from mae_convert.formats.registry import (
    CERTIFICATE_NAMES,
    DIRECTORY_SUFFIXES,
    FORMATS,
    INDEX_NAMES,
    INDEX_SUFFIX,
    KERAS_H5,
    METADATA,
    WEIGHTS_NAMES,
)
from mae_convert.formats.shards import SHARD
from mae_convert.formats.tensorflow_files import refuse_tensorflow

(KERAS_SUFFIX,) = FORMATS[KERAS_H5].suffixes
# Files of a model directory that libraries read in addition to the weights: adding a file with one
# of these names can change what the model computes.
READ_BESIDE = (
    "config.json",
    "preprocessor_config.json",
    "conversion.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "quantization_config.json",
    "quantize_config.json",
    "preprocessor.json",
    "task.json",
)
# Parts of a distributed checkpoint, which transformers 5 loads instead of any other weights.
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
ORBAX = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt")
DEEPSPEED = re.compile(r"(zero_pp_rank_\d+_)?mp_rank_(\d+)_model_states\.pt")


def find_weights(path: Path) -> Path:
    """Return the file to open for a path: the file itself, or the weights file in a directory.

    Raises:
        CheckpointError: the path is a directory in which no file, or more than one, contains
            weights, or the path is a file that contains only a part of the weights.
    """
    if path.is_dir():
        return _find_in(path)
    refuse_tensorflow(path)
    if path.suffix == ".distcp":
        raise CheckpointError(
            path,
            " is a shard of a distributed checkpoint",
            hint=f"specify its directory, {path.parent}",
        )
    if DEEPSPEED.fullmatch(path.name):
        return _checked_deepspeed(path.parent, [path])
    if (match := SHARD.fullmatch(path.name)) and int(match[2]) > 1:
        raise CheckpointError(
            path,
            f" is shard {int(match[1])} of {int(match[2])}",
            hint=f"specify its directory, {path.parent}",
        )
    return path


def _find_in(directory: Path) -> Path:
    """Return the weights file in a directory; files with conventional names take precedence.

    Raises:
        CheckpointError: there is no supported weights file, or there are several.
    """
    with reading(directory):
        files = sorted(path for path in directory.iterdir() if path.is_file())
    files = [path for path in files if not _is_certificate(path.name)]
    if directory / METADATA in files:
        return directory / METADATA
    if parts := [path for path in files if DEEPSPEED.fullmatch(path.name)]:
        return _checked_deepspeed(directory, parts)
    conventional = [path for path in files if _is_conventional(path)]
    candidates = conventional or [path for path in files if path.suffix in DIRECTORY_SUFFIXES]
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates[:8])
        raise CheckpointError(
            directory,
            f" contains {len(candidates)} weight files ({names}{', …' * (len(candidates) > 8)})",
            hint=f"specify the file itself, for example {candidates[0]}",
        )
    if candidates:
        return candidates[0]
    if (directory / "latest").is_file() and (tags := sorted(directory.glob("*/*_model_states.pt"))):
        raise CheckpointError(
            directory,
            " contains DeepSpeed checkpoints",
            hint=f"specify one, for example {tags[-1].parent}",
        )
    refuse_tensorflow(directory)
    if any((directory / name).exists() for name in ORBAX):
        raise CheckpointError(
            directory,
            " is an Orbax (JAX) checkpoint, which is not supported",
            hint=(
                "restore it in the program that wrote it, and save its arrays with numpy.savez "
                "under the tensor names of a supported layout"
            ),
        )
    names_of_weights = ", ".join((*WEIGHTS_NAMES, *(f"*{suffix}" for suffix in DIRECTORY_SUFFIXES)))
    raise CheckpointError(
        directory, f" contains no weights; looked for {names_of_weights}", hint="specify the file"
    )


def _is_certificate(name: str) -> bool:
    """Return whether a file name is the name of a certificate, which contains no weights."""
    return name in CERTIFICATE_NAMES or name.endswith(tuple(f".{n}" for n in CERTIFICATE_NAMES))


def _is_conventional(path: Path) -> bool:
    names = (*WEIGHTS_NAMES, *INDEX_NAMES)
    return path.name in names or path.name.endswith((KERAS_SUFFIX, INDEX_SUFFIX))


def _checked_deepspeed(directory: Path, parts: list[Path]) -> Path:
    """Return the weights file in a DeepSpeed directory, which must contain the whole model.

    Raises:
        CheckpointError: the weights are distributed over the files of several processes.
    """
    if any(path.name.startswith("zero_") for path in parts):
        raise CheckpointError(
            directory,
            " is a DeepSpeed ZeRO-3 checkpoint, in which every process has a shard of every tensor",
            hint=f"join them with `python zero_to_fp32.py {directory.parent} OUT --tag"
            f" {directory.name}`, a program that DeepSpeed has written to {directory.parent},"
            " and convert OUT",
        )
    beside = sorted(directory.glob("mp_rank_*_model_states.pt"))
    if len(beside) > 1:
        raise CheckpointError(
            directory,
            f" contains a model that DeepSpeed has split among {len(beside)} processes "
            f"({beside[0].name} to {beside[-1].name})",
            hint=(
                "load it with DeepSpeed in the same number of processes, gather its tensors, and "
                "save them with torch.save({'module': tensors}, ...)"
            ),
        )
    return parts[0]


def is_read_beside(name: str) -> bool:
    """Return whether a library may read a file of this name in addition to the weights."""
    is_read = name in (*READ_BESIDE, *WEIGHTS_NAMES, *INDEX_NAMES) or DISTRIBUTED.fullmatch(name)
    return bool(is_read) or name.endswith(".py")


def unread_files(weights_file: Path) -> dict[str, str]:
    """Return descriptions of files that are not read but may contain weights, by name pattern."""
    if not DEEPSPEED.fullmatch(weights_file.name):
        return {}
    states = list(weights_file.parent.glob("*_optim_states.pt"))
    if not states:
        return {}
    return {
        "*_optim_states.pt": (
            f"{len(states)} DeepSpeed optimizer files are not read; if training was in half "
            "precision, they contain the float32 weights, which zero_to_fp32.py extracts"
        )
    }


def is_of_model_directory(path: Path) -> bool:
    """Return whether the configuration files in the directory of a weight file belong to that file.

    This is the case if the weight file has a conventional name, or if no other file in the
    directory contains weights.
    """
    if path.name in (*WEIGHTS_NAMES, *INDEX_NAMES, METADATA):
        return True
    if path.name.endswith(KERAS_SUFFIX):
        return list(path.parent.glob(f"*{KERAS_SUFFIX}")) == [path]
    return [p for p in path.parent.iterdir() if p.suffix in DIRECTORY_SUFFIXES] == [path]
