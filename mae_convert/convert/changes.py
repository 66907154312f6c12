"""Changes to a model that a conversion declares: other inputs, or a new head for fine-tuning.

Each change is declared as a step, a dictionary: the name of the step is under ``step``, and the
values before and after are under ``from`` and ``to``. When a conversion is verified,
`mae_convert.verify.declared_changes` applies the declared steps to the source with independent
code.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import fsum
from typing import Any

import numpy as np

from mae_convert.checkpoint.canonical_tensors import with_step
from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.errors import ConfigurationError, Option
from mae_convert.families.configuration import Configuration
from mae_convert.families.position_embeddings import (
    RECOMPUTE,
    PositionTable,
    regenerated,
    resampled,
)
from mae_convert.formats.dtypes import rounded
from mae_convert.formats.tensor import LazyTensor
from mae_convert.text import format_size

Step = Mapping[str, Any]

PATCH_EMBEDDING = "encoder.patch_embedding.weight"


@dataclass(frozen=True)
class Geometry:
    """Changes of a model's inputs; properties that are None stay as in the source."""

    image_size: tuple[int, int] | None = None
    """Height and width in pixels."""

    sincos_positions: bool = False
    """Whether fixed position embeddings are computed for the new grid instead of resampling the
    position embeddings of the source."""

    in_channels: int | None = None
    """Number of input channels."""

    num_frames: int | None = None
    """Number of frames of a video."""


def with_geometry(
    source: Checkpoint, task: str, geometry: Geometry
) -> tuple[Checkpoint, tuple[Step, ...]]:
    """Return the checkpoint of a model with changed inputs, and the declared steps.

    Args:
        source: an opened checkpoint.
        task: the task for which the checkpoint is converted.
        geometry: the changes of the inputs; no step is declared for a property that stays the same.

    Raises:
        ConfigurationError: the model cannot be changed in this way.
    """
    if geometry.sincos_positions and geometry.image_size is None:
        raise ConfigurationError(
            *(
                Option("sincos_positions", True),
                " computes position embeddings for another image size",
            ),
            hint=("specify it with ", Option("image_size")),
        )
    steps: tuple[Step, ...] = ()
    if geometry.num_frames is not None:
        source, steps = _with_num_frames(source, task, geometry.num_frames)
    if geometry.image_size is not None:
        source, more = _with_image_size(
            source, task, geometry.image_size, geometry.sincos_positions
        )
        steps += more
    if geometry.in_channels is not None:
        source, more = _with_channels(source, task, geometry.in_channels)
        steps += more
    return source, steps


def _with_image_size(
    source: Checkpoint, task: str, size: tuple[int, int], sincos: bool
) -> tuple[Checkpoint, tuple[Step, ...]]:
    model = source.configuration.model
    _check_divisible(size, model.patch_hw)
    resized = replace(model, image_size=size)
    relative = source.relative
    if relative and relative.certain and relative.relative.unresampled and resized != model:
        raise ConfigurationError(
            *(Option("image_size"), f": {relative.relative.unresampled}"),
            hint=(
                f"convert the checkpoint for images of {model.image_hw[0]}x{model.image_hw[1]}, "
                "the size with which it was trained"
            ),
        )
    if resized == model:
        return source, ()
    if source.family.positions is None:
        raise ConfigurationError(
            *(Option("image_size"), f": positions of the family {source.family.name} cannot be"),
            " resampled",
            hint=f"convert the checkpoint for images of {model.image_hw[0]}x{model.image_hw[1]}",
        )
    changed = {}
    for name, table in _position_tables(source, task).items():
        tensor = source.tensors[name]
        if sincos:
            changed[name] = _regenerated(source, tensor, resized, RECOMPUTE)
        else:
            grids, kind = (model.grid_hw, resized.grid_hw), source.family.resampling
            changed[name] = resampled(tensor, *grids, table, kind)
    step = {
        "step": "image_size",
        "from": list(model.image_hw),
        "to": list(resized.image_hw),
        "positions": _positions(source, sincos=sincos),
    }
    before = f"{model.image_hw[0]}x{model.image_hw[1]}"
    configuration = _configured(source, resized, "image_size", before)
    return _changed(source, changed, configuration), (step,)


