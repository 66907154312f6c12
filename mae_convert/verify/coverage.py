"""Determine which results of two traces can be compared, and what a verdict does not cover."""

from collections.abc import Iterator

from mae_convert.runtime.foreign import FOREIGN
from mae_convert.runtime.sides import THIRD_PARTIES
from mae_convert.runtime.trace import Trace
from mae_convert.runtime.trace_check import GRADIENT
from mae_convert.text import plural
from mae_convert.verify.localise import OUTPUT_NAMES


def missing_results(a: Trace, b: Trace) -> Iterator[tuple[str, str]]:
    """Yield the required outputs and intermediate activations that only one side has.

    Models of other libraries do not expose all intermediate activations, so activations are
    required only if both sides are reference models.

    Yields:
        The name of the result, and the side that lacks it: "A" or "B".
    """
    if a.description["task"] != b.description["task"]:
        return
    with_activations = all(_has_activations(trace) for trace in (a, b))
    for name, side, other in (("B", a, b), ("A", b, a)):
        names = other.results("float64").keys() | other.description.get("settings", {}).get(
            "omits", ()
        )
        for result in side.results("float64"):
            required = with_activations and not result.startswith(GRADIENT)
            if (required or result in OUTPUT_NAMES) and result not in names:
                yield result, name


def _has_activations(trace: Trace) -> bool:
    """Return whether a trace has all intermediate activations of a reference model."""
    ours = trace.description.get("framework") not in (*THIRD_PARTIES, FOREIGN)
    return ours and any(name.startswith("float64/tap/") for name in trace.arrays)


def not_compared(a: Trace, b: Trace) -> list[str]:
    """Return phrases that name everything that the verdict does not cover."""
    parts = [
        f"{plural(count, 'tensor')} of {name} that a model for the task {task} does not have"
        f" ({'declared' if declared else 'NOT declared in any conversion record'})"
        for name, task, count, declared in left_out(a, b)
    ]
    return [
        *parts,
        *_unused_inputs(a, b),
        *_results_of_one_side(a, b),
        *_activations(a, b),
        *_precisions(a, b),
    ]


def _activations(a: Trace, b: Trace) -> Iterator[str]:
    """Yield a phrase about intermediate activations if neither run recorded them."""
    if not any(trace.description.get("taps", True) for trace in (a, b)):
        yield "intermediate activations, which neither run recorded"


def _unused_inputs(a: Trace, b: Trace) -> Iterator[str]:
    """Yield phrases that name a model's optional inputs that were not used in the runs."""
    for name, trace in (("A", a), ("B", b)):
        used = trace.description.get("additional_inputs", ())
        inputs = trace.family.additional_shapes(trace.configuration.model)
        if absent := [n for n in inputs if n not in used]:
            names = " and ".join(absent)
            yield f"the effect of {names} on {name}, because the inputs do not contain {names}"


def _precisions(a: Trace, b: Trace) -> Iterator[str]:
    """Yield phrases that name dtypes that were not run on both sides."""
    left, right = a.description["dtypes"], b.description["dtypes"]
    for name, own, other in (("A", left, right), ("B", right, left)):
        if alone := [dtype for dtype in own if dtype not in other]:
            yield f"{', '.join(alone)}, which only {name} has"
    if set(left) & set(right) == {"float64"}:
        yield "precision below float64, because no lower dtype was run on both sides"


def left_out(a: Trace, b: Trace) -> Iterator[tuple[str, str, int, bool]]:
    """Count the tensors that only one side has, if the sides are models for different tasks.

    A tensor is missing on one side if a conversion has dropped it (such as a tensor of the
    decoder), or if a conversion has created it for the other side (such as a new head).

    Yields:
        The side that has the tensors, "A" or "B"; the task of the side without them; the number
        of tensors; and whether a conversion record declares that they were dropped or created.
    """
    if a.description["task"] == b.description["task"]:
        return
    for name, one, other in (("A", a, b), ("B", b, a)):
        own, others = one.description["tensors"], other.description["tensors"]
        count, task = sum(tensor not in others for tensor in own), other.description["task"]
        declared = any(
            (step.get("step"), step.get("to")) == ("task", task)
            or (step.get("step") == "new_head" and task == "classify")
            for step in other.description["steps"]
        ) or any(step.get("step") == "new_head" for step in one.description["steps"])
        if count:
            yield name, task, count, declared


def _results_of_one_side(a: Trace, b: Trace) -> Iterator[str]:
    """Yield phrases about optional results (activations, gradients) that only one side has."""
    other_task = a.description["task"] != b.description["task"]
    required = {name for name, _ in missing_results(a, b)}
    for name, one, other in (("A", a, b), ("B", b, a)):
        own = one.results("float64").keys()
        alone = [n for n in own if n not in other.results("float64") and n not in required]
        if other_task:  # `left_out` already reports the decoder and the head
            alone = [n for n in alone if n.startswith("encoder.")]
        gradients = [n for n in alone if n.startswith(GRADIENT)]
        steps = [n for n in alone if "." in n and n not in gradients]
        results = [n for n in alone if n not in gradients and n not in steps]
        if gradients:
            yield f"{plural(len(gradients), 'gradient')}, which only {name} has"
        if steps:
            yield f"{plural(len(steps), 'intermediate activation')}, which only {name} has"
        if results:
            yield f"{', '.join(results)}, which only {name} has"
    if other_task and all(any(GRADIENT in n for n in t.arrays) for t in (a, b)):
        yield "gradients, because models for different tasks have different losses"
