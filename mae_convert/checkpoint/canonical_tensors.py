"""Canonical tensors that no file stores: zero key biases, and a head with a folded batch norm.

Linear probes of the original code have a ``BatchNorm1d(affine=False)`` before the linear layer (He
et al. 2021, appendix A.1). In evaluation the batch norm is an affine map, so both layers can be
replaced by one linear layer. The batch norm cannot be recovered from the linear layer; therefore
the replacement is declared as a step of the conversion record.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from mae_convert.checkpoint.recognition import Reading
from mae_convert.families.canonical import BATCH_NORM
from mae_convert.formats import Container
from mae_convert.formats.dtypes import rounded
from mae_convert.formats.tensor import LazyTensor
from mae_convert.layouts.table import read_tensors
from mae_convert.layouts.transforms import Shape

EPSILON = 1e-6  # as in the original; it is not stored in tensors
STEP = {
    "step": "batch_norm",
    "from": f"BatchNorm1d(affine=False, eps={EPSILON}) before the linear layer",
    "to": "folded into it",
}
REASON = "folded into the linear layer in float64, then rounded"


def has_batch_norm(tensors: Mapping[str, LazyTensor]) -> bool:
    """Return whether canonical tensors contain the batch norm of a linear probe."""
    return any(name.startswith(BATCH_NORM) for name in tensors)


def fold_batch_norm(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return canonical tensors with the batch norm folded into ``head``.

    With mean m, variance v and the layer y = W x + b, the folded weight is W / sqrt(v + eps),
    column by column, and the folded bias is b - W m / sqrt(v + eps). Both are computed in float64
    and rounded once.
    """
    weight, bias = tensors["head.weight"], tensors["head.bias"]

    @cache
    def exact() -> tuple[np.ndarray, np.ndarray]:
        mean, variance, w, b = (
            tensors[name].load().astype(np.float64)
            for name in (f"{BATCH_NORM}mean", f"{BATCH_NORM}variance", "head.weight", "head.bias")
        )
        scaled = w / np.sqrt(variance + EPSILON)
        return scaled, b - scaled @ mean

    folded = {
        "head.weight": LazyTensor(
            weight.name, weight.shape, weight.dtype, lambda: rounded(exact()[0], weight.dtype)
        ),
        "head.bias": LazyTensor(
            bias.name, bias.shape, bias.dtype, lambda: rounded(exact()[1], bias.dtype)
        ),
    }
    others = {name: t for name, t in tensors.items() if not name.startswith(BATCH_NORM)}
    return {**others, **folded}


def canonical_tensors(
    container: Container, reading: Reading
) -> tuple[Container, Reading, dict[str, LazyTensor]]:
    """Return the container, the mapping (`Reading`), and the canonical tensors by name.

    If the checkpoint is a linear probe with a batch norm, the batch norm is folded into the head:
    the returned container declares this step, and the returned mapping lists the tensors of the
    batch norm as dropped. Otherwise, container and mapping are returned unchanged.
    """
    canonical = read_tensors(container.tensors, reading.rules)
    canonical |= _key_biases(reading.created, canonical)
    if not has_batch_norm(canonical):
        return container, reading, canonical
    canonical = fold_batch_norm(canonical)
    removed = [rule for rule in reading.rules if not canonical.keys() & set(rule.canonicals)]
    rules = tuple(rule for rule in reading.rules if rule not in removed)
    dropped = {**reading.dropped, **dict.fromkeys((rule.external for rule in removed), REASON)}
    return with_step(container, STEP), replace(reading, rules=rules, dropped=dropped), canonical


def with_step(container: Container, step: Mapping[str, Any]) -> Container:
    """Return a copy of a container whose conversion record declares an additional step.

    Args:
        container: the container; it need not have a conversion record yet.
        step: the step, a change such as another image size; it is appended to the record's steps.
    """
    record = container.conversion or {}
    return replace(container, conversion={**record, "steps": [*record.get("steps", []), step]})


def _key_biases(
    created: Mapping[str, Shape], canonical: Mapping[str, LazyTensor]
) -> dict[str, LazyTensor]:
    """Return zero-filled key biases of the given shapes, with the dtypes of the query biases."""
    dtypes = {name: canonical[name[: -len("k.bias")] + "q.bias"].dtype for name in created}
    return {name: _zeros(name, shape, dtypes[name]) for name, shape in created.items()}


def _zeros(name: str, shape: Shape, dtype: np.dtype) -> LazyTensor:
    return LazyTensor(name, shape, dtype, lambda: np.zeros(shape, dtype))
