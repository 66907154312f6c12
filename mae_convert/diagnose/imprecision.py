"""Explain an error by less precision: try what a side may compute in a narrower type."""

from collections.abc import Sequence

from mae_convert.diagnose import sentences
from mae_convert.diagnose.hypothesis import Hypothesis
from mae_convert.diagnose.pair import Explanation, Pair, is_finite
from mae_convert.diagnose.precision import find_imprecisions
from mae_convert.diagnose.process import Laboratory
from mae_convert.verify.judge import Verdict
from mae_convert.verify.localise import execution_order
from mae_convert.verify.trace import Trace


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
    return sentences.imprecise(parts, side, dtype)


def _steps(trace: Trace, dtype: str) -> list[str]:
    """Return the names of the steps between, in order."""
    names = (n for n in trace.arrays if n.startswith(f"{dtype}/tap/"))
    return sorted((n.removeprefix(f"{dtype}/tap/") for n in names), key=execution_order)
