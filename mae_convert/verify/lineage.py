"""How two checkpoints are related: same weights, same encoder, or derived by a conversion.

Steps that a record declares are applied again and the result is compared, because the record alone
proves nothing. If the files of a checkpoint are not available, its certificate or conversion record
is compared, and the result states this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.diff import unread_tensors
from mae_convert.checkpoint.fingerprint import (
    Fingerprint,
    TensorDigest,
    function_fields,
    missing_fields,
)
from mae_convert.text import listing, plural
from mae_convert.verify.declared_changes import (
    CHANGES,
    apply_steps,
    remaining_steps,
    steps_between,
)

SAME, ENCODER, DERIVED = "same weights", "same encoder", "derived"
PARTLY, UNRELATED = "partly the same", "unrelated"
POSITIONS = (".position_embedding", ".cls_position")
"""Suffixes of the names of tensors that are identical in all models of one size, regardless of
their training."""

Step = Mapping[str, Any]


@dataclass(frozen=True)
class Ancestor:
    """A source of a conversion, as stated in the conversion record."""

    name: str
    """The name of the source, as stated in the record."""

    weights: str
    """The digest of the source's tensors, as stated in the record; see `Fingerprint.weights`."""


@dataclass(frozen=True)
class CheckpointInfo:
    """The available information about a checkpoint: its tensors, or only a record.

    A record is the checkpoint's certificate or conversion record.
    """

    name: str
    """Path of the checkpoint or of the record, as specified by the user."""

    fingerprint: Fingerprint
    """The fingerprint computed from the tensors or stored in the record."""

    checkpoint: Checkpoint | None = None
    """The checkpoint; None if only a record is available."""

    ancestors: tuple[Ancestor, ...] = ()
    """Sources of its conversions according to the record, the latest first."""

    steps: tuple[Step, ...] = ()
    """The steps of all conversions that the record declares."""


@dataclass(frozen=True)
class DifferingTensor:
    """A tensor that differs, with its canonical name; `a` or `b` is None if the side lacks it."""

    name: str
    a: TensorDigest | None
    b: TensorDigest | None


@dataclass(frozen=True)
class Lineage:
    """The relation of checkpoint B to checkpoint A, and the evidence for it."""

    relation: str
    """The relation: `SAME`, `ENCODER`, `DERIVED`, `PARTLY` or `UNRELATED`."""

    sentence: str
    """A sentence that states the relation."""

    rests_on: tuple[str, ...]
    """Phrases that name the evidence for the relation."""

    steps: tuple[Step, ...] = ()
    """The conversion steps between A and B, as declared in a record, in order; empty unless the
    relation is `DERIVED`."""

    recomputed: bool | None = None
    """True if the steps were applied again and gave identical weights; False if they could not be
    applied again, because the files of a checkpoint are not available. None for other relations
    than `DERIVED`, also if the steps were applied again and gave different weights."""

    equal: int | None = None
    """Number of bit-identical tensors; None if digests of single tensors are not available."""

    tensors: tuple[DifferingTensor, ...] = ()
    """The tensors that differ even after the declared steps were applied."""

    parts: tuple[str, ...] = ()
    """The parts of the model, such as "encoder", whose recorded digests differ."""

    configuration: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Differing fields that affect the outputs, with their values in A and B. If only digests of
    the configurations are available and the digests differ, the only key is "digest of the
    configuration", and its values are the two digests."""

    not_compared: tuple[str, ...] = ()
    """Phrases that name what could not be compared."""

    @property
    def related(self) -> bool:
        """Whether the relation is `SAME`, `ENCODER` or `DERIVED`, and no field differs."""
        return self.relation in (SAME, ENCODER, DERIVED) and not self.configuration

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        configuration = {name: {"a": a, "b": b} for name, (a, b) in self.configuration.items()}
        return {**asdict(self), "configuration": configuration, "related": self.related}


def lineage(a: CheckpointInfo, b: CheckpointInfo) -> Lineage:
    """Return the relation of B to A.

    Raises:
        MaeConvertError: the conversion record of A or B declares a step that is unknown or cannot
            be applied.
    """
    if a.checkpoint is not None and b.checkpoint is not None:
        return _of_tensors(a, b, a.checkpoint, b.checkpoint)
    return _of_records(a, b)


