"""Verify a pair of checkpoints: run both at the same time, and compare."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint, as_task, require_comparable
from mae_convert.checkpoint.diff import left_aside
from mae_convert.checkpoint.fingerprint import Fingerprint, checkpoint_fingerprint
from mae_convert.checkpoint.official_match import confirmed_by_hash
from mae_convert.layouts.transforms import Schema
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
from mae_convert.runtime.staging import as_encoder
from mae_convert.runtime.trace import Trace
from mae_convert.verify import isolation
from mae_convert.verify.declared_changes import apply_steps, steps_between
from mae_convert.verify.judge import Check, Verdict, effects, judge, proof


@dataclass(frozen=True)
class Options:
    """The options of a verification."""

    inputs: InputChoice = field(default_factory=InputChoice)
    """The images and the noise for both sides."""

    dtypes: tuple[str, ...] = DEFAULT_DTYPES
    """Precisions to run; float64, the proof, is always among them."""

    gradients: bool = False
    """Compare the gradient of the loss for every parameter too."""

    mask_ratio: float | None = None
    """Run with this ratio instead of the configured one."""

    unmasked: bool = False
    """Leave no patch out and keep their order, as a classifier does."""

    against: tuple[Side, ...] = ()
    """Libraries whose own classes run a side once more, and code of others that does."""

    require_proof: bool = False
    """Fail unless both sides are loaded without mae-convert's own readers and mapping tables."""

    isolate: bool = False
    """Compare step by step too, each step of both sides with the same input."""

    quick: bool = False
    """Compare the outputs in float64 alone, without intermediate activations."""


def parse_options(
    against: Sequence[str] = (), mask_ratio_of_run: float | None = None, **options: Any
) -> Options:
    """Return the options from command-line values.

    Raises:
        MaeConvertError: ``against`` names neither a known library nor code of others.
    """
    usual = ("float64",) if options.get("quick") else DEFAULT_DTYPES
    options["dtypes"] = options.get("dtypes") or usual
    return Options(mask_ratio=mask_ratio_of_run, against=tuple(map(_runner, against)), **options)


def _runner(text: str) -> Side:
    """Return what the option ``against`` names, with its interpreter after an equals sign."""
    framework, _, python = text.partition("=")
    if framework == ORIGINAL:
        place, _, python = python.partition("=")
        framework = f"{ORIGINAL}={place}"
    return with_foreign(Side(framework, python=python or None), "against")


@dataclass(frozen=True)
class Verification:
    """A verdict, and the runs that it is based on."""

    verdict: Verdict
    """The verdict: whether both compute the same function."""

    inputs: Arrays = field(repr=False)
    """The inputs of both sides."""

    traces: tuple[Trace, ...] = field(default=(), repr=False)
    """Of the source, of the target and of each further runner; empty where the shapes alone
    decided."""

    runs: tuple[Run, ...] = field(default=(), repr=False)
    """How the source and the target were run, with the checkpoints as they were compared; empty
    where nothing was run, and where a certificate stands for the source."""

    fingerprints: tuple[Fingerprint, ...] = ()
    """Of the source, before declared steps, and of the target; empty likewise."""


def verify(
    a: Checkpoint,
    b: Checkpoint,
    side_a: Side | None = None,
    side_b: Side | None = None,
    options: Options | None = None,
) -> Verdict:
    """Return whether two checkpoints are the same function with the same weights.

    Args and errors are those of ``run_verification``.
    """
    return run_verification(a, b, side_a, side_b, options).verdict


