"""Where two traces part, and which tensors feed that step of the computation."""

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mae_convert.verify.trace import Trace

BLOCK_STEPS = ("q", "k", "v", "attention", "mlp", "output")
LAST_STEPS = ("last_hidden_state", "logits", "reconstruction", "loss", "loss_norm_pix")
BLOCK_TAP = re.compile(r"(encoder|decoder)\.blocks\.(\d+)\.(\w+)")


def execution_order(name: str) -> tuple[int, int, int, int]:
    """Return a sort key that puts taps and outputs in the order of the computation."""
    if name in ("mask", "ids_restore"):
        return (-1, 0, 0, 0)
    if name.startswith("grad/"):  # backward, after everything else
        part, kind, block, step = execution_order(name.removeprefix("grad/"))
        return (10 - part, -kind, -block, -step)
    if match := BLOCK_TAP.fullmatch(name):
        part = 0 if match[1] == "encoder" else 1
        return (part, 1, int(match[2]), BLOCK_STEPS.index(match[3]))
    if name in LAST_STEPS:
        # The encoder's result is its last norm; the rest comes after the decoder.
        return (0, 4, 0, 0) if name == "last_hidden_state" else (2, 0, 0, LAST_STEPS.index(name))
    places = {
        "encoder.embedding": (0, 0, 0, 0),
        "encoder.norm": (0, 2, 0, 0),
        "head.norm": (0, 3, 0, 0),
        "decoder.embedding": (1, 0, 0, 0),
        "decoder.norm": (1, 2, 0, 0),
    }
    return places.get(name, (3, 0, 0, 0))


def suspects_at(first: str, diverging: set[str], a: "Trace", b: "Trace") -> list[str]:
    """Return the canonical tensors that feed the first diverging step, likeliest first."""
    known = {**a.description["tensors"], **b.description["tensors"]}
    names = _weights_and_biases(_modules(first, diverging, a, b))
    if _same_for_every_token(first, a, b):
        # What is added to all tokens alike is a bias; a weight would depend on the token.
        names.sort(key=lambda name: not name.endswith(".bias"))
    return [name for name in names if name in known]


def _weights_and_biases(modules: list[str]) -> list[str]:
    leaves = ("cls_token", "position_embedding", "mask_token")
    return [
        name
        for module in modules
        for name in (
            [module] if module.endswith(leaves) else [f"{module}.weight", f"{module}.bias"]
        )
    ]


def _modules(first: str, diverging: set[str], a: "Trace", b: "Trace") -> list[str]:
    if match := BLOCK_TAP.fullmatch(first):
        return _block_modules(f"{match[1]}.blocks.{match[2]}", match[3], diverging)
    if first == "encoder.embedding":
        return _embedding_modules(first, a, b)
    if first == "decoder.embedding":
        return _decoder_embedding_modules(first, a, b)
    return {
        "encoder.norm": ["encoder.norm"],
        "last_hidden_state": ["encoder.norm"],
        "head.norm": ["head.norm"],
        "decoder.norm": ["decoder.norm"],
        "logits": ["decoder.prediction", "head"],
    }.get(first, [])


def _block_modules(block: str, step: str, diverging: set[str]) -> list[str]:
    norm1, attention = f"{block}.norm1", f"{block}.attention"
    if step in ("q", "k", "v"):
        # The norm feeds all three, a projection only its own.
        together = {f"{block}.{part}" for part in "qkv"} <= diverging
        own = [f"{attention}.{part}" for part in "qkv" if f"{block}.{part}" in diverging]
        return [norm1, *own] if together else [*own, norm1]
    if step == "attention":
        return [f"{attention}.output"]
    return [f"{block}.mlp.fc1", f"{block}.mlp.fc2", f"{block}.norm2"] if step == "mlp" else []


def _embedding_modules(name: str, a: "Trace", b: "Trace") -> list[str]:
    """The class token stands in the first place, patches in the others."""
    away = _tokens_away(name, a, b)
    patches, token = ["encoder.patch_embedding"], ["encoder.cls_token"]
    positions = ["encoder.position_embedding"]
    if away is None or (away[:, 0].any() and away[:, 1:].any()):
        return positions + patches + token
    return token + positions if away[:, 0].any() else patches + positions


def _decoder_embedding_modules(name: str, a: "Trace", b: "Trace") -> list[str]:
    """Removed patches hold the mask token, kept ones and the class token the embedded latent."""
    away = _tokens_away(name, a, b)
    embed, token, positions = "decoder.embed", "decoder.mask_token", "decoder.position_embedding"
    mask = a.arrays.get("mask")
    if away is None or mask is None:
        return [positions, embed, token]
    removed = np.concatenate([np.zeros((len(mask), 1)), mask], axis=1) > 0
    if not away[~removed].any():
        return [token, positions, embed]
    return [positions, embed, token] if away[removed].any() else [embed, positions, token]


def _same_for_every_token(name: str, a: "Trace", b: "Trace") -> bool:
    """Return whether the sides differ at a tap (N, T, D) by one vector, the same for all tokens.

    The class token does not pass the patch embedding, so that it does not count there.
    """
    key = f"float64/tap/{name}" if f"float64/tap/{name}" in a.arrays else f"float64/{name}"
    if key not in a.arrays:  # the mask itself differs
        return False
    left, right = a.arrays[key], b.arrays[key]
    if left.shape != right.shape or left.ndim < 2:
        return False
    difference = (right - left).reshape(-1, *left.shape[-2:])
    if name == "encoder.embedding":
        difference = difference[:, 1:]
    vectors = difference.reshape(-1, left.shape[-1])
    with np.errstate(invalid="ignore"):
        spread, size = np.abs(vectors - vectors[0]).max(), np.abs(vectors).max()
    return bool(spread <= 1e-9 * size)


def _tokens_away(name: str, a: "Trace", b: "Trace") -> np.ndarray | None:
    """Return which tokens (N, T) differ by more than rounding, or None for another shape."""
    left, right = (side.arrays[f"float64/tap/{name}"] for side in (a, b))
    if left.shape != right.shape:
        return None
    with np.errstate(invalid="ignore"):
        distance = np.abs(left - right).max(axis=-1)
    return ~(distance <= 1e-9 * max(np.abs(left).max(), 1e-300))
