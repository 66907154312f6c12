"""Print the tables of ``inspect --infer`` and ``inspect --stats``."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table as Grid
from rich.text import Text

from mae_convert.cli.output.console import console, markup, table
from mae_convert.files.strict_json import plain

MOST_CANDIDATES = 5
GAP = 4  # spaces between the columns of a table


def inferred(result: Mapping[str, Any]) -> None:
    """Print the result of an experiment: for each field, its value and the best candidates."""
    out = console()
    out.print("\n[bold]Determined by experiment[/bold]")
    if result["images"]:
        out.print(
            f"  {result['images']} images, {result['masks_per_image']} crops of each image, "
            f"each crop with its own mask, run by {markup(result['framework'])}; losses on "
            "removed patches are relative to the loss of predicting each image's mean colour"
        )
    for name, field in result["fields"].items():
        value = markup(plain(field["value"])) if field["decided"] else "[yellow]undecided[/yellow]"
        by = f" by {markup(field['method'])}" if field["method"] else ""
        confidence = field["confidence"]
        sure = "" if confidence is None else f"; the losses give a confidence of {confidence:.3f}"
        out.print(f"  {markup(name)}: {value}{by} ({markup(field['reason'])}{sure})")
        if field["candidates"]:
            out.print(_candidates(field["candidates"]))


def _candidates(candidates: Sequence[Mapping[str, Any]]) -> Grid:
    """Return a table of the best candidates, with the number of the other candidates."""
    columns = [
        (head, key)
        for head, key in (("loss", "loss"), ("weights", "structure"))
        if any(candidate[key] is not None for candidate in candidates)
    ]
    heads = [head for head, _ in columns]
    grid = table("    value", *heads, right=heads)
    for candidate in candidates[:MOST_CANDIDATES]:
        numbers = ("" if candidate[k] is None else f"{candidate[k]:.4g}" for _, k in columns)
        grid.add_row(f"    {markup(plain(candidate['value']))}", *numbers)
    if len(candidates) > MOST_CANDIDATES:
        grid.add_row(f"    and {len(candidates) - MOST_CANDIDATES} more (--json has them)")
    return grid


def statistics(stats: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table of statistics of the values of tensors.

    Args:
        stats: for each tensor name, the result of `mae_convert.checkpoint.inspect.statistics`.
    """
    out = console()
    out.print("\n[bold]Values[/bold]")
    out.print(_statistics(stats, out.width))


def _statistics(stats: Mapping[str, Mapping[str, float]], width: int) -> Grid | Group:
    """Return a table of tensor statistics; names are on separate lines if `width` is too small."""
    numbers = ("min", "max", "mean", "std", "zeros", "not finite")
    rows = {
        name: [*(f"{s[key]:.4g}" for key in numbers[:4]), str(s["zeros"]), str(s["not_finite"])]
        for name, s in stats.items()
    }
    widths = [max(map(len, column)) for column in zip(numbers, *rows.values(), strict=True)]
    if max(map(len, rows), default=0) + sum(w + GAP for w in widths) <= width:
        grid = table("tensor", *numbers, right=numbers, whole=numbers)
        for name, values in rows.items():
            grid.add_row(markup(name), *values)
        return grid
    lines = ["[bold]tensor[/bold]", f"[bold]{_aligned(numbers, widths)}[/bold]"]
    for name, values in rows.items():
        lines += [markup(name), _aligned(values, widths)]
    return Group(*(Text.from_markup(line, emoji=False) for line in lines))


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return a line of right-aligned cells."""
    return "".join(cell.rjust(width + 2) for cell, width in zip(cells, widths, strict=True))
