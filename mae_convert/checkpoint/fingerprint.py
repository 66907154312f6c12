"""The fingerprint of a checkpoint: a digest that does not depend on layout, format or tensor order.

It is computed from the canonical tensors, ordered by name, and from the configuration fields that
affect the model's outputs and cannot be derived from the tensors. ``docs/fingerprint.md`` specifies
it exactly, with test vectors; a change of the hashed data requires a new `VERSION`.
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mae_convert.checkpoint.warnings import not_read
from mae_convert.families import families
from mae_convert.formats.tensor import LazyTensor, sha256

if TYPE_CHECKING:
    from mae_convert.checkpoint.checkpoint import Checkpoint
    from mae_convert.families.family import Family

VERSION = "mae1"
PARTS = ("encoder", "decoder", "head")


@dataclass(frozen=True)
class TensorDigest:
    """The shape, the dtype and the hash of a canonical tensor."""

    shape: tuple[int, ...]
    """The shape."""

    dtype: str
    """The dtype, such as "float32" or "bfloat16"."""

    sha256: str
    """The SHA-256 of the bytes, little-endian and in C order, in hexadecimal digits."""

    @classmethod
    def of(cls, tensor: LazyTensor, digest: str | None = None) -> "TensorDigest":
        """Return the digest of a tensor.

        Args:
            tensor: the tensor.
            digest: the SHA-256 of the tensor's bytes; if None, the tensor is read and hashed.
        """
        return cls(tensor.shape, str(tensor.dtype), digest or sha256(tensor))

    def line(self, name: str) -> str:
        """Return the tensor's line in the text that is hashed for the encoder, decoder or head."""
        return f"{name} {self.dtype} {'x'.join(map(str, self.shape))} {self.sha256}\n"


@dataclass(frozen=True)
class Fingerprint:
    """A digest of the tensors, and a digest of the configuration if no field is missing."""

    parts: Mapping[str, str]
    """The digest of each part of the checkpoint, by name: "encoder", "decoder" or "head"."""

    configuration: str | None
    """Digest of the configuration fields, or None if a field is missing."""

    tensors: Mapping[str, TensorDigest]
    """The digests of the tensors by canonical name; empty if only `parts` is known."""

    @property
    def weights(self) -> str:
        """The digest of all tensors, computed from the digests of the model's parts (`parts`)."""
        lines = (f"{part} {self.parts[part]}\n" for part in PARTS if part in self.parts)
        return _sha256(f"{VERSION} weights\n", lines)

    def __str__(self) -> str:
        pieces = (VERSION, self.weights, self.configuration)
        return ":".join(piece for piece in pieces if piece)

    def to_dict(self) -> dict[str, Any]:
        """Return the digests as a dictionary, for reports and records."""
        return {
            "fingerprint": str(self),
            "parts": dict(self.parts),
            "configuration": self.configuration,
        }


def fingerprint(tensors: Mapping[str, TensorDigest], configuration: str | None) -> Fingerprint:
    """Return the fingerprint of canonical tensors.

    Args:
        tensors: the digests of the tensors, by canonical name.
        configuration: the result of `configuration_digest`; None if the configuration is unknown.
    """
    parts = {}
    for part in PARTS:
        names = sorted(name for name in tensors if name.startswith(f"{part}."))
        if names:
            lines = (tensors[name].line(name) for name in names)
            parts[part] = _sha256(f"{VERSION} {part}\n", lines)
    return Fingerprint(parts, configuration, dict(tensors))


def configuration_digest(family: "Family", model: Any, task: str) -> str:
    """Return the digest of the fields that affect the outputs and that no tensor determines.

    Args:
        family: the family of the model, which determines the fields.
        model: the configuration.
        task: "pretrain", "encoder" or "classify".
    """
    fields = sorted(family.function_fields(model, task).items())
    lines = (f"{name} {_text(value)}\n" for name, value in fields)
    return _sha256(f"{VERSION} configuration\n", lines)


def _text(value: Any) -> str:
    """Return a field's value as text for hashing; a float is represented by its bits."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return struct.pack(">d", value).hex()
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def missing_fields(checkpoint: "Checkpoint") -> list[str]:
    """Return the missing configuration fields that affect the outputs of a checkpoint's model."""
    fields = function_fields(checkpoint)
    return [
        missing.field for missing in checkpoint.configuration.missing if missing.field in fields
    ]


def digest_of_configuration(checkpoint: "Checkpoint") -> str | None:
    """Return the digest of a checkpoint's configuration, or None if a field is missing."""
    if missing_fields(checkpoint):
        return None
    model = checkpoint.configuration.model
    return configuration_digest(checkpoint.family, model, checkpoint.task)


def function_fields(checkpoint: "Checkpoint") -> dict[str, Any]:
    """Return the configuration fields that affect the outputs and that no tensor determines.

    The result is a dictionary of their values, ordered by field name; see
    `Family.function_fields`.
    """
    fields = checkpoint.family.function_fields(checkpoint.configuration.model, checkpoint.task)
    return dict(sorted(fields.items()))


def checkpoint_fingerprint(checkpoint: "Checkpoint") -> Fingerprint:
    """Return the fingerprint of an opened checkpoint; every tensor is read."""
    digests = {name: TensorDigest.of(tensor) for name, tensor in checkpoint.tensors.items()}
    return fingerprint(digests, digest_of_configuration(checkpoint))


def described_fingerprint(description: Mapping[str, Any]) -> Fingerprint:
    """Return the fingerprint of a trace's checkpoint from the digests in the trace's metadata.

    Args:
        description: the metadata of a trace, validated by `check_trace`.
    """
    digests = {
        name: TensorDigest(tuple(shape), dtype, digest)
        for name, (shape, dtype, digest) in description["tensors"].items()
    }
    family = described_family(description)
    model = family.configuration_class.from_dict(description["config"])
    return fingerprint(digests, configuration_digest(family, model, description["task"]))


def described_family(description: Mapping[str, Any]) -> "Family":
    """Return the family that a trace's metadata specifies for its checkpoint, by default "mae".

    The metadata of traces that earlier versions wrote do not specify a family.
    """
    known_families = families()
    return known_families.get(description.get("family", ""), next(iter(known_families.values())))


def fingerprint_report(checkpoint: "Checkpoint") -> dict[str, Any]:
    """Return the output of ``mae-convert fingerprint --json`` as a dictionary."""
    fields = function_fields(checkpoint)
    missing = missing_fields(checkpoint)
    assumed = dict(checkpoint.configuration.only_assumed())
    if (
        checkpoint.configuration.model.decoder_layer_norm_eps is None
        and "layer_norm_eps" in assumed
    ):
        assumed["decoder_layer_norm_eps"] = assumed["layer_norm_eps"]
    return {
        **checkpoint_fingerprint(checkpoint).to_dict(),
        "path": checkpoint.name,
        "layout": checkpoint.layout.name,
        "task": checkpoint.task,
        "fields": {name: None if name in missing else value for name, value in fields.items()},
        "assumed": {name: entry for name, entry in assumed.items() if name in fields},
        "missing": missing,
        "not_read": not_read(checkpoint),
    }


def _sha256(first: str, lines: Iterable[str]) -> str:
    return hashlib.sha256((first + "".join(lines)).encode()).hexdigest()
