"""Find the faults of a target's tensors, and the replacements that are equal to the source.

If a fault only moved values (transposed, exchanged, other order of heads), the replacement is
computed from the target's own tensors. If a fault lost values (zero, rounded, overwritten), the
tensor is copied from the source. Each replacement is compared bit for bit before it is reported.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.diagnose.hypotheses import Model, model_of
from mae_convert.diagnose.tensor_differences import (
    Cause,
    Fingerprints,
    exact_change,
    not_finite_values,
    zero_from,
)
from mae_convert.diagnose.weight_edits import fused_as_groups, split_as_groups
from mae_convert.diagnose.weight_hypotheses import PARTS, self_edits
from mae_convert.formats.tensor import LazyTensor, sha256

UNDONE = Cause("undone with B's own values")
FROM_A = Cause("copied from A")
REORDERED = Cause("has its values in another order")
UNEXPLAINED = Cause("differs, and no known fault explains it")


@dataclass(frozen=True)
class TensorRepair:
    """A replacement for a tensor of B, bit-identical to the tensor of A."""

    name: str
    """The canonical name."""

    fault: Cause
    """The fault of B's tensor; `UNEXPLAINED` if no known fault explains the difference."""

    how: Cause
    """How the replacement is computed: `UNDONE` (the fault is undone with B's own values), `FROM_A`
    (a copy of A's tensor), or "copied from B's NAME" (a copy of another tensor of B)."""

    tensor: LazyTensor
    """The replacement."""

    @property
    def sentence(self) -> str:
        """A sentence about the fault and its repair."""
        return f"{self.name}: {self.fault}; {self.how}"


def differing(a: Checkpoint, b: Checkpoint) -> list[str]:
    """Return the canonical tensors that both models have and that are not bit-identical."""
    return [
        name
        for name, tensor in b.tensors.items()
        if name in a.tensors and not same_tensor(a.tensors[name], tensor)
    ]


def same_tensor(a: LazyTensor, b: LazyTensor) -> bool:
    """Return whether two tensors have the same shape, dtype and bits."""
    return (a.shape, a.dtype) == (b.shape, b.dtype) and sha256(a) == sha256(b)


def tensor_repairs(a: Checkpoint, b: Checkpoint, names: Sequence[str]) -> list[TensorRepair]:
    """Return, for each differing tensor of B, its fault and a replacement equal to A's tensor.

    A replacement is computed from B's tensors if that gives exactly A's bits; otherwise it is A's
    tensor itself.

    Args:
        a: the source, after the steps of the conversion.
        b: the target.
        names: the canonical names of the tensors that differ.
    """
    model, of_a, of_b = model_of(a), Fingerprints(a), Fingerprints(b)
    return [_repair_of(model, of_a, of_b, name) for name in names]


def _repair_of(model: Model, of_a: Fingerprints, of_b: Fingerprints, name: str) -> TensorRepair:
    a, b = of_a.checkpoint.tensors[name], of_b.checkpoint.tensors[name]
    if a.shape != b.shape:
        fault = f"has shape {b.shape} and dtype {b.dtype} instead of {a.shape} and {a.dtype}"
        return TensorRepair(name, Cause(fault), FROM_A, a)
    if a.dtype != b.dtype:
        return TensorRepair(name, Cause(f"has dtype {b.dtype} instead of {a.dtype}"), FROM_A, a)
    x, y = a.load(), b.load()
    for how, compute in _undone(model, of_b, name, x, y):
        if _gives(compute, x):
            cause = next(_faults(model, of_a, name, x, y), REORDERED)
            return TensorRepair(name, cause, how, replace(b, name=name, load=compute))
    return TensorRepair(name, next(_faults(model, of_a, name, x, y), UNEXPLAINED), FROM_A, a)


ComputeArray = Callable[[], np.ndarray]


def _gives(compute: ComputeArray, x: np.ndarray) -> bool:
    """Return whether a function returns an array with the same bytes as `x`."""
    try:
        array = compute()
    except (ValueError, IndexError):  # the change does not apply to this shape
        return False
    return array.dtype == x.dtype and array.tobytes() == x.tobytes()


def _undone(
    model: Model, of_b: Fingerprints, name: str, x: np.ndarray, y: np.ndarray
) -> Iterator[tuple[Cause, ComputeArray]]:
    """Yield functions that may compute A's tensor from B's tensors, because they undo known faults.

    Each item is a description of the computation (see `TensorRepair.how`) and the function. The
    caller must compare the function's result with A's tensor.

    Args:
        model: the model of A.
        of_b: the index of B's tensors, to find a tensor that is equal to ``x``.
        name: the canonical name of the tensor.
        x: A's tensor.
        y: B's tensor.
    """
    for other in of_b.same_as(x):
        yield Cause("copied from B's ", other), of_b.checkpoint.tensors[other].load
    if np.array_equal(np.sort(y, axis=None), np.sort(x, axis=None)):
        for edit in self_edits(model, name):
            if edit.operation in ("permuted", "reordered"):
                yield UNDONE, lambda edit=edit: _contiguous(edit.on(name).apply([y]))  # type: ignore[misc]
    elif np.array_equal(-y, x):
        yield UNDONE, lambda: -y
    block, _, part = name.partition(".attention.")
    if part[:2] in ("q.", "k.", "v."):
        yield from _regrouped(model, of_b.checkpoint.tensors, block, part)


def _contiguous(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array)


def _regrouped(
    model: Model, tensors: Mapping[str, LazyTensor], block: str, part: str
) -> Iterator[tuple[Cause, ComputeArray]]:
    """Yield possible replacements of a q, k or v that was fused or split in a wrong order.

    Each item is a description, and a function that computes the replacement from B's tensors.

    Args:
        model: the properties of the model.
        tensors: the tensors of B, by canonical name.
        block: the canonical name of the block.
        part: the tensor to replace: its name in the attention layer, such as "q.weight".
    """
    stack, leaf = model.stack(block.partition(".")[0]), part[2:]
    names = [f"{block}.attention.{p}.{leaf}" for p in PARTS]
    if not all(name in tensors for name in names):
        return

    for operation in (fused_as_groups, split_as_groups):
        for groups in (stack.heads, stack.width):

            def compute(
                operation: Callable[..., np.ndarray] = operation, groups: int = groups
            ) -> np.ndarray:
                arrays = [tensors[name].load() for name in names]
                return _contiguous(operation(*arrays, part=PARTS.index(part[0]), groups=groups))

            yield UNDONE, compute


def _faults(
    model: Model, of_a: Fingerprints, name: str, x: np.ndarray, y: np.ndarray
) -> Iterator[Cause]:
    """Yield the known faults that turn A's tensor ``x`` into B's tensor ``y``.

    Args:
        model: the model of A.
        of_a: the index of A's tensors, to find a tensor that is equal to ``y``.
        name: the canonical name of the tensor.
        x: A's tensor.
        y: B's tensor.
    """
    if broken := not_finite_values(y):
        finite = np.isfinite(y)
        if np.array_equal(x[finite], y[finite]):
            yield Cause(broken)
        return
    if y.any():
        same = (other for other in of_a.same_as(y) if other != name)
        yield from (Cause("B holds A's ", other, " here") for other in same)
    yield from map(Cause, exact_change(model, name, x, y))
    yield from map(Cause, zero_from(x, y))
