"""Verify a pair of checkpoints: run both at the same time and compare the results."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint, as_task, require_comparable
from mae_convert.checkpoint.diff import unread_tensors
from mae_convert.checkpoint.fingerprint import Fingerprint, checkpoint_fingerprint
from mae_convert.checkpoint.official_match import confirmed_by_hash
from mae_convert.errors import MaeConvertError
from mae_convert.layouts.transforms import Schema
from mae_convert.runtime.child_files import as_encoder
from mae_convert.runtime.foreign import ORIGINAL, ForeignCode
from mae_convert.runtime.inputs import Arrays, InputChoice, in_order, make_inputs
from mae_convert.runtime.running import DEFAULT_DTYPES, Request, Run, run_together
from mae_convert.runtime.sides import (
    UNMASKED,
    Side,
    check_foreign,
    choose_side,
    loader_for,
    with_foreign,
)
from mae_convert.runtime.trace import Trace
from mae_convert.verify import isolation
from mae_convert.verify.declared_changes import apply_steps, steps_between
from mae_convert.verify.judge import Check, Verdict, effects, judge, proof


@dataclass(frozen=True)
class Options:
    """The options of a verification."""

    inputs: InputChoice = field(default_factory=InputChoice)
    """The images and noise for both sides."""

    dtypes: tuple[str, ...] = DEFAULT_DTYPES
    """The dtypes to run. float64 is always run, because only float64 results show whether both
    sides compute the same function."""

    gradients: bool = False
    """Whether to compare the gradient of the loss with respect to every trainable parameter too."""

    mask_ratio: float | None = None
    """The mask ratio of the runs; None for the mask ratio in the configuration."""

    unmasked: bool = False
    """Whether to run without masking and with the patches in order, as in a classifier."""

    against: tuple[Side, ...] = ()
    """Additional runners to compare with the source: classes of libraries, and external code."""

    require_proof: bool = False
    """Whether the verification fails if the verdict is not a proof; see `judge.proof`."""

    isolate: bool = False
    """Whether to also compare isolated steps (such as blocks), each with the same input on both
    sides."""

    quick: bool = False
    """Whether to compare only the outputs, without intermediate activations. `parse_options`
    then uses float64 alone as the default of ``dtypes``."""


def parse_options(
    against: Sequence[str] = (), mask_ratio_of_run: float | None = None, **options: Any
) -> Options:
    """Return the options from command-line values.

    Args:
        against: the additional runners: names of libraries such as "timm", or external code.
        mask_ratio_of_run: the mask ratio of the runs; None for the mask ratio in the configuration.
        options: further fields of `Options`, by name.

    Raises:
        MaeConvertError: ``against`` is neither a known library nor external code.
    """
    usual = ("float64",) if options.get("quick") else DEFAULT_DTYPES
    options["dtypes"] = options.get("dtypes") or usual
    return Options(mask_ratio=mask_ratio_of_run, against=tuple(map(_runner, against)), **options)


def _runner(text: str) -> Side:
    """Return how to run an additional runner, from a value of ``--against`` such as "timm=PYTHON".

    A runner is a library or external code; PYTHON is the path of a Python interpreter.
    """
    framework, _, python = text.partition("=")
    if framework == ORIGINAL:
        clone, _, python = python.partition("=")
        framework = f"{ORIGINAL}={clone}"
    return with_foreign(Side(framework, python=python or None), "against")


@dataclass(frozen=True)
class Verification:
    """A verdict and the runs that it is based on."""

    verdict: Verdict
    """The verdict on whether both sides compute the same function."""

    inputs: Arrays = field(repr=False)
    """The inputs of both sides; may be empty if nothing was run."""

    traces: tuple[Trace, ...] = field(default=(), repr=False)
    """The traces of source, target and additional runners; empty if nothing was run, for example
    because the shapes of tensors differ."""

    runs: tuple[Run, ...] = field(default=(), repr=False)
    """The runs of source and target, with the checkpoints that were run; empty if nothing was run
    or if a certificate replaces the source."""

    fingerprints: tuple[Fingerprint, ...] = ()
    """The fingerprints of the source (before the steps that the target's conversion record declares
    are applied) and of the target; empty if nothing was run or if a certificate replaces the
    source."""


def verify(
    a: Checkpoint,
    b: Checkpoint,
    side_a: Side | None = None,
    side_b: Side | None = None,
    options: Options | None = None,
) -> Verdict:
    """Return the verdict on whether two checkpoints have equal weights and the same function.

    For arguments and errors see `run_verification`.
    """
    return run_verification(a, b, side_a, side_b, options).verdict


def run_verification(
    a: Checkpoint,
    b: Checkpoint,
    side_a: Side | None = None,
    side_b: Side | None = None,
    options: Options | None = None,
) -> Verification:
    """Run two checkpoints on the same inputs and decide whether they compute the same function.

    ``mae_convert.diagnose`` finds the cause of a failed verification.

    Args:
        a: the source.
        b: the target; the steps that its conversion record declares are applied to the source
            first.
        side_a: how to run the source; by default in the framework that loads it natively.
        side_b: how to run the target; by default in the framework that loads the target natively.
        options: what to run and to compare; default: `Options()`.

    Raises:
        ConfigurationError: a field that the comparison needs is missing.
        MissingRequirementError: no framework is installed to run a side.
        MaeConvertError: a run failed.
    """
    options = options or Options()
    a, b = confirmed_by_hash(a), confirmed_by_hash(b)
    require_comparable(a, b)
    steps = tuple(step for step in steps_between(a, b) if step["step"] != "task")
    if a.task == "pretrain" != b.task and any(step["step"] == "in_channels" for step in steps):
        a = as_task(a, "encoder")  # the decoder still predicts the channels of the source
    after = apply_steps(a, steps, b)
    if mismatch := _shape_mismatch(after, b):
        return Verification(replace(mismatch, steps=steps), {})
    side_a, side_b = choose_side(a, side_a or Side()), choose_side(b, side_b or Side())
    for runner in options.against:
        choose_side(b, runner)  # raises an error before any run if a library is not installed
    check_foreign((side_a, side_b), gradients=options.gradients, isolate=options.isolate)
    frameworks = {side_a.framework, side_b.framework}
    unmasked = (
        options.unmasked or "classify" in (a.task, b.task) or bool(frameworks & set(UNMASKED))
    )
    inputs, request = common_request(after, options, unmasked=unmasked)
    runs = [Run(_runnable(after, side_a), side_a, request, after is a),
            Run(_runnable(b, side_b), side_b, request)]  # fmt: skip
    # The effect of rounding to another dtype is reported beside the verdict. All other steps are
    # applied to both runs that are compared for it, so that their inputs have the same shape.
    exact = tuple(step for step in steps if step["step"] != "dtype")
    if exact != steps:
        unrounded = apply_steps(a, exact, b)
        alone = replace(request, dtypes=("float64",), gradients=False)
        runs.append(Run(_runnable(unrounded, side_a), side_a, alone, unrounded is a))
    traces = run_together(runs, inputs)
    inferred = a.configuration.inferred
    verdict = replace(judge(*traces[:2]), steps=steps, inferred=inferred)
    if len(traces) > 2:
        verdict = replace(verdict, effects=effects(traces[2], traces[0]))
    fingerprints = tuple(map(_fingerprint, (a, b), runs, traces[:2]))
    verification = Verification(verdict, inputs, tuple(traces[:2]), tuple(runs[:2]), fingerprints)
    whole = replace(runs[0], checkpoint=after), replace(runs[1], checkpoint=b)
    verification = _with_requested_checks(verification, whole, options)
    compared = (*verification.verdict.not_compared, *unread_tensors(a, b))
    return replace(verification, verdict=replace(verification.verdict, not_compared=compared))


def _with_requested_checks(
    verification: Verification, whole: tuple[Run, Run], options: Options
) -> Verification:
    """Return a verification with the additional checks that options request.

    Args:
        verification: the runs of both sides and their verdict.
        whole: the runs of both sides with the complete checkpoints; the runs in `verification` may
            be limited to the encoders.
        options: what to run and to compare.
    """
    for runner in options.against:
        further = _further_run(runner, *whole)
        verification = _with_further_run(verification, further, verification.runs[0])
    if options.isolate:
        verification = replace(verification, verdict=_with_isolated_steps(verification))
    if options.require_proof:
        checks = proof(verification.verdict, *verification.traces[:2])
        verification = replace(verification, verdict=_with_checks(verification.verdict, checks))
    return verification


def _fingerprint(checkpoint: Checkpoint, run: Run, trace: Trace) -> Fingerprint:
    """Return the fingerprint of a checkpoint.

    If a modified checkpoint was run (the source after declared changes, or only the encoder), the
    fingerprint is computed from the unmodified checkpoint. Otherwise it is copied from the trace.
    """
    if run.checkpoint is checkpoint:
        return trace.fingerprint
    return checkpoint_fingerprint(checkpoint)


def common_request(
    a: Checkpoint, options: Options, *, unmasked: bool
) -> tuple[dict[str, np.ndarray], Request]:
    """Return the inputs and run settings of both sides.

    Both sides use the same mask, even if their configurations specify different mask ratios; the
    ratios are compared by a separate check.

    Args:
        a: the source after the declared steps; its configuration has the shapes of the inputs and
            the default mask ratio.
        options: the options of the verification.
        unmasked: whether the models are run without masking, with the patches in order.
    """
    inputs = make_inputs(options.inputs, a)
    ratio = options.mask_ratio
    if ratio is None:
        ratio = a.configuration.model.mask_ratio
    if unmasked:
        inputs, ratio = in_order(inputs), 0.0
    dtypes = ("float64", *(dtype for dtype in options.dtypes if dtype != "float64"))
    return inputs, Request(dtypes, not options.quick, options.gradients, ratio)


def _runnable(checkpoint: Checkpoint, side: Side) -> Checkpoint:
    """Return the part of a checkpoint that a side can run.

    This is the encoder if the framework of the side cannot mask patches (timm, for example), or if
    the number of heads of the decoder is not known.
    """
    if checkpoint.task != "pretrain":
        return checkpoint
    if side.framework in UNMASKED:
        return as_encoder(checkpoint)
    return as_task(checkpoint, "encoder") if checkpoint.configuration.missing else checkpoint


def _further_run(runner: Side, source: Run, target: Run) -> Run:
    """Return the run of a library or external code that was specified with ``against``.

    A library runs the target. Exception: a library runs the source if it can load only the
    source natively and side A has not already run the source with this library. For external code
    see `_run_of_foreign_code`.
    """
    side = with_foreign(replace(runner, time_limit=source.side.time_limit), "against")
    if side.foreign is not None:
        return replace(_run_of_foreign_code(side.foreign, source, target), side=side)
    assert side.framework is not None
    reads = [loader_for(run.checkpoint, side.framework) for run in (source, target)]
    source_only = reads[0] and not reads[1] and source.as_stored
    chosen = source if source_only and source.side.framework != side.framework else target
    return replace(chosen, checkpoint=_runnable(chosen.checkpoint, side), side=side)


def _run_of_foreign_code(code: ForeignCode, source: Run, target: Run) -> Run:
    """Return the run (of source or target) whose checkpoint the external code loads.

    The external code loads the target, unless only the source has the layout that the code expects.
    """
    family, layout = target.checkpoint.family, code.layout
    if code.kind == ORIGINAL:
        layout = family.model_layout("torch")
    if layout is not None and source.as_stored:
        try:
            name = family.layout(layout).name
        except MaeConvertError as error:
            hint = f"change LAYOUT in the file of {code.label}"
            raise MaeConvertError(error, hint=hint) from error
        if target.checkpoint.layout.name != name == source.checkpoint.layout.name:
            return source
    return target


def _with_further_run(verification: Verification, run: Run, source: Run) -> Verification:
    """Return the verification with an additional run, which is compared with the source."""
    runner, request = run.side.framework or "", source.request
    inputs, trace_a = verification.inputs, verification.traces[0]
    if runner in UNMASKED and request.mask_ratio:
        inputs = in_order(inputs)
        request = replace(request, mask_ratio=0.0, gradients=False)
        trace_a, trace = run_together(
            [replace(source, request=request), replace(run, request=request)], inputs
        )
    else:
        # The TensorFlow classes of transformers are run without gradients.
        forward_only = run.foreign or loader_for(run.checkpoint, runner) == "transformers-tf"
        request = replace(request, gradients=request.gradients and not forward_only)
        (trace,) = run_together([replace(run, request=request)], inputs)
    other = judge(trace_a, trace, compare_weights=False)
    name = f"against {run.foreign.label if run.foreign else runner}"
    checks = tuple(
        replace(check, name=f"{name}/{check.name}")
        for check in other.checks
        if not check.name.startswith("configuration/")
    )
    witnesses = (*verification.verdict.witnesses, {**other.witnesses[1], "side": name})
    verdict = replace(_with_checks(verification.verdict, checks), witnesses=witnesses)
    differences = _known_difference(run, other)
    verdict = replace(verdict, causes=(*verdict.causes, *differences))
    return replace(verification, verdict=verdict, traces=(*verification.traces, trace))


def _known_difference(run: Run, verdict: Verdict) -> list[str]:
    """Return sentences about known deviations of a library that explain the first difference.

    Args:
        run: the run of the library.
        verdict: the verdict on the source and this run.
    """
    checkpoint = run.checkpoint
    if checkpoint.layout.name != run.side.framework:
        return []
    # The library exposes no activation for a classifier's norm, so the logits differ first.
    activations = (
        verdict.first_divergence,
        "head.norm" if verdict.first_divergence == "logits" else "",
    )
    differences = checkpoint.layout.differences(checkpoint.configuration.model, checkpoint.task)
    return [
        f"{difference}; {verdict.first_divergence} is the first result that differs"
        for difference in differences
        if difference.activation in activations
    ]


def _with_isolated_steps(verification: Verification) -> Verdict:
    """Return the verdict with the checks of isolated steps; see `Options.isolate`."""
    steps = isolation.run_isolated(verification.runs, verification.traces[:2], verification.inputs)
    verdict = _with_checks(verification.verdict, tuple(isolation.checks(steps)))
    causes = (*isolation.in_words(steps), *verdict.causes)
    return replace(verdict, isolated=tuple(step.plain() for step in steps), causes=causes)


def _with_checks(verdict: Verdict, checks: tuple[Check, ...]) -> Verdict:
    passed = verdict.passed and all(check.passed for check in checks)
    return replace(verdict, passed=passed, checks=(*verdict.checks, *checks))


def _input_fields(a: Checkpoint, b: Checkpoint) -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields that determine the shape of inputs, with their values in A and B."""
    one, other = a.configuration.model, b.configuration.model
    yield "image_size", one.image_hw, other.image_hw
    yield "num_frames", getattr(one, "num_frames", 1), getattr(other, "num_frames", 1)


