"""Consoles and tables for output to a terminal or into a pipe."""

from collections.abc import Container, Iterable, Sequence
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table as Grid
from rich.text import Text

from mae_convert.cli.output.lines import output_width, pair_lines, printable
from mae_convert.cli.streams import discard_output
from mae_convert.text import for_terminal


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
    return PatientConsole(highlight=False, emoji=False, width=output_width())


def markup(text: object) -> str:
    """Return text escaped for rich's markup, on one line and printable.

    Characters that standard output's encoding cannot represent become escape sequences here, so
    that the columns of a table stay aligned.
    """
    return escape(printable(for_terminal(text)))


class WordGrid(Grid):
    """A table without grid lines, in which text is wrapped between words and never inside a word.

    Names and digests can therefore be copied even from a narrow terminal; a line may be wider than
    the terminal.
    """

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row of cells.

        Args:
            cells: the cells; text may contain the markup of the library rich.
            options: the keyword arguments of rich's ``Table.add_row``.
        """
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
        self.rows = list(rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        for line in pair_lines(self.rows, options.max_width):
            yield Segment(f"{line}\n")


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


def wrapped_columns(rows: Iterable[Sequence[object]]) -> Grid:
    """Return a table without headings, whose cells are wrapped if the terminal is narrow."""
    grid = WordGrid(
        box=None, padding=(0, 2), collapse_padding=True, show_header=False, show_edge=False,
        pad_edge=False,
    )  # fmt: skip
    for row in rows:
        grid.add_row(*map(markup, row))
    return grid
