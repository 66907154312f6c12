"""The number of faults whose first difference is reproduced by a script."""

import contextlib
import io
import runpy
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mae_convert.diagnose.reduce import Difference, reproducer_of
from mae_convert.diagnose.reproducer import script_text
from mae_convert.errors import MaeConvertError
from mae_convert.runtime.trace import Trace
from mae_convert.verify.judge import judge
from mutation.population import Mutant
from mutation.running import run_all
from mutation.score import runs_of

KINDS = ("weights", "tables", "configurations", "code")


@dataclass(frozen=True)
class Reduced:
    """A fault that makes a float64 result differ, the first such result, and whether a script
    reproduces it."""

    mutant: Mutant
    first: str
    shown: bool


def reductions(mutants: Sequence[Mutant], folder: Path) -> list[Reduced]:
    """Run faults, and return those that make a result differ."""
    runnable = [mutant for mutant in mutants if mutant.refused is None]
    traces = run_all(runs_of(runnable), folder)
    targets = traces[len(traces) - len(runnable) :]
    sources = {
        (str(run.checkpoint.path), id(run.checkpoint), run.framework): trace
        for run, trace in zip(runs_of(runnable), traces, strict=True)
    }
    found = []
    for mutant, b in zip(runnable, targets, strict=True):
        run = mutant.a
        a = sources[str(run.checkpoint.path), id(run.checkpoint), run.framework]
        if not isinstance(a, Trace) or not isinstance(b, Trace):  # the framework refuses the file
            continue
        if first := judge(a, b).first_divergence:
            difference = Difference(first, b, mutant.b.framework)
            checkpoints = run.checkpoint, mutant.b.checkpoint
            with tempfile.TemporaryDirectory() as place:
                shown = _is_shown(difference, a, checkpoints, run.inputs, Path(place))
            found.append(Reduced(mutant, first, shown))
    return found


def _is_shown(difference, a, checkpoints, inputs, folder: Path) -> bool:
    """Return whether a script reproduces a side's result in PyTorch and ends with exit status 1.

    If the fault is in a table, the source's own file is read with it, too.
    """
    try:
        found = reproducer_of(difference, a, checkpoints, inputs, {"torch": None})
    except MaeConvertError:
        return False
    np.savez(folder / "reproduce.npz", **found.arrays)
    script, arguments = folder / "reproduce.py", sys.argv
    script.write_text(script_text(found.script, ("torch",)))
    printed = io.StringIO()
    sys.argv = [str(script)]
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        sys.argv = arguments
    lines = [line for line in printed.getvalue().splitlines() if "settings of" in line]
    distances = [line.split(": ")[1].split()[0] for line in lines]
    distances += [line.split("A's result, ")[1].split()[0] for line in lines]
    return status == 1 and any(float(distance) < 1e-12 for distance in distances)


def table(found: Sequence[Reduced]) -> str:
    """Return the score as a Markdown table."""
    lines = ["| faults in | reproduced by a script of one step |", "|---|---|"]
    for kind in KINDS:
        own = [reduced for reduced in found if reduced.mutant.kind == kind]
        if own:
            lines.append(f"| {kind} | {sum(r.shown for r in own)} of {len(own)} |")
    return "\n".join(lines)


def remarks(found: Sequence[Reduced]) -> list[str]:
    """Return the first differing results of the faults that no script reproduces, with counts."""
    others = [reduced.first for reduced in found if not reduced.shown]
    return [f"{others.count(first)} first at {first}" for first in sorted(set(others))]
