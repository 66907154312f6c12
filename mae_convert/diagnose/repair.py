"""Repair the faults of a target and verify the result against the source.

Faults of weights, configuration and conversion record are repaired if the diagnosis recognises
them. The target is not changed: the repaired checkpoint is a new file or directory in the same
layout, which is renamed to its final name only after it has passed a verification.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.checkpoint.preprocessing import described
from mae_convert.checkpoint.warnings import by_reason
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.convert.record import files_sha256
from mae_convert.diagnose.tensor_differences import cause_in_words, grouped_causes
from mae_convert.diagnose.tensor_repairs import UNEXPLAINED, TensorRepair, differing, tensor_repairs
from mae_convert.errors import MaeConvertError, Option, OutputError
from mae_convert.families.family import ACTIVATION_SYNONYMS
from mae_convert.files.atomic import rename_to_new, staging_for
from mae_convert.files.strict_json import plain
from mae_convert.runtime.sides import Side
from mae_convert.text import listed, listing
from mae_convert.verify.certificate import write_certificate
from mae_convert.verify.declared_changes import apply_steps, steps_between
from mae_convert.verify.judge import OPTIONAL
from mae_convert.verify.verification import Options, Verification, run_verification

Step = Mapping[str, Any]

PREPROCESSING = ("image_mean", "image_std")
DECODER_EPS = "decoder_layer_norm_eps"
MOST_NAMED = 4  # maximum number of unexplained tensors in a message


class NotRepairedError(MaeConvertError):
    """The target cannot be repaired, or the repaired checkpoint does not pass a verification."""

    exit_status = 1


@dataclass(frozen=True)
class Repair:
    """The faults of a target, and the changes that repair them."""

    source: Checkpoint = field(repr=False)
    """The source after the steps of the conversion; the repaired checkpoint must be equal to it."""

    target: Checkpoint = field(repr=False)
    """The target with the faults."""

    repairs: tuple[TensorRepair, ...]
    """The tensors to replace."""

    configuration: tuple[str, ...] = ()
    """Sentences about configuration fields that are set to the values of the source."""

    record: tuple[str, ...] = ()
    """Sentences about changes of the conversion record and of the tensor names."""

    @property
    def changes(self) -> list[str]:
        """Sentences about all changes; tensors with the same fault share a sentence."""
        causes = {repair.name: (repair.fault, repair.how) for repair in self.repairs}
        groups = grouped_causes(causes)
        tensors = [f"{cause_in_words(names, fault)}; {how}" for names, (fault, how) in groups]
        return [*tensors, *self.configuration, *self.record]

    @property
    def left_out(self) -> list[str]:
        """Descriptions of the target's tensors that are not written, with the reasons."""
        groups = by_reason(self.target.dropped).items()
        return [f"{listed(names, MOST_NAMED)}: {reason}" for reason, names in groups]

    @property
    def unexplained(self) -> list[str]:
        """Names of the differing tensors that no known fault explains."""
        return [repair.name for repair in self.repairs if repair.fault == UNEXPLAINED]

    def repaired(self) -> Checkpoint:
        """Return the target with repaired tensors and with the configuration of the source."""
        cured = {repair.name: repair.tensor for repair in self.repairs}
        tensors = {**self.source.tensors, **self.target.tensors, **cured}
        unchanged = {name: tensors[name] for name in self.source.tensors}
        ours, theirs = self.source, self.target
        container, configuration = ours.container, ours.configuration
        if theirs.preprocessor and not ours.preprocessor:
            container = replace(container, preprocessor=theirs.preprocessor)
        if not configuration.labels:
            configuration = replace(configuration, labels=theirs.configuration.labels)
        return replace(ours, tensors=unchanged, container=container, configuration=configuration)


def plan_repair(a: Checkpoint, b: Checkpoint) -> Repair:
    """Find the faults of a target and the changes that repair them; no model is run.

    Args:
        a: the source.
        b: the target, which may lack configuration fields.

    Raises:
        NotRepairedError: the two models have different families, tasks or shapes.
        ConfigurationError: a field of the source is missing.
    """
    _require_repairable(a, b)
    source, names, record = _with_true_steps(a, b)
    for name, tensor in b.tensors.items():
        if name in source.tensors and source.tensors[name].shape != tensor.shape:
            shapes = f"{source.tensors[name].shape} in A and {tensor.shape} in B"
            raise NotRepairedError(
                f"{name} has shape {shapes}, which cannot be repaired",
                hint="convert A again with the options of B's conversion",
            )
    standard = b.layout.table_for(b.task, key_bias=b.key_bias)
    if b.table.name not in (standard.name, b.layout.table_for(b.task).name):
        record.append(
            f"not every version of the library can load the tensor names of {b.table.name}: "
            f"replaced by the names of {standard.name}"
        )
    return Repair(
        source,
        b,
        tuple(tensor_repairs(source, b, names)),
        tuple(_configuration_changes(source, b)),
        tuple(record),
    )