def run_verification(
    a: Checkpoint,
    b: Checkpoint,
    side_a: Side | None = None,
    side_b: Side | None = None,
    options: Options | None = None,
) -> Verification:
    """Run two checkpoints on the same inputs and judge whether they are the same function.

    Why they are not, where they are not, ``mae_convert.diagnose`` finds out.

    Args:
        a: the source.
        b: the target; steps that its conversion declares are applied to the source first.
        side_a: how to run the source; by default the framework that reads its names natively.
        side_b: how to run the target.
        options: what to run and to compare.

    Raises:
        ConfigurationError: a field that the comparison needs is missing.
        MissingRequirementError: no framework to run a side with.
        MaeConvertError: a run failed.
    """
    options = options or Options()
    a, b = confirmed_by_hash(a), confirmed_by_hash(b)
    require_comparable(a, b)
    steps = tuple(step for step in steps_between(a, b) if step["step"] != "task")
    if a.task == "pretrain" != b.task and any(step["step"] == "in_channels" for step in steps):
        a = as_task(a, "encoder")  # the decoder predicts the channels of the source
    after = apply_steps(a, steps, b)
    if mismatch := _shape_mismatch(after, b):
        return Verification(replace(mismatch, steps=steps), {})
    side_a, side_b = choose_side(a, side_a or Side()), choose_side(b, side_b or Side())
    for runner in options.against:
        choose_side(b, runner)  # missing: say so first
    check_foreign((side_a, side_b), gradients=options.gradients, isolate=options.isolate)
    unmasked = (
        options.unmasked
        or "classify" in (a.task, b.task)
        or bool({side_a.framework, side_b.framework} & set(UNMASKED))
    )
    inputs, request = common_request(after, options, unmasked=unmasked)
    runs = [Run(_runnable(after, side_a), side_a, request, after is a),
            Run(_runnable(b, side_b), side_b, request)]  # fmt: skip
    # What rounding does to the results is told beside the verdict; other images have others.
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
    done = Verification(verdict, inputs, tuple(traces[:2]), tuple(runs[:2]), fingerprints)
    whole = replace(runs[0], checkpoint=after), replace(runs[1], checkpoint=b)
    for runner in options.against:
        done = _with_witness(done, _witness_run(runner, *whole), runs[0])
    if options.isolate:
        done = replace(done, verdict=_with_isolated_steps(done))
    if options.require_proof:
        checks = proof(done.verdict, *done.traces[:2])
        done = replace(done, verdict=_with_checks(done.verdict, checks))
    compared = (*done.verdict.not_compared, *left_aside(a, b))
    return replace(done, verdict=replace(done.verdict, not_compared=compared))


def _fingerprint(checkpoint: Checkpoint, run: Run, trace: Trace) -> Fingerprint:
    """Return the fingerprint of a side, from its trace unless the trace is of another model.

    The run may use the source after declared steps, or the encoder only.
    """
    if run.checkpoint is checkpoint:
        return trace.fingerprint
    return checkpoint_fingerprint(checkpoint)


def common_request(
    a: Checkpoint, options: Options, *, unmasked: bool
) -> tuple[dict[str, np.ndarray], Request]:
    """Return the inputs and run settings of both sides.

    Both sides use the same mask even if their configurations differ; the difference is a separate
    check.
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
    """Return what of a checkpoint can be run: timm has no decoder.

    Of a model that is compared with an encoder, the decoder's number of heads need not be known.
    """
    if checkpoint.task != "pretrain":
        return checkpoint
    if side.framework in UNMASKED:
        return as_encoder(checkpoint)
    return as_task(checkpoint, "encoder") if checkpoint.configuration.missing else checkpoint


def _witness_run(runner: Side, source: Run, target: Run) -> Run:
    """Return an additional run: of the target, unless the library natively reads only the source.

    The source is not run again by the framework that has already run it.
    """
    side = with_foreign(replace(runner, time_limit=source.side.time_limit), "against")
    if side.foreign is not None:
        return replace(_for_foreign(side.foreign, source, target), side=side)
    assert side.framework is not None
    reads = [loader_for(run.checkpoint, side.framework) for run in (source, target)]
    source_only = reads[0] and not reads[1] and source.as_stored
    chosen = source if source_only and source.side.framework != side.framework else target
    return replace(chosen, checkpoint=_runnable(chosen.checkpoint, side), side=side)


def _for_foreign(code: ForeignCode, source: Run, target: Run) -> Run:
    """Return whose checkpoint the code runs: the target's, unless only the source has its names."""
    family, wanted = target.checkpoint.family, code.layout
    if code.kind == ORIGINAL:
        wanted = family.model_layout("torch")
    if wanted is not None and source.as_stored:
        name = family.layout(wanted).name
        if target.checkpoint.layout.name != name == source.checkpoint.layout.name:
            return source
    return target


