"""Outputs to write: a file, or a model directory of files."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mae_convert.errors import MaeConvertError, Option, OutputError
from mae_convert.files.input_files import open_input
from mae_convert.formats.container import JSON_NAMES
from mae_convert.formats.output_file import Weights
from mae_convert.formats.registry import BIN, FORMATS, INDEX_NAMES, INDEX_SUFFIX, WEIGHTS_NAMES
from mae_convert.formats.shards import (
    SHARD,
    index_of,
    shard_names,
    split,
)
from mae_convert.formats.tensor import LazyTensor

Hashes = Mapping[str, str]
JsonFile = Mapping | Callable[[Hashes], Mapping]

CERTIFICATE_NAMES = ("verification.json", "verification.safetensors")
OUR_NAMES = frozenset((*JSON_NAMES, *WEIGHTS_NAMES, *INDEX_NAMES, *CERTIFICATE_NAMES, "README.md"))
RECORD = "conversion.json"


@dataclass(frozen=True)
class Output:
    """A file, or a directory of files."""

    target: Path
    """Its name."""

    weights: Mapping[str, Weights]
    """The weights of a file under "", those of a directory under the files' names."""

    json_files: Mapping[str, JsonFile] = field(default_factory=dict)
    """JSON files in the same directory; one may be a function of the SHA-256 of each tensor's bytes
    (little-endian, in C order), by the tensor's name."""

    is_directory: bool = False
    """Whether it is a directory."""

    def tensors(self) -> list[LazyTensor]:
        """Return the tensors of all files."""
        return [tensor for weights in self.weights.values() for tensor in weights.tensors]


def file_output(path: Path | str, weights: Weights) -> Output:
    """Return the output for a single file."""
    return Output(Path(path), {"": weights})


def directory_output(
    path: Path | str,
    weights_name: str,
    weights: Weights,
    json_files: Mapping[str, JsonFile],
    *,
    max_shard_size: int | None = None,
) -> Output:
    """Return a model directory to be written.

    Args:
        path: the path of the directory.
        weights_name: the name of the file of weights.
        weights: the content of that file. `config` is stored in it too if the format allows, so
            that the file can be used without the directory.
        json_files: as in `Output`.
        max_shard_size: larger weights are written in shards of at most so many bytes, with an
            index.

    Raises:
        OutputError: the weights cannot be sharded.
    """
    kind, config = weights.kind, None if weights.kind == BIN else weights.config
    parts = [weights.tensors] if max_shard_size is None else split(weights.tensors, max_shard_size)
    if len(parts) > 1 and not FORMATS[kind].sharded:
        raise OutputError(
            f"{weights_name} cannot be sharded",
            hint=("leave ", Option("max_shard_size"), " out"),
        )
    names = [weights_name] if len(parts) == 1 else shard_names(weights_name, len(parts))
    shards: dict[str, Sequence[LazyTensor]] = dict(zip(names, parts, strict=True))
    index = {f"{weights_name}{INDEX_SUFFIX}": index_of(shards)} if len(parts) > 1 else {}
    files = {name: Weights(kind, part, config) for name, part in shards.items()}
    return Output(Path(path), files, {**index, **json_files}, is_directory=True)


def require_ours(directory: Path) -> None:
    """Raise OutputError if a directory contains anything that mae-convert did not write."""
    names = sorted(path.name for path in directory.iterdir())
    try:
        with open_input(directory / RECORD) as file:
            record = json.load(file)
        outputs = record.get("outputs", ())
    except (MaeConvertError, OSError, ValueError, AttributeError, RecursionError):
        record, outputs = None, ()
    ours = OUR_NAMES | set(outputs if isinstance(outputs, dict | list) else ())
    foreign = [n for n in names if record is None or not (n in ours or SHARD.fullmatch(n))]
    foreign += [name for name in names if (directory / name).is_dir()]
    if foreign:
        raise OutputError(
            directory,
            f" contains {foreign[0]}, which mae-convert did not write",
            hint="choose another name or remove the directory yourself",
        )
