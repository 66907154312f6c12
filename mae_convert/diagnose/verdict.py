"""Add to a failed verdict why it failed."""

from dataclasses import replace

from mae_convert.diagnose.pair import Explanation, Pair
from mae_convert.diagnose.reproduction import explain_by_running
from mae_convert.diagnose.signs import signs
from mae_convert.diagnose.tensor_differences import explain
from mae_convert.verify.judge import Verdict, differing_tensors
from mae_convert.verify.trace import Trace


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
