"""Print the verdict of a verification, a repair, or a comparison with reference results."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as Grid

from mae_convert.cli.output.console import console, markup, table
from mae_convert.cli.output.lines import printable, with_options
from mae_convert.convert.changes import step_in_words
from mae_convert.errors import as_option
from mae_convert.files.strict_json import plain
from mae_convert.text import for_terminal, format_number
from mae_convert.verify.judge import ARRAYS, FUNCTION_LIMIT, Check, Verdict
from mae_convert.verify.reference_results import ReferenceComparison
from mae_convert.verify.summary import (
    by_depth,
    check_in_words,
    effects_in_words,
    headline,
    runner_in_words,
    step_rows,
    summary,
    suspects_title,
    verdict_in_words,
)

MOST_ROWS = 8
MOST_BARS = 24
MOST_CHANGES = 20
BAR = 30  # characters of the longest bar
COLOURS = {"PASSED and proven": "green", "PASSED": "green"}


def verdict(result: Verdict) -> None:
    """Print a verdict: each check with the measured value and its limit."""
    out = console()
    for runner in result.witnesses:
        out.print(_runner(runner))
        for line in _assumed_by(runner):
            out.print(f"   {markup(line)}")
    for step in result.steps:
        out.print(
            f"declared by B, and applied to A before comparing: {markup(step_in_words(step))}"
        )
    out.print(checks_table(result.checks))
    failed = result.failed()
    for check in failed[:MOST_ROWS]:
        out.print(f"[red]failed[/red]  {markup(check_in_words(check))}")
    if len(failed) > MOST_ROWS:
        out.print(f"... and {len(failed) - MOST_ROWS} more; --report FILE.json lists all")
    if result.isolated:
        out.print(steps_table(result.isolated))
    for line in _explanation(result):
        out.print(line)
    out.print(verdict_line(result))


def _explanation(result: Verdict) -> Iterator[str]:
    if result.first_divergence:
        yield f"first divergence: [bold]{markup(result.first_divergence)}[/bold]"
        yield from map(markup, depth_chart(result))
    if result.suspects and not result.passed:
        yield f"{suspects_title(result)}: {markup(', '.join(result.suspects[:6]))}"
    for meaning in result.meanings:
        yield f"meaning: {markup(meaning)}"
    for cause in result.causes:
        yield f"cause: {markup(cause)}"
    for what in result.not_compared:
        yield f"[yellow]not compared[/yellow]: {markup(what)}"
    yield from map(markup, effects_in_words(result.effects))


def verdict_line(result: Verdict) -> str:
    """Return the verdict in one line."""
    word, meaning = verdict_in_words(result, as_option)
    colour = COLOURS.get(word, "red")
    return f"[bold {colour}]{markup(headline(result))}[/]: {markup(meaning)}"


def _runner(entry: Mapping[str, Any]) -> str:
    if entry["framework"] == ARRAYS:
        return markup(f"{entry['side']}  {entry['checkpoint']['name']}")
    how = (
        "its own tensor names"
        if entry["native"]
        else entry.get("ours") or "mae-convert's mapping tables"
    )
    device = entry["device"]
    if entry.get("mode") not in (None, "eager"):
        device += f", {entry['mode']}"
    return markup(
        f"{entry['side']}  {entry['checkpoint']['name']}  ({entry['layout']},"
        f" {entry['task']}), run by {runner_in_words(entry)} on {device}, loaded by {how}"
    )


def _assumed_by(runner: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each source of configuration values that were assumed or given.

    Given values come from options or from the training arguments in the checkpoint.
    """
    if runner["side"].startswith("against"):  # the assumptions of A and B were already printed
        return
    by_source: dict[str, list[str]] = {}
    for name, entry in (runner["assumed"] or {}).items():
        assumption = name in (runner.get("assumptions") or {})
        how = "assumed" if assumption else "given"
        if assumption or entry["source"].startswith(("option", "training")):
            assumed_fields = by_source.setdefault(f"{how} by {with_options(entry['source'])}", [])
            assumed_fields.append(f"{name} {plain(entry['value'])}")
    for source, fields in by_source.items():
        yield f"{source}: {', '.join(fields)}"


