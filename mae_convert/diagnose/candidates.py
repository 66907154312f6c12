"""Hypotheses that can explain why two sides first differ at a given result."""

from collections.abc import Iterable, Iterator, Sequence

from mae_convert.diagnose.hypotheses import Hypothesis, Model, Stack
from mae_convert.diagnose.weight_hypotheses import (
    LEAVES,
    exchanged_module_hypotheses,
    moved_block_hypotheses,
    qkv_hypotheses,
    tensor_hypotheses,
)
from mae_convert.verify.localise import BLOCK_TAP
from reference_models.configuration import ACTIVATIONS

MASKS = (
    "patches with the highest noise are kept",
    "the mask is inverted",
    "the mask is in the shuffled order",
    "the mask is computed from ids_shuffle",
    "ids_shuffle is used as ids_restore and for the mask",
    "ids_restore is ids_shuffle",
    "one more patch is kept",
    "one fewer patch is kept",
    "kept patches are in ascending order",
    "ids_restore is shifted by one",
)
EMBEDDINGS = (
    "no position embedding of the class token",
    "no position embeddings",
    "visible patches get the positions of the first patches",
    "patches get the position of the previous token",
    "patches get the position of the next patch",
    "no position embeddings of patches",
    "position embeddings are added twice",
    "the class token is added twice",
    "patches are ordered column by column",
    "multiplied by the square root of the width",
)
IMAGES = (
    "channels reversed",
    "height and width exchanged",
    "upside down",
    "mirrored",
    "multiplied by 255",
    "divided by 255",
)
DECODER_EMBEDDINGS = (
    "tokens are restored with ids_shuffle",
    "tokens are not restored to the original order",
    "mask tokens come before visible tokens",
    "position embeddings are added before the order is restored",
    "mask tokens get the class token's position in addition to their own",
    "no position embedding of the class token",
    "no position embeddings",
    "position embeddings are shifted by one",
)
POOLS = (
    "mean of all tokens, including the class token",
    "class token",
    "layer norm before the mean",
    "maximum instead of mean",
)
READ_OUTS = ("mean of patches", "mean of all tokens, including the class token", "first patch")
PIXELS = (
    "in the order channel, row, column",
    "channels reversed",
    "in the order column, row, channel",
)
LOSSES = (
    "mean over visible patches",
    "mean over all patches",
    "divided by the number of all patches",
    "absolute error",
    "smooth absolute error",
    "sum instead of mean over a patch",
)
STATISTICS = (
    "biased variance",
    "biased variance without epsilon",
    "epsilon added to the standard deviation",
    "without epsilon",
    "epsilon 1e-5",
    "epsilon 1e-12",
)


def candidates(model: Model, first: str) -> Iterator[Hypothesis]:
    """Yield the hypotheses that can explain a first difference, most likely first.

    Args:
        model: the model to which hypotheses are applied.
        first: the name of the first result that differs.
    """
    if match := BLOCK_TAP.fullmatch(first):
        stack = model.stack(match[1])
        yield from _block_candidates(model, stack, int(match[2]), match[3])
    elif first in ("mask", "ids_restore"):
        yield from model_hypotheses("mask", "mask", "masking is different", MASKS)
    elif first in EMBEDDED:
        yield from _embedding_candidates(model, first)
    elif first in ("encoder.norm", "last_hidden_state", "decoder.norm", "head.norm"):
        yield from _last_norm_candidates(model, "encoder.norm" if "last" in first else first)
    elif first == "logits":
        yield from _logits_candidates(model)
    else:
        yield from _result_candidates(first)


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


def _weight_hypotheses(model: Model, names: Iterable[str]) -> Iterator[Hypothesis]:
    for name in names:
        if name in model.shapes:
            yield from tensor_hypotheses(model, name)


def _module_hypotheses(model: Model, *modules: str) -> Iterator[Hypothesis]:
    return _weight_hypotheses(model, (f"{module}.{leaf}" for module in modules for leaf in LEAVES))


