"""Print headings, and columns of text, as plain lines.

This module does not import rich's console, whose import takes as long as reading a checkpoint. The
module `console` imports it and prints tables whose cells are wrapped.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

import click
from rich.cells import cell_len

from mae_convert.cli.streams import discard_output
from mae_convert.errors import Option, as_option
from mae_convert.files.strict_json import plain
from mae_convert.text import for_terminal

PIPE_WIDTH = 200
GAP = 2  # spaces between columns


def output_width() -> int:
    """Return the width of the terminal, or the width at which output into a pipe is wrapped."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH


def printable(text: str) -> str:
    """Return text with escape sequences for characters that standard output cannot encode."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def print_line(line: str = "") -> None:
    """Print a line of printable text.

    A closed pipe (`| head`) stops the output, and the command continues.
    """
    try:
        print(line)
    except BrokenPipeError:
        discard_output()


def print_heading(text: str) -> None:
    """Print an empty line and a heading, which is bold on a terminal."""
    is_bold = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    print_line()
    print_line(click.style(text, bold=True) if is_bold else text)


def print_pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns; values are wrapped between words."""
    for line in pair_lines(rows, output_width()):
        print_line(line)


def pair_lines(rows: Iterable[tuple[str, str]], width: int) -> Iterator[str]:
    """Yield the lines of names and values in two columns; values are wrapped between words."""
    pairs = [_printable(row) for row in rows]
    indent = max((cell_len(name) for name, _ in pairs), default=0) + GAP
    for name, value in pairs:
        room = max(width - indent, 20)
        lines = wrap(value, room, break_long_words=False, break_on_hyphens=False) or [""]
        for start, line in zip((name, *[""] * (len(lines) - 1)), lines, strict=True):
            yield f"{_padded(start, indent)}{line}".rstrip()


def print_assumptions(assumed: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the configuration fields that are not stored in tensors, their values and sources."""
    print_columns(
        [
            (f"  {name}", plain(entry["value"]), with_options(entry["source"]))
            for name, entry in assumed.items()
        ]
    )


def print_columns(rows: Sequence[Sequence[object]]) -> None:
    """Print a table without headings; cells are wrapped only if a line would be too wide."""
    cells = [_printable(row) for row in rows]
    widths = [max(map(cell_len, column)) + GAP for column in zip(*cells, strict=True)]
    lines = ["".join(map(_padded, row, widths)).rstrip() for row in cells]
    if max(map(cell_len, lines), default=0) > output_width():
        from mae_convert.cli.output.console import console, wrapped_columns

        console().print(wrapped_columns(rows))
        return
    for line in lines or [""]:
        print_line(line)


def with_options(source: str) -> str:
    """Return the text `source` with the names of options as on the command line.

    For example, "option num_heads" is replaced by "option --num-heads".
    """
    return re.sub(r"\boption ([a-z_]+)", lambda m: f"option {as_option(Option(m[1]))}", source)


def _printable(row: Sequence[object]) -> list[str]:
    return [printable(for_terminal(cell)) for cell in row]


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))