def repair(
    a: Checkpoint,
    b: Checkpoint,
    out: Path,
    sides: tuple[Side, Side] = (Side(), Side()),
    options: Options | None = None,
    *,
    restore: bool = False,
) -> tuple[Repair, Verification]:
    """Repair a target, verify the result against the source, and write it with a certificate.

    Args:
        a: the source.
        b: the target; it is not changed.
        out: the path of the repaired checkpoint, in the layout of the target.
        sides: how to run the source and the repaired checkpoint.
        options: the options of the verification; None for the defaults.
        restore: if no known fault explains the difference of a tensor, copy the tensor from the
            source.

    Raises:
        NotRepairedError: there is nothing to repair, a difference is unexplained, or the repaired
            checkpoint does not pass the verification. Nothing is written in these cases.
        OutputError: ``out`` exists, is inside the target, or cannot be written.
    """
    if os.path.lexists(out):
        raise OutputError(out, " exists and is not replaced", hint="choose another name")
    if b.path.is_dir() and b.path.resolve() in out.resolve().parents:
        raise OutputError(
            out, " is inside B, but B must not be changed", hint="choose another directory"
        )
    with staging_for(out) as folder:
        planned = plan_repair(a, b)
        if not planned.changes:
            raise _nothing_to_repair(steps_between(a, b))
        _require_explained(planned, restore=restore)
        target = folder / out.name
        write_repaired(planned, target)
        repaired = open_checkpoint(target)
        verification = run_verification(a, repaired, *sides, options)
        if not verification.verdict.passed:
            raise _not_passed(verification, planned)
        write_certificate(verification, repaired)
        _put_in_place(folder, out)
    return planned, verification


def _require_repairable(a: Checkpoint, b: Checkpoint) -> None:
    a.require_complete()
    if a.family.name != b.family.name:
        families = [f"{each.family.name} ({each.family.title})" for each in (a, b)]
        raise NotRepairedError(
            f"the family of A is {families[0]}, but the family of B is {families[1]}"
        )
    if b.task not in (a.task, "encoder"):
        raise NotRepairedError(
            f"the task of A is {a.task} and the task of B is {b.task}, so A lacks tensors of B",
            hint="specify the source of B's conversion",
        )


def _with_true_steps(a: Checkpoint, b: Checkpoint) -> tuple[Checkpoint, list[str], list[str]]:
    """Determine which declared changes were really applied to A, and the faults of B's record.

    The conversion record may declare a change that was not applied, or may not declare that
    tensors were rounded.

    Returns:
        A after the changes that were applied, the names of the tensors that are still
        different in B, and sentences about the faults of the record.
    """
    declared = [step for step in steps_between(a, b) if step["step"] != "task"]
    source = _after(a, declared, b)
    names = differing(source, b)
    if not names:
        return source, names, []
    if declared and len(fewer := differing(a, b)) < len(names):
        kinds = listing(str(step["step"]) for step in declared)
        fault = f"steps that were not applied are removed from the record ({kinds})"
        return a, fewer, [fault]
    if rounded := _rounding(source, b):
        after = _after(a, [*declared, rounded], b)
        if len(fewer := differing(after, b)) < len(names):
            added = f"the undeclared rounding of tensors to {rounded['to']} is added to the record"
            return after, fewer, [added]
    return source, names, []


def _rounding(a: Checkpoint, b: Checkpoint) -> Step | None:
    """Return the step that rounds A's tensors to B's dtype.

    The result is None if B has several dtypes, or if A has the same dtype.
    """
    dtypes = {str(tensor.dtype) for tensor in b.tensors.values()}
    before = {str(tensor.dtype) for name, tensor in a.tensors.items() if name in b.tensors}
    if len(dtypes) != 1 or before == dtypes:
        return None
    return {"step": "dtype", "from": sorted(before - dtypes), "to": dtypes.pop()}


def _after(a: Checkpoint, steps: Sequence[Step], b: Checkpoint) -> Checkpoint:
    after = apply_steps(a, steps, b)
    return after if after is a else replace(after, before_steps=a.as_opened)


