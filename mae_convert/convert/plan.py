"""Plan a conversion: determine the source of each target tensor without reading or writing data."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.open import NO_KEY_BIAS
from mae_convert.convert.changes import Geometry, Step, with_geometry
from mae_convert.convert.target import Packing, container_kind, is_directory
from mae_convert.errors import (
    ConfigurationError,
    LayoutError,
    MaeConvertError,
    Option,
    join,
)
from mae_convert.families.canonical import TASKS
from mae_convert.families.configuration import Configuration
from mae_convert.formats.dtypes import DTYPES, MeasuredRounding, all_finite
from mae_convert.formats.tensor import LazyTensor, PassingDigest, watched
from mae_convert.layouts.layout import Layout
from mae_convert.layouts.table import Rule, Table, write_tensors
from mae_convert.layouts.transforms import KEY_BIAS, Schema
from mae_convert.text import plural

Purpose = Literal["write", "load", "compare"]


@dataclass(frozen=True)
class Measurements:
    """Rounding errors and hashes of canonical tensors, measured while the tensors are read."""

    roundings: Mapping[str, MeasuredRounding] = field(default_factory=dict)
    """The roundings of tensors whose dtype changes, with their errors, by canonical name."""

    hashed: Mapping[str, PassingDigest] = field(default_factory=dict)
    """Digests of the source tensors whose bytes differ in the target, by canonical name. These are
    the tensors that are rounded, transposed, split or joined."""

    hashed_rounded: Mapping[str, PassingDigest] = field(default_factory=dict)
    """Digests of the rounded values, by canonical name, for the tensors that are rounded and also
    transposed, split or joined."""


@dataclass(frozen=True)
class Plan:
    """A planned conversion; no data has been read or written yet."""

    source: Checkpoint
    """The source checkpoint; if the target's model has other inputs, e.g. another image size, the
    tensors and the configuration are changed accordingly."""

    target: Path
    layout: Layout
    table: Table
    task: str
    tensors: Sequence[LazyTensor]
    """Lazy tensors as the target stores them, in the target's native order."""

    rules: Sequence[Rule]
    """The mapping rules of the target's tensors, in the order of `tensors`.

    The tensors in `created`, which are last in `tensors`, have no rules.
    """

    steps: Sequence[Mapping[str, Any]]
    """The changes that the conversion record declares, beginning with those of earlier conversions.

    Each change is a dictionary with its name (``step``) and its parameters.
    """

    dropped: Mapping[str, str]
    """The tensors of the source that the target does not contain: a dictionary from their stored
    names to the reasons."""

    created: Mapping[str, str] = field(default_factory=dict)
    packing: Packing = field(default_factory=Packing)
    """The output options: how the tensors are stored in files."""

    measured: Measurements = field(default_factory=Measurements)
    """The rounding errors and hashes of tensors, measured when the conversion is executed."""

    repaired: Mapping[str, Any] = field(default_factory=dict)
    """The repaired files and the changes, if the target is the result of a repair."""

    @property
    def configuration(self) -> Configuration:
        """The configuration of the target."""
        return self.source.configuration

    @property
    def is_directory(self) -> bool:
        """Whether the target is a model directory."""
        return is_directory(self.layout, self.target)

    def target_schema(self) -> Schema:
        """Return the shapes of the target's canonical tensors, by name."""
        return self.source.family.schema(self.configuration.model, self.task)