def _block_candidates(model: Model, stack: Stack, index: int, step: str) -> Iterator[Hypothesis]:
    block = stack.block(index)
    if step in ("q", "k", "v"):
        yield from _module_hypotheses(model, f"{block}.attention.{step}")
        yield from qkv_hypotheses(model, stack, index)
        yield from block_norm_hypotheses(model, stack, index, "norm1")
        yield from _module_hypotheses(model, f"{block}.norm1")
        yield from exchanged_module_hypotheses(model, stack, index, "norm1", "norm2")
        yield from structure_hypotheses(stack, index)
        yield from moved_block_hypotheses(model, stack, index)
    elif step == "attention":
        yield from attention_hypotheses(stack, index)
        yield from _module_hypotheses(model, f"{block}.attention.output")
    elif step == "mlp":
        yield from activation_hypotheses(model, stack, index)
        yield from block_norm_hypotheses(model, stack, index, "norm2")
        yield from _module_hypotheses(
            model, f"{block}.mlp.fc1", f"{block}.mlp.fc2", f"{block}.norm2"
        )
        yield from structure_hypotheses(stack, index)
    else:
        yield from structure_hypotheses(stack, index)


def _embedding_candidates(model: Model, first: str) -> Iterator[Hypothesis]:
    yield from _weight_hypotheses(model, EMBEDDED[first])
    if first == "encoder.embedding":
        yield from model_hypotheses("embedding", first, "the embedding is different", EMBEDDINGS)
        yield from model_hypotheses("images", "images", "images are changed", IMAGES)
    else:
        what = "the decoder's input is different"
        yield from model_hypotheses("embedding", first, what, DECODER_EMBEDDINGS)


def _last_norm_candidates(model: Model, name: str) -> Iterator[Hypothesis]:
    yield from _module_hypotheses(model, name)
    yield from norm_hypotheses(model, name)
    if name == "head.norm":
        yield from model_hypotheses("pool", "head", "pooling is different", POOLS)


def _logits_candidates(model: Model) -> Iterator[Hypothesis]:
    yield from _module_hypotheses(model, "decoder.prediction", "head")
    if model.task == "classify":
        yield from model_hypotheses("pool", "head", "pooling is different", READ_OUTS)
    else:
        what = "the patch tokens are different"
        yield from model_hypotheses(
            "patches", "logits", what, ("the last token is left out instead of the class token",)
        )


def _result_candidates(first: str) -> Iterator[Hypothesis]:
    if first == "reconstruction":
        what = "values within a patch are ordered differently in the reconstruction"
        yield from model_hypotheses("pixels", "*", f"{what} and in the losses", PIXELS)
        yield from model_hypotheses("pixels", first, what, PIXELS)
        return
    for pattern in ("loss*", first) if first == "loss" else (first,):
        yield from model_hypotheses("loss", pattern, "the loss is different", LOSSES)
        yield from model_hypotheses(
            "pixels", pattern, "values within a patch are ordered differently in the loss", PIXELS
        )
    if first == "loss_norm_pix":
        what = "patches are normalized differently"
        yield from model_hypotheses("statistics", first, what, STATISTICS)
        yield from model_hypotheses("loss", first, what, ("patches not normalized",))


EPSILONS = (1e-12, 1e-6, 1e-5, 1e-8, 1e-7, 1e-3, 1e-4, 0.0)
NORMS = {
    "left out": "is left out",
    "applied twice": "is applied twice",
    "unbiased variance": "divides by the square root of the unbiased variance",
    "epsilon outside the root": "adds epsilon to the standard deviation instead of the variance",
    "root mean square": "does not subtract the mean (RMS norm)",
}
SCALES = {
    "by the width": "divided by the square root of the width instead of the head size",
    "twice": "divided by the square root of the head size twice",
    "left out": "not divided by the square root of the head size",
    "by the number of heads": "divided by the square root of the number of heads",
    "in float32": "multiplied by a factor that is rounded to float32",
}
CORES = (
    "softmax over the queries",
    "causal",
    "query and key exchanged",
    "key and value exchanged",
    "class token not attended to",
    "sigmoid instead of softmax",
    "without softmax",
)
STRUCTURES = (
    "layer norm after attention and MLP",
    "attention and MLP in parallel",
    "no residual connection around attention",
    "no residual connection around the MLP",
    "residual taken after the layer norm",
)

Scope = tuple[str, str]  # pattern of module paths, and its description in a sentence


def _scoped(
    key: str, what: str, values: Sequence[tuple[str, object]], scopes: Sequence[Scope]
) -> Hypothesis:
    """Return a hypothesis about the modules of the last scope (a pattern of module paths).

    `Hypothesis.widen` returns the same hypothesis for the modules of the other scopes.

    Args:
        key: the kind of the fault.
        what: the statement of the hypothesis, without the modules.
        values: the kinds and the values of the variants, which are applied together.
        scopes: the scopes, the widest first.
    """

    def at(scope: Scope) -> Hypothesis:
        pattern, where = scope
        alternatives = tuple((kind, pattern, value) for kind, value in values)
        return Hypothesis(key, f"{what}{where}", variants=alternatives)

    return at(scopes[-1]).widened(lambda: [at(scope) for scope in scopes[:-1]])


