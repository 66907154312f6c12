"""Print the plan, the progress and the result of a sweep."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from mae_convert.cli.output.console import console, markup, table
from mae_convert.cli.output.lines import printable
from mae_convert.cli.streams import json_text, print_json
from mae_convert.sources import storage
from mae_convert.sweep.memory import memory_needed_by, model_bytes
from mae_convert.sweep.plan_fields import Job
from mae_convert.sweep.result import DONE, ERROR, FAILED, STATUS, Row
from mae_convert.sweep.run import OnRow, SelectedJobs
from mae_convert.text import for_terminal, format_bytes, plural


def event(kind: str, **fields: Any) -> None:
    """Print an event of a sweep as one line of JSON: the kind, under ``event``, and the fields."""
    print(json_text({"event": kind, **fields}), flush=True)


@dataclass(frozen=True)
class Counts:
    """Number of jobs by outcome."""

    done: int = 0
    failed: int = 0
    error: int = 0

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Counts":
        """Return the numbers of rows by outcome."""
        return cls(**Counter(row.outcome for row in rows))

    def in_words(self) -> str:
        """Return the counts in words."""
        words = [f"{self.done} done"]
        words += [f"{self.failed} {STATUS[FAILED]}"] if self.failed else []
        words += [f"{self.error} {STATUS[ERROR]}"] if self.error else []
        return ", ".join(words)


def dry_run(selected: SelectedJobs, rows: Mapping[str, Row], *, as_json: bool) -> None:
    """Print the jobs of a plan with their states and sizes, without running them.

    Args:
        selected: the jobs of the plan, and which of them would be run.
        rows: the rows of earlier runs, by the key of the job.
        as_json: whether to print JSON instead of a table.
    """
    states = {row.key: "already done" for row in selected.done} | {
        job.key: "left" for job in selected.skipped
    }
    lines = [
        {
            "state": states.get(job.key) or ("again" if job.key in rows else "new"),
            **job.identity(),
            **_sizes(job),
        }
        for job in selected.jobs
    ]
    if as_json:
        print_json({"jobs": lines, "todo": len(selected.pending)})
        return
    sizes = ("model", "memory")
    heads = ("", "source", "to", "target", "settings", *sizes)
    grid = table(*heads, right=sizes, whole=sizes)
    for line in lines:
        settings = ", ".join(f"{n}={_short(v)}" for n, v in line["settings"].items())
        cells = (line["state"], local_name(line["source"]), line["layout"] or "", _target(line),
                 settings, _size(line["bytes"]), _size(line["memory"]))  # fmt: skip
        grid.add_row(*map(markup, cells))
    out = console()
    out.print(grid)
    total = sum(line["bytes"] or 0 for line in lines if line["state"] in ("new", "again"))
    out.print(
        f"\n{plural(len(selected.jobs), 'job')}, {len(selected.pending)} to be run,"
        f" {_size(total)} of weights"
    )


def _target(line: Mapping[str, Any]) -> str:
    if line["target"]:
        return local_name(line["target"])
    name = line["settings"].get("publish")
    return f"hf://{name}" if name else "(verified, not written)"


def _sizes(job: Job) -> dict[str, int | None]:
    return {"bytes": model_bytes(job) or None, "memory": memory_needed_by(job)}


def _short(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    is_size = all(type(side) is int for side in value)
    return ("x" if is_size else "+").join(map(str, value))


def local_name(text: str) -> str:
    """Return a local path relative to the current directory, and any other name unchanged."""
    if storage.is_remote(text) or not text.startswith("/"):
        return text
    path = Path(text)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else text


def _size(count: int | None) -> str:
    return "unknown" if count is None else format_bytes(count)


@contextmanager
def progress(selected: SelectedJobs, *, as_json: bool, on_terminal: bool) -> Iterator[OnRow]:
    """Yield a function that reports a job's result: as JSON, on a progress bar or as text."""
    if as_json:
        event("begin", jobs=len(selected.jobs), done=len(selected.done), todo=len(selected.pending))
        for row in selected.done:
            event("row", fresh=False, **row.to_dict())
        yield lambda row: event("row", fresh=True, **row.to_dict())
    elif on_terminal:
        with _bar(selected) as on_row:
            yield on_row
    else:
        for row in selected.done:
            _print_job(row, f"earlier of {len(selected.jobs)}")
        completed = count(len(selected.done) + 1)
        yield lambda row: _print_job(row, f"{next(completed)} of {len(selected.jobs)}")


def _print_job(row: Row, which: str) -> None:
    """Print one line about a job, without buffering.

    Args:
        row: the result of the job.
        which: the beginning of the line, such as "3 of 10".
    """
    line = f"{which}  {row.status}  {_result(row)}  {row.seconds:.1f} s"
    print(printable(for_terminal(line)), flush=True)


@contextmanager
def _bar(selected: SelectedJobs) -> Iterator[OnRow]:
    from rich import progress as shown
    from rich.console import Console

    columns = (
        shown.TextColumn("{task.description}"),
        shown.BarColumn(),
        shown.MofNCompleteColumn(),
        shown.TimeRemainingColumn(elapsed_when_finished=True),
        shown.TextColumn("{task.fields[counts]}"),
    )
    out = Console(stderr=True, highlight=False, emoji=False)
    with shown.Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("jobs", total=len(selected.pending), counts="")
        rows: list[Row] = []

        def on_row(row: Row) -> None:
            rows.append(row)
            if not row.is_good:
                bar.console.print(markup(_result(row)))
            bar.update(task, advance=1, counts=Counts.of(rows).in_words())

        yield on_row


def summary(selected: SelectedJobs, rows: Sequence[Row], path: Path, *, as_json: bool) -> None:
    """Print the result of a sweep.

    Args:
        selected: the jobs of the sweep.
        rows: the rows of all jobs that were run, in this run or in an earlier run.
        path: the file with the results; its name is printed.
        as_json: print one JSON object instead of text.
    """
    counts = Counts.of(rows)
    not_run = len(selected.jobs) - len(rows)
    if as_json:
        event("end", **vars(counts), not_run=not_run, results=str(path))
        return
    out = console()
    earlier = f" ({len(selected.done)} of them in an earlier run)" if selected.done else ""
    left = f", {not_run} not run" if not_run else ""
    out.print(
        f"{plural(len(selected.jobs), 'job')}: {counts.in_words()}{earlier}{left};"
        f" results in {markup(path)}"
    )


def _result(row: Row) -> str:
    """Return the result of a job in one line."""
    job = " to ".join(filter(None, (local_name(row.source), row.layout)))
    if row.outcome not in (DONE, FAILED):
        return f"{job}: {row.error}"
    if row.is_good:
        return f"{job}: {row.verdict or 'converted'}"
    where = f" at {row.first_divergence}" if row.first_divergence else ""
    return f"{job}: {row.verdict}{where}{f': {row.cause}' if row.cause else ''}"
