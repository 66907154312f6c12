"""A new classifier head for fine-tuning: initialised with zeros, and reported as created."""

from dataclasses import replace

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.errors import ConfigurationError, Option
from mae_convert.formats.tensor import LazyTensor

CREATED = "zeros: a new classifier head (option num_labels)"
ONES = "ones: the norm before a new classifier head (option num_labels)"
NORM_WEIGHT = "head.norm.weight"


def with_new_head(source: Checkpoint, num_labels: int, task: str | None = None) -> Checkpoint:
    """Return a checkpoint as a classifier, with a head (num_labels, D) of zeros.

    The family specifies what the head reads. The decoder of a pre-training model is dropped. The
    head is declared as a step.

    Args:
        source: an opened checkpoint.
        num_labels: number of classes of the new head.
        task: the task that is requested for the result, or None.

    Raises:
        ConfigurationError: the checkpoint already has a head, the requested task has none, or the
            family has no classifiers.
    """
    if task not in (None, "classify"):
        raise ConfigurationError(
            f"a new head of {num_labels} classes needs task classify, and task {task} has no head",
            hint="specify only one of the two",
        )
    if source.task == "classify":
        raise ConfigurationError(
            "this checkpoint already has a classifier head",
            hint=(
                *(Option("num_labels"), " makes one on an encoder (drop the old head first: "),
                *(Option("task", "encoder"), ")"),
            ),
        )
    configuration = source.configuration.for_task("classify")
    fields = source.family.new_head_fields(configuration.model, num_labels)
    model = replace(configuration.model, **fields)
    dtype = [one.dtype for name, one in source.tensors.items() if name.startswith("encoder.")][-1]
    tensors = {
        name: source.tensors.get(name) or _created(name, shape, dtype)
        for name, shape in source.family.schema(model, "classify").items()
    }
    record = source.container.conversion or {}
    step = {"step": "new_head", "from": source.task, "to": num_labels}
    container = replace(
        source.container, conversion={**record, "steps": [*record.get("steps", []), step]}
    )
    return replace(
        source,
        container=container,
        task="classify",
        configuration=replace(configuration, model=model),
        tensors=tensors,
        created={
            **source.created,
            **{
                n: ONES if n == NORM_WEIGHT else CREATED for n in tensors if n not in source.tensors
            },
        },
        before_steps=source.as_opened,
    )


def _created(name: str, shape: tuple[int, ...], dtype: np.dtype) -> LazyTensor:
    fill = np.ones if name == NORM_WEIGHT else np.zeros
    return LazyTensor(name, shape, dtype, lambda: fill(shape, dtype))
