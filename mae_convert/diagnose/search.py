"""Search for the hypotheses that make a difference vanish, and confirm them by complete runs."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mae_convert.diagnose.candidates import candidates
from mae_convert.diagnose.hypotheses import Hypothesis, Model
from mae_convert.verify.localise import execution_order

MOST_FAULTS = 4  # with more than that it is another model
MOST_OTHERS = 3  # equally good hypotheses that are reported
MOST_CONFIRMED = 12  # hypotheses that are run completely for each first difference


@dataclass(frozen=True)
class CandidateResult:
    """How far a changed model agrees with a trace."""

    first: str | None
    """The first result that differs, or None where all are the same."""

    largest: float
    """The largest error of the results that do not differ, relative L2."""


class Compare(Protocol):
    """Runs the model with hypotheses applied, from a given result or from the beginning."""

    def __call__(
        self, hypotheses: Sequence[Hypothesis], start: str | None = None
    ) -> CandidateResult | None:
        """Return the result, or None where a hypothesis does not fit the model."""


@dataclass(frozen=True)
class Finding:
    """A hypothesis that makes the difference at a result vanish."""

    hypothesis: Hypothesis
    """What was applied."""

    removes: str
    """The first result that differs without it."""

    next: str | None
    """The first result that differs with it, or None where all agree."""

    largest: float
    """The largest error before that, relative L2."""

    others: tuple[Hypothesis, ...] = ()
    """Other hypotheses with which all results agree too."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    first: str
    """The first result that differs before any hypothesis is applied."""

    findings: tuple[Finding, ...]
    """Faults in the order of the results that they affect."""

    remaining: str | None
    """The first result that still differs, or None where all is explained."""

    tried: int = 0
    """How many hypotheses were run."""

    in_time: bool = True
    """Whether all candidates could be tried within the time limit."""


def search(
    model: Model,
    compare: Compare,
    first: str,
    *,
    base: Sequence[Hypothesis] = (),
    seconds: float = float("inf"),
) -> SearchResult:
    """Explain a difference by one fault after another.

    Args:
        model: the side that hypotheses change.
        compare: runs it and compares it with the other side.
        first: the first result that differs.
        base: hypotheses that are applied already.
        seconds: time limit, after which no further hypothesis is tried.
    """
    deadline = time.monotonic() + seconds
    result = SearchResult(first, (), first)
    while (remaining := result.remaining) and len(result.findings) < MOST_FAULTS and result.in_time:
        accepted = [*base, *(finding.hypothesis for finding in result.findings)]
        fitting, tried = _fitting(model, compare, accepted, remaining, deadline)
        in_time = time.monotonic() < deadline
        result = replace(result, tried=result.tried + tried, in_time=in_time)
        finding = _confirmed(compare, accepted, remaining, fitting)
        if finding is None:
            break
        result = replace(result, findings=(*result.findings, finding), remaining=finding.next)
    return result


def _fitting(
    model: Model, compare: Compare, accepted: Sequence[Hypothesis], first: str, deadline: float
) -> tuple[list[tuple[Hypothesis, CandidateResult]], int]:
    """Return the hypotheses that remove the difference at ``first``, and how many were tried.

    Earlier results are taken from the other side, so that one step is computed for each.
    """
    fitting: list[tuple[Hypothesis, CandidateResult]] = []
    tried, seen = 0, set()
    for hypothesis in candidates(model, first):
        edits = repr(hypothesis.plain())
        if edits in seen or time.monotonic() > deadline:
            continue
        seen.add(edits)
        tried += 1
        answer = compare([*accepted, hypothesis], first)
        if answer is not None and _later(answer.first, first):
            fitting.append((hypothesis, answer))
    # Those that agree furthest come first; ties stay in the order of the candidates.
    fitting.sort(key=lambda pair: _progress(pair[1].first), reverse=True)
    return fitting, tried


def _progress(first: str | None) -> tuple[int, ...]:
    """Return a sort key for the first difference: the later, the larger."""
    return (99,) if first is None else execution_order(first)


def _later(first: str | None, than: str) -> bool:
    return _progress(first) > execution_order(than)


def _confirmed(
    compare: Compare,
    accepted: Sequence[Hypothesis],
    first: str,
    fitting: Sequence[tuple[Hypothesis, CandidateResult]],
) -> Finding | None:
    """Return the hypothesis that agrees furthest in a complete run from the beginning."""
    confirmable = [(hypothesis, answer) for hypothesis, answer in fitting[:MOST_CONFIRMED]]
    for hypothesis, answer in fitting[:MOST_CONFIRMED]:
        if answer.first is not None:
            confirmable += _wider(compare, accepted, first, hypothesis)
    confirmable.sort(key=lambda pair: _progress(pair[1].first), reverse=True)
    while confirmable:
        hypothesis, answer = confirmable.pop(0)
        whole = compare([*accepted, hypothesis])
        if whole is not None and whole.first == answer.first:
            rest = [h for h, a in confirmable if whole.first is None and a.first is None]
            others = tuple(_reproducing(compare, accepted, rest[:MOST_OTHERS]))
            return Finding(hypothesis, first, whole.first, whole.largest, others)
    return None


def _reproducing(
    compare: Compare, accepted: Sequence[Hypothesis], hypotheses: Sequence[Hypothesis]
) -> Iterator[Hypothesis]:
    for hypothesis in hypotheses:
        answer = compare([*accepted, hypothesis])
        if answer is not None and answer.first is None:
            yield hypothesis


def _wider(
    compare: Compare, accepted: Sequence[Hypothesis], first: str, hypothesis: Hypothesis
) -> Iterator[tuple[Hypothesis, CandidateResult]]:
    """Yield the same hypothesis about more modules, where that removes the difference too."""
    for wider in hypothesis.widen():
        answer = compare([*accepted, wider])
        if answer is not None and _later(answer.first, first):
            yield wider, answer
            if answer.first is None:
                return
