"""Prepare the output streams and logging of a command; print sentences, JSON and progress.

Closed streams are replaced, and characters that a stream cannot encode are escaped. This module
does not import the libraries that print tables.

Only the command line calls these functions; a program that imports the package keeps its own
streams and logging configuration.
"""

import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mae_convert.files.progress import Progress
from mae_convert.files.strict_json import plain
from mae_convert.text import for_terminal
from mae_convert.text.redaction import redact_logs, without_secrets


def prepare_streams() -> bool:
    """Replace closed streams, and let all streams escape the characters that they cannot encode.

    Without the replacement, a closed descriptor would be assigned to the next file that is opened,
    for example a checkpoint that is being written, and messages would be written into that file.

    Returns:
        Whether standard output is open.
    """
    has_output = sys.stdout is not None and _is_open(1)
    for number in (0, 1, 2):
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is the closed one
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # the streams of tests have no descriptor
            reconfigure(errors="backslashreplace")
    redact_logs()
    warnings.showwarning = _print_warning
    return has_output


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning on one line, without its source location.

    The function replaces `warnings.showwarning`; `warnings.filters` still determines which warnings
    are shown.
    """
    print_to_stderr(f"note: {' '.join(str(message).split())}")


def print_to_stderr(sentence: str) -> None:
    """Print a sentence on standard error; failure to print is ignored."""
    try:
        print(for_terminal(without_secrets(sentence)), file=sys.stderr, flush=True)
    except OSError:
        return


def print_unexpected(error: BaseException) -> None:
    """Print the traceback of an unexpected error, without credentials."""
    for line in "".join(traceback.format_exception(error)).splitlines():
        print_to_stderr(line)


def discard_output() -> None:
    """Discard all further output to standard output."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON in printable ASCII; non-finite numbers become strings."""
    return json.dumps(plain(value), indent=indent).replace("\x7f", "\\u007f")


def print_json(value: Any) -> None:
    """Print one JSON object; non-finite numbers become strings."""
    try:
        print(json_text(value, indent=2), flush=True)
    except BrokenPipeError:
        discard_output()


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Show a progress bar for the operation `what` if standard error is a terminal.

    The bar is removed at the end of the ``with`` block.
    """
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
        self._task: progress.TaskID | None = None

    def begin(self, total: int) -> None:
        """Replace the bar of the previous operation by a bar for an operation on `total` bytes."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(self._what, total=total)
        self._bar.start()

    def advance(self, count: int) -> None:
        """Add `count` bytes to the progress."""
        if self._task is not None:
            self._bar.advance(self._task, count)

    def end(self) -> None:
        """Remove the progress bar from the terminal."""
        self._bar.stop()
