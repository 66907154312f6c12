"""Find the parts of a model that are computed in lower precision than requested."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mae_convert.diagnose.candidate_process import CandidateProcess, Explanation, Pair, is_finite
from mae_convert.diagnose.hypotheses import Hypothesis, Variant
from mae_convert.runtime.trace import Trace
from mae_convert.text import plural
from mae_convert.verify.judge import Verdict
from mae_convert.verify.localise import BLOCK_TAP, execution_order

# A simulated precision explains an error if it reproduces most of it. Other roundings, or the same
# rounding in another module, cause errors in other directions, so they do not reproduce the error.
EXPLAINED = 0.5
# Precisions are reported together if their remaining errors differ by less than this: float16 and
# TF32 both have eleven bits.
TIED = 0.02
NARROWER = ("bfloat16", "float16", "TF32", "TF32, truncated")

# A function that takes a hypothesis and the name of a result, computes the result with the
# hypothesis from the earlier results of the imprecise side, and returns the fraction of the
# result's error that remains.
Measure = Callable[[Hypothesis, str], float]


@dataclass(frozen=True)
class ModelPart:
    """A part of the computation that may be computed in lower precision."""

    name: str
    """The name of the part in messages."""

    kinds: tuple[tuple[str, str, str], ...]
    """The variants of the model that lower the precision of the part: for each variant, the name of
    the variant, a module path in which ``{}`` stands for the path of a block, and a suffix. The
    suffix is added to the name of the precision: ``" products"`` gives ``"bfloat16 products"``."""

    def hypothesis(self, precision: str, block: str) -> Hypothesis:
        """Return the hypothesis that the part is computed in `precision` in one block."""
        variants: tuple[Variant, ...] = tuple(
            (kind, path.format(block), precision + suffix) for kind, path, suffix in self.kinds
        )
        return Hypothesis("precision", self.name, variants=variants)


@dataclass(frozen=True)
class Imprecision:
    """A part that is computed in lower precision."""

    at: str
    """The name of the first result that the part computes imprecisely."""

    part: str
    """The name of the part in messages."""

    where: str
    """A phrase about the blocks that contain the part; "" outside of blocks."""

    precisions: tuple[str, ...]
    """The precision that explains the error, or several precisions that explain it equally well."""

    explained: float
    """The fraction of the error of the result `at` that the lower precision explains, at most 1."""


def find_imprecisions(
    measure: Measure, failing: Sequence[str], results: Sequence[str], dtype: str
) -> list[Imprecision]:
    """Return the parts of a model that are computed in lower precision.

    Args:
        measure: a function that runs a hypothesis and returns the fraction of the error that
            remains.
        failing: the names of the results whose errors are too large or may follow from errors of
            earlier results, in execution order.
        results: the names of all intermediate activations, so that a part can be tested in every
            block.
        dtype: the dtype of the run.
    """
    steps = {_step(name): name for name in reversed(failing)}
    imprecisions: list[Imprecision] = []
    for name in failing:
        if steps[_step(name)] != name:
            continue
        imprecision = _imprecision(measure, name, results, dtype)
        if imprecision is not None:
            imprecisions.append(imprecision)
        elif not imprecisions:  # later errors may follow from an unexplained one
            return []
    return imprecisions


def _step(name: str) -> str:
    """Return the name of the step that computes the result ``name``.

    The name of a step in a block does not contain the block's number, as in "mlp". The results q,
    k and v have one step, "q".
    """
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
    return Imprecision(at, parts[number].name, where, tied, 1 - least)


def _where(
    measure: Measure, part: ModelPart, precision: str, at: str, results: Sequence[str]
) -> str:
    """Return a phrase about the blocks in which a part is imprecise; "" outside of blocks.

    Args:
        measure: runs a hypothesis and returns the fraction of the error that remains.
        part: the part of the computation.
        precision: the precision in which the part is computed.
        at: the name of the first result that the part computes imprecisely.
        results: the names of all intermediate activations.
    """
    match = BLOCK_TAP.fullmatch(at)
    if not match:
        return ""
    alike = [m for name in results if (m := BLOCK_TAP.fullmatch(name)) and m[3] == match[3]]
    layers = [
        (m[1], m[2])
        for m in alike
        if measure(part.hypothesis(precision, _block(m[0])), m[0]) < EXPLAINED
    ]
    stacks = {m[1] for m in alike}
    complete = {s for s in stacks if all((m[1], m[2]) in layers for m in alike if m[1] == s)}
    if complete == stacks:
        return " in every block"
    if len(complete) == 1 and {stack for stack, _ in layers} == complete:
        return f" in every block of the {complete.pop()}"
    others = len(layers) - 1
    more = f" and {plural(others, 'other')}" if others > 0 else ""
    return f" in block {match[2]} of the {match[1]}{more}"


def _block(at: str) -> str:
    return at.rpartition(".")[0]


def _parts(at: str) -> Iterator[ModelPart]:
    """Yield the parts of the computation that can affect the result `at`."""
    match = BLOCK_TAP.fullmatch(at)
    if match:
        yield from _in_block(match[3])
        return
    path = "encoder.norm" if at == "last_hidden_state" else at
    if path in ("reconstruction", "loss", "loss_norm_pix"):
        return
    if "norm" in path:
        yield ModelPart(path, (("norm precision", path, ""),))
    else:
        yield ModelPart(f"the linear layer of {path}", (("precision", path, ""),))
        yield ModelPart(f"the matrix product of {path}", (("precision", path, " products"),))


def _in_block(step: str) -> Iterator[ModelPart]:
    if step == "output":
        yield ModelPart("the sums of the residual connections", (("sum precision", "{}", ""),))
        return
    module = "{}.mlp" if step == "mlp" else "{}.attention"
    norm = ("norm precision", "{}.norm2" if step == "mlp" else "{}.norm1", "")
    linear, products = ("precision", module, ""), ("precision", module, " products")
    if step == "attention":
        for where in ("", " kernel", " products"):
            core = ("attention precision", module, where)
            yield ModelPart("attention", (core,))
            yield ModelPart("attention and its output layer", (core, linear))
            yield ModelPart(
                "attention and the matrix product of its output layer", (core, products)
            )
        yield ModelPart("the output layer of attention", (linear,))
        yield ModelPart("the matrix product of attention's output layer", (products,))
        return
    name = "the MLP" if step == "mlp" else "q, k and v"
    yield ModelPart(f"the layer norm before {'the MLP' if step == 'mlp' else 'attention'}", (norm,))
    yield ModelPart(name, (linear,))
    yield ModelPart(f"{name} and the preceding layer norm", (norm, linear))
    yield ModelPart(f"the matrix products of {name}", (products,))


def explain_float64_difference(
    process: CandidateProcess, pair: Pair, first: str
) -> Explanation | None:
    """Explain a float64 difference by parts that B computes in lower precision, or return None.

    Args:
        process: a process that runs A's model with hypotheses applied.
        pair: the two sides.
        first: the first result that differs.
    """
    steps = _steps(pair.b.trace, "float64")
    failing = [first, *(n for n in steps if execution_order(n) > execution_order(first))]
    causes = _causes_in_run(process, pair.b.trace, "float64", failing, pair.names[1])
    return Explanation(causes, (), ("precision",)) if causes else None


def explain_float32_errors(pair: Pair, verdict: Verdict) -> Explanation:
    """Explain why the rounding error of a side in float32 is too large."""
    failed = [check.name.split("/", 2) for check in verdict.failed()]
    imprecise = [(parts[1], parts[2]) for parts in failed if parts[0] == "float32"]
    causes: tuple[str, ...] = ()
    for side, result in (("A", pair.a), ("B", pair.b)):
        names = (name for s, name in imprecise if s == side and not name.startswith("grad/"))
        failing = sorted(names, key=execution_order)
        if failing and is_finite(result.trace, failing[0], "float32"):
            with pair.start_process(result) as process:
                causes += _causes_in_run(process, result.trace, "float32", failing, side)
    return Explanation(causes, (), ("precision",) if causes else ())


def _causes_in_run(
    process: CandidateProcess, trace: Trace, dtype: str, failing: Sequence[str], side: str
) -> tuple[str, ...]:
    def measure(hypothesis: Hypothesis, at: str) -> float:
        return process.unexplained(hypothesis, trace, dtype, at)

    parts = find_imprecisions(measure, failing, _steps(trace, dtype), dtype)
    return _sentences(parts, side, dtype)


def _steps(trace: Trace, dtype: str) -> list[str]:
    """Return the names of the intermediate activations of a run in execution order."""
    names = (n for n in trace.arrays if n.startswith(f"{dtype}/tap/"))
    return sorted((n.removeprefix(f"{dtype}/tap/") for n in names), key=execution_order)


def _sentences(parts: Sequence[Imprecision], side: str, dtype: str) -> tuple[str, ...]:
    """Return sentences about the parts of a side that are computed in lower precision."""
    by_precision: dict[str, list[str]] = {}
    for part in parts:
        text = f"{part.part}{part.where} ({part.explained:.0%} of the error at {part.at})"
        by_precision.setdefault(" or ".join(part.precisions), []).append(text)
    return tuple(
        f"a test shows that {side}'s {dtype} run uses {precision} to compute {', '.join(texts)}"
        for precision, texts in by_precision.items()
    )