def _of_tensors(
    a: CheckpointInfo, b: CheckpointInfo, first: Checkpoint, second: Checkpoint
) -> Lineage:
    """Return the relation of two checkpoints whose tensors are available."""
    ignored = unread_tensors(first, second)
    which = " that their models use" if ignored else ""
    rests_on = (f"the values of all tensors of A and B{which}",)
    left, right = a.fingerprint.tensors, b.fingerprint.tensors
    different = _differing(left, right)
    configuration, not_compared = _configuration(first, second)
    common: dict[str, Any] = {
        "rests_on": rests_on,
        "configuration": configuration,
        "not_compared": (*not_compared, *ignored),
    }
    if not different:
        return Lineage(SAME, "A and B have the same weights", equal=len(left), **common)
    evidence = (f"{rests_on[0]}; the steps were applied again",)
    if derived := _derived((first, left), (second, right), "B is A"):
        return _with_evidence(derived, evidence, ignored)
    if derived := _derived((second, right), (first, left), "A is B"):
        return _with_evidence(_swapped(derived), evidence, ignored)
    common["equal"] = len(left.keys() | right.keys()) - len(different)
    if _same_encoder(left, right):
        sentence = "B's encoder is bit-identical to A's"
        tensors = tuple(t for t in different if not t.name.startswith("encoder."))
        return Lineage(ENCODER, sentence, tensors=tensors, **common)
    return _unrelated(left, right, different, common)


def _unrelated(
    left: Mapping[str, TensorDigest],
    right: Mapping[str, TensorDigest],
    different: Sequence[DifferingTensor],
    common: Mapping[str, Any],
) -> Lineage:
    """Return the lineage of two checkpoints that are not derived from each other.

    The relation is `PARTLY` if a tensor other than the position embeddings is bit-identical,
    otherwise `UNRELATED`.

    Args:
        left: the digests of A's tensors by canonical name.
        right: the digests of B's tensors by canonical name.
        different: the tensors that differ.
        common: further fields of the result, which do not depend on the relation.
    """
    names = {tensor.name for tensor in different}
    shared = [n for n in left if n in right and n not in names and not n.endswith(POSITIONS)]
    if shared:
        sentence = (
            f"A and B have only some weights in common: {plural(len(different), 'tensor')} "
            f"{'differs' if len(different) == 1 else 'differ'}, and no declared step explains the "
            "difference"
        )
        return Lineage(PARTLY, sentence, tensors=tuple(different), **common)
    sentence = (
        "no relation found: no weight tensor is bit-identical, and no declared step explains "
        "the difference"
    )
    return Lineage(UNRELATED, sentence, tensors=tuple(different), **common)


# A checkpoint and the digests of its canonical tensors, by name.
Hashed = tuple[Checkpoint, Mapping[str, TensorDigest]]


def _derived(a: Hashed, b: Hashed, pair: str) -> Lineage | None:
    """Return a `DERIVED` result if the steps that B declares change A into B, else None.

    Args:
        a: the checkpoint to which the steps are applied.
        b: the checkpoint that declares the steps.
        pair: the beginning of the sentence, such as "B is A".
    """
    (first, left), (second, right) = a, b
    steps = steps_between(first, second)
    if not any(step["step"] in CHANGES for step in steps):
        return None
    after = apply_steps(first, steps, second)
    expected = {
        name: left[name] if first.tensors.get(name) is tensor else TensorDigest.of(tensor)
        for name, tensor in after.tensors.items()
        if name in right
    }
    from_a = {name: digest for name, digest in right.items() if name in expected}
    new = [name for name in right if name not in expected]
    if _differing(expected, from_a) or not any(n.startswith("encoder.blocks.") for n in expected):
        return None
    configuration, not_compared = _configuration(after, second)
    count = plural(len(new), "tensor")
    left_over = f"; {count} not computed from the other checkpoint: {new[0]} …" if new else ""
    return Lineage(
        DERIVED,
        f"{pair} after the declared conversion steps, which were applied again with an identical "
        "result" + left_over,
        rests_on=(),
        steps=tuple(steps),
        recomputed=True,
        equal=len(expected),
        tensors=tuple(DifferingTensor(name, None, right[name]) for name in new),
        configuration=configuration,
        not_compared=not_compared,
    )


def _with_evidence(result: Lineage, rests_on: tuple[str, ...], ignored: Sequence[str]) -> Lineage:
    return replace(result, rests_on=rests_on, not_compared=(*result.not_compared, *ignored))


def _swapped(result: Lineage) -> Lineage:
    """Return the result for (B, A) as a result for (A, B)."""
    tensors = tuple(DifferingTensor(t.name, t.b, t.a) for t in result.tensors)
    configuration = {name: (b, a) for name, (a, b) in result.configuration.items()}
    return replace(result, tensors=tensors, configuration=configuration)


