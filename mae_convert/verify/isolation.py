"""Compare two models step by step, where both models run each step on the same input.

In an ordinary run the input of a block is the output of the blocks before it: after the first error
all results differ, and rounding errors accumulate. Here the input of every step (an embedding, a
block, a norm, the prediction) of both sides is taken from A's float64 run, so that a difference is
caused by the step itself.
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
    """The comparison of one step, which both sides ran on A's input."""

    name: str
    """The name of the step, such as "encoder.blocks.3"."""

    function: float
    """The largest distance between the float64 results of A and B, computed by `function_error`."""

    at: str | None
    """The name of the first result within the step that differs; None if no result differs."""

    errors: Mapping[str, tuple[float, float, float]]
    """For each dtype, the rounding error of A, the rounding error of B, and the limit for both."""

    is_finite: bool = True
    """Whether A's float64 results of the step are finite. If they are, the step's input is too."""

    @property
    def differs(self) -> bool:
        """Whether B computes a different result from A in this step."""
        return self.at is not None

    def is_imprecise(self, dtype: str, side: str) -> bool:
        """Return whether the rounding error of a side, "A" or "B", exceeds the limit or is NaN.

        The error and the limit are taken from `errors` for the dtype of the run.
        """
        *errors, limit = self.errors[dtype]
        return not errors["AB".index(side)] <= limit

    def plain(self) -> dict[str, Any]:
        """Return the step as plain data for a report."""
        errors = {d: dict(zip(("A", "B", "limit"), e, strict=True)) for d, e in self.errors.items()}
        return {"step": self.name, "difference": self.function, "at": self.at, "rounding": errors}


def run_isolated(
    runs: Sequence[Run], traces: Sequence[Trace], inputs: Mapping[str, np.ndarray]
) -> list[Step]:
    """Run each step of both sides with the input that this step has in A's float64 run.

    Args:
        runs: the runs of A and B.
        traces: the traces of these runs.
        inputs: the inputs of both runs.

    Returns:
        The steps that both sides have, in execution order.

    Raises:
        MaeConvertError: a run failed, or a library cannot run single steps.
    """
    exact = traces[0].results("float64")
    step_outputs = {name: array for name, array in exact.items() if STEP_END.fullmatch(name)}
    a, b = (
        replace(run, request=replace(run.request, gradients=False), step_outputs=step_outputs)
        for run in runs
    )
    lower = tuple(dtype for dtype in a.request.dtypes if dtype != "float64")
    if not lower:
        return list(steps(traces[0], None, run_together([b], inputs)[0]))
    # A's float64 steps are not run again, because with A's results as inputs the steps would
    # return the same results.
    rounded = replace(a, request=replace(a.request, dtypes=lower))
    return list(steps(traces[0], *run_together([rounded, b], inputs)))


def steps(exact: Trace, rounded: Trace | None, isolated: Trace) -> Iterator[Step]:
    """Yield the steps that both sides have, in execution order.

    Args:
        exact: the ordinary trace of A; its float64 results are the inputs of the steps.
        rounded: the trace of A's isolated steps in lower precisions; None if only float64 results
            are compared.
        isolated: the trace of B's isolated steps in float64 and in lower precisions.
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
        is_finite = all(np.isfinite(a[name]).all() for name in results)
        yield Step(step, float(np.max(list(distances.values()))), at, errors, is_finite)


def step_of(result: str) -> str | None:
    """Return the step that computes a result, or None for a result of several steps."""
    if match := BLOCK.fullmatch(result):
        return match[1]
    return result if STEP_END.fullmatch(result) or result == "logits" else None


def _largest(
    results: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray], names: Sequence[str]
) -> float:
    """Return the largest rounding error of the named results, or NaN if one of them is NaN."""
    return float(np.max([relative_error(results[n], exact[n]) for n in names if n in results]))


def _rounding(dtype: str, ceiling: float, a: float, b: float) -> tuple[float, float, float]:
    """Return the rounding errors `a` and `b` of a step, unchanged, and the limit for both errors.

    The limit is `PEER_FACTOR` times the smaller error, or times `FLOOR_UNITS` units of roundoff if
    the smaller error is less than that or one of the errors is not finite.

    Args:
        dtype: the dtype in which the step was run.
        ceiling: the maximum of the limit in units of roundoff, see `ceiling_units`; at least
            `CEILING_UNITS` is used.
        a: the rounding error of side A.
        b: the rounding error of side B.
    """
    unit = UNIT_ROUNDOFF[dtype]
    smaller = min(a, b) if np.isfinite([a, b]).all() else 0.0
    limit = min(PEER_FACTOR * max(smaller, FLOOR_UNITS * unit), max(ceiling, CEILING_UNITS) * unit)
    return a, b, limit


def checks(steps_run: Sequence[Step]) -> Iterator[Check]:
    """Yield the checks of a step-isolated comparison, each kind in execution order.

    First, for each step, whether both sides compute the same result in float64; then, for each
    step, dtype and side, whether the rounding error is within the limit.
    """
    for step in steps_run:
        name = f"{ISOLATED}float64/{step.name}"
        yield Check(name, not step.differs, step.function, FUNCTION_LIMIT)
    for step in steps_run:
        for dtype, (a, b, limit) in step.errors.items():
            for side, error in (("A", a), ("B", b)):
                name = f"{ISOLATED}{dtype}/{side}/{step.name}"
                yield Check(name, error <= limit, error, limit)


def in_words(steps_run: Sequence[Step]) -> Iterator[str]:
    """Yield sentences that name the steps that differ, are not finite, or are too imprecise."""
    comparable = [step for step in steps_run if step.is_finite]
    if differing := [step for step in comparable if step.differs]:
        named = [f"{step.name} (first at {step.at})" for step in differing]
        equal = len(comparable) - len(differing)
        others = "step agrees" if equal == 1 else "steps agree"
        same = f"the other {equal} {others}" if equal else "no other step was compared"
        yield f"with A's input, B computes a different result in {_listed(named)}; {same}"
    if unknown := [step.name for step in steps_run if not step.is_finite]:
        yield (
            f"A's own results are NaN or infinite in {_listed(unknown)}, so it cannot be "
            "determined whether B computes the same there"
        )
    for dtype in steps_run[0].errors if steps_run else ():
        finite = [step for step in comparable if np.isfinite(step.function)]
        for side in "AB":
            if names := [step.name for step in finite if step.is_imprecise(dtype, side)]:
                yield (
                    f"with the same {dtype} input, the rounding errors of {side} are too large in "
                    f"{', '.join(names)}"
                )


def _listed(names: Sequence[str]) -> str:
    """Return a text with the first names and, if there are more, the number of the others."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
