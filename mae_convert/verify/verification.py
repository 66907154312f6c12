"""Verify a pair of checkpoints: trace both at the same time, judge, explain."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mae_convert.canonical import Schema
from mae_convert.checkpoint import Checkpoint
from mae_convert.verify.causes import explain
from mae_convert.verify.inputs import in_order, random_inputs
from mae_convert.verify.judge import Check, Verdict, differing_tensors, effects, judge
from mae_convert.verify.steps import apply_steps, steps_between
from mae_convert.verify.trace import Running, Side, Trace, choose_side, trace

DEFAULT_DTYPES = ("float64", "float32")


def verify(
    a: Checkpoint,
    b: Checkpoint,
    side_a: Side | None = None,
    side_b: Side | None = None,
    *,
    seed: int = 0,
    batch: int = 2,
    dtypes: Sequence[str] = DEFAULT_DTYPES,
    require_proof: bool = False,
) -> Verdict:
    """Return whether two checkpoints are the same function with the same weights.

    Args:
        a: the source.
        b: the target; steps that its conversion declares are applied to the source first.
        side_a: how to run the source; by default the framework that reads its names natively.
        side_b: how to run the target.
        seed: seed of the random inputs.
        batch: pictures in the inputs.
        dtypes: precisions to run; float64 is the proof.
        require_proof: fail unless both sides are loaded without our mapping tables.

    Raises:
        MissingRequirementError: no framework to run a side with.
        MaeConvertError: a run failed.
    """
    steps = tuple(step for step in steps_between(a, b) if step["step"] != "task")
    after = apply_steps(a, steps, b)
    if mismatch := _shape_mismatch(after, b):
        return replace(mismatch, steps=steps)
    side_a, side_b = choose_side(a, side_a or Side()), choose_side(b, side_b or Side())
    inputs, mask_ratio = common_inputs(after, b, seed=seed, batch=batch)
    runs = [Run(after, side_a, tuple(dtypes), after is a), Run(b, side_b, tuple(dtypes))]
    # What rounding does to the results is told beside the verdict; other pictures have others.
    exact = tuple(step for step in steps if step["step"] != "dtype")
    if exact != steps:
        unrounded = apply_steps(a, exact, b)
        runs.append(Run(unrounded, side_a, ("float64",), unrounded is a))
    trace_a, trace_b, *plain = run_together(runs, inputs, mask_ratio=mask_ratio)
    verdict = replace(judge(trace_a, trace_b), steps=steps)
    if plain:
        verdict = replace(verdict, effects=effects(plain[0], trace_a))
    if require_proof:
        check = Check("proof/both sides read natively", verdict.proven, verdict.proven, True)
        verdict = replace(
            verdict, passed=verdict.passed and check.passed, checks=(*verdict.checks, check)
        )
    if verdict.passed:
        return verdict
    # Suspects that only feed the divergence have equal tensors: there is nothing to explain.
    different = set(differing_tensors(trace_a, trace_b))
    tensors = [name for name in verdict.suspects if name in different]
    return replace(verdict, causes=verdict.causes + tuple(explain(after, b, tensors)))


def common_inputs(
    a: Checkpoint, b: Checkpoint, *, seed: int, batch: int
) -> tuple[dict[str, np.ndarray], float]:
    """Return random inputs and the mask ratio at which both sides are run.

    A classifier does not mask, so that an encoder beside one runs unmasked, patches in order. Both
    are masked alike even where the configurations differ, which is a check of its own.
    """
    inputs = random_inputs(a.configuration.model, batch=batch, seed=seed)
    if "classify" in (a.task, b.task):
        return in_order(inputs), 0.0
    return inputs, a.configuration.model.mask_ratio


@dataclass(frozen=True)
class Run:
    """One checkpoint to be run: with what, in which precisions, and if its file is as it is."""

    checkpoint: Checkpoint
    side: Side
    dtypes: tuple[str, ...] = DEFAULT_DTYPES
    as_stored: bool = True


def run_together(
    runs: Sequence[Run], inputs: Mapping[str, np.ndarray], *, mask_ratio: float | None = None
) -> list[Trace]:
    """Run several checkpoints at the same time on the same inputs and return their traces."""
    running: list[Running] = []
    with tempfile.TemporaryDirectory(prefix="mae-convert-") as folder:
        try:
            for number, run in enumerate(runs):
                started = trace(
                    run.checkpoint,
                    run.side,
                    inputs,
                    Path(folder) / f"{number}.safetensors",
                    dtypes=run.dtypes,
                    mask_ratio=mask_ratio,
                    as_stored=run.as_stored,
                )
                running.append(started)
            return [process.result() for process in running]
        finally:
            for process in running:
                process.stop()


def _shape_mismatch(a: Checkpoint, b: Checkpoint) -> Verdict | None:
    """Return a verdict without runs when the two models have not even the same shapes."""
    left, right = _shapes(a), _shapes(b)
    if a.task == b.task:
        names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
    else:
        names = [name for name in left if name in right and left[name] != right[name]]
    sizes = a.configuration.model.image_hw, b.configuration.model.image_hw
    if not names and sizes[0] == sizes[1]:
        return None
    checks = [Check(f"shape/{name}", False, right.get(name), left.get(name)) for name in names]
    if sizes[0] != sizes[1]:
        checks.append(Check("configuration/image_size", False, sizes[1], sizes[0]))
    causes = [
        f"{name} has shape {left.get(name)} in A and {right.get(name)} in B" for name in names[:4]
    ]
    return Verdict(False, False, tuple(checks), None, tuple(names), tuple(causes), ())


def _shapes(checkpoint: Checkpoint) -> Schema:
    return {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
