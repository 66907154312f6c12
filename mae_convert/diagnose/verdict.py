"""Add to a failed verdict why it failed."""

from dataclasses import replace

from mae_convert.diagnose.pair import Explanation, Pair
from mae_convert.diagnose.process import Subject
from mae_convert.diagnose.reproduction import explain_by_running
from mae_convert.diagnose.signs import signs
from mae_convert.diagnose.tensor_differences import explain
from mae_convert.verify.judge import Verdict, differing_tensors
from mae_convert.verify.trace import Trace
from mae_convert.verify.verification import Verification

# Checks of files, certificates and of what a proof needs: where only these fail, the two sides
# compute the same, so that there is nothing to diagnose.
NOT_OF_RESULTS = ("proof/", "file/", "certificate/")


def diagnose(done: Verification) -> Verification:
    """Return a verification that failed with the causes of its failure, as far as they are found.

    A verification that passed is returned as it is, and so is one without traces. Where a
    certificate stands for the source, the causes are what the traces alone show.
    """
    failed = [c for c in done.verdict.failed() if not c.name.startswith(NOT_OF_RESULTS)]
    if not failed or not done.traces:
        return done
    if not done.runs:
        return replace(done, verdict=explained_by_traces(done.verdict, *done.traces[:2]))
    source, target = (
        Subject(run.checkpoint, trace, run.as_stored)
        for run, trace in zip(done.runs, done.traces[:2], strict=True)
    )
    python = next((r.side.python for r in done.runs if r.side.framework == "torch"), None)
    ratio, limit = done.runs[0].request.mask_ratio or 0.0, done.runs[0].side.time_limit
    pair = Pair(source, target, done.inputs, ratio, python=python, time_limit=limit)
    return replace(done, verdict=explained(done.verdict, pair))


def explained(verdict: Verdict, pair: Pair) -> Verdict:
    """Return a failed verdict with its causes, and with the guilty tensors before other suspects.

    First comes what was found by running again, then what the tensors themselves show, and, where
    nothing was found, what the traces do.
    """
    return explained_by(verdict, pair)[0]


def explained_by(verdict: Verdict, pair: Pair) -> tuple[Verdict, Explanation]:
    """Return the same as ``explained``, and what was found by running again."""
    found = explain_by_running(pair, verdict)
    different = set(differing_tensors(pair.a.trace, pair.b.trace))
    suspects = tuple(dict.fromkeys([*found.guilty, *verdict.suspects]))
    tensors = [name for name in suspects if name in different]
    if different:  # those that only feed the divergence and are equal are no suspects
        suspects = tuple(n for n in suspects if n in different or n in found.guilty)
    shown = explain(pair.a.checkpoint, pair.b.checkpoint, tensors)
    first = verdict.first_divergence
    seen = [] if found.keys else signs(pair.a.trace, pair.b.trace, first)
    causes = (*found.causes, *verdict.causes, *shown, *seen)
    return replace(verdict, suspects=suspects, causes=causes), found


def explained_by_traces(verdict: Verdict, a: Trace, b: Trace) -> Verdict:
    """Return a failed verdict with what the traces alone show of its causes."""
    if verdict.passed:
        return verdict
    seen = signs(a, b, verdict.first_divergence)
    return replace(verdict, causes=(*verdict.causes, *seen))