def plan_conversion(
    source: Checkpoint,
    target: Path,
    layout_name: str,
    *,
    task: str | None = None,
    dtype: str | None = None,
    geometry: Geometry | None = None,
    packing: Packing | None = None,
    purpose: Purpose = "write",
) -> Plan:
    """Return the plan of a conversion; no data is written.

    Args:
        source: an opened checkpoint.
        target: the directory or file to write.
        layout_name: the layout to write.
        task: the task of the target; "encoder" drops the decoder or the head. Default: the task of
            the source.
        dtype: round every tensor to this dtype; default: dtypes are unchanged.
        geometry: the changes of the model's inputs (image size, channels, frames); default: none.
        packing: options for how the tensors are stored in files; default: ``Packing()``.
        purpose: "write" for a file whose record has the hashes of the canonical tensors; "load" for
            a model in memory, without hashes; "compare" for a run of a verification. "write" and
            "load" refuse NaN and infinity; a verification reports them.

    Raises:
        LayoutError: the layout does not support the model.
        ConfigurationError: the checkpoint does not contain a model for the task, or the model
            cannot be changed to these inputs.
        OutputError: the layout does not support the target's name or the output options.
    """
    source.require_complete(task if task in TASKS else None)
    layout, packing = source.family.layout(layout_name), packing or Packing()
    _check_chosen(source, task)
    task = task or source.task
    source.family.check_task(task, source.task)
    source = replace(source, configuration=source.configuration.for_task(task))
    source, changes = with_geometry(source, task, geometry or Geometry())
    table, names = _table_and_names(source, layout, task)
    packing.check(layout, is_directory=is_directory(layout, target))
    container_kind(layout, target)
    checked = (lambda tensor: tensor) if purpose == "compare" else _finite
    heads = source.configuration.model.num_attention_heads
    rules = [
        rule._replace(external=packing.prefix + rule.external).bound(heads)
        for rule in table.expand(names)
    ]
    canonical = {name: source.tensors[name] for name in names}
    canonical, measured = _measured(canonical, rules, dtype, hashing=purpose != "load")
    created = _created(table, canonical, packing.prefix)
    return Plan(
        source=source,
        target=target,
        layout=layout,
        table=table,
        task=task,
        tensors=[checked(tensor) for tensor in write_tensors(canonical, rules)] + list(created),
        rules=rules,
        steps=_steps(source, names, task, changes, dtype),
        dropped=_dropped(source, set(names), task),
        created={tensor.name: reason for tensor, reason in created.items()},
        packing=packing,
        measured=measured,
    )


def _table_and_names(source: Checkpoint, layout: Layout, task: str) -> tuple[Table, list[str]]:
    """Return the mapping table and the names of the canonical tensors to write.

    Raises:
        LayoutError: the layout does not support the model, or the checkpoint lacks a tensor that
            the model needs.
    """
    model = source.configuration.model
    if reason := layout.refusal(model, task):
        raise LayoutError(f"cannot write {layout.name}: ", reason)
    key_bias = _stored_key_bias(source, layout, task)
    names = [
        name for name in source.family.schema(model, task) if key_bias or not KEY_BIAS.search(name)
    ]
    table = layout.table_for(task, key_bias=key_bias, names=names)
    if missing := [name for name in names if name not in source.tensors]:
        raise LayoutError(
            f"the checkpoint has no {missing[0]}, which a model for the task {task} needs: the "
            "checkpoint is a globally pooled classifier, whose encoder has no final layer norm, so "
            "the encoder cannot be converted without the head",
            hint="convert the whole model to timm, facebook or keras",
        )
    return table, names


def _measured(
    tensors: Mapping[str, LazyTensor], rules: Iterable[Rule], dtype: str | None, *, hashing: bool
) -> tuple[dict[str, LazyTensor], Measurements]:
    """Return the tensors, rounded to a dtype, and an object for measurements.

    The measurements are made when the tensors are read. They are the rounding errors and, with
    `hashing`, the hashes of the tensors whose bytes are not the same in source and target, for
    example because they are transposed.

    Args:
        tensors: the tensors by canonical name.
        rules: the mapping rules of the target.
        dtype: the name of the dtype; if None, no tensor is rounded.
        hashing: whether to hash tensors.
    """
    roundings = _roundings(tensors, dtype)
    moved = {n for rule in rules if not rule.keeps_bytes for n in rule.canonicals if hashing}
    to_hash = {*moved, *roundings} if hashing else ()
    hashed = {name: PassingDigest(tensors[name]) for name in to_hash}
    tensors = watched(tensors, hashed)
    rounded = {name: tensors[name].mapped(each, each.dtype) for name, each in roundings.items()}
    tensors = {**tensors, **rounded}
    hashed_rounded = {name: PassingDigest(tensors[name]) for name in moved & roundings.keys()}
    return watched(tensors, hashed_rounded), Measurements(roundings, hashed, hashed_rounded)


