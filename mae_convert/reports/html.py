"""Components of the HTML reports: self-contained pages, tables, charts and images.

All pages have the same style sheet, with light and dark colours. A page has no horizontal scroll
bar: on narrow screens, each row of a table becomes a block whose cells are labelled with the column
headings. In arguments that are HTML, text from files or users must be escaped (`text.for_html`).
"""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mae_convert.text import for_html

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --page: #ffffff; --ok: #116329; --bad: #b3211d;
        --line: #d8dee4; --grey: #57606a; --code: #f3f5f7; --faint: #b6c2cf; --accent: #0969da;
        --ok-fill: #dafbe1; --bad-fill: #ffdcd9; --mark: #fff8c5; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --page: #0d1117; --ok: #56d364; --bad: #ff7b72; --line: #30363d;
          --grey: #9ea7b3; --code: #1c2430; --faint: #4d5866; --accent: #58a6ff;
          --ok-fill: #12361f; --bad-fill: #4c1a1a; --mark: #3b3000; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
body.wide { max-width: none; }
h1 { font-size: 1.6rem; line-height: 1.25; margin-bottom: 0; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
.ok { color: var(--ok); } .bad { color: var(--bad); } .grey { color: var(--grey); }
table { border-collapse: collapse; width: 100%; }
.wide table { width: auto; max-width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line);
         vertical-align: top; }
th { overflow-wrap: normal; }
td.n { font-variant-numeric: tabular-nums; }
td.n, td.word { overflow-wrap: normal; } td.whole, .cell, summary { white-space: nowrap; }
tr:target, tr.marked td { background: var(--mark); }
tr.best td { font-weight: 600; } tr.paid td { background: var(--ok-fill); }
code { background: var(--code); padding: .1rem .3rem; border-radius: 4px; }
th[data-sort] { cursor: pointer; user-select: none; }
th[aria-sort=ascending]::after { content: " \\25B2"; }
th[aria-sort=descending]::after { content: " \\25BC"; }
.cell { display: inline-block; padding: .1rem .5rem; border-radius: 4px; font-size: .85rem;
        text-decoration: none; background: var(--code); color: inherit; }
.cell.ok { background: var(--ok-fill); color: var(--ok); }
.cell.bad { background: var(--bad-fill); color: var(--bad); font-weight: 600; }
summary { cursor: pointer; } dl { margin: .3rem 0; } dt { color: var(--grey); }
dd { margin: 0 0 .3rem; }
input { font: inherit; padding: .2rem .5rem; width: 22rem; max-width: 100%; margin: .5rem 0;
        color: inherit; background: var(--page); border: 1px solid var(--faint); }
figure { margin: 0; } figcaption { color: var(--grey); }
img { max-width: 100%; } img.pixels { image-rendering: pixelated; }
table.images { table-layout: fixed; } .images td, .images th { padding: .15rem; border: 0; }
.images img { width: 100%; display: block; }
svg { width: 100%; height: auto; overflow: visible; font-size: 13px; fill: var(--grey); }
svg .line { stroke: var(--line); } svg .faint { stroke: var(--faint); fill: none; }
svg .curve { stroke: var(--grey); fill: none; }
svg .accent { stroke: var(--accent); stroke-width: 2.5; fill: none; }
svg .ok-mark { stroke: var(--ok); stroke-dasharray: 5 4; }
svg .bad-mark { stroke: var(--bad); stroke-dasharray: 5 4; }
svg .ok-fill { fill: var(--ok); } svg .bad-fill { fill: var(--bad); }
svg .accent-fill { fill: var(--accent); }
@media (max-width: 40rem) { svg { font-size: 22px; } }
@media NARROW {
  TABLE, TABLE tbody, TABLE tr, TABLE td { display: block; width: 100%; max-width: none; }
  TABLE thead { display: none; }
  TABLE tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  TABLE td { border: 0; padding: .1rem 0; }
  TABLE td:empty { display: none; }
  TABLE td[data-head]:not([data-head=""])::before { content: attr(data-head) ": ";
                                                    color: var(--grey); } }