def _differing(
    left: Mapping[str, TensorDigest], right: Mapping[str, TensorDigest]
) -> list[DifferingTensor]:
    names = list({**left, **right})
    pairs = (DifferingTensor(name, left.get(name), right.get(name)) for name in names)
    return [pair for pair in pairs if pair.a != pair.b]


def _same_encoder(left: Mapping[str, TensorDigest], right: Mapping[str, TensorDigest]) -> bool:
    """Return whether the encoders are equal, apart from a final norm that one of them lacks."""
    first, second = (
        {name: t for name, t in side.items() if name.startswith("encoder.")}
        for side in (left, right)
    )
    return bool(first) and all(
        t.name.startswith("encoder.norm.") and None in (t.a, t.b) for t in _differing(first, second)
    )


def _configuration(
    a: Checkpoint, b: Checkpoint
) -> tuple[dict[str, tuple[Any, Any]], tuple[str, ...]]:
    """Return the configuration fields that differ, and phrases about unspecified fields."""
    if a.family.name != b.family.name:
        return {"family": (a.family.name, b.family.name)}, ()
    left, right = (function_fields(c) for c in (a, b))
    missing = {"A": missing_fields(a), "B": missing_fields(b)}
    unknown = {name for names in missing.values() for name in names}
    differing = {
        name: (left[name], right[name])
        for name in left
        if name in right and name not in unknown and left[name] != right[name]
    }
    sentences = [
        f"{name}, which is not specified for {side}" for side in missing for name in missing[side]
    ]
    return differing, tuple(sentences)


def _of_records(a: CheckpointInfo, b: CheckpointInfo) -> Lineage:
    """Return the relation of two checkpoints when at least one of them was not read.

    The fingerprint of a checkpoint that was not read is taken from its certificate or conversion
    record.
    """
    rests_on = tuple(
        f"{side}: the values of its tensors"
        if one.checkpoint is not None
        else f"{side}: the record {one.name}; the files that it describes were not read"
        for side, one in (("A", a), ("B", b))
    )
    left, right = a.fingerprint, b.fingerprint
    if left.weights == right.weights:
        sentence = "A and B have the same weights, according to the record"
        configuration, not_compared = _digests(left, right)
        return Lineage(
            SAME, sentence, rests_on, configuration=configuration, not_compared=not_compared
        )
    parts = tuple(
        part
        for part in {**left.parts, **right.parts}
        if left.parts.get(part) != right.parts.get(part)
    )
    for one, other, pair in ((a, b, "B was converted from A"), (b, a, "A was converted from B")):
        for ancestor in other.ancestors:
            if ancestor.weights == one.fingerprint.weights:
                sentence = (
                    f"{pair}, according to the record; the steps in the record were not applied "
                    "again, because this requires the files of both checkpoints"
                )
                not_compared = ("the configuration, which the steps may change",)
                return Lineage(
                    DERIVED, sentence, rests_on, tuple(remaining_steps(one.steps, other.steps)),
                    recomputed=False, parts=parts, not_compared=not_compared,
                )  # fmt: skip
    if "encoder" in left.parts and "encoder" not in parts:
        sentence = "B's encoder is identical to A's, according to the record"
        return Lineage(ENCODER, sentence, rests_on, parts=parts)
    different = _differing(left.tensors, right.tensors) if left.tensors and right.tensors else []
    if different:
        return _unrelated(
            left.tensors, right.tensors, different, {"rests_on": rests_on, "parts": parts}
        )
    digests = f"{'digest' if len(parts) == 1 else 'digests'} of {listing(parts, 'and')}"
    sentence = f"no relation found, according to the record: A and B differ in the {digests}"
    not_compared = ("single tensors, because a record contains no digests of single tensors",)
    return Lineage(UNRELATED, sentence, rests_on, parts=parts, not_compared=not_compared)


def _digests(
    left: Fingerprint, right: Fingerprint
) -> tuple[dict[str, tuple[Any, Any]], tuple[str, ...]]:
    """Return the configuration digests if they differ, and a phrase if a digest is missing.

    The digests are a pair for A and B, in a dictionary as in `Lineage.configuration`. The phrase
    states that the configurations were not compared.
    """
    pair = left.configuration, right.configuration
    if None in pair:
        return {}, ("the configuration, which is unknown for at least one checkpoint",)
    return ({} if pair[0] == pair[1] else {"digest of the configuration": pair}), ()
