"""Identify the published model related to MAE that a checkpoint belongs to, as far as possible."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mae_convert.errors import CheckpointError
from mae_convert.families.mae.relatives.known import KNOWN, Fields, Relative
from mae_convert.layouts.transforms import Shape

Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Membership:
    """The related model of a checkpoint, and the evidence for it."""

    relative: Relative
    certain: bool
    """Whether a tensor's name, training arguments or the conversion record identifies the model.

    If not, the shapes suggest the model, but other models have the same shapes.
    """

    because: str
    """The evidence as text."""

    also: tuple[str, ...] = ()
    """Other related models that have the same shapes."""

    def to_dict(self) -> dict[str, Any]:
        """Return the membership as plain data, for reports and records."""
        return {
            "name": self.relative.name,
            "certainty": "known" if self.certain else "probable",
            "because": self.because,
            "also": list(self.also),
            "caveat": self.relative.caveat,
        }

    def conventions(self, patches: int) -> Fields:
        """Return the related model's configuration fields for a number of patches.

        The result is {} if `certain` is False.
        """
        return self.relative.by_patches.get(patches, {}) if self.certain else {}

    def size_hint(self, patches: int) -> str:
        """Return a phrase for a message: the related model's image size for `patches` patches.

        The phrase is "" if no such image size is known.
        """
        height, width = self.relative.by_patches.get(patches, {}).get("image_size", (0, 0))
        return f" ({self.relative.name}, which has these shapes, has {height}x{width})" * bool(
            height
        )


def without_decoder(shapes: Shapes) -> tuple[tuple[Relative, str] | None, Shapes, dict[str, str]]:
    """Separate the tensors of an unsupported decoder, so that only the encoder is read.

    Returns:
        The related model that has this decoder and the name of the tensor that identifies it, or
        None if no tensor identifies such a model; the shapes of the remaining tensors; and the
        reason for dropping each dropped tensor, by name.
    """
    for family in KNOWN:
        if family.key is None or family.decoder is None:
            continue
        key = next((name for name in shapes if re.fullmatch(family.key, name)), None)
        if key is not None:
            decoder = re.compile(family.decoder)
            remaining = {
                name: shape for name, shape in shapes.items() if not decoder.fullmatch(name)
            }
            dropped = dict.fromkeys((n for n in shapes if n not in remaining), family.why_dropped)
            return (family, key), remaining, dropped
    return None, shapes, {}


def name_relative(
    by_key: tuple[Relative, str] | None,
    arguments: Mapping[str, Any],
    recorded: Any,
    fields: Fields,
) -> Membership | None:
    """Return the published model related to MAE to which a checkpoint belongs, and the evidence.

    The result is None if nothing in the checkpoint indicates such a model.

    Args:
        by_key: the related model that a tensor's name identifies, and the name; None if no name
            identifies a related model.
        arguments: the training arguments in the checkpoint.
        recorded: the related model in the conversion record of the file, or None.
        fields: the configuration fields that follow from the tensors' shapes, and ``task``.

    Raises:
        CheckpointError: the training arguments belong to a variant that is not supported.
    """
    membership = _by_key(by_key) or _by_arguments(arguments) or _by_record(recorded)
    membership = membership or _by_shapes(fields)
    if membership is not None and membership.certain:
        for name, why in membership.relative.impossible.items():
            if arguments.get(name):
                raise CheckpointError(
                    f"this is {membership.relative.name} trained with {name}: {why}, so it is not "
                    "a model that this project can convert"
                )
    return membership


def _by_key(membership: tuple[Relative, str] | None) -> Membership | None:
    return membership and Membership(membership[0], True, f"it has {membership[1]}")


def _by_arguments(arguments: Mapping[str, Any]) -> Membership | None:
    for family in KNOWN:
        for name, pattern in family.arguments.items():
            value = str(arguments[name]) if name in arguments else None
            if value is not None and re.fullmatch(pattern, value):
                return Membership(family, True, f"training arguments: {name} is {value}")
    return None


def _by_record(recorded: Any) -> Membership | None:
    """Return the related model that a conversion record names with certainty, or None.

    Args:
        recorded: the related model in the record, in the form of `Membership.to_dict`. The result
            is None if `recorded` has another form, is uncertain, or names an unknown model.
    """
    if not isinstance(recorded, Mapping):
        return None
    family = next((f for f in KNOWN if f.name == recorded.get("name")), None)
    if family is None or recorded.get("certainty") != "known":
        return None
    return Membership(family, True, "according to the conversion record")


def _by_shapes(fields: Fields) -> Membership | None:
    alike = [family for family in KNOWN if any(_fits(shape, fields) for shape in family.shapes)]
    if not alike:
        return None
    return Membership(alike[0], False, "its shapes", tuple(f.name for f in alike[1:]))


def _fits(shape: Fields, fields: Fields) -> bool:
    pretrain = fields["task"] == "pretrain"
    return all(
        fields.get(name) == value
        for name, value in shape.items()
        if pretrain or not name.startswith("decoder_")
    )
