"""Add to a failed verdict why it failed."""

from dataclasses import replace

from mae_convert.verify.causes import explain
from mae_convert.verify.explain.reproduction import Explanation, Pair, explain_by_running
from mae_convert.verify.judge import Verdict, differing_tensors


def explained(verdict: Verdict, pair: Pair) -> Verdict:
    """Return a failed verdict with its causes, and with the guilty tensors before other suspects.

    First comes what was found by running again, then what the tensors themselves show.
    """
    return explained_by(verdict, pair)[0]


def explained_by(verdict: Verdict, pair: Pair) -> tuple[Verdict, Explanation]:
    """Return the same as ``explained``, and what was found by running again."""
    found = explain_by_running(pair, verdict)
    # Suspects that only feed the divergence have equal tensors: there is nothing to explain.
    different = set(differing_tensors(pair.a.trace, pair.b.trace))
    suspects = tuple(dict.fromkeys([*found.guilty, *verdict.suspects]))
    tensors = [name for name in suspects if name in different]
    shown = explain(pair.a.checkpoint, pair.b.checkpoint, tensors)
    causes = (*found.causes, *verdict.causes, *shown)
    return replace(verdict, suspects=suspects, causes=causes), found
