"""Print the layouts and their mapping tables."""

from collections.abc import Iterable

from rich.table import Table as Grid

from mae_convert.layouts import Layout
from mae_convert.mapping import Repeat, Row
from mae_convert.planning import SUFFIX_KINDS
from mae_convert.show.console import console, markup


def layouts(all_layouts: Iterable[Layout]) -> None:
    """Print the layouts, one line each."""
    grid = Grid(box=None, pad_edge=False, padding=(0, 2))
    for column in ("layout", "what it is", "tasks", "written as"):
        grid.add_column(column)
    for entry in all_layouts:
        tasks = ", ".join(dict.fromkeys(task for table in entry.tables for task in table.tasks))
        written = f"directory with {entry.weights_name}" if entry.weights_name else _kinds(entry)
        grid.add_row(*map(markup, (entry.name, entry.title, tasks, written)))
    console().print(grid)


def _kinds(entry: Layout) -> str:
    return ", ".join(suffix for suffix, kind in SUFFIX_KINDS.items() if kind in entry.containers)


def layout(entry: Layout) -> None:
    """Print the mapping tables of one layout, as they are declared."""
    out = console()
    out.print(f"[bold]{entry.name}[/bold]: {entry.title}")
    for table in entry.tables:
        written = (
            "written and read" if any(entry.table_for(t) is table for t in table.tasks) else "read"
        )
        out.print(f"\n{table.name}: {', '.join(table.tasks)} ({written}); # is a block's number")
        grid = Grid(box=None, pad_edge=False, padding=(0, 2))
        for column in ("canonical", entry.name, ""):
            grid.add_column(column)
        for canonical, external, transform in table_rows(table.rows):
            grid.add_row(*map(markup, (canonical, external, transform)))
        for drop in table.drops:
            grid.add_row("not used", markup(drop.external), markup(drop.why))
        out.print(grid)


def table_rows(rows: Iterable[Row | Repeat]) -> Iterable[tuple[str, str, str]]:
    """Yield canonical name, external name and transform of every row."""
    for row in rows:
        if isinstance(row, Repeat):
            for canonical, external, transform in table_rows(row.rows):
                yield row.canonical + canonical, row.external + external, transform
        else:
            yield row.canonical, row.external, str(row.transform)