def _of_family(checkpoint: Checkpoint) -> str:
    return f"of the family {checkpoint.family.name} ({checkpoint.family.title})"


def _shape_mismatch(a: Checkpoint, b: Checkpoint) -> Verdict | None:
    """Return a failed verdict if the shapes of tensors or inputs differ, else None.

    The models are not run for this verdict.
    """
    left, right = _shapes(a), _shapes(b)
    if a.task == b.task:
        names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
    else:
        names = [name for name in left if name in right and left[name] != right[name]]
    different_inputs = [field for field in _input_fields(a, b) if field[1] != field[2]]
    if not names and not different_inputs:
        return None
    checks = [Check(f"shape/{name}", False, right.get(name), left.get(name)) for name in names]
    checks += [
        Check(f"configuration/{name}", False, right, left) for name, left, right in different_inputs
    ]
    causes = [
        f"{name} has shape {left.get(name)} in A and {right.get(name)} in B" for name in names[:4]
    ]
    causes += [f"{name} is {left} in A and {right} in B" for name, left, right in different_inputs]
    if a.family.name != b.family.name:
        causes = [f"A is {_of_family(a)} and B is {_of_family(b)}"]
    return Verdict(False, False, tuple(checks), None, tuple(names), tuple(causes), ())


def _shapes(checkpoint: Checkpoint) -> Schema:
    return {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
