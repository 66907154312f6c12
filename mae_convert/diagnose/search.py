"""Search for hypotheses that remove a difference, and confirm them with complete runs."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mae_convert.diagnose.candidates import candidates
from mae_convert.diagnose.hypotheses import Hypothesis, Model
from mae_convert.verify.localise import execution_order

MOST_FAULTS = 4  # maximum number of faults; with more faults, the models are probably unrelated
MOST_OTHERS = 3  # maximum number of equally good hypotheses that are reported
MOST_CONFIRMED = 12  # maximum number of complete runs for each first difference


@dataclass(frozen=True)
class CandidateResult:
    """The result of comparing a changed model with a trace."""

    first: str | None
    """The first result that differs, or None if all agree."""

    largest: float
    """The largest error of the results that agree, relative L2."""


class Compare(Protocol):
    """A function that runs a model with hypotheses and compares its results with a trace."""

    def __call__(
        self, hypotheses: Sequence[Hypothesis], start: str | None = None
    ) -> CandidateResult | None:
        """Return the result of the comparison, or None if a hypothesis does not fit the model.

        Args:
            hypotheses: the hypotheses to apply.
            start: the name of the first result to compare; earlier results are taken from the
                trace. None to compare all results.
        """


@dataclass(frozen=True)
class Finding:
    """A hypothesis whose application removes the difference in a result."""

    hypothesis: Hypothesis
    """The hypothesis."""

    removes: str
    """The name of the result whose difference is removed: the first that differs without it."""

    next: str | None
    """The first result that differs if the hypothesis is applied; None if all results agree."""

    largest: float
    """The largest error (relative L2) of the results that agree if the hypothesis is applied."""

    others: tuple[Hypothesis, ...] = ()
    """Other hypotheses that make all results agree."""


@dataclass(frozen=True)
class SearchResult:
    """The faults that a search found."""

    first: str
    """The first result that differs when no hypothesis is applied."""

    findings: tuple[Finding, ...]
    """The hypotheses that remove a difference, in the order of the results that they affect."""

    remaining: str | None
    """The first result that still differs, or None if everything is explained."""

    tried: int = 0
    """The number of hypotheses that were run."""

    in_time: bool = True
    """Whether all hypotheses were tested within the time limit."""


def search(
    model: Model,
    compare: Compare,
    first: str,
    *,
    base: Sequence[Hypothesis] = (),
    seconds: float = float("inf"),
) -> SearchResult:
    """Find the faults that explain a difference, one after the other.

    Args:
        model: the model of one side, to which hypotheses are applied.
        compare: runs the model with hypotheses and compares the results with the other side.
        first: the first result that differs.
        base: hypotheses that are always applied.
        seconds: time limit after which no further hypothesis is run.
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
    """Return the hypotheses that remove the difference at the result ``first``.

    Earlier results are taken from the side with which the model is compared, so that each run
    computes only one step.

    Args:
        model: the model of one side, to which hypotheses are applied.
        compare: runs the model with hypotheses and compares the results with the other side.
        accepted: the hypotheses that are applied in every run.
        first: the first result that differs with the accepted hypotheses.
        deadline: the value of `time.monotonic` after which no further hypothesis is run.

    Returns:
        The hypotheses with the results of their comparisons, and the number of runs.
    """
    fitting: list[tuple[Hypothesis, CandidateResult]] = []
    tried, seen = 0, set()
    for hypothesis in candidates(model, first):
        edits = repr(hypothesis.plain())
        if edits in seen or time.monotonic() > deadline:
            continue
        seen.add(edits)
        tried += 1
        comparison = compare([*accepted, hypothesis], first)
        if comparison is not None and _later(comparison.first, first):
            fitting.append((hypothesis, comparison))
    # Sort by the first remaining difference, the latest first; ties keep their order.
    fitting.sort(key=lambda pair: _progress(pair[1].first), reverse=True)
    return fitting, tried


def _progress(first: str | None) -> tuple[int, ...]:
    """Return a sort key for the name of the first result that differs, in execution order.

    None, which means that no result differs, has the largest key.
    """
    return (99,) if first is None else execution_order(first)


def _later(first: str | None, than: str) -> bool:
    return _progress(first) > execution_order(than)


def _confirmed(
    compare: Compare,
    accepted: Sequence[Hypothesis],
    first: str,
    fitting: Sequence[tuple[Hypothesis, CandidateResult]],
) -> Finding | None:
    """Return the best confirmed hypothesis as a `Finding`, or None if none is confirmed.

    A hypothesis is better if it leaves no difference, or if the first remaining difference is later
    in execution order. A hypothesis is confirmed if a run of the whole model has the same first
    remaining difference as the run in `fitting`, which computed only ``first`` and later results.

    Args:
        compare: runs the model with hypotheses and compares the results with the other side.
        accepted: the hypotheses that were confirmed before; they are applied in every run.
        first: the first result that differs with the accepted hypotheses.
        fitting: the hypotheses that remove the difference at ``first``, with the results of their
            runs.
    """
    confirmable = [(hypothesis, comparison) for hypothesis, comparison in fitting[:MOST_CONFIRMED]]
    for hypothesis, comparison in fitting[:MOST_CONFIRMED]:
        if comparison.first is not None:
            confirmable += _wider(compare, accepted, first, hypothesis)
    confirmable.sort(key=lambda pair: _progress(pair[1].first), reverse=True)
    while confirmable:
        hypothesis, comparison = confirmable.pop(0)
        complete = compare([*accepted, hypothesis])
        if complete is not None and complete.first == comparison.first:
            rest = [h for h, a in confirmable if complete.first is None and a.first is None]
            others = tuple(_reproducing(compare, accepted, rest[:MOST_OTHERS]))
            return Finding(hypothesis, first, complete.first, complete.largest, others)
    return None


def _reproducing(
    compare: Compare, accepted: Sequence[Hypothesis], hypotheses: Sequence[Hypothesis]
) -> Iterator[Hypothesis]:
    for hypothesis in hypotheses:
        comparison = compare([*accepted, hypothesis])
        if comparison is not None and comparison.first is None:
            yield hypothesis


def _wider(
    compare: Compare, accepted: Sequence[Hypothesis], first: str, hypothesis: Hypothesis
) -> Iterator[tuple[Hypothesis, CandidateResult]]:
    """Yield the variants of a hypothesis for more blocks that also remove a difference.

    Each variant is yielded with the result of its complete run. The last is the first variant that
    leaves no difference, if there is one.

    Args:
        compare: runs the model with hypotheses.
        accepted: hypotheses that are applied in every run.
        first: the name of the result whose difference is removed.
        hypothesis: the hypothesis.
    """
    for wider in hypothesis.widen():
        comparison = compare([*accepted, wider])
        if comparison is not None and _later(comparison.first, first):
            yield wider, comparison
            if comparison.first is None:
                return
