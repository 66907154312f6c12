"""Print the fingerprint of a checkpoint, and the lineage of two checkpoints."""

from collections.abc import Mapping
from typing import Any

from mae_convert.checkpoint.fingerprint import TensorDigest
from mae_convert.cli.output.console import console, markup, pairs, table
from mae_convert.cli.output.inspection import fingerprint_rows
from mae_convert.convert.changes import step_in_words
from mae_convert.files.strict_json import plain
from mae_convert.verify.lineage import Lineage

MOST_TENSORS = 10


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
    """Return the value of a field and, if the checkpoint does not store it, its source."""
    if name in report["missing"]:
        return "missing: not stored in the checkpoint, so there is no digest of the configuration"
    value = report["fields"][name]
    text = _field(value)
    assumed = report["assumed"].get(name)
    return f"{text}, assumed: {assumed['source']}" if assumed else text


def lineage(result: Lineage) -> None:
    """Print how two checkpoints are related, the evidence, and the differences."""
    out = console()
    out.print(f"[bold]{markup(result.sentence)}[/bold]", soft_wrap=True)
    rows = [
        ("steps" if number == 0 else "", step_in_words(step))
        for number, step in enumerate(result.steps)
    ]
    rows += [
        ("configuration", f"{name} is {_field(a)} in A and {_field(b)} in B")
        for name, (a, b) in result.configuration.items()
    ]
    rows += [("not compared", what) for what in result.not_compared]
    rows += [("rests on", what) for what in result.rests_on]
    if result.equal is not None:
        rows.append(
            ("tensors", f"{result.equal} are equal bit for bit, {len(result.tensors)} differ")
        )
    elif result.parts:
        rows.append(("parts", f"{', '.join(result.parts)} not the same"))
    out.print(pairs(rows))
    if not result.tensors:
        return
    grid = table("tensor", "in A", "in B", whole=("in A", "in B"))
    for tensor in result.tensors[:MOST_TENSORS]:
        grid.add_row(*map(markup, (tensor.name, _digest(tensor.a), _digest(tensor.b))))
    if (more := len(result.tensors) - MOST_TENSORS) > 0:
        grid.add_row(f"and {more} more (--json has them)", "", "")
    out.print(grid)


def _digest(tensor: TensorDigest | None) -> str:
    """Return dtype, shape and the first digits of the digest of a tensor."""
    if tensor is None:
        return "not there"
    return f"{tensor.dtype} {'x'.join(map(str, tensor.shape))} {tensor.sha256[:12]}"


def _field(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(plain(value))