def _with_witness(done: Verification, run: Run, source: Run) -> Verification:
    """Return the verification with an additional run, compared with the source."""
    witness, request = run.side.framework or "", source.request
    inputs, trace_a = done.inputs, done.traces[0]
    if witness in UNMASKED and request.mask_ratio:
        inputs = in_order(inputs)
        request = replace(request, mask_ratio=0.0, gradients=False)
        trace_a, trace = run_together(
            [replace(source, request=request), replace(run, request=request)], inputs
        )
    else:
        # The TensorFlow classes of transformers are run forward only.
        forward_only = run.foreign or loader_for(run.checkpoint, witness) == "transformers-tf"
        request = replace(request, gradients=request.gradients and not forward_only)
        (trace,) = run_together([replace(run, request=request)], inputs)
    other = judge(trace_a, trace, compare_weights=False)
    name = f"against {run.foreign.label if run.foreign else witness}"
    checks = tuple(
        replace(check, name=f"{name}/{check.name}")
        for check in other.checks
        if not check.name.startswith("configuration/")
    )
    witnesses = (*done.verdict.witnesses, {**other.witnesses[1], "side": name})
    verdict = replace(_with_checks(done.verdict, checks), witnesses=witnesses)
    known = _known_difference(run, other)
    verdict = replace(verdict, causes=(*verdict.causes, *known))
    return replace(done, verdict=verdict, traces=(*done.traces, trace))


def _known_difference(run: Run, verdict: Verdict) -> list[str]:
    """Return what a library is known to compute otherwise, where exactly that is what differs.

    Args:
        run: how the library was run.
        verdict: on the source and this run.
    """
    checkpoint = run.checkpoint
    if checkpoint.layout.name != run.side.framework:
        return []
    # A classifier's norm is no intermediate activation of the library: its logits differ first.
    places = (verdict.first_divergence, "head.norm" if verdict.first_divergence == "logits" else "")
    differences = checkpoint.layout.differences(checkpoint.configuration.model, checkpoint.task)
    return [
        f"{difference}; {verdict.first_divergence} is the first result that differs"
        for difference in differences
        if difference.activation in places
    ]


def _with_isolated_steps(done: Verification) -> Verdict:
    """Return the verdict with a comparison of each step on the same input."""
    steps = isolation.run_isolated(done.runs, done.traces[:2], done.inputs)
    verdict = _with_checks(done.verdict, tuple(isolation.checks(steps)))
    causes = (*isolation.in_words(steps), *verdict.causes)
    return replace(verdict, isolated=tuple(step.plain() for step in steps), causes=causes)


def _with_checks(verdict: Verdict, checks: tuple[Check, ...]) -> Verdict:
    passed = verdict.passed and all(check.passed for check in checks)
    return replace(verdict, passed=passed, checks=(*verdict.checks, *checks))


def _input_fields(a: Checkpoint, b: Checkpoint) -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields that give the shape of inputs, with their values in A and B."""
    one, other = a.configuration.model, b.configuration.model
    yield "image_size", one.image_hw, other.image_hw
    yield "num_frames", getattr(one, "num_frames", 1), getattr(other, "num_frames", 1)


def _of_family(checkpoint: Checkpoint) -> str:
    return f"of the family {checkpoint.family.name} ({checkpoint.family.title})"


def _shape_mismatch(a: Checkpoint, b: Checkpoint) -> Verdict | None:
    """Return a verdict without runs if the tensor shapes of the two models differ."""
    left, right = _shapes(a), _shapes(b)
    if a.task == b.task:
        names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
    else:
        names = [name for name in left if name in right and left[name] != right[name]]
    taken = [field for field in _input_fields(a, b) if field[1] != field[2]]
    if not names and not taken:
        return None
    checks = [Check(f"shape/{name}", False, right.get(name), left.get(name)) for name in names]
    checks += [Check(f"configuration/{name}", False, right, left) for name, left, right in taken]
    causes = [
        f"{name} has shape {left.get(name)} in A and {right.get(name)} in B" for name in names[:4]
    ]
    causes += [f"{name} is {left} in A and {right} in B" for name, left, right in taken]
    if a.family.name != b.family.name:
        causes = [f"A is {_of_family(a)} and B is {_of_family(b)}"]
    return Verdict(False, False, tuple(checks), None, tuple(names), tuple(causes), ())


def _shapes(checkpoint: Checkpoint) -> Schema:
    return {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
