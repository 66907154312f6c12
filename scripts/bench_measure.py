"""Time commands and watch their memory; medians, and tables in Markdown."""

import os
import resource
import statistics
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.01


@dataclass(frozen=True)
class Run:
    """The time and memory of a command."""

    seconds: float
    """Wall time."""

    anonymous: int
    """The peak of anonymous memory (RssAnon) in bytes."""

    output: str
    """The standard output."""

    processor: float
    """The processor time of the command and its children, in seconds."""


def run(command: Sequence[str | Path], **environment: str) -> Run:
    """Run a command that must succeed; the memory is sampled every hundredth of a second."""
    peaks = [0]
    inherited = {name: v for name, v in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started, before = time.perf_counter(), _processor_time()
    with subprocess.Popen(command, env={**inherited, **environment}, **pipes) as child:
        watching = threading.Thread(target=_watch, args=(child, peaks))
        watching.start()
        output, errors = child.communicate()
        seconds = time.perf_counter() - started
        watching.join()
    if child.returncode:
        raise SystemExit(f"{command[0]} ended with {child.returncode}: {errors[-2000:]}")
    return Run(seconds, max(peaks), output, _processor_time() - before)


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(child: subprocess.Popen, peaks: list[int]) -> None:
    while child.poll() is None:
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
        except OSError:
            return
        peaks += [int(n.split()[1]) << 10 for n in status.splitlines() if n.startswith("RssAnon")]
        time.sleep(INTERVAL)


def median(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def ratio(numerators: Iterable[float], denominators: Iterable[float]) -> float:
    """Return the median of the ratios of pairs, in which what slows a whole pair cancels."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as a table in Markdown; their keys are the columns."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
