"""Which hypotheses can explain that two sides first differ at a given result."""

from collections.abc import Iterable, Iterator, Sequence

from mae_convert.diagnose.hypotheses import Hypothesis, Model, Stack
from mae_convert.diagnose.weight_hypotheses import (
    LEAVES,
    of_blocks,
    of_modules,
    of_parts,
    of_tensor,
)
from mae_convert.verify.localise import BLOCK_TAP
from reference_models.configuration import ACTIVATIONS

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


EPSILONS = (1e-12, 1e-6, 1e-5, 1e-8, 1e-7, 1e-3, 1e-4, 0.0)
NORMS = {
    "left out": "is left out",
    "applied twice": "is applied twice",
    "unbiased variance": "divides by the root of the unbiased variance",
    "epsilon outside the root": "adds epsilon to the deviation in place of the variance",
    "root mean square": "does not take off the mean (RMS norm)",
}
SCALES = {
    "by the width": "divided by the root of the width in place of the head's size",
    "twice": "divided by the root of the head's size twice",
    "left out": "not divided by the root of the head's size",
    "by the number of heads": "divided by the root of the number of heads",
    "in float32": "divided by a number in float32",
}
CORES = (
    "softmax over the queries",
    "causal",
    "query and key exchanged",
    "key and value exchanged",
    "class token not attended to",
    "sigmoid in place of softmax",
    "without softmax",
)
STRUCTURES = (
    "normalised after",
    "attention and MLP in parallel",
    "no residual of attention",
    "no residual of the MLP",
    "residual after the norm",
)

Scope = tuple[str, str]  # pattern of places, and in words


def _scoped(
    key: str, what: str, values: Sequence[tuple[str, object]], scopes: Sequence[Scope]
) -> Hypothesis:
    """Return a hypothesis about the last scope, with the others as the wider ones."""

    def at(scope: Scope) -> Hypothesis:
        pattern, where = scope
        alternatives = tuple((kind, pattern, value) for kind, value in values)
        return Hypothesis(key, f"{what}{where}", arithmetic=alternatives)

    return at(scopes[-1]).widened(lambda: [at(scope) for scope in scopes[:-1]])


def of_block_norm(model: Model, stack: Stack, index: int, name: str) -> Iterator[Hypothesis]:
    """Yield other arithmetic of a layer norm in a block."""
    block = stack.block(index)
    before = {"norm1": "before attention", "norm2": "before the MLP"}[name]
    scopes = [
        ("*", " everywhere"),
        (f"{stack.name}.*", f" in the {stack.name}"),
        ("*.blocks.*", " in every block"),
        (f"{stack.name}.blocks.*", f" in every block of the {stack.name}"),
        (f"*.{name}", f" {before} in every block"),
        (f"{stack.name}.blocks.*.{name}", f" {before} in every block of the {stack.name}"),
        (f"{block}.*", f" in block {index} of the {stack.name}"),
        (f"{block}.{name}", f" in {block}.{name}"),
    ]
    yield from _norms(model, scopes)


def of_norm(model: Model, name: str) -> Iterator[Hypothesis]:
    """Yield other arithmetic of a layer norm outside the blocks."""
    both = [("*coder.norm", " in the last norms of encoder and decoder")]
    scopes = [*(both if model.task == "pretrain" else []), (name, f" in {name}")]
    yield from _norms(model, scopes)


def _norms(model: Model, scopes: Sequence[Scope]) -> Iterator[Hypothesis]:
    for eps in EPSILONS:
        if eps != model.config.layer_norm_eps:
            what = f"layer_norm_eps is {eps}"
            yield _scoped("epsilon", what, [("eps", eps)], scopes)
    for kind, what in NORMS.items():
        yield _scoped("norm", f"the layer norm {what},", [("norm", kind)], scopes)


def of_attention(stack: Stack, index: int) -> Iterator[Hypothesis]:
    """Yield other ways from q, k and v to the output of attention."""
    scopes = _scopes(stack, index, "attention")
    for heads in _divisors(stack.width):
        if heads != stack.heads:
            field = (
                "decoder_num_attention_heads" if stack.name == "decoder" else "num_attention_heads"
            )
            yield _scoped("number of heads", f"{field} is {heads}", [("heads", heads)], scopes)
    for kind, what in SCALES.items():
        yield _scoped("scale", f"attention logits are {what}", [("scale", kind)], scopes)
    for value in CORES:
        yield _scoped("attention", f"attention is otherwise ({value})", [("core", value)], scopes)
    yield from _splits(scopes)


def _divisors(width: int) -> list[int]:
    return [n for n in range(1, width + 1) if width % n == 0 and (width // n > 1 or width < 8)]


def _splits(scopes: Sequence[Scope]) -> Iterator[Hypothesis]:
    """Yield other ways to take the width apart into heads and to put it together."""
    other = "channels before heads"
    ways = {
        "heads are split as (channels, heads) in place of (heads, channels)": (other, other),
        "heads are split as (channels, heads) and joined as (heads, channels)": (other, None),
        "heads are split as (heads, channels) and joined as (channels, heads)": (None, other),
        "heads are joined without transposing them back": (None, "not transposed"),
    }
    for what, (split, merge) in ways.items():
        pairs = [(k, v) for k, v in (("split", split), ("merge", merge)) if v]
        yield _scoped("heads", what, pairs, scopes)


def _scopes(stack: Stack, index: int, part: str) -> list[Scope]:
    return [
        (f"*.{part}", " in every block"),
        (f"{stack.name}.blocks.*.{part}", f" in every block of the {stack.name}"),
        (f"{stack.block(index)}.{part}", f" in block {index} of the {stack.name}"),
    ]


def of_mlp(model: Model, stack: Stack, index: int) -> Iterator[Hypothesis]:
    """Yield other activations of the MLP."""
    for name in (*ACTIVATIONS, "left out", "gelu with constants in float32"):
        if name not in (model.config.hidden_act, "gelu_pytorch_tanh", "swish"):
            scopes = _scopes(stack, index, "mlp")
            yield _scoped("activation", f"hidden_act is {name}", [("activation", name)], scopes)


def of_structure(stack: Stack, index: int) -> Iterator[Hypothesis]:
    """Yield other ways in which norms, attention, MLP and residuals follow each other."""
    block = stack.block(index)
    scopes = [
        ("*.blocks.*", " in every block"),
        (f"{stack.name}.blocks.*", f" in every block of the {stack.name}"),
        (block, f" in block {index} of the {stack.name}"),
    ]
    for value in STRUCTURES:
        what = f"blocks are built otherwise ({value})"
        yield _scoped("structure", what, [("structure", value)], scopes)


def of_whole(kind: str, place: str, what: str, values: Sequence[str]) -> Iterator[Hypothesis]:
    """Yield the other ways to do something that is done once in a model."""
    for value in values:
        key = kind if kind != "embedding" else f"{place} code"
        yield Hypothesis(key, f"{what} ({value})", arithmetic=((kind, place, value),))
