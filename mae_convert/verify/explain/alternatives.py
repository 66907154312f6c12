"""Other arithmetic than the reference model's: what programs do that compute something else.

The model's own modules hold the weights; what is computed with them is looked up by kind and
place. In shape comments N is images, T tokens, H heads, D the width, L patches.
"""

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor

from reference_models.pytorch.encoder import PatchEmbedding
from reference_models.pytorch.layers import ACTIVATION_FUNCTIONS

Alternative = tuple[str, str, Any]  # kind, pattern of places, value
CORE_PRECISION = "attention precision"
TF32_BITS = 13  # bits of float32 that TF32 has not


class Arithmetic:
    """What is computed otherwise, and where; later alternatives come before earlier ones."""

    def __init__(self, alternatives: Sequence[Alternative] = ()) -> None:
        self.alternatives = tuple(reversed(alternatives))

    def at(self, kind: str, place: str) -> Any:
        """Return the alternative of a kind at a place, or None for the reference's own."""
        return next(
            (v for k, pattern, v in self.alternatives if k == kind and fnmatchcase(place, pattern)),
            None,
        )

    def touches(self, place: str) -> bool:
        """Return whether anything is otherwise at a place or in a part of it."""
        parts = [place, *(f"{place}.{part}" for part in ("norm1", "attention", "norm2", "mlp"))]
        return any(fnmatchcase(part, p) for _, p, _ in self.alternatives for part in parts)


def block_steps(
    block: Any, tokens: Tensor, place: str, how: Arithmetic
) -> Iterator[tuple[str, Tensor]]:
    """Yield the taps of a block, in order, as soon as each is known."""
    structure = how.at("structure", place)
    after = structure == "normalised after"
    inner = tokens if after else norm(block.norm1, tokens, f"{place}.norm1", how)
    attention_place = f"{place}.attention"
    fused = linear(block.attn.qkv, inner, attention_place, how)
    q, k, v = fused.chunk(3, dim=-1)  # each (N, T, D)
    yield from (("q", q), ("k", k), ("v", v))
    mixed = attend(q, k, v, block.attn.heads, attention_place, how)
    attention = linear(block.attn.proj, mixed, attention_place, how)
    yield "attention", attention
    residual = inner if structure == "residual after the norm" else tokens
    if structure == "no residual of attention":
        residual = torch.zeros_like(tokens)
    lower = LOWER[how.at("sum precision", place)]
    middle = lower(residual + attention)
    if after:
        middle = norm(block.norm1, middle, f"{place}.norm1", how)
    seen = tokens if structure == "attention and MLP in parallel" else middle
    mlp_place = f"{place}.mlp"
    inner = middle if after else norm(block.norm2, seen, f"{place}.norm2", how)
    hidden = linear(block.mlp.fc1, inner, mlp_place, how)
    mlp = linear(block.mlp.fc2, activate(block.mlp, hidden, mlp_place, how), mlp_place, how)
    yield "mlp", mlp
    output = lower(middle + mlp)
    if structure == "no residual of the MLP":
        output = mlp
    elif after:
        output = norm(block.norm2, output, f"{place}.norm2", how)
    elif structure == "residual after the norm":
        output = inner + mlp
    yield "output", output


def norm(module: Any, x: Tensor, place: str, how: Arithmetic) -> Tensor:
    """Normalise tokens (..., D)."""
    given = how.at("eps", place)
    eps = module.eps if given is None else given
    kind = how.at("norm", place)
    lower = LOWER[how.at("norm precision", place)]
    x = lower(x)
    usual = partial(
        F.layer_norm,
        normalized_shape=(x.shape[-1],),
        weight=module.weight,
        bias=module.bias,
        eps=eps,
    )
    if kind is None:
        normed = usual(x)
    elif kind == "applied twice":
        normed = usual(usual(x))
    elif kind == "left out":
        normed = x
    else:
        normed = _scaled(x, kind, eps) * module.weight + module.bias
    return lower(normed)


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


