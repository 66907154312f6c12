"""The execution order of results, and the tensors on which the first differing result depends."""

import re
from typing import TYPE_CHECKING

import numpy as np

from mae_convert.checkpoint.fingerprint import described_family
from mae_convert.runtime.trace_check import BLOCK_STEPS
from mae_convert.verify.array_patterns import ROUNDING, differing, same_by_position, same_vector

if TYPE_CHECKING:
    from mae_convert.runtime.trace import Trace

OUTPUT_NAMES = ("last_hidden_state", "logits", "reconstruction", "loss", "loss_norm_pix")
BLOCK_TAP = re.compile(r"(encoder|decoder)\.blocks\.(\d+)\.(\w+)")


def execution_order(name: str) -> tuple[int, int, int, int]:
    """Return a key that sorts names of activations, outputs and gradients by execution order."""
    if name in ("mask", "ids_restore"):
        return (-1, 0, 0, 0)
    if name.startswith("grad/"):  # gradients are computed last
        part, kind, block, step = execution_order(name.removeprefix("grad/"))
        return (10 - part, -kind, -block, -step)
    if match := BLOCK_TAP.fullmatch(name):
        part = 0 if match[1] == "encoder" else 1
        return (part, 1, int(match[2]), BLOCK_STEPS.index(match[3]))
    if name in OUTPUT_NAMES:
        # last_hidden_state is the result of the encoder's last norm; other outputs follow the
        # decoder.
        return (0, 4, 0, 0) if name == "last_hidden_state" else (2, 0, 0, OUTPUT_NAMES.index(name))
    order = {
        "encoder.embedding": (0, 0, 0, 0),
        "encoder.norm": (0, 2, 0, 0),
        "head.norm": (0, 3, 0, 0),
        "decoder.embedding": (1, 0, 0, 0),
        "decoder.norm": (1, 2, 0, 0),
    }
    return order.get(name, (3, 0, 0, 0))


def candidate_tensors(first: str, diverging: set[str], a: "Trace", b: "Trace") -> list[str]:
    """Return the canonical tensors that may cause the first differing result, most likely first.

    Args:
        first: the name of the first differing result.
        diverging: the names of all differing results.
        a: the trace of the source.
        b: the trace of the target.
    """
    tensor_names = {**a.description["tensors"], **b.description["tensors"]}
    names = _weights_and_biases(_modules(first, diverging, a, b), list(tensor_names))
    if _same_for_every_token(first, a, b):
        # A bias adds the same vector to all tokens; the effect of a weight depends on the token.
        names.sort(key=lambda name: not name.endswith(".bias"))
    return [name for name in names if name in tensor_names]


def _weights_and_biases(modules: list[str], tensor_names: list[str]) -> list[str]:
    """Return the names of the tensors in modules, such as "encoder.norm.weight".

    Names may be included that no tensor of the model has, because not every module has a bias.

    Args:
        modules: the canonical names of modules or of single tensors.
        tensor_names: the names of all tensors, in which position embeddings are looked up.
    """
    names: list[str] = []
    for module in modules:
        if module.endswith("position_embedding"):
            names += _position_tables(module.partition(".")[0], tensor_names)
        elif module.endswith(("cls_token", "mask_token", ".bias")):
            names.append(module)
        else:
            names += [f"{module}.weight", f"{module}.bias"]
    return names


def _position_tables(part: str, names: list[str]) -> list[str]:
    """Return the names of the tensors that make up the position embedding of `part`.

    If the decoder has its own class token, the name of this token is included and comes last.

    Args:
        part: "encoder" or "decoder".
        names: the names of all tensors.
    """
    tokens = (f"{part}.cls_token", f"{part}.mask_token")
    tables = [n for n in names if n.startswith(f"{part}.") and n.count(".") == 1]
    own = [n for n in tokens if n in names and n == "decoder.cls_token"]
    return [*(n for n in tables if n not in tokens), *own]


def _modules(first: str, diverging: set[str], a: "Trace", b: "Trace") -> list[str]:
    if match := BLOCK_TAP.fullmatch(first):
        block, step = f"{match[1]}.blocks.{match[2]}", match[3]
        return (
            _mlp_modules(block, first, a, b)
            if step == "mlp"
            else _block_modules(block, step, diverging)
        )
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
        # The norm affects q, k and v; a projection affects only one of them.
        together = {f"{block}.{part}" for part in "qkv"} <= diverging
        own = [f"{attention}.{part}" for part in "qkv" if f"{block}.{part}" in diverging]
        return [norm1, *own] if together else [*own, norm1]
    return [f"{attention}.output"] if step == "attention" else []


def _mlp_modules(block: str, first: str, a: "Trace", b: "Trace") -> list[str]:
    """Return the modules of an MLP that can explain a difference, most likely first.

    The second layer is the most likely one if only some output channels differ: a row of its weight
    affects one output channel only. The weights of the first layer and of the norm affect all
    channels.

    Args:
        block: the canonical name of the block.
        first: the name of the first differing result.
        a: the trace of the source.
        b: the trace of the target.
    """
    mlp, norm = [f"{block}.mlp.fc1", f"{block}.mlp.fc2"], f"{block}.norm2"
    results = _results(first, a, b)
    if results is not None and len(differing(*results, axis=-1)) < results[0].shape[-1]:
        return [mlp[1], mlp[0], norm]
    return [*mlp, norm]


