"""Compute a transformer block and its layers differently from the reference model.

A variant has a kind, a pattern of module paths, and a value, such as ("eps", "*.norm1", 1e-5). The
functions here and in ``input_output_variants`` look up variants by kind and path; the weights are
taken from the model's modules.

In shape comments, N is the number of images, T the number of tokens, H the number of heads, and D
the width.
"""

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor

from reference_models.pytorch.blocks import ACTIVATION_FUNCTIONS
from reference_models.pytorch.patches import PatchEmbedding

Variant = tuple[str, str, Any]  # kind, pattern of module paths, value
TF32_BITS = 13  # the number of bits of a float32 significand that TF32 does not have


class Variants:
    """Variants of the computation; if several match a module, the last variant applies."""

    def __init__(self, variants: Sequence[Variant] = ()) -> None:
        self.variants = tuple(reversed(variants))

    def get(self, kind: str, path: str) -> Any:
        """Return the value of the variant that has a kind and matches the module at `path`.

        If several variants match, the last one applies; if no variant matches, the result is None.
        """
        return next(
            (v for k, pattern, v in self.variants if k == kind and fnmatchcase(path, pattern)),
            None,
        )

    def affects(self, path: str) -> bool:
        """Return whether a variant applies to a module or to one of its submodules."""
        parts = [path, *(f"{path}.{part}" for part in ("norm1", "attention", "norm2", "mlp"))]
        return any(fnmatchcase(part, p) for _, p, _ in self.variants for part in parts)


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
    "TF32, truncated": lambda x: _tf32(x, rounding=False),
}


def as_float32(number: float) -> float:
    """Return a number rounded to float32, as a Python float."""
    return float(torch.tensor(number, dtype=torch.float32))


Steps = Iterator[tuple[str, Tensor]]


def block_steps(block: Any, tokens: Tensor, path: str, variants: Variants) -> Steps:
    """Yield name and value of each intermediate activation of a block as it is computed."""
    structure, add = variants.get("structure", path), LOWER[variants.get("sum precision", path)]
    norm1 = partial(norm, block.norm1, path=f"{path}.norm1", variants=variants)
    norm2 = partial(norm, block.norm2, path=f"{path}.norm2", variants=variants)
    post_norm = structure == "layer norm after attention and MLP"
    inner = attention = tokens if post_norm else norm1(tokens)
    for name, attention in _attention_steps(block.attn, inner, f"{path}.attention", variants):
        yield name, attention
    residuals = {
        "residual taken after the layer norm": inner,
        "no residual connection around attention": torch.zeros_like(tokens),
    }
    middle = add(residuals.get(structure, tokens) + attention)
    middle = norm1(middle) if post_norm else middle
    mlp_input = tokens if structure == "attention and MLP in parallel" else middle
    inner = middle if post_norm else norm2(mlp_input)
    mlp = _mlp(block.mlp, inner, f"{path}.mlp", variants)
    yield "mlp", mlp
    residuals = {
        "residual taken after the layer norm": inner,
        "no residual connection around the MLP": torch.zeros_like(mlp),
    }
    output = add(residuals.get(structure, middle) + mlp)
    yield "output", norm2(output) if post_norm else output


def _attention_steps(attn: Any, inner: Tensor, path: str, variants: Variants) -> Steps:
    q, k, v = linear(attn.qkv, inner, path, variants).chunk(3, dim=-1)  # each (N, T, D)
    yield from (("q", q), ("k", k), ("v", v))
    yield (
        "attention",
        linear(attn.proj, attend(q, k, v, attn.heads, path, variants), path, variants),
    )


def _mlp(mlp: Any, inner: Tensor, path: str, variants: Variants) -> Tensor:
    hidden = activate(mlp, linear(mlp.fc1, inner, path, variants), path, variants)
    return linear(mlp.fc2, hidden, path, variants)


