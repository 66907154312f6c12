"""Progress of long operations on a terminal: bytes, rate, time left."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mae_convert.files.workers import Progress


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Show progress on standard error if it is a terminal, and remove the bar at the end."""
    if not sys.stderr.isatty():
        yield Progress()
        return
    bar = _Bar(what)
    try:
        yield bar
    finally:
        bar.end()


class _Bar(Progress):
    def __init__(self, what: str) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._what = what
        self._task = progress.TaskID(0)

    def begin(self, total: int) -> None:
        """Set the total number of bytes."""
        self._task = self._bar.add_task(self._what, total=total)
        self._bar.start()

    def advance(self, count: int) -> None:
        """Add `count` bytes to the progress."""
        self._bar.advance(self._task, count)

    def end(self) -> None:
        """Remove the bar from the screen."""
        self._bar.stop()