def _configuration_changes(a: Checkpoint, b: Checkpoint) -> Iterator[str]:
    """Yield a sentence for each configuration field that is missing or has another value in B."""
    ours, theirs = a.configuration, b.configuration
    missing = {each.field for each in theirs.missing}
    model_fields = a.family.compared_fields({a.task, b.task})
    models = ours.model.to_dict(), theirs.model.to_dict()
    if all(model.get(DECODER_EPS) is None for model in models):  # the default: the encoder's
        model_fields = tuple(name for name in model_fields if name != DECODER_EPS)
    for name in dict.fromkeys((*model_fields, *PREPROCESSING)):
        right = _value(a, name)
        if name in missing:
            yield f"{name} is not stored in B: set to {plain(right)} as in A"
        elif not _same_value(name, _value(b, name), right):
            yield f"{name} is {plain(_value(b, name))} in B: set to {plain(right)} as in A"
    if ours.labels and theirs.labels and ours.labels != theirs.labels:
        yield "the class names differ: set to the class names of A"
    left, right = described(a), described(b)
    if left and right and left.get("stated") and right.get("stated"):
        other = [n for n, v in left.items() if right.get(n) != v and n not in ("mean", "std")]
        if other and not _resized(a):
            yield f"preprocessing differs ({', '.join(other)}): set to the values of A"


def _resized(checkpoint: Checkpoint) -> bool:
    steps = (checkpoint.container.conversion or {}).get("steps", [])
    return any(step["step"] == "image_size" for step in steps)


def _value(checkpoint: Checkpoint, name: str) -> Any:
    configuration = checkpoint.configuration
    if name in PREPROCESSING:
        return tuple(getattr(configuration, name))
    value = configuration.model.to_dict().get(name)
    if name == DECODER_EPS and value is None:
        return configuration.model.layer_norm_eps
    return ACTIVATION_SYNONYMS.get(value, value) if name == "hidden_act" else value


def _same_value(name: str, left: Any, right: Any) -> bool:
    """Return whether two values of a field are equal or both stand for a missing value."""
    return bool(left == right) or {left, right} <= set(OPTIONAL.get(name, ()))


def _require_explained(planned: Repair, *, restore: bool) -> None:
    if planned.unexplained and not restore:
        one = len(planned.unexplained) == 1
        more = len(planned.unexplained) - MOST_NAMED
        named = planned.unexplained[:MOST_NAMED]
        names = f"{', '.join(named)} and {more} more" if more > 0 else listing(named, "and")
        raise NotRepairedError(
            f"no known fault explains how {names} of B {'differs' if one else 'differ'} from A, so "
            f"{'it is' if one else 'they are'} not repaired",
            hint=("pass ", Option("restore", True), f" to copy {'it' if one else 'them'} from A"),
        )


def _nothing_to_repair(declared: Sequence[Step]) -> NotRepairedError:
    """Return the error for a target without a fault.

    With the declared steps applied, the source is equal to the target.

    Args:
        declared: the steps of the target that have not already been applied to the source.
    """
    hint = "if `verify A B` fails nevertheless, the error is in the program that runs B"
    steps = dict.fromkeys(str(step["step"]).replace("_", " ") for step in declared)
    if not (changes := ", ".join(kind for kind in steps if kind != "task")):
        return NotRepairedError(
            "B has the same weights, configuration and record as A: there is nothing to repair",
            hint=hint,
        )
    return NotRepairedError(
        f"with the changes that B's conversion record declares ({changes}), A is equal to B: there "
        "is nothing to repair",
        hint=f"if B should not have these changes, convert A again; {hint}",
    )


def write_repaired(planned: Repair, target: Path) -> None:
    """Write the repaired checkpoint in the layout of the target; it is not verified here.

    Raises:
        MaeConvertError: the conversion failed.
    """
    plan = plan_conversion(
        planned.repaired(), target, planned.target.layout.name, task=planned.target.task
    )
    about = files_sha256(planned.target.container.opened)
    execute(replace(plan, repaired={"from": about, "changes": planned.changes}))


def _not_passed(verification: Verification, planned: Repair) -> NotRepairedError:
    failed = verification.verdict.failed()[0].name
    first = verification.verdict.first_divergence
    where = f"the first result that differs is {first}" if first else f"{failed} fails"
    what = "; ".join(planned.changes[:MOST_NAMED])
    return NotRepairedError(
        f"the repaired checkpoint does not pass the verification: {where}; nothing was written "
        f"(tried: {what})"
    )


def _put_in_place(folder: Path, out: Path) -> None:
    """Rename a verified certificate and then its checkpoint to their final names."""
    others = sorted(path for path in folder.iterdir() if path.name != out.name)
    placed: list[Path] = []
    try:
        for path in (*others, folder / out.name):
            rename_to_new(path, out.parent / path.name)
            placed.append(out.parent / path.name)
    except OSError as error:
        for path in placed:
            with suppress(OSError):
                path.unlink()
        where = error.filename2 or error.filename or out
        raise OutputError(
            Path(where), f" cannot be written: {error.strerror}", hint="choose another name"
        ) from error
