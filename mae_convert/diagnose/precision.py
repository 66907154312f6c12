"""Which part of a model is computed in lower precision than requested."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mae_convert.diagnose.candidate_process import Explanation, Laboratory, Pair, is_finite
from mae_convert.diagnose.hypotheses import Alternative, Hypothesis
from mae_convert.verify.judge import Verdict
from mae_convert.verify.localise import BLOCK_TAP, execution_order
from mae_convert.verify.trace import Trace

# A simulation is an explanation where it makes most of the error. Another rounding, or the right
# one in another place, makes an error in another direction: it leaves all of it and adds its own.
EXPLAINED = 0.5
# Simulations that leave as much are the same: float16 and TF32 both have eleven bits.
TIED = 0.02
NARROWER = ("bfloat16", "float16", "TF32", "TF32, cut")

# (hypothesis, result) → the part of the error at a result that the hypothesis does not make, when
# everything before it is as the imprecise side has it.
Measure = Callable[[Hypothesis, str], float]


@dataclass(frozen=True)
class Part:
    """A part of the computation that may be done in less precision.

    Attributes:
        what: its name.
        kinds: kind and pattern of places of what is computed otherwise, and what follows the
            precision's name there; ``{}`` stands for the block.
    """

    what: str
    kinds: tuple[tuple[str, str, str], ...]

    def hypothesis(self, precision: str, block: str) -> Hypothesis:
        """Return that the part is computed in a precision in one block."""
        alternatives: tuple[Alternative, ...] = tuple(
            (kind, place.format(block), precision + suffix) for kind, place, suffix in self.kinds
        )
        return Hypothesis("precision", self.what, arithmetic=alternatives)


@dataclass(frozen=True)
class Imprecision:
    """A part that is computed in less precision.

    Attributes:
        at: the first result of its kind that is imprecise.
        part: which, in words.
        where: in which blocks, in words; empty outside of blocks.
        precisions: in what; more than one where they have the same bits here.
        explained: the share of the error at the first result that this makes, at most 1.
    """

    at: str
    part: str
    where: str
    precisions: tuple[str, ...]
    explained: float


def find_imprecisions(
    measure: Measure, failing: Sequence[str], results: Sequence[str], dtype: str
) -> list[Imprecision]:
    """Return what is computed in less precision, as far as it can be shown.

    Args:
        measure: runs a hypothesis and says which part of the error it leaves.
        failing: results that are imprecise, in order; what follows a fault is too.
        results: names of all steps between, where the same is looked for in other blocks.
        dtype: of the run.
    """
    steps = {_step(name): name for name in reversed(failing)}
    found: list[Imprecision] = []
    for name in failing:
        if steps[_step(name)] != name:
            continue
        imprecision = _imprecision(measure, name, results, dtype)
        if imprecision is not None:
            found.append(imprecision)
        elif not found:  # where the first cannot be explained, others tell nothing of the cause
            return []
    return found


def _step(name: str) -> str:
    """Return what is computed at a result, whatever the block."""
    match = BLOCK_TAP.fullmatch(name)
    if match is None:
        return "encoder.norm" if name == "last_hidden_state" else name
    return "q" if match[3] in ("q", "k", "v") else match[3]


def _imprecision(
    measure: Measure, at: str, results: Sequence[str], dtype: str
) -> Imprecision | None:
    lower = NARROWER if dtype == "float32" else ("float32", *NARROWER)
    parts = list(_parts(at))
    left = {
        (number, precision): measure(part.hypothesis(precision, _block(at)), at)
        for number, part in enumerate(parts)
        for precision in lower
    }
    (number, precision), least = min(left.items(), key=lambda item: item[1], default=((0, ""), 1.0))
    if not least < EXPLAINED:
        return None
    tied = tuple(p for p in lower if left[number, p] <= least + TIED)
    where = _where(measure, parts[number], precision, at, results)
    return Imprecision(at, parts[number].what, where, tied, 1 - least)


def _where(measure: Measure, part: Part, precision: str, at: str, results: Sequence[str]) -> str:
    """Return in which blocks a part is imprecise, in words."""
    match = BLOCK_TAP.fullmatch(at)
    if not match:
        return ""
    alike = [m for name in results if (m := BLOCK_TAP.fullmatch(name)) and m[3] == match[3]]
    found = [
        (m[1], m[2])
        for m in alike
        if measure(part.hypothesis(precision, _block(m[0])), m[0]) < EXPLAINED
    ]
    stacks = {m[1] for m in alike}
    complete = {s for s in stacks if all((m[1], m[2]) in found for m in alike if m[1] == s)}
    if complete == stacks:
        return " in every block"
    if len(complete) == 1 and {stack for stack, _ in found} == complete:
        return f" in every block of the {complete.pop()}"
    others = len(found) - 1
    more = f" and {others} other{'s' if others > 1 else ''}" if others > 0 else ""
    return f" in block {match[2]} of the {match[1]}{more}"


def _block(at: str) -> str:
    return at.rpartition(".")[0]


def _parts(at: str) -> Iterator[Part]:
    """Yield what may be computed in less precision, such that it shows first at a result."""
    match = BLOCK_TAP.fullmatch(at)
    if match:
        yield from _in_block(match[3])
        return
    place = "encoder.norm" if at == "last_hidden_state" else at
    if place in ("reconstruction", "loss", "loss_norm_pix"):
        return
    if "norm" in place:
        yield Part(place, (("norm precision", place, ""),))
    else:
        yield Part(f"the linear layer of {place}", (("precision", place, ""),))
        yield Part(f"the matrix product of {place}", (("precision", place, " products"),))


def _in_block(step: str) -> Iterator[Part]:
    if step == "output":
        yield Part("the sums with the residuals", (("sum precision", "{}", ""),))
        return
    module = "{}.mlp" if step == "mlp" else "{}.attention"
    norm = ("norm precision", "{}.norm2" if step == "mlp" else "{}.norm1", "")
    linear, products = ("precision", module, ""), ("precision", module, " products")
    if step == "attention":
        for where in ("", " kernel", " products"):
            core = ("attention precision", module, where)
            yield Part("attention", (core,))
            yield Part("attention and its output layer", (core, linear))
            yield Part("attention and the matrix product of its output layer", (core, products))
        yield Part("the output layer of attention", (linear,))
        yield Part("the matrix product of attention's output layer", (products,))
        return
    name = "the MLP" if step == "mlp" else "q, k and v"
    yield Part(f"the layer norm before {'the MLP' if step == 'mlp' else 'attention'}", (norm,))
    yield Part(name, (linear,))
    yield Part(f"{name} and the norm before", (norm, linear))
    yield Part(f"the matrix products of {name}", (products,))


def in_the_proof(laboratory: Laboratory, pair: Pair, first: str) -> Explanation | None:
    """Explain a difference in the float64 run by less precision, if that is what it is."""
    steps = _steps(pair.b.trace, "float64")
    failing = [first, *(n for n in steps if execution_order(n) > execution_order(first))]
    causes = _of_run(laboratory, pair.b.trace, "float64", failing, pair.names[1])
    return Explanation(causes, (), ("precision",)) if causes else None


def below_the_proof(pair: Pair, verdict: Verdict) -> Explanation:
    """Explain a side whose error in float32 is too large."""
    failed = [check.name.split("/", 2) for check in verdict.failed()]
    own = [(parts[1], parts[2]) for parts in failed if parts[0] == "float32"]
    causes: tuple[str, ...] = ()
    for side, subject in (("A", pair.a), ("B", pair.b)):
        names = (name for s, name in own if s == side and not name.startswith("grad/"))
        failing = sorted(names, key=execution_order)
        if failing and is_finite(subject.trace, failing[0], "float32"):
            with pair.try_on(subject) as laboratory:
                causes += _of_run(laboratory, subject.trace, "float32", failing, side)
    return Explanation(causes, (), ("precision",) if causes else ())


def _of_run(
    laboratory: Laboratory, trace: Trace, dtype: str, failing: Sequence[str], side: str
) -> tuple[str, ...]:
    def measure(hypothesis: Hypothesis, at: str) -> float:
        return laboratory.unexplained(hypothesis, trace, dtype, at)

    parts = find_imprecisions(measure, failing, _steps(trace, dtype), dtype)
    return _sentences(parts, side, dtype)


def _steps(trace: Trace, dtype: str) -> list[str]:
    """Return the names of the steps between, in order."""
    names = (n for n in trace.arrays if n.startswith(f"{dtype}/tap/"))
    return sorted((n.removeprefix(f"{dtype}/tap/") for n in names), key=execution_order)


def _sentences(parts: Sequence[Imprecision], side: str, dtype: str) -> tuple[str, ...]:
    """Return which parts of a side are computed in less precision."""
    by_precision: dict[str, list[str]] = {}
    for part in parts:
        said = f"{part.part}{part.where} ({part.explained:.0%} of the error at {part.at})"
        by_precision.setdefault(" or ".join(part.precisions), []).append(said)
    return tuple(
        f"{side}'s {dtype} run computes in {precision}, as was tried: {', '.join(said)}"
        for precision, said in by_precision.items()
    )
