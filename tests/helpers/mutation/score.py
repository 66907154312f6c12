"""Run all mutants, verify them against their sources, and explain the differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_convert.diagnose.candidate_process import Pair, SideResult
from mae_convert.diagnose.diagnosis import diagnose_pair, diagnose_traces
from mae_convert.runtime.trace import Trace
from mae_convert.verify.judge import judge
from mutation.in_process import InProcess
from mutation.population import Mutant
from mutation.running import Run, run_all


@dataclass(frozen=True)
class Outcome:
    """The outcome of a mutant.

    Attributes:
        mutant: the fault.
        detected: how the fault was detected: by "tensors", "traces" or "configuration"; "refused";
            "proof" if the verdict is passed but not proven.
        suspect: whether the first suspect of the complete verdict is one of the changed tensors.
        by_traces: whether the first suspect by traces alone is one of the changed tensors.
        named: whether the correct cause is named.
        reproduced: whether the explanation reproduces the difference completely.
        causes: the reported causes.
        signs: the causes that follow from the traces alone.
    """

    mutant: Mutant
    detected: frozenset[str]
    suspect: bool = False
    by_traces: bool = False
    named: bool = False
    reproduced: bool = False
    causes: tuple[str, ...] = ()
    signs: tuple[str, ...] = ()


def outcomes(mutants: Sequence[Mutant], folder: Path) -> list[Outcome]:
    """Run mutants and return the outcome of each."""
    return judged(mutants, run_all(runs_of(mutants), folder))


def runs_of(mutants: Sequence[Mutant]) -> list[Run]:
    """Return the runs of the sources, without duplicates, followed by those of the targets."""
    runnable = [mutant for mutant in mutants if mutant.refused is None]
    sources = {_key(mutant.a): mutant.a for mutant in runnable}
    return [*sources.values(), *(mutant.b for mutant in runnable)]


def judged(mutants: Sequence[Mutant], traces: Sequence[Trace | str]) -> list[Outcome]:
    """Return the outcomes of mutants from the traces of their runs, in the order of `runs_of`."""
    runnable = [mutant for mutant in mutants if mutant.refused is None]
    sources = dict.fromkeys(_key(mutant.a) for mutant in runnable)
    trace_of = dict(zip(sources, traces, strict=False))
    targets = iter(traces[len(sources) :])
    return [
        Outcome(mutant, frozenset({"refused"}), causes=(mutant.refused,))
        if mutant.refused is not None
        else outcome(mutant, trace_of[_key(mutant.a)], next(targets))
        for mutant in mutants
    ]


def _key(run: Run) -> tuple:
    return (str(run.checkpoint.path), id(run.checkpoint), run.framework)


def outcome(mutant: Mutant, a: Trace, b: Trace | str) -> Outcome:
    """Verify and explain one pair."""
    assert isinstance(a, Trace), a
    if isinstance(b, str):  # the framework refuses the file
        return Outcome(mutant, frozenset({"refused"}), causes=(b,))
    verdict, alone = judge(a, b), judge(a, b, compare_weights=False)
    detected = {_kind(check.name) for check in verdict.failed()}
    if verdict.passed:
        # Passed and not proven: --require-proof makes that a failure.
        return Outcome(mutant, frozenset() if verdict.proven else frozenset({"proof"}))
    subjects = (SideResult(mutant.a.checkpoint, a), SideResult(mutant.b.checkpoint, b))
    pair = Pair(*subjects, mutant.b.inputs, mutant.b.mask_ratio, process_class=InProcess)
    whole, explanation = diagnose_pair(verdict, pair)
    right = bool(set(explanation.keys) & set(mutant.keys)) or not mutant.keys
    names_cause = any(all(word in cause for word in mutant.words) for cause in whole.causes)
    sayable = bool(mutant.keys or mutant.words)
    return Outcome(
        mutant,
        frozenset(detected),
        suspect=bool(set(whole.suspects[:1]) & set(mutant.changed_tensors)),
        by_traces=bool(set(alone.suspects[:1]) & set(mutant.changed_tensors)),
        named=sayable and right and names_cause,
        reproduced=any("reproduced" in cause for cause in whole.causes),
        causes=whole.causes,
        signs=diagnose_traces(alone, a, b).causes,
    )


def _kind(check: str) -> str:
    kind = check.split("/", maxsplit=1)[0]
    return {"weights": "tensors", "configuration": "configuration"}.get(kind, "traces")
