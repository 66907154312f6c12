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
    """What a conversion record says of it: repository and commit, or address; the licence that its
    publisher gives."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """Configuration fields that are known of it, for where the file states none."""

    config_source: str = ""
    """Who says so, for a person."""

    notes: tuple[str, ...] = ()
    """What the user should know of how it was chosen or got, in sentences."""
