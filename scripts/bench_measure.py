"""Measure the time and memory of commands, and format the results as Markdown tables."""

import os
import resource
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
INTERVAL = 0.01
"""The shortest time between two measurements of memory, in seconds."""

MISSING = "import importlib.util as u, sys; print(*[n for n in sys.argv[1:] if not u.find_spec(n)])"


@dataclass(frozen=True)
class Run:
    """The time and memory of a command."""

    seconds: float
    """Wall time."""

    anonymous: int
    """The peak of anonymous and shared memory of all processes of the command, in bytes."""

    output: str
    """The standard output."""

    processor: float
    """The processor time of the command and its children, in seconds."""


def run(command: Sequence[str | Path], **environment: str) -> Run:
    """Run a command and return its time and memory; end the program if the command fails.

    Args:
        command: the command and its arguments.
        environment: environment variables to set for the command.
    """
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
        raise SystemExit(
            f"{command[0]} ended with {child.returncode}: {(errors or output)[-2000:]}"
        )
    return Run(seconds, max(peaks), output, _processor_time() - before)


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(child: subprocess.Popen, peaks: list[int]) -> None:
    while child.poll() is None:
        started = time.perf_counter()
        peaks.append(_anonymous(child.pid))
        # Measuring takes at most a twentieth of the time, because the command needs the processor.
        time.sleep(max(INTERVAL, 20 * (time.perf_counter() - started)))


def _anonymous(pid: int) -> int:
    """Return the bytes of anonymous and shared memory of a process and its descendants."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        # Only children that the main thread started: reading the directories of other threads slows
        # down the measured processes; see `mae_convert.sweep.memory.memory_of`.
        children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except OSError:
        return 0
    kinds = ("RssAnon", "RssShmem")
    own = sum(int(n.split()[1]) << 10 for n in status.splitlines() if n.startswith(kinds))
    return own + sum(map(_anonymous, children))


def require(python: Path, *modules: str) -> None:
    """End the program with a message if a Python interpreter lacks modules or cannot run."""
    command = [python, "-c", MISSING, *modules]
    try:
        found = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"{python} can't be run as a Python interpreter: {error}") from None
    if missing := found.stdout.split():
        raise SystemExit(
            f"{python} has no module {', '.join(missing)}: install it there, or specify another "
            "interpreter"
        )


def by_turns(ways: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call each function once per round, and return the list of the results of each function.

    The order of the functions is reversed after each round.
    """
    results: dict[str, list[T]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 else reversed(ways):
            results[name].append(ways[name]())
    return results


def median(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def ratio(numerators: Iterable[float], denominators: Iterable[float]) -> float:
    """Return the median of the ratios of paired numbers.

    A ratio does not change if both measurements of a pair are slower by the same factor.
    """
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as a Markdown table; the keys of a row are the column headings."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
