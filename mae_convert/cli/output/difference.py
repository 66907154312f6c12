"""Print the differences between two checkpoints."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mae_convert.cli.output.console import console, markup, table
from mae_convert.text import format_number

if TYPE_CHECKING:
    from mae_convert.checkpoint.diff import Difference


def difference_json(difference: "Difference") -> dict[str, Any]:
    """Return the differences between two checkpoints as a dictionary, for JSON output."""
    return {
        "same": difference.same,
        "equal": difference.equal,
        "tensors": [asdict(tensor) for tensor in difference.tensors],
        "configuration": {
            name: {"a": a, "b": b} for name, (a, b) in difference.configuration.items()
        },
        "not_compared": difference.not_compared,
        "not_read": list(difference.not_read),
    }


def difference(result: "Difference") -> None:
    """Print which tensors and fields differ."""
    out = console()
    out.print(f"{result.equal} tensors are bit-identical, {len(result.tensors)} differ")
    grid = table(
        "tensor", "shape and dtype", "different values", "relative L2", "largest difference"
    )
    for t in result.tensors:
        pair = ((t.shape_a, t.dtype_a), (t.shape_b, t.dtype_b))
        a, b = (f"{shape} {dtype}" if dtype else "missing" for shape, dtype in pair)
        kind = a if a == b else f"{a} | {b}"
        cells = (t.name, kind, t.elements, format_number(t.relative_l2), format_number(t.max_abs))
        grid.add_row(*map(markup, cells))
    if result.tensors:
        out.print(grid)
    for name, (a, b) in result.configuration.items():
        out.print(f"configuration: {markup(name)} is {markup(a)} in A and {markup(b)} in B")
    for name, sides in result.not_compared.items():
        what = f"{name}, which is not specified for {sides}"
        out.print(f"[yellow]not compared[/yellow]: {markup(what)}")
    for what in result.not_read:
        out.print(f"[yellow]not compared[/yellow]: {markup(what)}")
