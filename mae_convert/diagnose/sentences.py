"""What was found, in sentences."""

from collections.abc import Iterable, Iterator, Sequence

from mae_convert.diagnose.hypothesis import Hypothesis
from mae_convert.diagnose.precision import Imprecision
from mae_convert.diagnose.search import Search

Names = tuple[str, str]  # of the side that was changed, and of the one that it became


def not_tested(kinds: Iterable[str]) -> str:
    """Return what could not be tested without PyTorch."""
    return (
        f"not tested, because PyTorch is not installed: {', '.join(kinds)}; pip install"
        " 'mae-convert[torch]' and verify again"
    )


def accounted_for(theirs: Sequence[Hypothesis], names: Names, largest: float) -> str:
    """Return that the other side's tensors or configuration explain everything."""
    a, b = names
    given = " and ".join(hypothesis.statement for hypothesis in theirs)
    return f"{a} with {given} computes what {b} does: {_reproduced(largest)}; nothing else differs"


def _reproduced(largest: float) -> str:
    return f"reproduced at every step (largest error {largest:.1e})"


def found(result: Search, base: Sequence[Hypothesis], names: Names) -> tuple[str, ...]:
    """Return what a search found, and what it did not.

    Args:
        result: what was found.
        base: what one side was given of the other before, and how far that led.
        names: of the sides.
    """
    a, b = names
    given = f" with {' and '.join(h.statement for h in base)}" if base else ""
    nearer = (
        f"{a}{given} comes nearer to {b}: the next difference is at {result.first}" if base else ""
    )
    more = _found(
        result,
        f"{b} is what {a}{given} becomes when",
        f"{a}{given} comes nearer to {b} when",
        b,
    )
    return (*([nearer] if nearer else []), *more)


def own_run(result: Search, names: Names) -> tuple[str, ...]:
    """Return what a search found about a run that is not what its tensors compute."""
    a, b = names
    plain = (
        f"{b} is what {a}'s tensors and configuration compute in the PyTorch reference model, and"
        f" {a}'s own run is not"
    )
    there = f"{a}'s run is what they compute when"
    return (
        plain,
        *_found(result, there, f"{a}'s run is nearer to what they compute when", f"{a}'s run"),
    )


def _found(result: Search, there: str, nearer: str, target: str) -> Iterator[str]:
    findings = result.findings
    said = " and ".join(finding.hypothesis.statement for finding in findings)
    if findings and result.left is None:
        yield f"{there} {said}: {_reproduced(findings[-1].largest)}"
        for other in findings[-1].others:
            yield f"the same results follow when {other.statement}; they do not tell which it is"
    elif findings:
        yield f"{nearer} {said}: that removes the difference at {findings[0].removes}"
    if len(findings) > 1:
        for finding in findings:
            yield f"the difference at {finding.removes} is gone when {finding.hypothesis.statement}"
    if result.left is not None:
        more = "" if result.in_time else "; there was no time for more"
        yield (
            f"no explanation of {target} at {result.left} was found: none of"
            f" {result.tried} hypotheses makes it vanish{more}"
        )


def imprecise(parts: Sequence[Imprecision], side: str, dtype: str) -> tuple[str, ...]:
    """Return which parts of a side are computed in less precision."""
    by_precision: dict[str, list[str]] = {}
    for part in parts:
        said = f"{part.part}{part.where} ({part.explained:.0%} of the error at {part.at})"
        by_precision.setdefault(" or ".join(part.precisions), []).append(said)
    return tuple(
        f"{side}'s {dtype} run computes in {precision}, as was tried: {', '.join(said)}"
        for precision, said in by_precision.items()
    )