ROOT_OF_HALF = float(torch.tensor(0.5, dtype=torch.float32).sqrt())
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **ACTIVATION_FUNCTIONS,
    "left out": lambda x: x,
    "gelu with constants in float32": _gelu_by_float32_constants,
}


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, place: str, how: Arithmetic) -> Tensor:
    """Mix values (N, T, D) by how well queries and keys match, head by head."""
    heads = how.at("heads", place) or heads
    apart = how.at("split", place) == "channels before heads"
    core = how.at("core", place)
    scale = _scale(how.at("scale", place), q.shape[-1], heads)
    precision = how.at(CORE_PRECISION, place)
    q, k, v = (_split(x, heads, apart) for x in (q, k, v))  # each (N, H, T, D / H)
    if precision is None and core is None:
        mixed = F.scaled_dot_product_attention(q, k, v, scale=scale)
    elif precision is not None:
        mixed = _imprecise(q, k, v, scale, precision)
    else:
        mixed = CORES[core](q, k, v, scale)
    if how.at("merge", place) == "not transposed":
        return mixed.reshape(len(mixed), -1, heads * mixed.shape[-1])
    # What was taken apart as (d, H) is put together so too, unless only one of them is otherwise.
    together = how.at("merge", place) == "channels before heads"
    return (mixed.permute(0, 2, 3, 1) if together else mixed.transpose(1, 2)).flatten(2)


def _split(x: Tensor, heads: int, apart: bool) -> Tensor:
    if apart:
        return x.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _scale(kind: str | None, width: int, heads: int) -> float:
    size = width // heads
    return {
        None: size**-0.5,
        "by the width": width**-0.5,
        "by the number of heads": heads**-0.5,
        "twice": 1 / size,
        "left out": 1.0,
        "in float32": float(torch.tensor(size**-0.5, dtype=torch.float32)),
    }[kind]


def _imprecise(q: Tensor, k: Tensor, v: Tensor, scale: float, precision: str) -> Tensor:
    """Attend in less precision: in every step, at both ends only, or in the factors of products."""
    where = precision.rpartition(" ")[2]
    lower = LOWER[precision.removesuffix(" products").removesuffix(" kernel")]
    q, k, v = lower(q), lower(k), lower(v)
    if where == "kernel":
        return lower(F.scaled_dot_product_attention(q, k, v, scale=scale))
    if where == "products":
        return lower((q @ k.transpose(-2, -1) * scale).softmax(dim=-1)) @ v
    return lower(lower((lower(q @ k.transpose(-2, -1)) * scale).softmax(dim=-1)) @ v)


def _over_queries(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return (q @ k.transpose(-2, -1) * scale).softmax(dim=-2) @ v


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


def _query_and_key(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(k, q, v, scale=scale)


def _key_and_value(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, v, k, scale=scale)


def _without_class_token(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k[:, :, 1:], v[:, :, 1:], scale=scale)


def _by_sigmoid(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return (q @ k.transpose(-2, -1) * scale).sigmoid() @ v


def _without_softmax(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return (q @ k.transpose(-2, -1) * scale) @ v


CORES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "softmax over the queries": _over_queries,
    "causal": _causal,
    "query and key exchanged": _query_and_key,
    "key and value exchanged": _key_and_value,
    "class token not attended to": _without_class_token,
    "sigmoid in place of softmax": _by_sigmoid,
    "without softmax": _without_softmax,
}


def _to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(dtype).to(x.dtype)


def _tf32(x: Tensor, rounding: bool) -> Tensor:
    bits = x.float().contiguous().view(torch.int32)
    if rounding:
        bits = bits + (1 << (TF32_BITS - 1))
    return (bits & -(1 << TF32_BITS)).view(torch.float32).to(x.dtype)


LOWER: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "float32": _to(torch.float32),
    "float16": _to(torch.float16),
    "bfloat16": _to(torch.bfloat16),
    "TF32": lambda x: _tf32(x, rounding=True),
    "TF32, cut": lambda x: _tf32(x, rounding=False),
}
