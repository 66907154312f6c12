"""Errors of mae-convert that are also subclasses of the exceptions that transformers raises.

A script that catches ``OSError`` around ``from_pretrained`` for a missing checkpoint, or
``RuntimeError`` or ``ValueError`` for sizes that do not match, also catches the errors of
mae-convert.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from mae_convert.errors import (
    CheckpointError,
    ConfigurationError,
    HubError,
    LayoutError,
    MaeConvertError,
    MissingRequirementError,
)


class UnreadableCheckpointError(CheckpointError, OSError):
    """A checkpoint is missing or cannot be read."""


class HubAccessError(HubError, OSError):
    """The Hugging Face Hub refused the request, or does not have what was requested."""


class UnavailableError(MissingRequirementError, OSError):
    """A network connection, a device or a package that is required for loading is missing."""


class MismatchedTensorsError(LayoutError, ValueError, RuntimeError):
    """Tensors do not fit the model."""


class InvalidConfigurationError(ConfigurationError, ValueError, RuntimeError):
    """A field of the configuration is missing, invalid, or does not match the checkpoint."""


KINDS: dict[type[MaeConvertError], type[MaeConvertError]] = {
    CheckpointError: UnreadableCheckpointError,
    HubError: HubAccessError,
    MissingRequirementError: UnavailableError,
    LayoutError: MismatchedTensorsError,
    ConfigurationError: InvalidConfigurationError,
}


@contextmanager
def raising_as_transformers() -> Iterator[None]:
    """Context in which errors of mae-convert are raised as instances of the classes in `KINDS`."""
    try:
        yield
    except MaeConvertError as error:
        kind = next((KINDS[base] for base in type(error).__mro__ if base in KINDS), None)
        if kind is None or isinstance(error, kind):
            raise
        same = kind(str(error))
        same.__dict__.update(error.__dict__)
        raise same.with_traceback(error.__traceback__) from error.__cause__
