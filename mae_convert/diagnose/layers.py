"""Other ways to compute a block of the transformer, and its layers.

The model's own modules hold the weights. In shape comments N is images, T tokens, D the width.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor

from mae_convert.diagnose.alternatives import LOWER, Arithmetic, as_float32
from mae_convert.diagnose.attention import attend
from reference_models.pytorch.encoder import PatchEmbedding
from reference_models.pytorch.layers import ACTIVATION_FUNCTIONS

Steps = Iterator[tuple[str, Tensor]]


def block_steps(block: Any, tokens: Tensor, place: str, how: Arithmetic) -> Steps:
    """Yield the taps of a block, in order, as soon as each is known."""
    structure, add = how.at("structure", place), LOWER[how.at("sum precision", place)]
    norm1 = partial(norm, block.norm1, place=f"{place}.norm1", how=how)
    norm2 = partial(norm, block.norm2, place=f"{place}.norm2", how=how)
    after = structure == "normalised after"
    inner = attention = tokens if after else norm1(tokens)
    for name, attention in _attention_steps(block.attn, inner, f"{place}.attention", how):
        yield name, attention
    residuals = {
        "residual after the norm": inner,
        "no residual of attention": torch.zeros_like(tokens),
    }
    middle = add(residuals.get(structure, tokens) + attention)
    middle = norm1(middle) if after else middle
    seen = tokens if structure == "attention and MLP in parallel" else middle
    inner = middle if after else norm2(seen)
    mlp = _mlp(block.mlp, inner, f"{place}.mlp", how)
    yield "mlp", mlp
    residuals = {"residual after the norm": inner, "no residual of the MLP": torch.zeros_like(mlp)}
    output = add(residuals.get(structure, middle) + mlp)
    yield "output", norm2(output) if after else output


def _attention_steps(attn: Any, inner: Tensor, place: str, how: Arithmetic) -> Steps:
    q, k, v = linear(attn.qkv, inner, place, how).chunk(3, dim=-1)  # each (N, T, D)
    yield from (("q", q), ("k", k), ("v", v))
    yield "attention", linear(attn.proj, attend(q, k, v, attn.heads, place, how), place, how)


def _mlp(mlp: Any, inner: Tensor, place: str, how: Arithmetic) -> Tensor:
    hidden = activate(mlp, linear(mlp.fc1, inner, place, how), place, how)
    return linear(mlp.fc2, hidden, place, how)


def norm(module: Any, x: Tensor, place: str, how: Arithmetic) -> Tensor:
    """Normalise tokens (..., D)."""
    given, kind = how.at("eps", place), how.at("norm", place)
    eps = module.eps if given is None else given
    lower = LOWER[how.at("norm precision", place)]
    return lower(_normalised(module, lower(x), eps, kind))


def _normalised(module: Any, x: Tensor, eps: float, kind: str | None) -> Tensor:
    if kind == "left out":
        return x
    if kind in (None, "applied twice"):
        for _ in range(1 if kind is None else 2):
            x = F.layer_norm(x, (x.shape[-1],), module.weight, module.bias, eps)
        return x
    return _scaled(x, kind, eps) * module.weight + module.bias


def _scaled(x: Tensor, kind: str, eps: float) -> Tensor:
    centred = x if kind == "root mean square" else x - x.mean(dim=-1, keepdim=True)
    count = x.shape[-1] - (kind == "unbiased variance")
    variance = centred.square().sum(dim=-1, keepdim=True) / count
    if kind == "epsilon outside the root":
        return centred / (variance.sqrt() + eps)
    return centred / (variance + eps).sqrt()


def linear(module: Any, x: Tensor, place: str, how: Arithmetic) -> Tensor:
    """Apply a linear layer to tokens (..., D)."""
    precision = how.at("precision", place)
    if precision is None:
        return module(x)
    lower = LOWER[precision.removesuffix(" products")]
    weight, bias = _weight_and_bias(module)
    product = F.linear(lower(x), lower(weight), bias)
    return product if precision.endswith(" products") else lower(product)


def _weight_and_bias(module: Any) -> tuple[Tensor, Tensor | None]:
    """Return the matrix (out, in) of a linear layer, or of the projection of patches."""
    if isinstance(module, PatchEmbedding):
        return module.proj.weight.permute(0, 2, 3, 1).flatten(1), module.proj.bias
    return module.weight, module.bias


def activate(mlp: Any, hidden: Tensor, place: str, how: Arithmetic) -> Tensor:
    """Apply the MLP's activation."""
    name = how.at("activation", place)
    return (mlp.activation if name is None else ACTIVATIONS[name])(hidden)


def _gelu_by_float32_constants(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x * ROOT_OF_HALF))


ROOT_OF_HALF = as_float32(0.5**0.5)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **ACTIVATION_FUNCTIONS,
    "left out": lambda x: x,
    "gelu with constants in float32": _gelu_by_float32_constants,
}
