"""Print on a terminal or into a pipe."""

import json
import os
import sys
from collections.abc import Container, Iterable, Mapping
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from mae_convert.plain import plain
from mae_convert.text import for_terminal

PIPE_WIDTH = 200


class PatientConsole(Console):
    """A console whose reader may go (`| head`): the rest is not printed, the status stays."""

    def on_broken_pipe(self) -> None:
        """Print no more, and let the command go on to its answer."""
        self.quiet = True
        discard_output()


def discard_output() -> None:
    """Send what is still to be printed nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def console() -> Console:
    """Return a console for standard output; what is piped is not wrapped to a screen's width."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return PatientConsole(highlight=False, emoji=False, width=width)


def markup(text: object) -> str:
    """Return text as it may stand in the markup of a console: no styles, on one line, printable.

    What the encoding of standard output cannot hold is an escape sequence here already, so that the
    columns of a table stay in line.
    """
    return escape(printable(for_terminal(text)))


def printable(text: str) -> str:
    """Return text with escape sequences for what standard output's encoding does not have."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return plain data as JSON in printable ASCII; numbers that are not finite become strings."""
    return json.dumps(plain(value), indent=indent).replace("\x7f", "\\u007f")


def as_json(value: Any) -> None:
    """Print one JSON object; numbers that are not finite become strings."""
    try:
        print(json_text(value, indent=2), flush=True)
    except BrokenPipeError:
        discard_output()


def table(*heads: str, right: Container[str] = (), whole: Container[str] = ()) -> Grid:
    """Return an empty table without lines, in which what is too long is folded and never cut off.

    Args:
        heads: of the columns.
        right: those of columns that are flush right.
        whole: those of columns that are not folded as long as another can be.
    """
    grid = Grid(box=None, pad_edge=False, padding=(0, 2), show_header=any(heads))
    for head in heads:
        justify: Literal["left", "right"] = "right" if head in right else "left"
        grid.add_column(head, justify=justify, overflow="fold", no_wrap=head in whole)
    return grid


def _two_columns() -> Grid:
    grid = Grid.grid(padding=(0, 2))
    for _ in range(2):
        grid.add_column(overflow="fold")
    return grid


def pairs(rows: Iterable[tuple[str, str]]) -> Grid:
    """Return names and values in two columns."""
    grid = _two_columns()
    for name, value in rows:
        grid.add_row(markup(name), markup(value))
    return grid


def assumptions(assumed: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Return the fields that no tensor tells, with value and source."""
    grid = _two_columns()
    grid.add_column(overflow="fold")
    for name, entry in assumed.items():
        grid.add_row(f"  {markup(name)}", markup(plain(entry["value"])), markup(entry["source"]))
    return grid
