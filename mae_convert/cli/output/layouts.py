"""Print the layouts and their mapping tables."""

from collections.abc import Iterable

from mae_convert.cli.output.console import console, markup, table
from mae_convert.formats.registry import SUFFIX_FORMATS
from mae_convert.layouts.layout import Layout
from mae_convert.layouts.table import Repeat, Row


def layouts(title: str, all_layouts: Iterable[Layout]) -> None:
    """Print the layouts of a family of models, one line each."""
    console().print(title)
    grid = table("layout", "what it is", "tasks", "written as", whole=("layout",))
    for entry in all_layouts:
        tasks = ", ".join(dict.fromkeys(task for table in entry.tables for task in table.tasks))
        written = f"directory with {entry.weights_name}" if entry.weights_name else _kinds(entry)
        grid.add_row(*map(markup, (entry.name, entry.title, tasks, written)))
    console().print(grid)


def _kinds(entry: Layout) -> str:
    return ", ".join(suffix for suffix, kind in SUFFIX_FORMATS.items() if kind in entry.containers)


def layout(entry: Layout) -> None:
    """Print the mapping tables of one layout, as they are declared."""
    out = console()
    out.print(f"[bold]{entry.name}[/bold]: {entry.title}")
    for mapping in entry.tables:
        written = (
            "written and read"
            if any(entry.table_for(t) is mapping for t in mapping.tasks)
            else "read"
        )
        out.print(
            f"\n{mapping.name}: {', '.join(mapping.tasks)} ({written}); # is a block's number"
        )
        grid = table("canonical", entry.name, "")
        for canonical, external, transform in table_rows(mapping.rows):
            grid.add_row(*map(markup, (canonical, external, transform)))
        for drop in mapping.drops:
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
