"""Search for what makes a difference vanish: try what can explain it, and confirm what does."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mae_convert.diagnose.candidates import candidates
from mae_convert.diagnose.hypotheses import Hypothesis, Model
from mae_convert.verify.localise import execution_order

MOST_FAULTS = 4  # at once; who has more has another model
MOST_OTHERS = 3  # hypotheses that explain as much, and are told
MOST_CONFIRMED = 12  # hypotheses that are run in full for each first difference


@dataclass(frozen=True)
class Answer:
    """How far a changed model gets along a trace.

    Attributes:
        first: the first result that differs, or None where all are the same.
        largest: the largest error of the results that do not differ, relative L2.
    """

    first: str | None
    largest: float


class Compare(Protocol):
    """Runs the model with hypotheses, from a result on or from the beginning."""

    def __call__(self, hypotheses: Sequence[Hypothesis], start: str | None = None) -> Answer | None:
        """Return the answer, or None where a hypothesis does not fit the model."""


@dataclass(frozen=True)
class Finding:
    """A hypothesis that makes the difference at a result vanish.

    Attributes:
        hypothesis: what was applied.
        removes: the result at which the sides parted without it.
        next: where they part with it, or None: nothing is left.
        largest: the largest error before that, relative L2.
        others: other hypotheses that leave nothing either.
    """

    hypothesis: Hypothesis
    removes: str
    next: str | None
    largest: float
    others: tuple[Hypothesis, ...] = ()


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        first: the result at which the sides part before anything is found.
        findings: faults in the order in which they show.
        left: where the sides still part, or None: they are explained.
        tried: how many hypotheses were run.
        in_time: whether all that were to be tried were.
    """

    first: str
    findings: tuple[Finding, ...]
    left: str | None
    tried: int = 0
    in_time: bool = True


def search(
    model: Model,
    compare: Compare,
    first: str,
    *,
    base: Sequence[Hypothesis] = (),
    seconds: float = float("inf"),
) -> Search:
    """Explain a difference by one fault after another.

    Args:
        model: the side that hypotheses change.
        compare: runs it and compares it with the other side.
        first: the first result that differs.
        base: hypotheses that hold already.
        seconds: after that no more hypotheses are tried.
    """
    deadline = time.monotonic() + seconds
    found = Search(first, (), first)
    while (left := found.left) and len(found.findings) < MOST_FAULTS and found.in_time:
        held = [*base, *(finding.hypothesis for finding in found.findings)]
        fitting, tried = _fitting(model, compare, held, left, deadline)
        in_time = time.monotonic() < deadline
        found = replace(found, tried=found.tried + tried, in_time=in_time)
        finding = _confirmed(compare, held, left, fitting)
        if finding is None:
            break
        found = replace(found, findings=(*found.findings, finding), left=finding.next)
    return found


def _fitting(
    model: Model, compare: Compare, held: Sequence[Hypothesis], first: str, deadline: float
) -> tuple[list[tuple[Hypothesis, Answer]], int]:
    """Return the hypotheses that remove the difference at ``first``, and how many were tried.

    What comes before is taken from the other side, so that one step is computed for each.
    """
    fitting: list[tuple[Hypothesis, Answer]] = []
    tried, seen = 0, set()
    for hypothesis in candidates(model, first):
        what = repr(hypothesis.plain())
        if what in seen or time.monotonic() > deadline:
            continue
        seen.add(what)
        tried += 1
        answer = compare([*held, hypothesis], first)
        if answer is not None and _later(answer.first, first):
            fitting.append((hypothesis, answer))
    # What leaves nothing first, then what leads furthest; in the order of the candidates.
    fitting.sort(key=lambda pair: _distance(pair[1].first), reverse=True)
    return fitting, tried


def _distance(first: str | None) -> tuple[int, ...]:
    """Return how far a run gets, as something to sort by."""
    return (99,) if first is None else execution_order(first)


def _later(first: str | None, than: str) -> bool:
    return _distance(first) > execution_order(than)


def _confirmed(
    compare: Compare,
    held: Sequence[Hypothesis],
    first: str,
    fitting: Sequence[tuple[Hypothesis, Answer]],
) -> Finding | None:
    """Return the hypothesis that leads furthest when everything is run, from the beginning."""
    known = [(hypothesis, answer) for hypothesis, answer in fitting[:MOST_CONFIRMED]]
    for hypothesis, answer in fitting[:MOST_CONFIRMED]:
        if answer.first is not None:
            known += _wider(compare, held, first, hypothesis)
    known.sort(key=lambda pair: _distance(pair[1].first), reverse=True)
    while known:
        hypothesis, answer = known.pop(0)
        whole = compare([*held, hypothesis])
        if whole is not None and whole.first == answer.first:
            rest = [h for h, a in known if whole.first is None and a.first is None]
            others = tuple(_reproducing(compare, held, rest[:MOST_OTHERS]))
            return Finding(hypothesis, first, whole.first, whole.largest, others)
    return None


def _reproducing(
    compare: Compare, held: Sequence[Hypothesis], hypotheses: Sequence[Hypothesis]
) -> Iterator[Hypothesis]:
    for hypothesis in hypotheses:
        answer = compare([*held, hypothesis])
        if answer is not None and answer.first is None:
            yield hypothesis


def _wider(
    compare: Compare, held: Sequence[Hypothesis], first: str, hypothesis: Hypothesis
) -> Iterator[tuple[Hypothesis, Answer]]:
    """Yield the same hypothesis about more places, where that removes the difference too."""
    for wider in hypothesis.widen():
        answer = compare([*held, wider])
        if answer is not None and _later(answer.first, first):
            yield wider, answer
            if answer.first is None:
                return
