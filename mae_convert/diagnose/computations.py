"""Hypotheses about what is computed with the tensors: epsilons, heads, activations, pooling."""

from collections.abc import Iterator, Sequence

from mae_convert.diagnose.hypothesis import Hypothesis, Model, Stack
from reference_models.configuration import ACTIVATIONS

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