def _embedding_modules(name: str, a: "Trace", b: "Trace") -> list[str]:
    """Return the modules that can explain a difference of the encoder's embedding.

    Which modules these are depends on the tokens that differ. The class token, if there is one, is
    the first token; all other tokens are patches.

    Args:
        name: the name of the differing result.
        a: the trace of the source.
        b: the trace of the target.
    """
    patches, token = "encoder.patch_embedding", "encoder.cls_token"
    positions = "encoder.position_embedding"
    results = _results(name, a, b)
    if results is None:
        return [positions, patches, token]
    tokens = differing(*results, axis=1)
    class_count = class_tokens(a, results[0])
    if class_count and not (tokens > 0).any():
        return [token, positions]
    difference = (results[1] - results[0])[:, class_count:]
    if class_count and (tokens == 0).any():
        return [positions, patches, token]
    indices = patch_positions(a, name, difference.shape[1])
    if (
        not same_vector(difference)
        and indices is not None
        and same_by_position(difference, indices)
    ):
        return [positions, patches]
    return [patches, positions]


def _decoder_embedding_modules(name: str, a: "Trace", b: "Trace") -> list[str]:
    """Return the modules that can explain a difference of the decoder's embedding.

    Which modules these are depends on the tokens that differ. At a removed patch, the token is the
    mask token; at another patch, it is the output of ``decoder.embed``. Position embeddings are
    added to all tokens.

    Args:
        name: the name of the differing result.
        a: the trace of the source.
        b: the trace of the target.
    """
    embed, token, positions = "decoder.embed", "decoder.mask_token", "decoder.position_embedding"
    results, mask = _results(name, a, b), a.arrays.get("mask")
    if results is None or mask is None:
        return [positions, embed, token]
    difference = results[1] - results[0]
    removed = removed_tokens(a, mask, difference.shape[1])
    differs = np.abs(difference).max(axis=-1) > ROUNDING * np.abs(results[0]).max()
    indices = np.broadcast_to(np.arange(removed.shape[1]), removed.shape)
    if not differs[removed].any():
        by_position = same_by_position(difference, indices) and not same_vector(
            difference[~removed]
        )
        return [positions, embed, token] if by_position else [embed, positions, token]
    if not differs[~removed].any() and same_vector(difference[removed]):
        return [token, positions, embed]
    return [positions, token, embed]


def class_tokens(trace: "Trace", embedding: np.ndarray) -> int:
    """Return how many tokens of an encoder's embedding (N, T, D) precede the patches."""
    mask = trace.arrays.get("mask")
    config = trace.description["config"]
    family = described_family(trace.description)
    visible = family.configuration_class.from_dict(config).num_patches
    if mask is not None:
        visible = int((mask[0] == 0).sum())
    return max(int(embedding.shape[1]) - visible, 0)


def removed_tokens(trace: "Trace", mask: np.ndarray, count: int) -> np.ndarray:
    """Return a boolean array (N, count): whether a token of the decoder represents a removed patch.

    Args:
        trace: the trace of a pre-training model.
        mask: (N, L), 1 where a patch is removed.
        count: number of decoder tokens; tokens before the patches are never removed.
    """
    if described_family(trace.description).predicts_removed_only:
        mask = np.sort(mask, axis=1)  # mask tokens come last
    before = np.zeros((len(mask), count - mask.shape[1]))
    return np.asarray(np.concatenate([before, mask], axis=1) > 0)


def patch_positions(trace: "Trace", name: str, count: int) -> np.ndarray | None:
    """Return the grid position (N, count) of each token of an embedding; None if it is unknown.

    Args:
        trace: the trace of a run; its ``ids_restore`` determines the positions.
        name: the name of the embedding.
        count: the number of tokens, including the class token for the decoder's embedding only.
    """
    restore = trace.arrays.get("ids_restore")
    if restore is None:
        return None
    in_order = described_family(trace.description).predicts_removed_only
    if name == "decoder.embedding" and not in_order:
        return np.broadcast_to(np.arange(count), (len(restore), count))
    return np.argsort(restore, axis=1)[:, :count]


def _results(name: str, a: "Trace", b: "Trace") -> tuple[np.ndarray, np.ndarray] | None:
    """Return the float64 results of both sides, or None if the results cannot be compared.

    If a side has non-finite values, the masks of finite values are returned instead.
    """
    key = f"float64/tap/{name}" if f"float64/tap/{name}" in a.arrays else f"float64/{name}"
    left, right = a.arrays.get(key), b.arrays.get(key)
    if left is None or right is None or left.shape != right.shape:
        return None
    finite = np.isfinite(left), np.isfinite(right)
    if not (finite[0].all() and finite[1].all()):
        return finite[0].astype(np.float64), finite[1].astype(np.float64)
    return left, right


def _same_for_every_token(name: str, a: "Trace", b: "Trace") -> bool:
    """Return whether an activation (N, T, D) of A and B differs by the same vector for all tokens.

    The class token is excluded because it does not pass through the patch embedding.
    """
    results = _results(name, a, b)
    if results is None or results[0].ndim < 2:
        return False
    difference = results[1] - results[0]
    if name == "decoder.embedding" and "mask" in a.arrays:
        mask = a.arrays["mask"]
        return same_vector(difference[~removed_tokens(a, mask, difference.shape[1])])
    if name == "encoder.embedding":
        difference = difference[:, class_tokens(a, difference) :]
    return same_vector(difference)
