"""Compare the tensors and the configurations of two checkpoints, whose layouts may differ."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.warnings import not_read


@dataclass(frozen=True)
class TensorDifference:
    """The difference of one canonical tensor between two checkpoints, A and B.

    The shape and the dtype are None for a checkpoint that does not contain the tensor.
    """

    name: str
    shape_a: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    dtype_a: str | None
    dtype_b: str | None
    elements: int
    relative_l2: float
    max_abs: float


@dataclass(frozen=True)
class Difference:
    """The differences between two checkpoints."""

    equal: int
    """Number of bit-identical tensors."""

    tensors: tuple[TensorDifference, ...]
    """The tensors that differ."""

    configuration: dict[str, tuple[Any, Any]]
    """Differing fields, with their values in A and B."""

    not_compared: dict[str, str] = field(default_factory=dict)
    """The fields that were not compared: a dictionary from the field's name to the checkpoints that
    do not specify the field ("A", "B" or "A and B")."""

    not_read: tuple[str, ...] = ()
    """Descriptions of stored tensors that are not part of the models and were not compared."""

    @property
    def same(self) -> bool:
        """Whether there are no differences."""
        return not self.tensors and not self.configuration


def diff(a: Checkpoint, b: Checkpoint) -> Difference:
    """Compare all canonical tensors bit for bit, and the configurations field by field."""
    names = list({**a.tensors, **b.tensors})
    differences = tuple(d for name in names if (d := tensor_difference(a, b, name)))
    return Difference(
        equal=len(names) - len(differences),
        tensors=differences,
        configuration=dict(_configuration(a, b)),
        not_compared=_not_compared(a, b),
        not_read=unread_tensors(a, b),
    )


def unread_tensors(a: Checkpoint, b: Checkpoint) -> tuple[str, ...]:
    """Return descriptions of the tensors in the files of A and B that were not read."""
    return tuple(f"{side}'s {line}" for side, c in (("A", a), ("B", b)) for line in not_read(c))


def _not_compared(a: Checkpoint, b: Checkpoint) -> dict[str, str]:
    lacking: dict[str, list[str]] = {}
    for side, checkpoint in (("A", a), ("B", b)):
        for missing in checkpoint.configuration.missing:
            lacking.setdefault(missing.field, []).append(side)
    return {name: " and ".join(sides) for name, sides in lacking.items()}


def tensor_difference(a: Checkpoint, b: Checkpoint, name: str) -> TensorDifference | None:
    """Return the difference of one canonical tensor, or None if it is bit-identical in A and B."""
    left, right = a.tensors.get(name), b.tensors.get(name)
    elements, relative, largest = 0, math.inf, math.inf
    if left is not None and right is not None and left.shape == right.shape:
        x, y = left.load(), right.load()
        if left.dtype == right.dtype and _bits(x) == _bits(y):
            return None
        elements, relative, largest = _distances(x, y)
    return TensorDifference(
        name,
        left.shape if left else None,
        right.shape if right else None,
        str(left.dtype) if left else None,
        str(right.dtype) if right else None,
        elements,
        relative,
        largest,
    )


def _bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _distances(x: np.ndarray, y: np.ndarray) -> tuple[int, float, float]:
    """Return the number of differing elements, the relative L2 distance and the largest distance.

    The L2 distance is relative to the L2 norm of `x`. The largest distance is the largest absolute
    difference of two elements.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    with np.errstate(invalid="ignore"):
        away = y - x
        distance, size = float(np.linalg.norm(away)), float(np.linalg.norm(x))
        relative = distance / size if size else (0.0 if distance == 0 else math.inf)
        largest = float(np.abs(away).max()) if away.size else 0.0
    return int((~(away == 0)).sum()), relative, largest


def _configuration(a: Checkpoint, b: Checkpoint) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if a.family.name != b.family.name:
        yield "family", (a.family.name, b.family.name)
    others = b.family.unspecified_fields(b.task)
    fields = [name for name in a.family.unspecified_fields(a.task) if name in others]
    for name in fields:
        left, right = a.configuration.value(name), b.configuration.value(name)
        if left != right and None not in (left, right):  # a missing field is None
            yield name, (left, right)
    left, right = (checkpoint.configuration.model for checkpoint in (a, b))
    own = {left.decoder_layer_norm_eps, right.decoder_layer_norm_eps} != {None}
    if a.task == b.task == "pretrain" and own and left.decoder_eps != right.decoder_eps:
        yield "decoder_layer_norm_eps", (left.decoder_eps, right.decoder_eps)
    if a.task == b.task and a.configuration.labels != b.configuration.labels:
        yield "labels", (a.configuration.labels, b.configuration.labels)
    if a.task != b.task:
        yield "task", (a.task, b.task)
