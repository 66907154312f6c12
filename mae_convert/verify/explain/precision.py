"""Which part of a model is computed in less precision than was asked for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mae_convert.verify.blame import BLOCK_TAP
from mae_convert.verify.explain.hypothesis import Alternative, Hypothesis

# A simulation is an explanation where it makes most of the error. Another rounding, or the right
# one in another place, makes an error in another direction: it leaves all of it and its own.
EXPLAINED = 0.5
NARROWER = ("bfloat16", "float16", "TF32", "TF32, cut")
FINAL = ("logits", "last_hidden_state")

Measure = Callable[[Hypothesis, str, str | None], float]  # hypothesis, at, start → unexplained


@dataclass(frozen=True)
class Imprecision:
    """A part that is computed in less precision.

    Attributes:
        statement: which, and in what.
        explained: the share of the error at the first result that this makes, below 1.
    """

    statement: str
    explained: float


def find_imprecision(
    measure: Measure, at: str, results: tuple[str, ...], dtype: str
) -> Imprecision | None:
    """Return what is computed in less precision at a result, if it can be shown.

    Args:
        measure: runs a hypothesis and says which part of the error it leaves.
        at: the first result that is imprecise.
        results: names of all results, of which the last one tells how far the fault reaches.
        dtype: of the run.
    """
    tried = [(measure(h, at, at), number, h) for number, h in enumerate(_hypotheses(at, dtype))]
    left, _, best = min(tried, default=(1.0, 0, None), key=lambda item: item[:2])
    if best is None or not left < EXPLAINED:
        return None
    end = next((name for name in FINAL if name in results), at)
    reach = [(measure(h, end, None), number, h) for number, h in enumerate(_scopes(best))]
    far, _, widest = min(reach, key=lambda item: item[:2])
    chosen = widest if far < EXPLAINED else best
    return Imprecision(chosen.statement, 1 - left)


def _scopes(hypothesis: Hypothesis) -> Iterator[Hypothesis]:
    yield hypothesis
    yield from hypothesis.widen()


def _hypotheses(at: str, dtype: str) -> Iterator[Hypothesis]:
    lower = NARROWER if dtype == "float32" else ("float32", *NARROWER)
    for precision in lower:
        for what, alternatives in _parts(at, precision):
            yield _hypothesis(at, what, precision, alternatives)


def _hypothesis(
    at: str, what: str, precision: str, alternatives: tuple[Alternative, ...]
) -> Hypothesis:
    match = BLOCK_TAP.fullmatch(at)
    if not match:
        said = f"{what} is computed in {precision}"
        return Hypothesis("precision", said, arithmetic=alternatives)
    stack, block = match[1], f"{match[1]}.blocks.{match[2]}"

    def everywhere(blocks: str, where: str) -> Hypothesis:
        moved = tuple((k, p.replace(block, blocks), v) for k, p, v in alternatives)
        return Hypothesis("precision", f"{what} is computed in {precision} {where}", (), moved)

    return everywhere(block, f"in block {match[2]} of the {stack}").widened(
        lambda: [
            everywhere("*.blocks.*", "in every block"),
            everywhere(f"{stack}.blocks.*", f"in every block of the {stack}"),
        ]
    )


def _parts(at: str, precision: str) -> Iterator[tuple[str, tuple[Alternative, ...]]]:
    """Yield what may be computed in less precision at a result, in words and to be tried."""
    match = BLOCK_TAP.fullmatch(at)
    if not match:
        place = {"last_hidden_state": "encoder.norm"}.get(at, at)
        if "norm" in place:
            yield f"{place}", (("norm precision", place, precision),)
        else:
            yield f"the linear layer of {at}", (("precision", place, precision),)
            factors = (("precision", place, f"{precision} products"),)
            yield f"the product of {at} (its factors)", factors
        return
    block, step = f"{match[1]}.blocks.{match[2]}", match[3]
    if step == "output":
        yield "the sum with the residual", (("sum precision", block, precision),)
        return
    place = f"{block}.mlp" if step == "mlp" else f"{block}.attention"
    named = {"attention": "the output of attention", "mlp": "the MLP"}.get(step, "q, k and v")
    linear = ("precision", place, precision)
    products = ("precision", place, f"{precision} products")
    core = ("attention precision", place, precision)
    if step == "attention":
        yield "attention", (core,)
        yield "attention with its output", (core, linear)
    else:
        norm = "norm2" if step == "mlp" else "norm1"
        yield f"{norm}", (("norm precision", f"{block}.{norm}", precision),)
    yield f"the linear layers of {named}" if step == "mlp" else named, (linear,)
    yield f"matrix products of {named} (their factors)", (products,)
