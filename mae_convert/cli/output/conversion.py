"""Print the result of a conversion and the differences between two checkpoints."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from mae_convert.checkpoint.warnings import by_reason
from mae_convert.cli.output.console import assumptions, console, markup, pairs, table
from mae_convert.cli.output.inspection import family_rows
from mae_convert.convert.changes import step_in_words
from mae_convert.convert.plan import Plan
from mae_convert.formats.dtypes import DTYPES
from mae_convert.text import format_number, listed

if TYPE_CHECKING:
    from mae_convert.checkpoint.diff import Difference


def conversion(plan: Plan, report: Mapping[str, Any]) -> None:
    """Print the result of a conversion."""
    out, source = console(), plan.source
    rows = [
        ("read", f"{source.name}  ({source.layout.name}, {source.task}, {source.container.kind})"),
        ("wrote", f"{plan.target}  ({plan.layout.name}, {plan.task})"),
        ("tensors", f"{len(report['tensors'])} written; read back and equal"),
    ]
    if source.relative and (source.relative.certain or source.relative.relative.caveat):
        rows += family_rows(report["family"])
    if prefix := source.prefix.in_words():
        undone = f"; --prefix {prefix} restores it" if source.prefix.common else ""
        rows.append(("prefix", f"{prefix} was removed from the names{undone}"))
    for step in report["steps"]:
        undone = "can be undone" if _is_exact(step) else "cannot be undone"
        rows.append(("changed", f"{step_in_words(step)} (declared, {undone})"))
    rows += [("rounded", line) for line in _worst_rounding(report["tensors"])]
    rows += [
        ("created", f"{listed(names, 3)}: {reason}")
        for reason, names in by_reason(report["created"]).items()
    ]
    rows += [
        ("dropped", f"{listed(names, 3)}: {reason}")
        for reason, names in by_reason(report["dropped"]).items()
    ]
    rows += [("difference", sentence) for sentence in report.get("differences", ())]
    if unread := report.get("unread"):
        rows.append(
            ("unknown", f"configuration fields that a library may use: {listed(unread, 8)}")
        )
    out.print(pairs(rows))
    out.print("\n[bold]Configuration that is not stored in the tensors, and its source[/bold]")
    out.print(assumptions(report["assumed"]))


def _is_exact(step: Mapping[str, Any]) -> bool:
    """Return whether a step only converted tensors to wider dtypes, and is therefore exact."""
    return step["step"] == "dtype" and all(
        np.can_cast(DTYPES[narrow], DTYPES[step["to"]]) for narrow in step["from"]
    )


def _worst_rounding(tensors: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line about the tensor with the largest rounding error, if tensors were rounded."""
    rounded = {name: t["rounding"] for name, t in tensors.items() if "rounding" in t}
    if not rounded:
        return
    if not any(error["absolute"] for error in rounded.values()):
        yield "every value is exact in the new dtype"
        return
    for kind in ("relative", "absolute"):
        worst = max(rounded, key=lambda name: rounded[name][kind])
        yield f"largest {kind} error {format_number(rounded[worst][kind])}, in {worst}"


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
