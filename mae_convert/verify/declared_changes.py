"""Apply declared conversion steps to the source before the target is compared with it.

Declared steps are the changes that the target's conversion record (``conversion.json``) lists, such
as another dtype or image size.

The arithmetic is implemented in `mae_convert.verify.arithmetic`, independently of the conversion.
Each tensor is read and written back with the same mapping table, so an error in the table cancels
out and has no effect on the comparison.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.errors import MaeConvertError
from mae_convert.families.configuration import Configuration
from mae_convert.formats.dtypes import DTYPES
from mae_convert.formats.tensor import LazyTensor
from mae_convert.layouts.table import write_tensors
from mae_convert.verify.arithmetic import (
    accept_either_rounding,
    fixed_positions,
    mixed_channels,
    resampled_positions,
    round_half_even,
)

Step = Mapping[str, Any]

CHANNELS = "encoder.patch_embedding.weight"
ALIGNED = "bicubic, align_corners=True"
FLOAT32 = DTYPES["float32"]


@dataclass(frozen=True)
class Change:
    """The effect of a conversion step on one tensor."""

    shape: tuple[int, ...]
    """The new shape."""

    dtypes: tuple[np.dtype, ...]
    """Dtypes to which the new values are rounded, in order; the last dtype is the stored dtype."""

    values: Callable[[np.ndarray], np.ndarray]
    """Computes the new values in float64, before rounding, from the old values in float64."""


Changes = tuple[Mapping[str, Change], Configuration]


def declared_steps(checkpoint: Checkpoint) -> list[Step]:
    """Return the steps that a checkpoint's conversion record declares.

    Raises:
        MaeConvertError: this version of mae-convert does not support a step.
    """
    steps = list((checkpoint.container.conversion or {}).get("steps", []))
    for step in steps:
        if step["step"] not in (*CHANGES, *WITHOUT_CHANGE):
            raise MaeConvertError(
                checkpoint.path,
                (
                    f" declares a step {step['step']!r} that this version of mae-convert does not "
                    "support"
                ),
                hint="update mae-convert",
            )
    return steps


def steps_between(source: Checkpoint, target: Checkpoint) -> list[Step]:
    """Return the steps of the target that have not already been applied to the source.

    A target that was converted several times declares the steps of all conversions.

    Raises:
        MaeConvertError: this version of mae-convert does not support a step.
    """
    return remaining_steps(declared_steps(source), declared_steps(target))


def remaining_steps(applied: Sequence[Step], declared: Sequence[Step]) -> list[Step]:
    """Return declared steps without those that have already been applied, which come first."""
    common = 0
    while common < min(len(applied), len(declared)) and applied[common] == declared[common]:
        common += 1
    return list(declared[common:])


def apply_steps(source: Checkpoint, steps: Sequence[Step], target: Checkpoint) -> Checkpoint:
    """Return the source with declared steps applied, to be compared with the target.

    Args:
        source: the checkpoint that the target was converted from.
        steps: declared steps, in order. A step is skipped if its old value, such as the old image
            size, differs from the source's value, because an earlier conversion without a record
            has already applied the step.
        target: the target. If two roundings of a value are equally accurate, the rounding that
            equals the target's value is used.

    Returns:
        The checkpoint with canonical tensors, stored tensors, configuration and record after the
        steps; the source itself if no step changes a tensor or the configuration.

    Raises:
        MaeConvertError: a step cannot be applied to the source.
    """
    after = source
    computed: set[str] = set()
    for step in steps:
        if step["step"] not in CHANGES:
            continue
        changes, configuration = CHANGES[step["step"]](after, step)
        if step["step"] != "dtype":  # rounding alone gives the same result in any implementation
            computed |= changes.keys()
        of_target = {name: target.tensors[name] for name in computed & target.tensors.keys()}
        if changes or configuration != after.configuration:
            after = _changed(after, changes, configuration, of_target)
    if after is source:
        return source
    record = after.container.conversion or {}
    record = {**record, "steps": [*record.get("steps", []), *steps]}
    return replace(after, container=replace(after.container, conversion=record))


def _changed(
    checkpoint: Checkpoint,
    changes: Mapping[str, Change],
    configuration: Configuration,
    of_target: Mapping[str, LazyTensor],
) -> Checkpoint:
    """Return a checkpoint with changed tensors and another configuration.

    If the rounded value of an element differs from the target's value, but both are equally
    accurate roundings of the exact value, the target's value is used.

    Args:
        checkpoint: the source of the conversion.
        changes: the changes by canonical name.
        configuration: the new configuration.
        of_target: the tensors of the target by canonical name.
    """
    new = {
        name: _tensor(checkpoint.tensors[name], change, of_target.get(name))
        for name, change in changes.items()
    }
    tensors = {**checkpoint.tensors, **new}
    rules = [rule for rule in checkpoint.rules if new.keys() & set(rule.canonicals)]
    stored = {tensor.name: tensor for tensor in write_tensors(tensors, rules)}
    container = replace(checkpoint.container, tensors={**checkpoint.container.tensors, **stored})
    return replace(checkpoint, tensors=tensors, configuration=configuration, container=container)


def _tensor(tensor: LazyTensor, change: Change, of_target: LazyTensor | None) -> LazyTensor:
    def load() -> np.ndarray:
        exact = change.values(tensor.load().astype(np.float64))
        rounded = exact
        for dtype in change.dtypes:
            rounded = round_half_even(rounded.astype(np.float64), dtype)
        if of_target is None:
            return rounded
        return accept_either_rounding(exact, rounded, of_target.load())

    return LazyTensor(tensor.name, change.shape, change.dtypes[-1], load)


def _dtype(source: Checkpoint, step: Step) -> Changes:
    dtypes = (DTYPES[step["to"]],)
    changes = {
        name: Change(tensor.shape, dtypes, lambda values: values)
        for name, tensor in source.tensors.items()
    }
    return changes, source.configuration


def _image_size(source: Checkpoint, step: Step) -> Changes:
    model = source.configuration.model
    if list(model.image_hw) != step["from"]:
        return {}, source.configuration
    after = _model(source, step, image_size=tuple(step["to"]))
    if step["positions"] == "sincos":
        changes = _fixed(source, after)
    else:
        changes = _resampled(source, after, aligned=step["positions"] == ALIGNED)
    return changes, replace(source.configuration, model=after)


def _num_frames(source: Checkpoint, step: Step) -> Changes:
    if getattr(source.configuration.model, "num_frames", None) != step["from"]:
        return {}, source.configuration
    after = _model(source, step, num_frames=step["to"])
    return _fixed(source, after), replace(source.configuration, model=after)


def _resampled(source: Checkpoint, after: Any, *, aligned: bool) -> dict[str, Change]:
    """Return changes that resample position embeddings to another number of rows and columns.

    Args:
        source: the checkpoint with the position embeddings.
        after: the new configuration, which has the new number of rows and columns of patches.
        aligned: whether corners are aligned; see `resampled_positions`.
    """
    changes, model = {}, source.configuration.model
    for name, table in source.family.position_tables(model).items():
        if tensor := source.tensors.get(name):
            length = table.first + table.times * math.prod(after.grid_hw)
            grids = {"grid": model.grid_hw, "new_grid": after.grid_hw}
            values = partial(resampled_positions, first=table.first, aligned=aligned, **grids)
            changes[name] = Change((1, length, tensor.shape[-1]), (tensor.dtype,), values)
    return changes


def _fixed(source: Checkpoint, after: Any) -> dict[str, Change]:
    """Return changes that compute fixed position embeddings; `after` is the new configuration."""
    changes, model = {}, source.configuration.model
    for name in source.family.position_tables(model):
        if tensor := source.tensors.get(name):
            shape = (1, 1 + after.num_patches, tensor.shape[-1])
            # The original code rounds the fixed embedding to float32, whatever the stored dtype.
            dtypes = (FLOAT32, tensor.dtype) if _is_exact_in_float32(tensor) else (tensor.dtype,)
            grids = {"grid": model.grid_shape, "new_grid": after.grid_shape}
            changes[name] = Change(shape, dtypes, partial(fixed_positions, **grids))
    return changes


def _is_exact_in_float32(tensor: LazyTensor) -> bool:
    array = tensor.load()
    return bool((array.astype(np.float32) == array).all())


def _model(source: Checkpoint, step: Step, **fields: Any) -> Any:
    try:
        return replace(source.configuration.model, **fields)
    except ValueError as error:
        raise MaeConvertError(
            f"the declared step {dict(step)} cannot be applied: {error}",
            hint="convert the source again",
        ) from error


def _in_channels(source: Checkpoint, step: Step) -> Changes:
    configuration, old, new = source.configuration, step["from"], step["to"]
    if configuration.model.num_channels != old:
        return {}, configuration
    weight = source.tensors[CHANNELS]
    shape = (weight.shape[0], new, *weight.shape[2:])
    change = Change(shape, (weight.dtype,), partial(mixed_channels, count=new))
    configuration = replace(
        configuration,
        model=_model(source, step, num_channels=new),
        image_mean=_statistics(configuration.image_mean, new),
        image_std=_statistics(configuration.image_std, new),
    )
    return {CHANNELS: change}, configuration


def _statistics(values: tuple[float, ...], new: int) -> tuple[float, ...]:
    """Return the means or standard deviations for a model with `new` channels.

    If `new` is 1, the result is the average of `values`; otherwise `values` are repeated.
    """
    if new == 1:
        return (math.fsum(values) / len(values),)
    return (values * new)[:new]


CHANGES: Mapping[str, Callable[[Checkpoint, Step], Changes]] = {
    "dtype": _dtype,
    "image_size": _image_size,
    "num_frames": _num_frames,
    "in_channels": _in_channels,
}
# These steps change no tensor of the source: the batch norm of a linear probe is folded when the
# file is opened, and for a new head only the encoders are compared.
WITHOUT_CHANGE = ("task", "batch_norm", "new_head")
