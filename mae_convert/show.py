"""Print results: for a person as tables, for a program as one JSON object."""

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from mae_convert.convert import Plan
from mae_convert.diff import Difference
from mae_convert.layouts import Layout
from mae_convert.mapping import Repeat, Row, listed
from mae_convert.plain import plain
from mae_convert.rounding import DTYPES
from mae_convert.verify.judge import UNIT_ROUNDOFF, Check, Verdict

MOST_ROWS = 20
PIPE_WIDTH = 200


class PatientConsole(Console):
    """A console whose reader may go (`| head`): the rest is not printed, the status stays."""

    def on_broken_pipe(self) -> None:
        """Print no more, and let the command go on to its answer."""
        self.quiet = True
        discard_output()


def discard_output() -> None:
    """Send what is still to be printed nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console() -> Console:
    """Return a console for standard output; what is piped is not wrapped to a screen's width."""
    return PatientConsole(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def as_json(value: Any) -> None:
    """Print one JSON object; numbers that are not finite become strings."""
    try:
        print(json.dumps(plain(value), indent=2), flush=True)
    except BrokenPipeError:
        discard_output()


def number(value: Any) -> str:
    """Return a number as a person reads it."""
    return f"{value:.1e}" if isinstance(value, float) and value != 0 else str(value)


def _pairs(rows: Iterable[tuple[str, str]]) -> Grid:
    grid = Grid.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(escape(name), escape(value))
    return grid


def inspection(report: Mapping[str, Any]) -> None:
    """Print what ``inspect`` found, on one screen."""
    config, out = report["config"], console()
    size = config["image_size"]
    rows = [
        ("checkpoint", report["path"]),
        ("layout", _with_synonyms(report)),
        ("container", _container(report)),
        ("task", report["task"]),
        ("image", f"{_size(size)}, {config['num_channels']} channels"),
        ("patch", _size(config["patch_size"])),
        ("encoder", _stack(config, "")),
    ]
    if report["task"] == "pretrain":
        rows.append(("decoder", _stack(config, "decoder_")))
    if report["task"] == "classify":
        pooling = (
            "the class token" if config["global_pool"] == "token" else "the mean of all patches"
        )
        rows.append(("head", f"{config['num_labels']} classes, reads {pooling}"))
    dtypes = ", ".join(f"{count} {name}" for name, count in report["dtypes"].items())
    rows.append(("tensors", f"{report['tensors']} ({dtypes})"))
    millions = report["parameters"] / 1e6
    rows.append(("parameters", f"{millions:.2f} M, {report['bytes'] / 1e6:.1f} MB"))
    rows.append(("official", _official(report["official"])))
    for name, what in {**report["ignored"], **report["dropped"]}.items():
        rows.append(("not used", f"{name}: {what}"))
    out.print(_pairs(rows))
    out.print("\n[bold]What no tensor tells, and where it was taken from[/bold]")
    out.print(assumptions(report["assumed"]))
    out.print("\n[bold]Can be converted to[/bold]")
    out.print(_pairs(("  " + name, answer) for name, answer in report["becomes"].items()))
    if "stats" in report:
        out.print("\n[bold]Values[/bold]")
        out.print(_statistics(report["stats"]))


def _container(report: Mapping[str, Any]) -> str:
    """Return the container, and what stood around the tensors and before their names."""
    files = f", {report['files']} files" if report["files"] > 1 else ""
    wrapper = f", under {report['wrapper']}" if report["wrapper"] else ""
    prefix = f", prefix {report['prefix']} taken off" if report["prefix"] else ""
    return report["container"] + files + wrapper + prefix


def _with_synonyms(report: Mapping[str, Any]) -> str:
    same = f" (the same as {', '.join(report['synonyms'])} here)" if report["synonyms"] else ""
    spelling = "" if report["spelling"] == report["layout"] else f" ({report['spelling']})"
    return report["layout"] + spelling + same


def _size(size: Any) -> str:
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} x {width}"


def _stack(config: Mapping[str, Any], prefix: str) -> str:
    return (
        f"{config[prefix + 'num_hidden_layers']} blocks, width {config[prefix + 'hidden_size']},"
        f" MLP {config[prefix + 'intermediate_size']},"
        f" {config[prefix + 'num_attention_heads']} heads"
    )


def _official(official: Mapping[str, Any] | None) -> str:
    if official is None:
        return "none that is known by these names and shapes"
    if "md5" not in official:
        return f"same names and shapes as {official['probable']} (--hash tells more)"
    known = {
        True: "the digits of the MD5 that its publisher names fit",
        False: "but its MD5 is another: other weights",
        None: "whose publisher names no hash",
    }[official["confirmed"]]
    return f"{official['probable']}, {known} (md5 {official['md5']})"


