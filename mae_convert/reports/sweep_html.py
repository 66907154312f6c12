"""Results of a sweep as one self-contained HTML page: a matrix of verdicts and a table."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from mae_convert.reports.html import Cell, document, heading, table
from mae_convert.sweep.result import ERROR, FAILED, FUNCTION_LIMIT, STATUS, Row
from mae_convert.text import for_html, format_bytes, format_number, natural_sort_key, plural

TAG = re.compile("<[^>]*>")
MOST_COLUMNS = 24  # maximum number of columns of a readable matrix
NOT_VARIANTS = ("publish", "base_model")  # settings that differ for each source
SCRIPT = """
const table = document.querySelector("#rows"), body = table.tBodies[0];
table.querySelectorAll("th[data-sort]").forEach(head => head.onclick = () => {
  const column = head.cellIndex;
  const up = head.getAttribute("aria-sort") !== "ascending";
  table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");  // empty cells come last
    const numbers = head.dataset.sort === "number";
    const order = numbers ? x - y : x.localeCompare(y, undefined, {numeric: true});
    return up ? order : -order;
  };
  [...body.rows].sort(compare).forEach(row => body.append(row));
});
document.querySelector("#filter").oninput = event => {
  const words = event.target.value.toLowerCase();
  for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(words);
};
"""


def page(rows: Sequence[Row], not_run: int = 0) -> str:
    """Return an HTML page about the jobs that were run.

    The heading also states `not_run`, the number of jobs that were not run.
    """
    counts = Counter(row.outcome for row in rows)
    amiss = [f"{counts[o]} {STATUS[o]}" for o in (FAILED, ERROR) if counts[o]]
    amiss += [f"{not_run} not run"] if not_run else []
    title = ", ".join([plural(len(rows) + not_run, "job"), *(amiss or ["all done"])])
    proven = sum(bool(row.proven) and row.is_good for row in rows)
    passed = sum(bool(row.passed) for row in rows)
    verified = sum(row.passed is not None for row in rows)
    seconds = sum(row.seconds for row in rows)
    sentences = [
        f"{verified} verified, {passed} passed, {proven} passed and proven"
        if verified
        else "not verified",
        f"{seconds:.0f} s in total",
    ]
    parts = [
        f"{heading(title, passed=not amiss)}<p>{'; '.join(sentences)}</p>",
        *_matrix(rows),
        "<h2>Jobs</h2>",
        '<input id="filter" placeholder="show only rows that contain …" aria-label="filter">',
        _table(rows),
        f'<p class="grey">{MEANINGS}</p>' if verified else "",
    ]
    return document(f"mae-convert sweep: {title}", parts, script=SCRIPT, wide=True)


def _matrix(rows: Sequence[Row]) -> Iterable[str]:
    """Yield a table of verdicts as HTML, with a row for each source.

    The table has a column for each combination of the settings in which the jobs differ. Nothing is
    yielded if there are too many columns.
    """
    differing = _differing(rows)
    columns = list(dict.fromkeys(_variant(row, differing) for row in rows))
    bad = {row.source for row in rows if not row.is_good}
    sources = sorted(
        {row.source for row in rows}, key=lambda s: (s not in bad, natural_sort_key(s))
    )
    if not 0 < len(columns) <= MOST_COLUMNS:
        return
    cells: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        cells.setdefault((row.source, _variant(row, differing)), []).append(_mark(row, link=True))
    names = _short_names(sources)
    lines = (
        [
            Cell(for_html(names[source]), title=source),
            *(Cell(" ".join(cells.get((source, column), ()))) for column in columns),
        ]
        for source in sources
    )
    yield "<h2>Verdicts</h2>"
    yield table(("source", *columns), lines)


def _differing(rows: Sequence[Row]) -> list[str]:
    """Return the names of the settings in which the jobs differ."""
    names = dict.fromkeys(name for row in rows for name in row.settings)
    return [
        name
        for name in names
        if name not in NOT_VARIANTS and len({str(row.settings.get(name)) for row in rows}) > 1
    ]


def _variant(row: Row, differing: Sequence[str]) -> str:
    words = [row.layout or "not converted"]
    words += [f"{n} {_words(row.settings[n])}" for n in differing if n in row.settings]
    return ", ".join(words)


def _words(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _short_names(sources: Sequence[str]) -> dict[str, str]:
    """Return a dictionary from each source to its path without the common parent directories."""
    folders = [source.rpartition("/")[0].split("/") for source in sources]
    common = 0
    while all(len(f) > common and f[common] == folders[0][common] for f in folders):
        common += 1
    return {source: "/".join(source.split("/")[common:]) for source in sources}


def _mark(row: Row, *, link: bool = False) -> str:
    word = row.verdict or "converted" if row.is_good else row.status
    tone = "ok" if row.is_good and row.passed else "" if row.is_good else "bad"
    word = {"PASSED and proven": "proven", "PASSED": "passed"}.get(word, word)
    if not link:
        return f'<span class="cell {tone}">{for_html(word)}</span>'
    why, anchor = for_html(_why(row)), for_html(row.key[:16])
    return f'<a class="cell {tone}" href="#{anchor}" title="{why}">{for_html(word)}</a>'


def _why(row: Row) -> str:
    """Return why a job has an error or a failed verdict, else the assumptions of its verdict."""
    if row.is_good:
        return f"assuming {row.assuming}" if row.assuming else ""
    if row.error:
        return row.error
    where = " at ".join(filter(None, (row.verdict, row.first_divergence)))
    return ": ".join(filter(None, (where, row.cause)))


def _text(value: str | None) -> Cell:
    return Cell(for_html(value or ""))


def _number(value: float | None, show: Callable[[float], str]) -> Cell:
    if value is None:
        return Cell("", "n", "")
    return Cell(for_html(show(value)), "n whole", f"{value:.17g}")


def _small(value: float | None) -> Cell:
    return _number(value, format_number)


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


def _details(row: Row) -> Cell:
    """Return a cell with further details, which are collapsed; the page's filter searches them."""
    facts = {
        "target": row.published or row.target,
        "weights": None if row.source_bytes is None else format_bytes(row.source_bytes),
        "convert": None if row.convert_seconds is None else _seconds(row.convert_seconds),
        "verify": None if row.verify_seconds is None else _seconds(row.verify_seconds),
        "source sha256": row.source_sha256,
        "target sha256": row.target_sha256,
        "source fingerprint": row.source_fingerprint,
        "target fingerprint": row.target_fingerprint,
        **{name: _words(value) for name, value in row.settings.items()},
    }
    lines = "".join(
        f"<dt>{for_html(name)}</dt><dd>{for_html(value)}</dd>"
        for name, value in facts.items()
        if value
    )
    return Cell(f"<details><summary>details</summary><dl>{lines}</dl></details>" if lines else "")


