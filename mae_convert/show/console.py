"""Print on a terminal or into a pipe."""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from mae_convert.plain import plain

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


def pairs(rows: Iterable[tuple[str, str]]) -> Grid:
    """Return names and values in two columns."""
    grid = Grid.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(escape(name), escape(value))
    return grid


def assumptions(assumed: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Return the fields that no tensor tells, with value and source."""
    grid = Grid.grid(padding=(0, 2))
    for name, entry in assumed.items():
        value = escape(str(plain(entry["value"])))
        grid.add_row(f"  {name}", value, escape(entry["source"]))
    return grid
