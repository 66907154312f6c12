"""The origin of a checkpoint that was downloaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Origin:
    """A place that a checkpoint was downloaded from.

    Attributes:
        name: the exact location: ``hf://owner/name@commit/file``, or the name of an official file.
        record: what a conversion record says of it: repository and commit, or address; the licence
            that its publisher gives.
        config: configuration fields that are known of it, for where the file states none.
        config_source: who says so, for a person.
        notes: what the user should know of how it was chosen or got, in sentences.
    """

    name: str
    record: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    config_source: str = ""
    notes: tuple[str, ...] = ()
