"""Print what a repair changed."""

from collections.abc import Sequence
from pathlib import Path

from mae_convert.cli.output.console import console, markup
from mae_convert.cli.output.verdict import answer_line
from mae_convert.text import for_terminal
from mae_convert.verify.judge import Verdict

MOST_CHANGES = 20


def repaired(out: Path, changes: Sequence[str], verdict: Verdict) -> None:
    """Print the changes, and the verdict on what was written."""
    lines = console()
    for change in changes[:MOST_CHANGES]:
        lines.print(f"repaired  {markup(change)}")
    if len(changes) > MOST_CHANGES:
        lines.print(f"... and {len(changes) - MOST_CHANGES} more; --json lists all")
    lines.print(f"wrote {markup(for_terminal(out))}, with the certificate of its verification")
    lines.print(answer_line(verdict))