def assumptions(assumed: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Return the fields that no tensor tells, with value and source."""
    grid = Grid.grid(padding=(0, 2))
    for name, entry in assumed.items():
        value = escape(str(plain(entry["value"])))
        grid.add_row(f"  {name}", value, escape(entry["source"]))
    return grid


def _statistics(stats: Mapping[str, Mapping[str, float]]) -> Grid:
    grid = Grid(box=None, pad_edge=False, padding=(0, 2))
    grid.add_column("tensor")
    for column in ("min", "max", "mean", "std", "zeros", "not finite"):
        grid.add_column(column, justify="right")
    for name, s in stats.items():
        values = [f"{s[key]:.4g}" for key in ("min", "max", "mean", "std")]
        grid.add_row(name, *values, str(s["zeros"]), str(s["not_finite"]))
    return grid


def conversion(plan: Plan, report: Mapping[str, Any]) -> None:
    """Print what a conversion did."""
    out, source = console(), plan.source
    rows = [
        ("read", f"{source.path}  ({source.layout.name}, {source.task}, {source.container.kind})"),
        ("wrote", f"{plan.target}  ({plan.layout.name}, {plan.task})"),
        ("tensors", f"{len(report['tensors'])} written, read back and found equal"),
    ]
    if prefix := source.prefix.said():
        undone = f"; --prefix {prefix} puts it back" if source.prefix.common else ""
        rows.append(("prefix", f"{prefix} was taken off the names{undone}"))
    for step in report["steps"]:
        undone = "can be undone" if _is_exact(step) else "cannot be undone"
        rows.append(("changed", f"{_step(step)} (declared, {undone})"))
    rows += [("rounded", line) for line in _worst_rounding(report["tensors"])]
    rows += [("not taken", line) for line in _by_reason(report["dropped"])]
    out.print(_pairs(rows))
    out.print("\n[bold]What no tensor tells, and where it was taken from[/bold]")
    out.print(assumptions(report["assumed"]))


def _by_reason(dropped: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each reason, with the names that it is the reason for."""
    reasons = dict.fromkeys(dropped.values())
    for reason in reasons:
        names = [name for name, why in dropped.items() if why == reason]
        yield f"{listed(names, 3)}: {reason}"


def _step(step: Mapping[str, Any]) -> str:
    """Return a declared step in words."""
    before, after = (_sides(step["step"], step[key]) for key in ("from", "to"))
    how = f", positions {step['positions']}" if "positions" in step else ""
    return f"{step['step']}: {before} to {after}{how}"


def _is_exact(step: Mapping[str, Any]) -> bool:
    """Return whether a step only widened dtypes."""
    return step["step"] == "dtype" and all(
        np.can_cast(DTYPES[narrow], DTYPES[step["to"]]) for narrow in step["from"]
    )


def _sides(kind: str, value: Any) -> str:
    if kind == "image_size":
        return _size(value)
    return ", ".join(value) if isinstance(value, list) else str(value)


def _worst_rounding(tensors: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the tensor that rounding moved most, if any was rounded."""
    rounded = {name: t["rounding"] for name, t in tensors.items() if "rounding" in t}
    if not rounded:
        return
    if not any(error["absolute"] for error in rounded.values()):
        yield "every value is exact in the new dtype"
        return
    for kind in ("relative", "absolute"):
        worst = max(rounded, key=lambda name: rounded[name][kind])
        yield f"largest {kind} error {number(rounded[worst][kind])}, in {worst}"


def difference_json(difference: Difference) -> dict[str, Any]:
    """Return a difference as plain data."""
    return {
        "same": difference.same,
        "equal": difference.equal,
        "tensors": [asdict(tensor) for tensor in difference.tensors],
        "configuration": {
            name: {"a": a, "b": b} for name, (a, b) in difference.configuration.items()
        },
    }


def difference(result: Difference) -> None:
    """Print which tensors and fields differ."""
    out = console()
    out.print(f"{result.equal} tensors are equal bit for bit, {len(result.tensors)} differ")
    grid = Grid(box=None, pad_edge=False, padding=(0, 2))
    for column in ("tensor", "shape and dtype", "values that differ", "relative L2", "largest"):
        grid.add_column(column)
    for t in result.tensors:
        a, b = f"{t.shape_a} {t.dtype_a}", f"{t.shape_b} {t.dtype_b}"
        kind = a if a == b else f"{a} | {b}"
        grid.add_row(t.name, kind, str(t.elements), number(t.relative_l2), number(t.max_abs))
    if result.tensors:
        out.print(grid)
    for name, (a, b) in result.configuration.items():
        out.print(f"configuration: {name} is {escape(str(a))} in A and {escape(str(b))} in B")


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
        out.print(f"declared by B and applied to A: {escape(_step(step))}")
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


def layouts(all_layouts: Iterable[Layout]) -> None:
    """Print the layouts, one line each."""
    grid = Grid(box=None, pad_edge=False, padding=(0, 2))
    for column in ("layout", "what it is", "tasks", "written as"):
        grid.add_column(column)
    for entry in all_layouts:
        tasks = ", ".join(dict.fromkeys(task for table in entry.tables for task in table.tasks))
        written = f"directory with {entry.weights_name}" if entry.weights_name else _kinds(entry)
        grid.add_row(entry.name, entry.title, tasks, written)
    console().print(grid)


def _kinds(entry: Layout) -> str:
    from mae_convert.convert import SUFFIX_KINDS

    return ", ".join(suffix for suffix, kind in SUFFIX_KINDS.items() if kind in entry.containers)


def layout(entry: Layout) -> None:
    """Print the mapping tables of one layout, as they are declared."""
    out = console()
    out.print(f"[bold]{entry.name}[/bold]: {entry.title}")
    for table in entry.tables:
        written = (
            "written and read" if any(entry.table_for(t) is table for t in table.tasks) else "read"
        )
        out.print(f"\n{table.name}: {', '.join(table.tasks)} ({written}); # is a block's number")
        grid = Grid(box=None, pad_edge=False, padding=(0, 2))
        for column in ("canonical", entry.name, ""):
            grid.add_column(column)
        for canonical, external, transform in table_rows(table.rows):
            grid.add_row(canonical, external, transform)
        out.print(grid)


def table_rows(rows: Iterable[Row | Repeat]) -> Iterable[tuple[str, str, str]]:
    """Yield canonical name, external name and transform of every row."""
    for row in rows:
        if isinstance(row, Repeat):
            for canonical, external, transform in table_rows(row.rows):
                yield row.canonical + canonical, row.external + external, transform
        else:
            yield row.canonical, row.external, str(row.transform)