def norm(module: Any, x: Tensor, path: str, variants: Variants) -> Tensor:
    """Apply the layer norm `module` to tokens (..., D), with the variants that match `path`.

    `path` is the module's name in the model.
    """
    eps, kind = variants.get("eps", path), variants.get("norm", path)
    eps = module.eps if eps is None else eps
    lower = LOWER[variants.get("norm precision", path)]
    return lower(_normalized(module, lower(x), eps, kind))


def _normalized(module: Any, x: Tensor, eps: float, kind: str | None) -> Tensor:
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


def linear(module: Any, x: Tensor, path: str, variants: Variants) -> Tensor:
    """Apply the linear layer at `path` to tokens (..., D).

    The precision is lower if a variant for this path specifies it.
    """
    precision = variants.get("precision", path)
    if precision is None:
        return module(x)
    lower = LOWER[precision.removesuffix(" products")]
    weight, bias = _weight_and_bias(module)
    product = F.linear(lower(x), lower(weight), bias)
    return product if precision.endswith(" products") else lower(product)


def _weight_and_bias(module: Any) -> tuple[Tensor, Tensor | None]:
    """Return the weight (out, in) and the bias of a linear layer or of the patch embedding."""
    if isinstance(module, PatchEmbedding):
        return module.proj.weight.permute(0, 2, 3, 1).flatten(1), module.proj.bias
    return module.weight, module.bias


def activate(mlp: Any, hidden: Tensor, path: str, variants: Variants) -> Tensor:
    """Apply the activation function of an MLP, or a variant of it, to the hidden features.

    Args:
        mlp: the module.
        hidden: the hidden features (N, T, hidden size).
        path: the module's name in the model.
        variants: the variants; one that matches `path` can replace the activation function.
    """
    name = variants.get("activation", path)
    return (mlp.activation if name is None else ACTIVATIONS[name])(hidden)


def _gelu_by_float32_constants(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x * ROOT_OF_HALF))


ROOT_OF_HALF = as_float32(0.5**0.5)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **ACTIVATION_FUNCTIONS,
    "left out": lambda x: x,
    "gelu with constants in float32": _gelu_by_float32_constants,
}


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, path: str, variants: Variants) -> Tensor:
    """Return multi-head attention of queries, keys and values, each (N, T, D).

    Args:
        q: the queries.
        k: the keys.
        v: the values.
        heads: the number of heads.
        path: the name of the block, such as "encoder.blocks.0".
        variants: changes of the computation; the changes for `path` are applied.
    """
    heads = variants.get("heads", path) or heads
    channels_first = variants.get("split", path) == "channels before heads"
    core = variants.get("core", path)
    scale = _scale(variants.get("scale", path), q.shape[-1], heads)
    precision = variants.get("attention precision", path)
    q, k, v = (_split(x, heads, channels_first) for x in (q, k, v))  # each (N, H, T, D / H)
    if precision is None and core is None:
        mixed = F.scaled_dot_product_attention(q, k, v, scale=scale)
    elif precision is not None:
        mixed = _attend_in_lower_precision(q, k, v, scale, precision)
    else:
        mixed = CORES[core](q, k, v, scale)
    if variants.get("merge", path) == "not transposed":
        return mixed.reshape(len(mixed), -1, heads * mixed.shape[-1])
    # Splitting the heads and merging the heads have separate variants.
    channels_first = variants.get("merge", path) == "channels before heads"
    return (mixed.permute(0, 2, 3, 1) if channels_first else mixed.transpose(1, 2)).flatten(2)


def _split(x: Tensor, heads: int, channels_first: bool) -> Tensor:
    if channels_first:
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
        "in float32": as_float32(size**-0.5),
    }[kind]


def _attend_in_lower_precision(
    q: Tensor, k: Tensor, v: Tensor, scale: float, precision: str
) -> Tensor:
    """Compute attention with values that are rounded to a lower precision.

    The queries, keys and values are always rounded. `precision` is a key of `LOWER`, with or
    without a suffix, which determines what else is rounded: without a suffix, the results of both
    matrix products and of the softmax; with " products", the result of the softmax; with " kernel",
    the output.
    """
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
    "sigmoid instead of softmax": _by_sigmoid,
    "without softmax": _without_softmax,
}