def _check_chosen(source: Checkpoint, task: str | None) -> None:
    """Check that a checkpoint can be read for a task; for None, that it has only one task.

    Raises:
        ConfigurationError: the tensors of the checkpoint cannot be read for the task; or `task` is
            None, and the checkpoint contains complete models for several tasks.
    """
    if task is None and source.also:
        tasks = [Option("task", name) for name in (source.task, *source.also, "encoder")]
        raise ConfigurationError(
            f"{source.name} contains complete models for several tasks",
            hint=("choose with ", join(tasks, " or ")),
            path=source.path,
        )
    why = source.relative.relative.why_dropped if source.relative else ""
    if task == "pretrain" and why in source.dropped.values():
        raise ConfigurationError(why, hint=("pass ", Option("task", "encoder")))
    if task is not None and task != source.task and task in source.incomplete:
        raise ConfigurationError(
            f"{source.name} cannot be read as a {task} model: {source.incomplete[task]}",
            hint=("pass ", Option("task", source.task)),
            path=source.path,
        )


def _stored_key_bias(source: Checkpoint, layout: Layout, task: str) -> bool:
    """Return whether key biases are written.

    Zero key biases that were created for a model without key biases are not written if the layout
    can store a model without key biases.
    """
    if source.key_bias or layout.table_for(task, key_bias=False).has_key_bias:
        return True
    biases = [tensor for name, tensor in source.tensors.items() if KEY_BIAS.search(name)]
    return any(tensor.load().any() for tensor in biases)


def _created(table: Table, written: Mapping[str, LazyTensor], prefix: str) -> dict[LazyTensor, str]:
    """Return zero-filled tensors that are added to the target, each with the reason.

    The class of the layout's library requires these tensors, but they are not part of the model.

    Args:
        table: the mapping table of the target.
        written: the tensors of the model, by canonical name.
        prefix: the prefix of the names in the target.
    """
    return {
        LazyTensor(
            prefix + drop.external,
            like.shape,
            like.dtype,
            lambda like=like: np.zeros(like.shape, like.dtype),  # type: ignore[misc]
        ): f"zeros: {drop.why}"
        for drop in table.drops
        if drop.zeros_like is not None
        for like in [written[drop.zeros_like]]
    }


def _roundings(tensors: Mapping[str, LazyTensor], dtype: str | None) -> dict[str, MeasuredRounding]:
    """Return the roundings of the tensors whose dtype is not `dtype`, by canonical name.

    The result is empty if `dtype` is None.
    """
    if dtype is None:
        return {}
    target_dtype = DTYPES[dtype]
    return {
        name: MeasuredRounding(target_dtype, math.prod(tensor.shape))
        for name, tensor in tensors.items()
        if tensor.dtype != target_dtype
    }


def _finite(tensor: LazyTensor) -> LazyTensor:
    """Return the tensor with a check that raises an error if a value is not finite."""

    def checked(array: np.ndarray) -> np.ndarray:
        if array.dtype.kind in "fV" and not all_finite(array):
            count = int(array.size - np.isfinite(array).sum())
            raise MaeConvertError(
                f"{tensor.name} would have NaN or infinity in at least {plural(count, 'value')}",
                hint=(
                    "the checkpoint is broken, or ",
                    Option("dtype"),
                    " overflows: nothing was written",
                ),
            )
        return array

    return tensor.checked(checked)


def _steps(
    source: Checkpoint,
    names: Iterable[str],
    task: str,
    changes: Iterable[Step],
    dtype: str | None,
) -> list[Step]:
    """Return the declared steps of the source, followed by the steps of this conversion.

    Args:
        source: the checkpoint that is converted.
        names: the canonical names of the tensors that are converted.
        task: the task of the target.
        changes: the steps that change the model's inputs, such as another image size.
        dtype: the dtype of the target; None if each tensor keeps its dtype.
    """
    steps = list((source.container.conversion or {}).get("steps", []))
    if task != source.task:
        steps.append({"step": "task", "from": source.task, "to": task})
    steps += changes
    rounded_from = {str(source.tensors[name].dtype) for name in names} - {dtype}
    if dtype and rounded_from:
        steps.append({"step": "dtype", "from": sorted(rounded_from), "to": dtype})
    return steps


def _dropped(source: Checkpoint, names: set[str], task: str) -> dict[str, str]:
    reason = f"not part of a model for the task {task}"
    unused = {
        source.prefix.stored[rule.external]: (
            NO_KEY_BIAS if KEY_BIAS.search(rule.canonicals[0]) and not source.key_bias else reason
        )
        for rule in source.rules
        if not names & set(rule.canonicals)
    }
    return {**source.dropped, **unused, **source.container.ignored}
