"""What one file holds, whatever its container."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mae_convert.containers.messages import damaged, shown
from mae_convert.containers.tensor import LazyTensor
from mae_convert.errors import CheckpointError, MaeConvertError

KERAS = "keras"
"""The key of what Keras's own `config.json` says, in a configuration."""


@dataclass(frozen=True)
class Contents:
    """The tensors of one file and the plain data beside them.

    Attributes:
        kind: the container, one of those in `mae_convert.containers.checkpoint.Container`.
        tensors: by name, in stored order.
        config: the model configuration that the file carries, or None.
        config_place: in which part of the file it stands.
        conversion: the record of the conversion that made the file, or None.
        training_args: arguments of the training run that made the file, or None.
        ignored: what else the file holds: name and a short description.
        wrapper: key under which the tensors stand, or None.
        files: the files that hold the tensors, where it is not the one that was read alone.
    """

    kind: str
    tensors: Mapping[str, LazyTensor]
    config: Mapping | None = None
    config_place: str = "config"
    conversion: Mapping | None = None
    training_args: Mapping | None = None
    ignored: Mapping[str, str] = field(default_factory=dict)
    wrapper: str | None = None
    files: tuple[Path, ...] = ()


@contextmanager
def reading(path: Path, *damage: type[Exception]) -> Iterator[None]:
    """Turn what a damaged file makes a parser raise into one sentence.

    Raises:
        CheckpointError: the body raised one of `damage`, or an error of the system.
    """
    damages: tuple[type[Exception], ...] = (OSError, MemoryError, OverflowError, *damage)
    try:
        yield
    except MaeConvertError:
        raise
    except PermissionError as error:
        raise CheckpointError(f"{path} may not be read: change its permissions") from error
    except damages as error:
        raise damaged(path, _in_short(error)) from error


def loading(
    path: Path, load: Callable[[], np.ndarray], *damage: type[Exception]
) -> Callable[[], np.ndarray]:
    """Return `load` with the same care for the time when it is called."""

    def careful() -> np.ndarray:
        with reading(path, *damage):
            return load()

    return careful


def embedded_json(text: object) -> dict | None:
    """Return the JSON object in a text that stands in a file, or None if it is something else."""
    if not isinstance(text, str):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _in_short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return shown(lines[0]) if lines else type(error).__name__