def _with_num_frames(
    source: Checkpoint, task: str, count: int
) -> tuple[Checkpoint, tuple[Step, ...]]:
    """Return a video model for another number of frames, and the step that declares the change.

    The fixed position embeddings are recomputed for the new frames and the source's image size.
    If the number of frames does not change, the source and no step are returned.

    Args:
        source: the checkpoint of the video model.
        task: the task of the target.
        count: the new number of frames.

    Raises:
        ConfigurationError: the model takes images, its temporal positions are learned, or `count`
            is not a multiple of the frames per patch.
    """
    model, option = source.configuration.model, Option("num_frames", count)
    before = getattr(model, "num_frames", None)
    if before is None:
        raise ConfigurationError(
            option,
            f": models of the family {source.family.name} take images, not videos",
            hint="leave the option out",
        )
    if count == before:
        return source, ()
    if source.family.positions != "computed" and source.family.fixed_positions is None:
        raise ConfigurationError(
            *(
                option,
                f": models of the family {source.family.name} have learned temporal positions,",
            ),
            " which cannot be computed for another number of frames",
            hint=f"leave the option out: the model takes {before} frames",
        )
    if count % model.tubelet_size:
        below = count - count % model.tubelet_size
        choices = " or ".join(str(n) for n in (below, below + model.tubelet_size) if n)
        raise ConfigurationError(
            option, f": patches are {model.tubelet_size} frames long", hint=f"choose {choices}"
        )
    new_model = replace(model, num_frames=count)
    changed = {
        name: _regenerated(source, source.tensors[name], new_model, option)
        for name in _position_tables(source, task)
    }
    step = {"step": "num_frames", "from": before, "to": count, "positions": "recomputed"}
    configuration = _configured(source, new_model, "num_frames", str(before))
    return _changed(source, changed, configuration), (step,)


def _position_tables(source: Checkpoint, task: str) -> dict[str, PositionTable]:
    """Return the arrangement of the rows in each position embedding that a task uses, by name."""
    return {
        name: table
        for name, table in source.family.position_tables(source.configuration.model).items()
        if name in source.tensors and (task == "pretrain" or not name.startswith("decoder."))
    }


def _regenerated(
    source: Checkpoint, tensor: LazyTensor, changed: Any, option: Option
) -> LazyTensor:
    axes, model = source.family.fixed_positions, source.configuration.model
    if axes is None:
        raise ConfigurationError(
            *(option, f": the position embeddings of the family {source.family.name} are learned"),
            hint="leave the option out to resample them",
        )
    return regenerated(tensor, model.grid_shape, changed.grid_shape, axes, option)


def _configured(source: Checkpoint, new_model: Any, field: str, before: str) -> Configuration:
    """Return the configuration of a checkpoint with the values of `new_model`.

    A configuration also states the source of each field's value. The source of the changed field is
    the option with the same name. If the old value was an assumption, the configuration also states
    the old value and where it came from.

    Args:
        source: the checkpoint before the change.
        new_model: the model's configuration after the change.
        field: the name of the changed field.
        before: the old value of the field, as text.
    """
    resized = f"option {field}"
    if (
        field in source.configuration.assumptions
    ):  # still an assumption, because the size before resampling was assumed
        resized += f", from {before} ({source.configuration.sources[field]})"
    sources = {**source.configuration.sources, field: resized}
    return replace(source.configuration, model=new_model, sources=sources)


def _positions(source: Checkpoint, *, sincos: bool) -> str:
    """Return how position embeddings are adapted to another image size, as the record names it.

    "recomputed": the model computes them for every image size. "sincos": the option
    ``sincos_positions`` requests fixed sine-cosine embeddings. Otherwise, the kind of resampling.
    """
    if source.family.positions == "computed":
        return "recomputed"
    return "sincos" if sincos else source.family.resampling


def _check_divisible(size: tuple[int, int], patch: tuple[int, int]) -> None:
    for side, pixels, patch_pixels in zip(("height", "width"), size, patch, strict=True):
        if pixels % patch_pixels:
            below = pixels - pixels % patch_pixels
            choices = [str(n) for n in (below, below + patch_pixels) if n]
            raise ConfigurationError(
                f"patches of {patch_pixels} pixels do not divide the {side} {pixels} that ",
                *(Option("image_size"), " requests"),
                hint=f"choose {' or '.join(choices)}",
            )


def _with_channels(
    source: Checkpoint, task: str, count: int
) -> tuple[Checkpoint, tuple[Step, ...]]:
    """Return the checkpoint with another number of channels, and the declared steps.

    The patch embedding, the image mean and the image standard deviation are changed. There is no
    step if the number of channels stays the same.
    """
    configuration = source.configuration
    old = configuration.model.num_channels
    if count == old:
        return source, ()
    if task == "pretrain":
        raise ConfigurationError(
            Option("in_channels", count),
            f": the decoder of a pre-training model predicts pixels with {old} channels, and its "
            "output cannot be adapted",
            hint=("pass ", Option("task", "encoder"), " too"),
        )
    if 1 < count < old and old != 3:
        raise ConfigurationError(
            *(
                Option("in_channels", count),
                f": it is not specified which of the {old} channels to drop",
            ),
            hint=f"choose 1 (their sum) or more than {old}",
        )
    weight = source.tensors[PATCH_EMBEDDING]
    sources = dict.fromkeys(("image_mean", "image_std"), f"option in_channels {count}")
    configuration = replace(
        configuration,
        model=replace(configuration.model, num_channels=count),
        image_mean=channel_statistics(configuration.image_mean, count),
        image_std=channel_statistics(configuration.image_std, count),
        sources={**configuration.sources, **sources},
    )
    step = {"step": "in_channels", "from": old, "to": count}
    return _changed(source, {PATCH_EMBEDDING: with_channels(weight, count)}, configuration), (step,)


