"""The contents of one file in any format."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.errors import CheckpointError, MaeConvertError
from mae_convert.errors.shortage import shortage
from mae_convert.files.byte_ranges import ByteFile, damaged
from mae_convert.files.strict_json import JsonError, parse_json
from mae_convert.formats.tensor import LazyTensor
from mae_convert.text import shown

KERAS = "keras"
"""The key in a configuration under which the content of Keras's own `config.json` is stored."""

LARGEST_JSON = 1 << 22
LARGEST_COUNT = 1 << 13
LONGEST_NAME = 1000
PACKED_TO = 64
UNASKED_BYTES = 1 << 24


@dataclass(frozen=True)
class Contents:
    """The tensors and the plain data of one file."""

    kind: str
    """The format, as in `mae_convert.formats.container.Container`."""

    tensors: Mapping[str, LazyTensor]
    """The tensors by name, in stored order."""

    files: tuple[ByteFile, ...]
    """The files that hold the tensors, open for reading."""

    config: Mapping | None = None
    """The model configuration in the file; None if the file contains none."""

    config_location: str = "config"
    """The part of the file that contains `config`, for messages."""

    conversion: Mapping | None = None
    """The record of the conversion that created the file; None if there is no record."""

    training_args: Mapping | None = None
    """Arguments of the training run that created the file; None if the file contains none."""

    ignored: Mapping[str, str] = field(default_factory=dict)
    """The contents of the file that mae-convert does not use. Maps the name of each to a short
    description."""

    passed_over: tuple[str, ...] = ()
    """Dotted names in a pickle that were neither imported nor called, because no weight needs them;
    `torch.load` with `weights_only=True` refuses a file with such names."""

    wrapper: str | None = None
    """The key that contains the tensors; None if they are at the top level."""

    epoch: int | None = None
    """The epoch of the training run, if a PyTorch checkpoint contains it."""


@contextmanager
def reading(path: Path, *damage: type[Exception]) -> Iterator[None]:
    """Convert the errors that a ``with`` block raises for a corrupt file to a `CheckpointError`.

    Args:
        path: the file that is read in the block.
        damage: the exceptions that the parser raises for a corrupt file.

    Raises:
        CheckpointError: the block raised one of `damage`, an error of the operating system, or a
            MemoryError.
    """
    damages: tuple[type[Exception], ...] = (OSError, OverflowError, *damage)
    try:
        yield
    except MaeConvertError:
        raise
    except PermissionError as error:
        raise CheckpointError(
            path, " cannot be read: permission denied", hint="change its permissions"
        ) from error
    except MemoryError as error:
        raise CheckpointError(
            path,
            " cannot be read: there is not enough memory for the contents that it declares",
            hint="free some memory, or raise the memory limit",
        ) from error
    except damages as error:
        if reason := shortage(error):  # the file itself may be valid
            raise CheckpointError(path, f" cannot be read: {reason}") from error
        raise damaged(path, _in_short(error)) from error


def loading(
    path: Path, load: Callable[[], np.ndarray], *damage: type[Exception]
) -> Callable[[], np.ndarray]:
    """Return a function that calls `load` and converts its errors to a `CheckpointError`.

    Args:
        path: the file that `load` reads.
        load: returns an array.
        damage: the exceptions that `load` raises if the file is damaged; see `reading`.
    """

    def load_with_errors() -> np.ndarray:
        with reading(path, *damage):
            return load()

    return load_with_errors


def json_in(file: ByteFile, advice: str) -> Any:
    """Return the content of a JSON file.

    Args:
        file: the file.
        advice: what to do if the file is damaged.

    Raises:
        CheckpointError: the file is not JSON, or is larger than any JSON file of a model.
    """
    if file.size > LARGEST_JSON:
        raise CheckpointError(
            file.path, f" has {file.size} bytes, more than any JSON file of a model", hint=advice
        )
    try:
        return parse_json(file.raw(0, file.size))
    except JsonError as error:
        raise CheckpointError(
            file.path, f" is not JSON ({_in_short(error)})", hint=advice
        ) from error


def check_plausible(path: Path, contents: Contents) -> None:
    """Require that a file does not claim to contain far more data than is possible for its size.

    Compressed values, elements that are stored once and referenced many times, and space that was
    never written can describe a large tensor in a few bytes. Trained weights cannot be compressed
    to less than half.

    Raises:
        CheckpointError: the file claims to contain more data; or it contains no tensors, too many
            tensors, or a tensor with a name that is too long.
    """
    if not contents.tensors:
        raise CheckpointError(
            path, " contains no tensors", hint="specify a file that contains weights"
        )
    if len(contents.tensors) > LARGEST_COUNT:
        raise CheckpointError(
            path,
            f" contains {len(contents.tensors)} tensors, which is more than any Masked Autoencoder "
            "has",
            hint="specify a checkpoint of a Masked Autoencoder",
        )
    if longest := next((name for name in contents.tensors if len(name) > LONGEST_NAME), None):
        raise CheckpointError(
            path,
            f" has a tensor name of {len(longest)} characters ({shown(longest[:40])}...); no "
            "Masked Autoencoder has such a name",
            hint="specify a checkpoint of a Masked Autoencoder",
        )
    file_bytes = sum(file.size for file in contents.files)
    claimed = sum(tensor.nbytes for tensor in contents.tensors.values())
    if claimed > PACKED_TO * file_bytes + UNASKED_BYTES:
        raise CheckpointError(
            path,
            f" has {file_bytes} bytes and claims to contain {claimed} bytes of tensors",
            hint="write the weights again in the program that created them",
        )


def embedded_json(text: object, path: Path) -> dict | None:
    """Return the JSON object in a string from a file, or None if the string is not a JSON object.

    Raises:
        CheckpointError: the string is JSON that two programs may parse differently.
    """
    if not isinstance(text, str):
        return None
    try:
        value = parse_json(text)
    except JsonError as error:
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return None
        raise CheckpointError(
            path, f" contains ambiguous JSON ({error})", hint="write the file again"
        ) from error
    return value if isinstance(value, dict) else None


def _in_short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return shown(lines[0]) if lines else type(error).__name__