def checks_table(checks: Iterable[Check]) -> Grid:
    """Return a table with a line for each group of checks."""
    grid = table("compared", "measured difference", "limit", "verdict")
    for line in summary(checks):
        outcome = "[green]ok[/green]" if line.passed else "[red]FAILED[/red]"
        grid.add_row(markup(line.title), markup(line.measured), markup(line.limit), outcome)
    return grid


def steps_table(steps: Sequence[Mapping[str, Any]]) -> Grid:
    """Return a table of a comparison in which both models get the same input at each step.

    Args:
        steps: the results for each embedding, block, norm and prediction: `Verdict.isolated`.
    """
    columns, rows = step_rows(steps)
    grid = table(*columns, "verdict")
    for cells, word in rows:
        colour = "green" if word == "ok" else "red"
        grid.add_row(*map(markup, cells), f"[{colour}]{word}[/{colour}]")
    return grid


def depth_chart(result: Verdict) -> Iterator[str]:
    """Yield a line with a bar for each block and output; the bar shows the difference of A and B.

    The length of the bar is the relative L2 difference on a logarithmic scale, from rounding errors
    (1e-16) to 1.
    """
    depths = by_depth(result)
    if len(depths) > MOST_BARS:  # only every second or third block of a deep model
        step = math.ceil(len(depths) / MOST_BARS)
        depths = [*depths[:-1:step], depths[-1]]
    width = max((len(name) for name, _ in depths), default=0)
    full = "█" if printable("█") == "█" else "#"
    for name, error in depths:
        filled = (math.log10(max(error, 1e-16)) + 16) / 16 if math.isfinite(error) else 1.0
        bar = full * round(BAR * min(max(filled, 0.0), 1.0))
        mark = " " if error <= FUNCTION_LIMIT else "!"
        yield f"  {name:{width}} {mark} {bar:{BAR}} {format_number(error)}"


def repaired(out: Path, changes: Sequence[str], left_out: Sequence[str], verdict: Verdict) -> None:
    """Print the changes, the tensors that were not written, and the verdict."""
    lines = console()
    for change in changes[:MOST_CHANGES]:
        lines.print(f"repaired  {markup(change)}")
    if len(changes) > MOST_CHANGES:
        lines.print(f"... and {len(changes) - MOST_CHANGES} more; --json lists all")
    for sentence in left_out:
        lines.print(f"left out  {markup(sentence)}")
    lines.print(f"wrote {markup(for_terminal(out))}, with the certificate of its verification")
    lines.print(verdict_line(verdict))


COUNTS = {3: "three", 9: "nine"}


def reference_results(result: ReferenceComparison) -> None:
    """Print the reference values, the measured values, and the verdict."""
    out, reference = console(), result.reference
    out.print(f"{markup(result.checkpoint)}, run by {markup(result.framework)}")
    title = f"{reference.what} as published for {reference.source} by {reference.where}"
    out.print(markup(title))
    if reference.layer_norm_eps is not None:
        out.print(
            f"run with a layer norm epsilon of {reference.layer_norm_eps}, with which the "
            "reference results were computed"
        )
    heads = ("published", *map(markup, result.corners))
    grid = table(*heads, right=heads)
    measured = [corner.reshape(-1) for corner in result.corners.values()]
    for number, value in enumerate(x for row in reference.corner for x in row):
        grid.add_row(f"{value:.4f}", *(f"{corner[number]:.6f}" for corner in measured))
    out.print(grid)
    for dtype, share in result.share.items():
        out.print(f"{markup(dtype)}: the largest difference is {share:.2g} of the tolerance")
    if result.passed:
        out.print(
            f"[bold green]AS PUBLISHED[/bold green]: these {COUNTS[len(measured[0])]} values "
            "agree; nothing else was compared"
        )  # fmt: skip
    else:
        out.print("[bold red]NOT AS PUBLISHED[/bold red]")
