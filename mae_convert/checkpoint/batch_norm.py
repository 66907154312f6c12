"""The batch norm of a linear probe, folded into the following linear layer.

Linear probes of the original have a ``BatchNorm1d(affine=False)`` before the linear layer (He et
al. 2021, appendix A.1). In evaluation it is an affine map, so both are one linear layer. They
cannot be separated again; therefore this is a declared step.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np

from mae_convert.families.canonical import BATCH_NORM
from mae_convert.formats.dtypes import rounded
from mae_convert.formats.tensor import LazyTensor

EPSILON = 1e-6  # as in the original; it is not stored in tensors
STEP = {
    "step": "batch_norm",
    "from": f"BatchNorm1d(affine=False, eps={EPSILON}) before the linear layer",
    "to": "folded into it",
}
REASON = "folded into the linear layer in float64, then rounded"


def has_batch_norm(tensors: Mapping[str, LazyTensor]) -> bool:
    """Return whether canonical tensors are those of a linear probe."""
    return any(name.startswith(BATCH_NORM) for name in tensors)


def fold_batch_norm(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return canonical tensors with the batch norm folded into ``head``.

    With mean m, variance v and the layer y = W x + b, the folded weight is W / sqrt(v + eps),
    column by column, and the folded bias b - W m / sqrt(v + eps); both in float64, rounded once.
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
