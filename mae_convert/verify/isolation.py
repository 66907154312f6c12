"""Compare two models step by step, each step of both with the same input.

In an ordinary run a block gets what the blocks before it have computed: after the first fault
everything differs, and rounding errors add up. Here every step of either side (an embedding, a
block, a norm, the prediction) gets what A's float64 run had there, so that a difference is the
step's own.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mae_convert.runtime.running import Run, run_together
from mae_convert.runtime.trace import Trace
from mae_convert.verify.distance import FUNCTION_LIMIT, function_error, relative_error
from mae_convert.verify.judge import (
    CEILING_UNITS,
    FLOOR_UNITS,
    PEER_FACTOR,
    UNIT_ROUNDOFF,
    Check,
    ceiling_units,
)
from mae_convert.verify.localise import execution_order

ISOLATED = "isolated/"
# The results that are the input of the next step.
STEP_END = re.compile(r"(encoder|decoder)\.(embedding|blocks\.\d+\.output|norm)|head\.norm")
BLOCK = re.compile(r"((?:encoder|decoder)\.blocks\.\d+)\.\w+")
MOST_NAMED = 6  # steps that are listed in a sentence


@dataclass(frozen=True)
class Step:
    """One step of B, and of A, with A's input."""

    name: str
    """The name of the step, such as "encoder.blocks.3"."""

    function: float
    """The largest distance between the results of B and A in float64."""

    at: str | None
    """The first result in the step that differs, or None."""

    errors: Mapping[str, tuple[float, float, float]]
    """By dtype, the rounding error of A, that of B, and the limit of the larger one."""

    @property
    def differs(self) -> bool:
        """Whether B computes something else than A in this step."""
        return self.at is not None

    def is_imprecise(self, dtype: str) -> bool:
        """Return whether a side computes this step with too large rounding errors."""
        a, b, limit = self.errors[dtype]
        return not (a <= limit and b <= limit)

    def plain(self) -> dict[str, Any]:
        """Return the step as plain data, for a report."""
        errors = {d: dict(zip(("A", "B", "limit"), e, strict=True)) for d, e in self.errors.items()}
        return {"step": self.name, "difference": self.function, "at": self.at, "rounding": errors}


def run_isolated(
    runs: Sequence[Run], traces: Sequence[Trace], inputs: Mapping[str, np.ndarray]
) -> list[Step]:
    """Run the steps of both sides on the inputs that A's float64 run had there.

    Args:
        runs: of A and B, whose ordinary runs gave the traces.
        traces: of A and B.
        inputs: what both were run on.

    Raises:
        MaeConvertError: a run failed, or its library cannot be run step by step.
    """
    exact = traces[0].results("float64")
    given = {name: array for name, array in exact.items() if STEP_END.fullmatch(name)}
    a, b = (
        replace(run, request=replace(run.request, gradients=False), step_outputs=given)
        for run in runs
    )
    lower = tuple(dtype for dtype in a.request.dtypes if dtype != "float64")
    if not lower:
        return list(steps(traces[0], None, run_together([b], inputs)[0]))
    # With its own float64 results as inputs, A's float64 run would be the same again.
    rounded = replace(a, request=replace(a.request, dtypes=lower))
    return list(steps(traces[0], *run_together([rounded, b], inputs)))


def steps(exact: Trace, rounded: Trace | None, isolated: Trace) -> Iterator[Step]:
    """Yield the steps that both sides have, in the order of the computation.

    Args:
        exact: the ordinary trace of A, whose float64 results are the inputs of every step.
        rounded: A's steps in lower precisions, or None.
        isolated: B's steps in float64 and in lower precisions.
    """
    a, b = exact.results("float64"), isolated.results("float64")
    names: dict[str, list[str]] = {}
    for name in sorted(a.keys() & b.keys(), key=execution_order):
        if step := step_of(name):
            names.setdefault(step, []).append(name)
    dtypes = rounded.description["dtypes"] if rounded else ()
    ceiling = ceiling_units(exact)
    for step, results in names.items():
        distances = {name: function_error(b[name], a[name]) for name in results}
        differing = [name for name, distance in distances.items() if not distance <= FUNCTION_LIMIT]
        errors = {
            dtype: _rounding(
                dtype,
                ceiling,
                (_largest(rounded.results(dtype), a, results) if rounded else 0.0),
                _largest(isolated.results(dtype), b, results),
            )
            for dtype in dtypes
        }
        at = differing[0] if differing else None
        yield Step(step, float(np.max(list(distances.values()))), at, errors)


def step_of(result: str) -> str | None:
    """Return the step that computes a result, or None for what is computed of several steps."""
    if match := BLOCK.fullmatch(result):
        return match[1]
    return result if STEP_END.fullmatch(result) or result == "logits" else None


def _largest(
    found: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray], names: Sequence[str]
) -> float:
    """Return the largest rounding error of some results; NaN where one is not a number."""
    return float(np.max([relative_error(found[n], exact[n]) for n in names if n in found]))


def _rounding(dtype: str, ceiling: float, a: float, b: float) -> tuple[float, float, float]:
    """Return the rounding errors of both sides, and the limit of the larger one."""
    unit = UNIT_ROUNDOFF[dtype]
    smaller = min(a, b) if np.isfinite([a, b]).all() else 0.0
    limit = min(PEER_FACTOR * max(smaller, FLOOR_UNITS * unit), max(ceiling, CEILING_UNITS) * unit)
    return a, b, limit


def checks(found: Sequence[Step]) -> Iterator[Check]:
    """Yield the checks of a step-isolated comparison, in the order of the computation."""
    for step in found:
        name = f"{ISOLATED}float64/{step.name}"
        yield Check(name, not step.differs, step.function, FUNCTION_LIMIT)
    for step in found:
        for dtype, (a, b, limit) in step.errors.items():
            for side, error in (("A", a), ("B", b)):
                name = f"{ISOLATED}{dtype}/{side}/{step.name}"
                yield Check(name, error <= limit, error, limit)


def in_words(found: Sequence[Step]) -> Iterator[str]:
    """Yield sentences about which steps differ by themselves."""
    if differing := [step for step in found if step.differs]:
        named = [f"{step.name} (first at {step.at})" for step in differing[:MOST_NAMED]]
        more = len(differing) - len(named)
        names = ", ".join(named) + (f" and {more} more" if more else "")
        rest = len(found) - len(differing)
        same = "no other step was compared" if not rest else f"the other {rest} steps agree"
        yield f"with A's input, B computes something else in {names}; {same}"
    for dtype in found[0].errors if found else ():
        names = ", ".join(s.name for s in found if s.is_imprecise(dtype))
        if names:
            yield f"with the same {dtype} input, the rounding errors are too large in {names}"
