"""Which hypotheses can explain that two sides part at a certain step of the computation."""

from collections.abc import Iterable, Iterator

from mae_convert.diagnose.computations import (
    of_attention,
    of_block_norm,
    of_mlp,
    of_norm,
    of_structure,
    of_whole,
)
from mae_convert.diagnose.hypothesis import Hypothesis, Model, Stack
from mae_convert.diagnose.parts import of_parts
from mae_convert.diagnose.tensors import LEAVES, of_blocks, of_modules, of_tensor
from mae_convert.verify.localise import BLOCK_TAP

MASKS = (
    "highest noise kept", "inverted", "in the shuffled order", "gathered by the shuffle",
    "sorted once", "restored by the shuffle", "one patch more", "one patch fewer",
    "kept patches in order", "ids one off",
)  # fmt: skip
EMBEDDINGS = (
    "no position of the class token", "no positions", "positions not picked",
    "positions counted from the class token", "position of the next patch",
    "no positions of patches", "positions added twice", "class token added twice",
    "patches column by column", "times the root of the width",
)  # fmt: skip
PICTURES = (
    "channels reversed", "height and width exchanged", "upside down", "mirrored",
    "multiplied by 255", "divided by 255",
)  # fmt: skip
DECODER_EMBEDDINGS = (
    "restored by the shuffle", "not restored", "mask tokens first", "positions before restoring",
    "mask token with the class token's position", "no position of the class token",
    "no positions", "positions one off",
)  # fmt: skip
POOLS = ("mean with the class token", "class token", "normalised before", "largest")
READ_OUTS = ("mean of patches", "mean with the class token", "first patch")
PIXELS = ("channel, row, column", "channels reversed", "column, row, channel")
LOSSES = (
    "over visible patches", "over all patches", "divided by all patches", "absolute error",
    "smooth absolute error", "sum over a patch",
)  # fmt: skip
STATISTICS = (
    "biased variance", "biased variance, no epsilon", "epsilon beside the root", "no epsilon",
    "epsilon 1e-5", "epsilon 1e-12",
)  # fmt: skip


def candidates(model: Model, first: str) -> Iterator[Hypothesis]:
    """Yield the hypotheses that can explain a first difference, likeliest first.

    Args:
        model: the side that is changed.
        first: the first tap or result at which the sides differ.
    """
    if match := BLOCK_TAP.fullmatch(first):
        stack = model.stack(match[1])
        yield from _in_block(model, stack, int(match[2]), match[3])
    elif first in ("mask", "ids_restore"):
        yield from of_whole("mask", "mask", "masking is otherwise", MASKS)
    elif first in EMBEDDED:
        yield from _embedding(model, first)
    elif first in ("encoder.norm", "last_hidden_state", "decoder.norm", "head.norm"):
        yield from _last_norm(model, "encoder.norm" if "last" in first else first)
    elif first == "logits":
        yield from _logits(model)
    else:
        yield from _results(first)


EMBEDDED = {
    "encoder.embedding": (
        "encoder.position_embedding", "encoder.patch_embedding.weight",
        "encoder.patch_embedding.bias", "encoder.cls_token",
    ),
    "decoder.embedding": (
        "decoder.position_embedding", "decoder.mask_token", "decoder.embed.weight",
        "decoder.embed.bias",
    ),
}  # fmt: skip


def _tensors(model: Model, names: Iterable[str]) -> Iterator[Hypothesis]:
    for name in names:
        if name in model.shapes:
            yield from of_tensor(model, name)


def _modules(model: Model, *modules: str) -> Iterator[Hypothesis]:
    return _tensors(model, (f"{module}.{leaf}" for module in modules for leaf in LEAVES))


def _in_block(model: Model, stack: Stack, index: int, step: str) -> Iterator[Hypothesis]:
    block = stack.block(index)
    if step in ("q", "k", "v"):
        yield from _modules(model, f"{block}.attention.{step}")
        yield from of_parts(model, stack, index)
        yield from of_block_norm(model, stack, index, "norm1")
        yield from _modules(model, f"{block}.norm1")
        yield from of_modules(model, stack, index, "norm1", "norm2")
        yield from of_structure(stack, index)
        yield from of_blocks(model, stack, index)
    elif step == "attention":
        yield from of_attention(stack, index)
        yield from _modules(model, f"{block}.attention.output")
    elif step == "mlp":
        yield from of_mlp(model, stack, index)
        yield from of_block_norm(model, stack, index, "norm2")
        yield from _modules(model, f"{block}.mlp.fc1", f"{block}.mlp.fc2", f"{block}.norm2")
        yield from of_structure(stack, index)
    else:
        yield from of_structure(stack, index)


def _embedding(model: Model, first: str) -> Iterator[Hypothesis]:
    yield from _tensors(model, EMBEDDED[first])
    if first == "encoder.embedding":
        yield from of_whole("embedding", first, "the embedding is otherwise", EMBEDDINGS)
        yield from of_whole("pictures", "pictures", "pictures are changed", PICTURES)
    else:
        what = "the decoder's input is otherwise"
        yield from of_whole("embedding", first, what, DECODER_EMBEDDINGS)


def _last_norm(model: Model, name: str) -> Iterator[Hypothesis]:
    yield from _modules(model, name)
    yield from of_norm(model, name)
    if name == "head.norm":
        yield from of_whole("pool", "head", "pooling is otherwise", POOLS)


def _logits(model: Model) -> Iterator[Hypothesis]:
    yield from _modules(model, "decoder.prediction", "head")
    if model.task == "classify":
        yield from of_whole("pool", "head", "pooling is otherwise", READ_OUTS)
    else:
        what = "the tokens of patches are otherwise"
        yield from of_whole("patches", "logits", what, ("last token left out",))


def _results(first: str) -> Iterator[Hypothesis]:
    if first == "reconstruction":
        yield from of_whole("pixels", "*", "patches are put together and cut otherwise", PIXELS)
        yield from of_whole("pixels", first, "patches are put together otherwise", PIXELS)
        return
    for pattern in ("loss*", first) if first == "loss" else (first,):
        yield from of_whole("loss", pattern, "the loss is otherwise", LOSSES)
        yield from of_whole("pixels", pattern, "patches are cut otherwise for the loss", PIXELS)
    if first == "loss_norm_pix":
        what = "patches are normalised otherwise"
        yield from of_whole("statistics", first, what, STATISTICS)
        yield from of_whole("loss", first, what, ("patches not normalised",))
