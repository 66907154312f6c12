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
        kind: of fault.
        total: faults that were run and verified.
        judged: faults whose verdict fails; the others pass without being proven.
        refused: faults that are refused before anything runs.
        caught: of the total.
        by_tensors: of the total, by comparing tensors alone.
        visible: faults of which a forward pass can show anything.
        by_traces: of the visible ones, with no tensor compared.
        suspected: the first suspect is one of the changed tensors, by the whole verdict.
        by_traces_suspected: the same by the traces alone, of the visible ones.
        named: the right cause is named.
        reproduced: a changed model did what the faulty one does, at every step.
    """

    kind: str
    total: int
    judged: int
    refused: int
    caught: int
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
    run = [outcome for outcome in mine if outcome.caught != {"refused"}]
    visible = [outcome for outcome in run if not outcome.mutant.blind]
    judged = [outcome for outcome in run if outcome.caught != {"proof"}]
    return Score(
        kind=kind,
        total=len(run),
        judged=len(judged),
        refused=len(mine) - len(run),
        caught=sum(bool(o.caught) for o in run),
        by_tensors=sum("tensors" in o.caught for o in run),
        visible=len(visible),
        by_traces=sum("traces" in o.caught for o in visible),
        suspected=sum(o.suspect for o in run),
        by_traces_suspected=sum(o.by_traces for o in visible),
        named=sum(o.named for o in run),
        reproduced=sum(o.reproduced for o in run),
    )


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the score as a table."""
    rows = [
        "| faults in | caught | by tensors alone | by traces alone | first suspect correct"
        " (by traces alone) | cause named | reproduced |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        s = score(kind, outcomes)
        if s.total == 0:
            continue
        suspects = f"{share(s.suspected, s.judged)} ({share(s.by_traces_suspected, s.visible)})"
        rows.append(
            f"| {kind} | {s.caught} of {s.total} | {s.by_tensors} | {s.by_traces} of {s.visible}"
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
    refused = [o for o in outcomes if o.caught == {"refused"}]
    yield f"refused before anything runs: {len(refused)}"
    blind = [o for o in outcomes if o.mutant.blind]
    yield f"invisible to a forward pass: {len(blind)}"
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in blind:
        seen = ", ".join(sorted(outcome.caught))
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
    """Return whether a verdict failed whose suspects are tensors."""
    return outcome.mutant.kind in TENSORS and outcome.caught != {"proof"}


def failures(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Return the unexpected outcomes, by kind of failure."""
    run = [o for o in outcomes if o.caught != {"refused"}]
    return {
        "not caught": [o for o in run if not o.caught],
        "not caught by traces": [
            o for o in run if o.caught and not o.mutant.blind and "traces" not in o.caught
        ],
        "first suspect not correct": [
            o for o in run if _has_suspects(o) and o.caught and not o.suspect
        ],
        "cause not named": [
            o for o in run if o.mutant.kind in SEMANTIC and o.caught and not o.named
        ],
    }
