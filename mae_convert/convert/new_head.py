"""A new classifier head for fine-tuning: initialised with zeros, and reported as created."""

from dataclasses import replace

import numpy as np

from mae_convert.checkpoint.open import Checkpoint
from mae_convert.errors import ConfigurationError, Option
from mae_convert.formats.tensor import LazyTensor

CREATED = "zeros: a new classifier head (option num_labels)"


def with_new_head(source: Checkpoint, num_labels: int, task: str | None = None) -> Checkpoint:
    """Return a checkpoint as a classifier by the class token, with a head (num_labels, D) of zeros.

    The decoder of a pre-training model is dropped. The head is declared as a step.

    Args:
        source: an opened checkpoint.
        num_labels: number of classes of the new head.
        task: the task that is requested for the result, or None.

    Raises:
        ConfigurationError: the checkpoint already has a head, or the requested task has none.
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
    model = replace(configuration.model, num_labels=num_labels, global_pool="token", fc_norm=None)
    dtype = source.tensors["encoder.norm.weight"].dtype
    tensors = {
        name: source.tensors.get(name) or _zeros(name, shape, dtype)
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
            **dict.fromkeys((n for n in tensors if n not in source.tensors), CREATED),
        },
        before_steps=source.as_opened,
    )


def _zeros(name: str, shape: tuple[int, ...], dtype: np.dtype) -> LazyTensor:
    return LazyTensor(name, shape, dtype, lambda: np.zeros(shape, dtype))
