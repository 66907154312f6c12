"""Print the fingerprint of a checkpoint, and how two checkpoints descend from each other."""

from collections.abc import Mapping
from typing import Any

from mae_convert.plain import plain
from mae_convert.show.console import console, pairs
from mae_convert.show.inspection import fingerprint_rows


def fingerprint(report: Mapping[str, Any]) -> None:
    """Print a fingerprint, its parts, and the configuration fields that it covers."""
    out = console()
    out.print(report["fingerprint"], soft_wrap=True)
    out.print()
    rows = [
        ("checkpoint", f"{report['path']}  ({report['layout']}, {report['task']})"),
        *fingerprint_rows(report)[1:],
    ]
    out.print(pairs(rows))
    out.print("\n[bold]Configuration fields that it covers[/bold]")
    out.print(pairs((f"  {name}", _value(name, report)) for name in report["fields"]))


def _value(name: str, report: Mapping[str, Any]) -> str:
    """Return the value of a field, and what it rests on where the checkpoint does not store it."""
    if name in report["missing"]:
        return "missing: nothing in the file gives it, so there is no digest of the configuration"
    value = report["fields"][name]
    text = "x".join(map(str, value)) if isinstance(value, list | tuple) else str(plain(value))
    assumed = report["assumed"].get(name)
    return f"{text}, assumed: {assumed['source']}" if assumed else text
