"""Other ways from query, key and value to mixed values.

In shape comments N is images, T tokens, H heads, D the width.
"""

from collections.abc import Callable

import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor

from mae_convert.diagnose.alternatives import LOWER, Arithmetic, as_float32


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, place: str, how: Arithmetic) -> Tensor:
    """Mix values (N, T, D) by how well queries and keys match, head by head."""
    heads = how.at("heads", place) or heads
    apart = how.at("split", place) == "channels before heads"
    core = how.at("core", place)
    scale = _scale(how.at("scale", place), q.shape[-1], heads)
    precision = how.at("attention precision", place)
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
        "in float32": as_float32(size**-0.5),
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
