"""The origin of a checkpoint that was downloaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Origin:
    """A place that a checkpoint was downloaded from."""

    name: str
    """The exact location: ``hf://owner/name@commit/file``, or the name of an official file."""

    record: Mapping[str, Any] = field(default_factory=dict)
    """Its description in a conversion record: repository and commit, or URL, and the publisher's
    licence."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """Configuration fields that are known for it, for what the file does not contain."""

    config_source: str = ""
    """The source of these fields, for messages."""

    notes: tuple[str, ...] = ()
    """Messages for the user about how it was selected or downloaded."""
