"""Print the result of ``lineage``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table as Grid

from mae_convert.cli.output.console import console, markup, pairs, table
from mae_convert.cli.output.inspection import field_in_words

if TYPE_CHECKING:
    from mae_convert.checkpoint.fingerprint import TensorDigest
    from mae_convert.verify.lineage import DifferingTensor, Lineage

MOST_TENSORS = 10
GAP = 4  # spaces between the columns of a table


def lineage(result: "Lineage") -> None:
    """Print how two checkpoints are related, the evidence, and the differences."""
    from mae_convert.convert.changes import step_in_words

    out = console()
    out.print(f"[bold]{markup(result.sentence)}[/bold]", soft_wrap=not out.is_terminal)
    rows = [
        ("steps" if number == 0 else "", step_in_words(step))
        for number, step in enumerate(result.steps)
    ]
    rows += [
        ("configuration", f"{name} is {field_in_words(a)} in A and {field_in_words(b)} in B")
        for name, (a, b) in result.configuration.items()
    ]
    rows += [("not compared", what) for what in result.not_compared]
    rows += [("based on", what) for what in result.rests_on]
    if result.equal is not None:
        rows.append(("tensors", counts_in_words(result.equal, result.tensors)))
    elif result.parts:
        rows.append(("parts", f"{', '.join(result.parts)} differ"))
    out.print(pairs(rows))
    if not result.tensors:
        return
    out.print(differing_tensors(result.tensors[:MOST_TENSORS], out.width))
    if (more := len(result.tensors) - MOST_TENSORS) > 0:
        out.print(f"and {more} more (--json has them)")


def differing_tensors(tensors: "Sequence[DifferingTensor]", width: int) -> Grid | Group:
    """Return a table of tensor digests, or three lines per tensor if the table is too wide."""
    rows = [(tensor.name, _digest(tensor.a), _digest(tensor.b)) for tensor in tensors]
    if sum(max(map(len, column)) + GAP for column in zip(*rows, strict=True)) > width:
        return Group(
            *(
                renderable
                for name, a, b in rows
                for renderable in (markup(name), pairs([("  in A", a), ("  in B", b)]))
            )
        )
    grid = table("tensor", "in A", "in B", whole=("in A", "in B"))
    for row in rows:
        grid.add_row(*map(markup, row))
    return grid


def counts_in_words(equal: int, tensors: "Sequence[DifferingTensor]") -> str:
    """Return the numbers of equal and differing tensors, and of tensors in A or B only, as text."""
    only = {"A": sum(t.b is None for t in tensors), "B": sum(t.a is None for t in tensors)}
    differing = len(tensors) - sum(only.values())
    counts = [
        f"{equal} {'is' if equal == 1 else 'are'} bit-identical",
        f"{differing} {'differs' if differing == 1 else 'differ'}",
    ]
    counts += [
        f"{count} {'is' if count == 1 else 'are'} only in {side}"
        for side, count in only.items()
        if count
    ]
    return ", ".join(counts)


def _digest(tensor: "TensorDigest | None") -> str:
    """Return the dtype, the shape and the first digits of the digest of a tensor, in one line.

    The result is "missing" if `tensor` is None.
    """
    if tensor is None:
        return "missing"
    return f"{tensor.dtype} {'x'.join(map(str, tensor.shape))} {tensor.sha256[:12]}"
