"""Of how many faults that make results differ the first difference is reduced to one step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_convert.diagnose.reduce import step_of
from mae_convert.runtime.trace import Trace
from mae_convert.verify.judge import judge
from mutation.population import Mutant
from mutation.running import run_all
from mutation.score import runs_of

KINDS = ("weights", "tables", "configurations", "code")


@dataclass(frozen=True)
class Reduced:
    """A fault that makes a float64 result differ, the first such result, and its step or None."""

    mutant: Mutant
    first: str
    step: str | None


def reductions(mutants: Sequence[Mutant], folder: Path) -> list[Reduced]:
    """Run faults, and return those that make a result differ."""
    runnable = [mutant for mutant in mutants if mutant.refused is None]
    traces = run_all(runs_of(runnable), folder)
    targets = traces[len(traces) - len(runnable) :]
    sources = {
        (str(run.checkpoint.path), id(run.checkpoint), run.framework): trace
        for run, trace in zip(runs_of(runnable), traces, strict=True)
    }
    all_reductions = []
    for mutant, b in zip(runnable, targets, strict=True):
        run = mutant.a
        a = sources[str(run.checkpoint.path), id(run.checkpoint), run.framework]
        if not isinstance(a, Trace) or not isinstance(b, Trace):  # the framework refuses the file
            continue
        if first := judge(a, b).first_divergence:
            step = step_of(first, a, run.checkpoint)
            all_reductions.append(Reduced(mutant, first, step and step.kind))
    return all_reductions


def table(results: Sequence[Reduced]) -> str:
    """Return the score as a Markdown table."""
    lines = ["| faults in | reduced to one step |", "|---|---|"]
    for kind in KINDS:
        own = [reduced for reduced in results if reduced.mutant.kind == kind]
        if own:
            lines.append(f"| {kind} | {sum(r.step is not None for r in own)} of {len(own)} |")
    return "\n".join(lines)


def remarks(results: Sequence[Reduced]) -> list[str]:
    """Return at which results the others differ first, with their number."""
    others = [reduced.first for reduced in results if reduced.step is None]
    return [f"{others.count(first)} first at {first}" for first in sorted(set(others))]