COLUMNS: Sequence[tuple[str, str, Callable[[Row], Cell]]] = (
    ("source", "text", lambda r: _text(r.source)),
    ("to", "text", lambda r: Cell(for_html(r.layout or ""), "whole")),
    ("result", "text", lambda r: Cell(_mark(r), "word")),
    ("why", "text", lambda r: _text(_why(r))),
    ("float64", "number", lambda r: _small(r.function)),
    ("float32", "number", lambda r: _small(r.own_error.get("float32"))),
    ("time", "number", lambda r: _number(r.seconds, _seconds)),
    ("peak memory", "number", lambda r: _number(r.peak_memory, format_bytes)),
    ("details", "", _details),
)
MEANINGS = (
    "float64: the largest relative L2 distance between the two sides (limit"
    f" {FUNCTION_LIMIT:.0e}); float32: the larger rounding error of the two sides; time and memory:"
    " for the whole job; proven: both sides were loaded by the libraries of their formats, without"
    " mae-convert's mapping tables"
)


def _table(rows: Sequence[Row]) -> str:
    """Return the table of all jobs as HTML, failures first, without empty columns."""
    rows = sorted(rows, key=lambda row: (row.is_good, row.outcome != FAILED))
    names = _short_names(sorted({row.source for row in rows}))
    shown = [replace(row, source=names[row.source]) for row in rows]
    columns = [(name, kind, list(map(cell, shown))) for name, kind, cell in COLUMNS]
    columns = [c for c in columns if any(TAG.sub("", cell.html) for cell in c[2])]
    return table(
        [name for name, _, _ in columns],
        zip(*(cells for _, _, cells in columns), strict=True),
        attributes=[f'id="{for_html(row.key[:16])}"' for row in rows],
        sorted_as=[kind for _, kind, _ in columns],
        name="rows",
    )
