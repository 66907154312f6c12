"""Consoles and tables for output to a terminal or into a pipe."""

import re
import sys
from collections.abc import Container, Iterable, Mapping
from textwrap import wrap
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table as Grid
from rich.text import Text

from mae_convert.cli.streams import discard_output
from mae_convert.errors import Option, as_option
from mae_convert.files.strict_json import plain
from mae_convert.text import for_terminal

PIPE_WIDTH = 200


class PatientConsole(Console):
    """A console that tolerates a closed pipe (`| head`): output stops, and the command continues.

    Lines are never truncated: text that is wider than the terminal continues on the next line.
    """

    def print(self, *objects: Any, crop: bool = False, **options: Any) -> None:
        """Print like `rich.console.Console.print`, but without cropping lines by default."""
        super().print(*objects, crop=crop, **options)

    def on_broken_pipe(self) -> None:
        """Stop printing without ending the command."""
        self.quiet = True
        discard_output()


def console() -> Console:
    """Return a console for standard output; output into a pipe is not wrapped."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return PatientConsole(highlight=False, emoji=False, width=width)


def markup(text: object) -> str:
    """Return text escaped for rich's markup, on one line and printable.

    Characters that standard output's encoding cannot represent become escape sequences here, so
    that the columns of a table stay aligned.
    """
    return escape(printable(for_terminal(text)))


def printable(text: str) -> str:
    """Return text with escape sequences for characters that standard output cannot encode."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


class WordGrid(Grid):
    """A table without grid lines, in which text is wrapped between words and never inside a word.

    Names and digests can therefore be copied even from a narrow terminal; a line may be wider than
    the terminal.
    """

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row of cells that contain rich's markup."""
        super().add_row(*cells, **options)
        for column, cell in zip(self.columns, cells, strict=False):
            words = (
                Text.from_markup(cell, emoji=False).plain.split() if isinstance(cell, str) else []
            )
            column.min_width = max(column.min_width or 0, *map(cell_len, words), 0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table's lines without trailing spaces."""
        for line in Segment.split_lines(
            part for part in super().__rich_console__(console, options) if isinstance(part, Segment)
        ):
            while line and not line[-1].text.strip():
                line.pop()
            if line:
                line[-1] = Segment(line[-1].text.rstrip(), line[-1].style)
            yield from line
            yield Segment.line()


class Pairs:
    """Names and values in two columns; values are wrapped between words."""

    def __init__(self, rows: Iterable[tuple[str, str]]) -> None:
        self.rows = [(printable(for_terminal(n)), printable(for_terminal(v))) for n, v in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        indent = max((cell_len(name) for name, _ in self.rows), default=0) + 2
        width = max(options.max_width - indent, 20)
        for name, value in self.rows:
            lines = wrap(value, width, break_long_words=False, break_on_hyphens=False) or [""]
            for i, line in enumerate(lines):
                start = name + " " * (indent - cell_len(name)) if i == 0 else " " * indent
                yield Segment(f"{start}{line}".rstrip() + "\n")


def table(*heads: str, right: Container[str] = (), whole: Container[str] = ()) -> Grid:
    """Return an empty table without grid lines; words in its cells are not broken.

    Args:
        heads: headings of the columns.
        right: headings of right-aligned columns.
        whole: headings of columns that are wrapped only if no other column can be wrapped.
    """
    grid = WordGrid(box=None, pad_edge=False, padding=(0, 2), show_header=any(heads))
    for head in heads:
        justify: Literal["left", "right"] = "right" if head in right else "left"
        grid.add_column(head, justify=justify, overflow="fold", no_wrap=head in whole)
    return grid


def pairs(rows: Iterable[tuple[str, str]]) -> Pairs:
    """Return a renderable of names and values in two columns."""
    return Pairs(rows)


def with_options(source: str) -> str:
    """Return the source of a value; "option num_heads" in it becomes "option --num-heads"."""
    return re.sub(r"\boption ([a-z_]+)", lambda m: f"option {as_option(Option(m[1]))}", source)


def assumptions(assumed: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Return a table of configuration fields that are not stored in tensors: value and source."""
    grid = WordGrid(
        box=None, padding=(0, 2), collapse_padding=True, show_header=False, show_edge=False,
        pad_edge=False,
    )  # fmt: skip
    for name, entry in assumed.items():
        grid.add_row(
            f"  {markup(name)}",
            markup(plain(entry["value"])),
            markup(with_options(entry["source"])),
        )
    return grid
