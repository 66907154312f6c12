"""The fields of a configuration that a library reads, and how mae-convert treats each of them.

A library uses more fields than this project converts. Each field of a library's configuration is
therefore classified: it is converted, it has no effect, it is refused unless it has a supported
value, or it is reported. A field that is not in the table is reported as well: its effect is
unknown, so that a comparison without it is not a proof.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mae_convert.errors import ConfigurationError
from mae_convert.text import shown


@dataclass(frozen=True)
class Read:
    """A field that is converted, or compared when two models are verified."""


@dataclass(frozen=True)
class Harmless:
    """A field that does not change what a model computes in evaluation mode."""


@dataclass(frozen=True)
class Only:
    """A field that changes what the model computes; values other than `values` are refused."""

    values: tuple[Any, ...]
    """The supported values, with which the field has no effect."""

    why: str
    """The effect of any other value and what to do about it, for a message."""


@dataclass(frozen=True)
class Reported:
    """A field whose effect may be unknown: it is reported unless its value is one of `values`."""

    values: tuple[Any, ...] = (None,)
    """The values that are not reported, because they have no effect."""


@dataclass(frozen=True)
class Fields:
    """A configuration field whose value is a mapping with fields of its own."""

    table: Mapping[str, "Treatment"]
    """How each field in the mapping is treated, by name."""


Treatment = Read | Harmless | Only | Reported | Fields
READ, HARMLESS = Read(), Harmless()
NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})
"""Values with which an option of a library is usually disabled."""


def unknown_fields(
    config: Mapping[str, Any], table: Mapping[str, Treatment], where: str
) -> tuple[str, ...]:
    """Return the dotted names of fields that a library may use but mae-convert does not use.

    Args:
        config: a configuration as the library reads it.
        table: how each field is treated, by name.
        where: the name of the file, for the message.

    Raises:
        ConfigurationError: the value of a field changes what the model computes and is not
            supported.
    """
    return tuple(_unknown(config, table, where, ""))


def _unknown(
    config: Mapping[str, Any], table: Mapping[str, Treatment], where: str, prefix: str
) -> Iterator[str]:
    for name, value in config.items():
        match table.get(name, Reported()):
            case Read() | Harmless():
                continue
            case Only(values, why) if value not in values:
                raise ConfigurationError(f"{where} has {prefix}{name} = {shown(value)}: {why}")
            case Reported(values) if value not in values:
                yield f"{prefix}{shown(name)}"
            case Fields(inner) if isinstance(value, Mapping):
                yield from _unknown(value, inner, where, f"{prefix}{name}.")
            case _:
                continue