"""
# A table with many columns needs a wider screen.
NARROW = (("(max-width: 40rem)", "table.rows"), ("(max-width: 75rem)", "table.many"))
MANY_COLUMNS = 9


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    html: str
    """The content, as HTML."""

    kind: str = ""
    """The CSS classes of the cell.

    "n" is for a number, "word" for text that is not broken within words, and "whole" for short text
    on one line."""

    value: str | None = None
    """The value by which rows are sorted; default: the text of the cell."""

    title: str = ""
    """The text of the tooltip, or ""."""


def document(title: str, parts: Iterable[str], *, script: str = "", wide: bool = False) -> str:
    """Return an HTML page.

    Args:
        title: the title, as text.
        parts: the content, as HTML.
        script: the JavaScript code of the page.
        wide: whether the page uses the whole width of the window.
    """
    general, _, narrow = STYLE.rpartition("@media NARROW")
    style = general + "".join(
        f"@media {width}{narrow.replace('TABLE', table)}" for width, table in NARROW
    )
    end = f"<script>{script}</script>" if script else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{for_html(title)}</title><style>{style}</style></head>\n"
        f'<body class="{"wide" if wide else "narrow"}">\n'
        + "\n".join(parts)
        + f"\n{end}</body></html>\n"
    )


def heading(text: str, *, passed: bool) -> str:
    """Return the main heading as HTML, in the colour for passed or failed."""
    return f'<h1 class="{"ok" if passed else "bad"}">{for_html(text)}</h1>'


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str | Cell]],
    *,
    attributes: Sequence[str] = (),
    sorted_as: Sequence[str] = (),
    name: str = "",
) -> str:
    """Return a table as HTML.

    Args:
        heads: the column headings, as text.
        rows: the cells, as HTML.
        attributes: attributes of each row, such as `id="..."` or `class="..."`.
        sorted_as: for each column, how a script of the page sorts its cells: as "text" or as
            "number"; "" for a column by which rows cannot be sorted. The sequence is empty if the
            table cannot be sorted.
        name: the id of the table; "" for no id.
    """
    labels = [for_html(head) for head in heads]
    kinds = [
        f' data-sort="{kind}" title="sort"' if kind else ""
        for kind in sorted_as or [""] * len(heads)
    ]
    head = "".join(f"<th{kind}>{label}</th>" for label, kind in zip(labels, kinds, strict=True))
    lines = []
    for number, row in enumerate(rows):
        cells = (cell if isinstance(cell, Cell) else Cell(cell) for cell in row)
        body = "".join(_cell(cell, label) for cell, label in zip(cells, labels, strict=True))
        more = f" {attributes[number]}" if attributes else ""
        lines.append(f"<tr{more}>{body}</tr>")
    identity = f' id="{name}"' if name else ""
    kind = "many" if len(heads) >= MANY_COLUMNS else "rows"
    return (
        f'<table{identity} class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(lines)
        + "</tbody></table>"
    )


def _cell(cell: Cell, label: str) -> str:
    kind = f' class="{cell.kind}"' if cell.kind else ""
    value = "" if cell.value is None else f' data-value="{for_html(cell.value)}"'
    title = f' title="{for_html(cell.title)}"' if cell.title else ""
    return f'<td{kind}{value}{title} data-head="{label}">{cell.html}</td>'


def images(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of images as HTML; its columns stay side by side on narrow screens.

    Args:
        heads: the headings of the columns, as text.
        rows: the cells of each row, as HTML; see `image`.
    """
    head = "".join(f"<th>{for_html(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{i}</td>" for i in row) + "</tr>" for row in rows)
    return f'<table class="images"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def image(colours: np.ndarray, description: str, *, least_width: int = 0) -> str:
    """Return an image as HTML, with its data embedded.

    Args:
        colours: (H, W, 3), uint8.
        description: the alternative text.
        least_width: if 0, the image is stored as JPEG in its own size. Otherwise, it is stored as
            PNG, and an image that is narrower than this number of pixels is enlarged without
            interpolation, by the largest integer factor that keeps its width within this number.
    """
    drawn = Image.fromarray(colours)
    factor = max(1, least_width // drawn.width)
    data, kind, look = io.BytesIO(), "jpeg", ""
    if least_width:
        size = (drawn.width * factor, drawn.height * factor)
        drawn.resize(size, Image.Resampling.NEAREST).save(data, format="PNG", optimize=True)
        kind, look = "png", ' class="pixels"'
    else:
        drawn.save(data, "JPEG", quality=92)
    text = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img alt="{for_html(description)}"{look} src="data:image/{kind};base64,{text}">'


@dataclass(frozen=True)
class Chart:
    """The dimensions of a chart, in pixels of an SVG that is scaled to the width of the page."""

    description: str
    """The alternative text."""

    height: int
    """The height of the SVG; its width is 900."""

    left: int
    """The width of the area for labels, to the left of the plot."""

    bottom: int
    """The height of the area for labels, below the plot."""

    width: int = 900
    right: int = 20
    top: int = 16

    def x(self, fraction: float) -> float:
        """Return the x coordinate of a fraction (0 to 1) of the plot's width."""
        return self.left + fraction * (self.width - self.left - self.right)

    def y(self, fraction: float) -> float:
        """Return the y coordinate of a height: 0 is the bottom of the plot, 1 is the top."""
        return self.height - self.bottom - fraction * (self.height - self.top - self.bottom)

    def svg(self, *parts: str) -> str:
        """Return the chart as an SVG that contains `parts`."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img"'
            f' aria-label="{for_html(self.description)}">{"".join(parts)}</svg>'
        )

    def level(self, fraction: float, label: str) -> str:
        """Return a horizontal line at a fraction of the plot's height, with a label, as SVG."""
        y = self.y(fraction)
        return (
            f'<line class="line" x1="{self.left}" x2="{self.width - self.right}" y1="{y:.1f}"'
            f' y2="{y:.1f}"/>' + text(self.left - 8, y + 4, label, anchor="end")
        )


def text(x: float, y: float, words: str, *, anchor: str = "start", more: str = "") -> str:
    """Return text in a chart as SVG.

    Args:
        x: the horizontal coordinate in the SVG.
        y: the vertical coordinate of the baseline.
        words: the text.
        anchor: the part of the text that is at `x`: "start", "middle" or "end".
        more: further attributes of the SVG element, each after a space.
    """
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{for_html(words)}</text>'


def line(points: Sequence[tuple[float, float]], kind: str) -> str:
    """Return a line through points as SVG; `kind` is a CSS class such as "curve" or "ok-mark"."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{kind}" points="{path}"/>'


def point(x: float, y: float, words: str, kind: str) -> str:
    """Return a point as SVG, with the tooltip `words`; `kind` is "ok", "bad" or "accent"."""
    return (
        f'<circle class="{kind}-fill" cx="{x:.1f}" cy="{y:.1f}" r="3.5">'
        f"<title>{for_html(words)}</title></circle>"
    )
