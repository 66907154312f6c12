"""Print a verdict."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table as Grid

from mae_convert.plain import plain
from mae_convert.show.console import console, number
from mae_convert.show.conversion import step_in_words
from mae_convert.verify.judge import UNIT_ROUNDOFF, Check, Verdict

MOST_ROWS = 20


def verdict(result: Verdict) -> None:
    """Print a verdict: what was compared, how far apart, what the limit was."""
    out = console()
    for witness in result.witnesses:
        how = "its own names" if witness["native"] else "our mapping tables"
        out.print(
            f"{witness['side']}  {escape(witness['checkpoint']['name'])}  ({witness['layout']},"
            f" {witness['task']}), run by {witness['framework']} on {witness['device']},"
            f" loaded by {how}"
        )
        for line in _assumed_by(witness):
            out.print(f"   {escape(line)}")
    for step in result.steps:
        out.print(f"declared by B and applied to A: {escape(step_in_words(step))}")
    out.print(checks_table(result.checks))
    for check in result.failed()[:MOST_ROWS]:
        measured = f"{number(check.measured)}, limit {number(check.limit)}"
        out.print(f"[red]failed[/red]  {check.name}: {escape(measured)}")
    if result.first_divergence:
        out.print(f"first divergence: [bold]{result.first_divergence}[/bold]")
    if result.suspects and not result.passed:
        out.print("suspects: " + ", ".join(result.suspects[:6]))
    for cause in result.causes:
        out.print(f"cause: {escape(cause)}")
    for what in result.not_compared:
        out.print(f"[yellow]not compared[/yellow]: {escape(what)}")
    for name, effect in result.effects.items():
        out.print(
            f"the declared rounding moves {name} by {number(effect)} (relative L2, not judged)"
        )
    out.print(answer(result))


def _assumed_by(witness: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each source of what no tensor and no configuration of the file tells."""
    by_source: dict[str, list[str]] = {}
    for name, entry in (witness["assumed"] or {}).items():
        if entry["source"].startswith(("flag", "training", "preset", "square", "convention")):
            by_source.setdefault(entry["source"], []).append(f"{name} {plain(entry['value'])}")
    for source, fields in by_source.items():
        yield f"assumed by {source}: {', '.join(fields)}"


def answer(result: Verdict) -> str:
    """Return the verdict in one line."""
    failed = result.failed()
    if failed and all(check.name.split("/")[0] in UNIT_ROUNDOFF for check in failed):
        return (
            "[bold red]IMPRECISE[/bold red]: the same function in float64 and the same weights, but"
            " a side computes it less precisely than it could"
        )
    if not result.passed:
        return (
            "[bold red]DIFFERENT[/bold red]: these are not the same function with the same weights"
        )
    if result.proven:
        common = ", in the part that both have" if result.not_compared else ""
        return (
            "[bold green]PASSED and proven[/bold green]: the same function, the same weights"
            + common
        )
    return (
        "[bold green]PASSED[/bold green], not proven: a side was loaded through our own mapping"
        " tables, so a mistake in them would not show"
    )


GROUPS = (
    ("configuration/", "configuration fields that change the function"),
    ("weights/", "tensors that differ in any bit"),
    ("shape/", "shapes"),
    ("proof/", "both sides read without our mapping tables"),
)


def checks_table(checks: Iterable[Check]) -> Grid:
    """Return the checks grouped as a person reads them: results by name, steps by their worst."""
    grid = Grid(box=None, pad_edge=False, padding=(0, 2))
    for column in ("compared", "how far apart", "limit", "verdict"):
        grid.add_column(column)
    for title, group in _grouped(checks).items():
        worst = max(group, key=_badness)
        failed = sum(not check.passed for check in group)
        answer = "[red]FAILED[/red]" if failed else "[green]ok[/green]"
        distance, limit = number(worst.measured), number(worst.limit)
        if not isinstance(worst.measured, (int, float)) or worst.name.startswith("configuration/"):
            distance, limit = f"{failed} differ", "0"
        grid.add_row(title, distance, limit, answer)
    return grid


def _badness(check: Check) -> float:
    if not check.passed:
        return math.inf
    if isinstance(check.measured, (int, float)) and isinstance(check.limit, (int, float)):
        return check.measured / check.limit if check.limit else 0.0
    return 0.0


def _grouped(checks: Iterable[Check]) -> dict[str, list[Check]]:
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(_group_title(check.name), []).append(check)
    return {
        f"{title} ({len(group)})" if len(group) > 1 else title: group
        for title, group in groups.items()
    }


def _group_title(name: str) -> str:
    for prefix, title in GROUPS:
        if name.startswith(prefix):
            return title
    kind, _, rest = name.partition("/")
    if kind == "function":
        return "float64: " + ("every step between" if "." in rest else rest)
    side, _, rest = rest.partition("/")
    what = "every step between" if "." in rest else "results"
    return f"{kind}: own error of {side}, {what}"
