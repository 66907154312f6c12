"""Count outcomes, and print the score as a table for the documentation."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mutation.score import Outcome

EXAMPLES = 2
KINDS = ("weights", "tables", "configurations", "code", "precision")
SEMANTIC = ("configurations", "code", "precision")
TENSORS = ("weights", "tables")


@dataclass(frozen=True)
class Score:
    """The counts of one kind of fault.

    Attributes:
        kind: the kind of fault.
        total: number of faults that were run and verified.
        judged: number of faults whose verdict fails; the others pass without being proven.
        refused: number of faults that are refused before anything is run.
        detected: number of detected faults, of the total.
        by_tensors: number of faults detected by comparing tensors alone, of the total.
        visible: number of faults that have an effect on the forward pass.
        by_traces: number of faults detected without comparing tensors, of the visible ones.
        suspected: number of faults for which the first suspect is one of the changed tensors.
        by_traces_suspected: the same for verdicts on traces alone, of the visible ones.
        named: number of faults whose correct cause is named.
        reproduced: number of faults for which a changed source equals the target at every step.
    """

    kind: str
    total: int
    judged: int
    refused: int
    detected: int
    by_tensors: int
    visible: int
    by_traces: int
    suspected: int
    by_traces_suspected: int
    named: int
    reproduced: int


def score(kind: str, outcomes: Iterable[Outcome]) -> Score:
    """Return the counts of one kind of fault."""
    mine = [outcome for outcome in outcomes if outcome.mutant.kind == kind]
    run = [outcome for outcome in mine if outcome.detected != {"refused"}]
    visible = [outcome for outcome in run if not outcome.mutant.blind]
    judged = [outcome for outcome in run if outcome.detected != {"proof"}]
    return Score(
        kind=kind,
        total=len(run),
        judged=len(judged),
        refused=len(mine) - len(run),
        detected=sum(bool(o.detected) for o in run),
        by_tensors=sum("tensors" in o.detected for o in run),
        visible=len(visible),
        by_traces=sum("traces" in o.detected for o in visible),
        suspected=sum(o.suspect for o in run),
        by_traces_suspected=sum(o.by_traces for o in visible),
        named=sum(o.named for o in run),
        reproduced=sum(o.reproduced for o in run),
    )


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the score as a table."""
    rows = [
        "| faults in | detected | by tensors alone | by traces alone | first suspect correct"
        " (by traces alone) | cause named | reproduced |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        s = score(kind, outcomes)
        if s.total == 0:
            continue
        suspects = f"{share(s.suspected, s.judged)} ({share(s.by_traces_suspected, s.visible)})"
        rows.append(
            f"| {kind} | {s.detected} of {s.total} | {s.by_tensors} | {s.by_traces} of {s.visible}"
            f" | {suspects if kind in TENSORS else ''}"
            f" | {share(s.named, s.total) if kind in SEMANTIC else ''}"
            f" | {share(s.reproduced, s.judged)} |"
        )
    return "\n".join(rows)


def share(part: int, whole: int) -> str:
    """Return a count and its share."""
    return f"{part} of {whole}, {part / whole:.1%}" if whole else "0 of 0"


def remarks(outcomes: Sequence[Outcome], *, causes: bool = True) -> Iterator[str]:
    """Yield remarks to the table: faults that no forward pass shows, and errors.

    Args:
        outcomes: all outcomes.
        causes: whether to list the faults whose cause is not named.
    """
    refused = [o for o in outcomes if o.detected == {"refused"}]
    yield f"refused before anything runs: {len(refused)}"
    blind = [o for o in outcomes if o.mutant.blind]
    yield f"invisible to a forward pass: {len(blind)}"
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in blind:
        seen = ", ".join(sorted(outcome.detected))
        groups.setdefault((outcome.mutant.kind, str(outcome.mutant.blind), seen), []).append(
            outcome
        )
    for (kind, why, seen), alike in groups.items():
        examples = "; ".join(outcome.mutant.name for outcome in alike[:EXAMPLES])
        yield f"  {len(alike)} {kind}, {why}: seen by {seen} ({examples})"
    for what, failed in failures(outcomes).items():
        if what == "cause not named" and not causes:
            continue
        yield f"{what}: {len(failed)}"
        for outcome in failed:
            cause = outcome.causes[0] if outcome.causes else "nothing"
            yield f"  {outcome.mutant.name}: {cause}"


def _has_suspects(outcome: Outcome) -> bool:
    """Return whether a verdict failed and its suspects are tensors."""
    return outcome.mutant.kind in TENSORS and outcome.detected != {"proof"}


def failures(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Return the unexpected outcomes, by kind of failure."""
    run = [o for o in outcomes if o.detected != {"refused"}]
    return {
        "not detected": [o for o in run if not o.detected],
        "not detected by traces": [
            o for o in run if o.detected and not o.mutant.blind and "traces" not in o.detected
        ],
        "first suspect not correct": [
            o for o in run if _has_suspects(o) and o.detected and not o.suspect
        ],
        "cause not named": [
            o for o in run if o.mutant.kind in SEMANTIC and o.detected and not o.named
        ],
    }