def with_channels(weight: LazyTensor, count: int) -> LazyTensor:
    """Return a patch embedding (width, channels, [t,] h, w) for another number of channels.

    The method is the same as in timm (``adapt_input_conv``). A single channel has the sum
    of the weights of all channels, so that a grey image gives the same result as an image with the
    grey values in every channel. Several channels repeat the weights of the old channels, scaled by
    old / new, so that sums over channels keep their magnitude. The weights are computed in float64
    and rounded.
    """

    def load() -> np.ndarray:
        old = weight.load().astype(np.float64)
        if count == 1:
            new = old.sum(axis=1, keepdims=True)
        else:
            turns = math.ceil(count / old.shape[1])
            repeated = np.concatenate([old] * turns, axis=1)
            new = repeated[:, :count] * (old.shape[1] / count)
        return rounded(new, weight.dtype)

    return replace(weight, shape=(weight.shape[0], count, *weight.shape[2:]), load=load)


def channel_statistics(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    """Return the means or standard deviations for another number of channels.

    A copied channel has the value of the original channel; a single channel has the average.
    """
    if count == 1:
        return (fsum(values) / len(values),)
    return tuple(values[index % len(values)] for index in range(count))


def _changed(
    source: Checkpoint, tensors: Mapping[str, LazyTensor], configuration: Configuration
) -> Checkpoint:
    return replace(
        source,
        tensors={**source.tensors, **tensors},
        configuration=configuration,
        before_steps=source.as_opened,
    )


def step_in_words(step: Mapping[str, Any]) -> str:
    """Return a declared step as text, such as "dtype: float32 to float16"."""
    before, after = (_sides(step["step"], step[key]) for key in ("from", "to"))
    how = f", positions {step['positions']}" if "positions" in step else ""
    return f"{step['step']}: {before} to {after}{how}"


def _sides(kind: str, value: Any) -> str:
    if kind == "image_size":
        return format_size(value)
    return ", ".join(value) if isinstance(value, list) else str(value)


CREATED = "zeros: a new classifier head for fine-tuning"
ONES = "ones: the weight of the norm before a new classifier head for fine-tuning"
NORM_WEIGHT = "head.norm.weight"


def with_new_head(source: Checkpoint, num_labels: int, task: str | None = None) -> Checkpoint:
    """Return a checkpoint as a classifier, with a head (num_labels, D) of zeros.

    The family determines the input of the head. The decoder of a pre-training model is dropped. The
    conversion record of the result declares the new head as a step.

    Args:
        source: an opened checkpoint.
        num_labels: number of classes of the new head.
        task: the requested task of the result; None if no task was requested.

    Raises:
        ConfigurationError: the checkpoint already has a head, a model for the requested task has no
            head, or the family has no classifiers.
    """
    if task not in (None, "classify"):
        raise ConfigurationError(
            f"a new head for {num_labels} classes needs the task classify, not {task}",
            hint="specify either the number of classes or the task",
        )
    if source.task == "classify":
        raise ConfigurationError(
            "this checkpoint already has a classifier head",
            hint=(
                *(Option("num_labels"), " adds a head to an encoder (drop the existing head "),
                *("first: ", Option("task", "encoder"), ")"),
            ),
        )
    configuration = source.configuration.for_task("classify")
    fields = source.family.new_head_fields(configuration.model, num_labels)
    model = replace(configuration.model, **fields)
    dtype = [
        tensor.dtype for name, tensor in source.tensors.items() if name.startswith("encoder.")
    ][-1]
    tensors = {
        name: source.tensors.get(name) or _created(name, shape, dtype)
        for name, shape in source.family.schema(model, "classify").items()
    }
    new = [name for name in tensors if name not in source.tensors]
    created = {name: ONES if name == NORM_WEIGHT else CREATED for name in new}
    step = {"step": "new_head", "from": source.task, "to": num_labels}
    return replace(
        source,
        container=with_step(source.container, step),
        task="classify",
        configuration=replace(configuration, model=model),
        tensors=tensors,
        created={**source.created, **created},
        before_steps=source.as_opened,
    )


def _created(name: str, shape: tuple[int, ...], dtype: np.dtype) -> LazyTensor:
    fill = np.ones if name == NORM_WEIGHT else np.zeros
    return LazyTensor(name, shape, dtype, lambda: fill(shape, dtype))
