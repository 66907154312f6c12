"""Time commands that should start quickly, and a conversion with limited memory."""

import sys
from collections.abc import Iterator
from pathlib import Path

from bench_conversions import PROGRAM, checkpoint, remove
from bench_measure import median, run

LIMIT = 1_000_000
"""Limit of the address space in kilobytes; a process cannot use more memory than this."""


def rows(sizes: list[str], folder: Path, pairs: int) -> Iterator[dict[str, object]]:
    """Yield a row of the table for each command.

    Args:
        sizes: the sizes of the checkpoints.
        folder: the folder for checkpoints and outputs.
        pairs: half the number of runs of each command; the conversions are run once.
    """
    bare = [sys.executable, "-c", "pass"]
    yield _row("python -c pass", [run(bare).seconds for _ in range(2 * pairs)])
    helped = [*PROGRAM, "--help"]
    yield _row("mae-convert --help", [run(helped).seconds for _ in range(2 * pairs)])
    for size in sizes:
        path = checkpoint(size, folder)
        looked = [*PROGRAM, "inspect", path]
        yield _row(f"inspect, {size}", [run(looked).seconds for _ in range(2 * pairs)])
    for size in sizes:
        target = folder / "out"
        command = [*PROGRAM, "convert", checkpoint(size, folder), target, "--to", "transformers"]
        limited = ["sh", "-c", f'ulimit -v {LIMIT}; exec "$@"', "sh", *command]
        measured = run(limited)
        remove(target)
        yield _row(f"convert, {size}, in 1 GB of address space", [measured.seconds])


def _row(what: str, seconds: list[float]) -> dict[str, object]:
    return {"what": what, "s": f"{median(seconds):.3f}"}