def block_norm_hypotheses(
    model: Model, stack: Stack, index: int, name: str
) -> Iterator[Hypothesis]:
    """Yield the hypotheses that the layer norm `name` of block `index` is computed differently."""
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
    yield from _norm_hypotheses(model, scopes)


def norm_hypotheses(model: Model, name: str) -> Iterator[Hypothesis]:
    """Yield hypotheses that the layer norm `name`, outside the blocks, is computed differently."""
    both = [("*coder.norm", " in the last norms of encoder and decoder")]
    scopes = [*(both if model.task == "pretrain" else []), (name, f" in {name}")]
    yield from _norm_hypotheses(model, scopes)


def _norm_hypotheses(model: Model, scopes: Sequence[Scope]) -> Iterator[Hypothesis]:
    for eps in EPSILONS:
        if eps != model.config.layer_norm_eps:
            what = f"layer_norm_eps is {eps}"
            yield _scoped("epsilon", what, [("eps", eps)], scopes)
    for kind, what in NORMS.items():
        yield _scoped("norm", f"the layer norm {what},", [("norm", kind)], scopes)


def attention_hypotheses(stack: Stack, index: int) -> Iterator[Hypothesis]:
    """Yield hypotheses about the computation of the attention output from q, k and v.

    Args:
        stack: the blocks of the encoder or the decoder.
        index: the index of the block.
    """
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
        yield _scoped(
            "attention", f"attention is computed differently ({value})", [("core", value)], scopes
        )
    yield from _head_split_hypotheses(scopes)


def _divisors(width: int) -> list[int]:
    return [n for n in range(1, width + 1) if width % n == 0 and (width // n > 1 or width < 8)]


def _head_split_hypotheses(scopes: Sequence[Scope]) -> Iterator[Hypothesis]:
    """Yield hypotheses that heads are split or merged differently."""
    other = "channels before heads"
    differences = {
        "heads are split as (channels, heads) instead of (heads, channels)": (other, other),
        "heads are split as (channels, heads) and merged as (heads, channels)": (other, None),
        "heads are split as (heads, channels) and merged as (channels, heads)": (None, other),
        "heads are merged without transposing them back": (None, "not transposed"),
    }
    for what, (split, merge) in differences.items():
        pairs = [(k, v) for k, v in (("split", split), ("merge", merge)) if v]
        yield _scoped("heads", what, pairs, scopes)


def _scopes(stack: Stack, index: int, part: str) -> list[Scope]:
    return [
        (f"*.{part}", " in every block"),
        (f"{stack.name}.blocks.*.{part}", f" in every block of the {stack.name}"),
        (f"{stack.block(index)}.{part}", f" in block {index} of the {stack.name}"),
    ]


def activation_hypotheses(model: Model, stack: Stack, index: int) -> Iterator[Hypothesis]:
    """Yield the hypotheses that the MLP of block `index` has another activation function."""
    for name in (*ACTIVATIONS, "left out", "gelu with constants in float32"):
        if name not in (model.config.hidden_act, "gelu_pytorch_tanh", "swish"):
            scopes = _scopes(stack, index, "mlp")
            yield _scoped("activation", f"hidden_act is {name}", [("activation", name)], scopes)


def structure_hypotheses(stack: Stack, index: int) -> Iterator[Hypothesis]:
    """Yield the hypotheses that attention, MLP and norms of a block are connected differently."""
    block = stack.block(index)
    scopes = [
        ("*.blocks.*", " in every block"),
        (f"{stack.name}.blocks.*", f" in every block of the {stack.name}"),
        (block, f" in block {index} of the {stack.name}"),
    ]
    for value in STRUCTURES:
        what = f"blocks are connected differently ({value})"
        yield _scoped("structure", what, [("structure", value)], scopes)


def model_hypotheses(
    kind: str, path: str, what: str, values: Sequence[str]
) -> Iterator[Hypothesis]:
    """Yield a hypothesis for each variant of a step outside the blocks, such as the masking.

    Args:
        kind: the kind of the variants.
        path: the pattern of the module paths or results to which the variants apply.
        what: the statement of the hypotheses, without the value.
        values: the values of the variants.
    """
    for value in values:
        key = kind if kind != "embedding" else f"{path} code"
        yield Hypothesis(key, f"{what} ({value})", variants=((kind, path, value),))
