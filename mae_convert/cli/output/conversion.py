"""Print the result of a conversion."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mae_convert.checkpoint.warnings import by_reason
from mae_convert.cli.output.inspection import ASSUMPTIONS, family_rows
from mae_convert.cli.output.lines import print_assumptions, print_heading, print_pairs
from mae_convert.convert.changes import step_in_words
from mae_convert.convert.plan import Plan
from mae_convert.formats.dtypes import DTYPES
from mae_convert.text import format_number, listed


def conversion(plan: Plan, report: Mapping[str, Any]) -> None:
    """Print the result of a conversion."""
    source = plan.source
    rows = [
        ("read", f"{source.name}  ({source.layout.name}, {source.task}, {source.container.kind})"),
        ("wrote", f"{plan.target}  ({plan.layout.name}, {plan.task})"),
        ("tensors", f"{len(report['tensors'])} written; read back and equal"),
    ]
    if source.relative and (source.relative.certain or source.relative.relative.caveat):
        rows += family_rows(report["family"])
    if prefix := source.prefix.in_words():
        undone = f"; --prefix {prefix} restores it" if source.prefix.common else ""
        rows.append(("prefix", f"{prefix} was removed from the tensor names{undone}"))
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
            (
                "unknown",
                "configuration fields that a library may use but mae-convert does not know: "
                f"{listed(unread, 8)}",
            )
        )
    print_pairs(rows)
    print_heading(ASSUMPTIONS)
    print_assumptions(report["assumed"])


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
