"""A minimal reproducer of a failed verification: one step, one image, the relevant tensors.

All results before the first differing result agree, so the step that computes this result can be
isolated. The reproducer contains the inputs that the step had in A, the tensors of the step in A
and in B, and the results of both sides. If the verification failed only because rounding errors in
a lower precision are too large, the reproducer contains the step's inputs in A and in B. A script
that needs only NumPy and one framework computes the step again with the tensors of each side.
"""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.diagnose.formulas import Formula, Location, Model, formula_of, position_row
from mae_convert.diagnose.reproducer import Script, script_text
from mae_convert.errors import MaeConvertError, OutputError
from mae_convert.files.atomic import rename_to_new, staging_for
from mae_convert.runtime.children import TIME_LIMIT_VARIABLE, Clock, environment_of_child
from mae_convert.runtime.foreign import FOREIGN
from mae_convert.runtime.trace import Trace
from mae_convert.runtime.trace_check import GRADIENT, MASKING
from mae_convert.verify.distance import FUNCTION_LIMIT, relative_error
from mae_convert.verify.judge import CEILING_UNITS, UNIT_ROUNDOFF
from mae_convert.verify.localise import execution_order
from mae_convert.verify.verification import Verification

ROUNDED = ("float32", "float16", "tf32")  # the lower precisions whose results NumPy can represent
SEE_CHECKS = "see the failed checks in the table"


@dataclass(frozen=True)
class Difference:
    """The first result, in order of execution, that differs between side A and another side."""

    first: str
    """The name of the result."""

    b: Trace
    """The trace of the other side."""

    framework: str
    """The framework or library that ran the other side."""

    dtype: str = "float64"
    """The dtype of the runs: float64, or a dtype in which the rounding errors exceed the limit."""

    runner: str = ""
    """The runner of the other side, such as "timm", if `--against` specified it; "" for side B."""


@dataclass(frozen=True)
class Reproducer:
    """The script for a differing step, and the arrays that it reads."""

    script: Script
    """The script."""

    arrays: Mapping[str, np.ndarray]
    """The arrays by name: the inputs, the tensors, and the results ``result/A`` and ``result/B``.

    Inputs and tensors that differ have the prefix ``A/`` or ``B/``.
    """

    frameworks: Mapping[str, str | None]
    """For each framework that is installed, a Python interpreter that can run the script.

    None stands for the current interpreter.
    """


def reduced(verification: Verification) -> Reproducer:
    """Return a minimal reproducer of a failed verification.

    Raises:
        MaeConvertError: no result differs, or the first difference cannot be isolated.
    """
    difference = first_difference(verification)
    frameworks = {_plain(run.side.framework): run.side.python for run in verification.runs[::-1]}
    frameworks.setdefault(_plain(difference.framework), None)
    checkpoints = verification.runs[0].checkpoint, verification.runs[1].checkpoint
    return reproducer_of(
        difference, verification.traces[0], checkpoints, verification.inputs, frameworks
    )


def reproducer_of(
    difference: Difference,
    a: Trace,
    checkpoints: tuple[Checkpoint, Checkpoint],
    inputs: Mapping[str, np.ndarray],
    frameworks: Mapping[str, str | None],
) -> Reproducer:
    """Return a minimal reproducer of a difference.

    Args:
        difference: the first result that differs.
        a: the trace of A.
        checkpoints: A and B.
        inputs: the images and the noise of the runs.
        frameworks: the frameworks that run the script, each with a Python interpreter, or None for
            the current interpreter.

    Raises:
        MaeConvertError: the result cannot be computed from earlier results that both sides have.
    """
    first, dtype = difference.first, difference.dtype
    sides = {"A": a, "B": difference.b}
    results = {side: _results(trace, dtype) for side, trace in sides.items()}
    if alone := [side for side, other in ("AB", "BA") if first not in results[other]]:
        raise MaeConvertError(
            f"no step can be isolated: {first} is a result that only {alone[0]} has",
            hint=SEE_CHECKS,
        )
    shapes = [results[side][first].shape for side in "AB"]
    if shapes[0] != shapes[1]:
        of_b = difference.runner or "B"
        raise MaeConvertError(
            f"no step can be isolated: {first} has shape {shapes[0]} in A and {shapes[1]} in {of_b}"
        )
    location = _location(results["A"][first], results["B"][first], _exact(a, difference))
    arrays: dict[str, np.ndarray] = {}
    for side, checkpoint in zip("AB", checkpoints, strict=True):
        # In float64, both sides use A's earlier results.
        earlier = results["A"] if dtype == "float64" else results[side]
        formula = _formula(difference, location, checkpoints[0], results, earlier, inputs)
        for name, array in _arrays(formula, location, earlier, checkpoint, inputs).items():
            arrays[f"{side}/{name}"] = array
        arrays[f"result/{side}"] = _cut(results[side][first], location, formula)
    stored = _shared(arrays)
    tables = {name: f"{part}.position_embedding" for name, (part, _) in formula.rows.items()}
    canonical = {**formula.tensors, **tables}
    script = Script(
        first,
        formula.lines,
        {side: _settings(c, first) for side, c in zip("AB", checkpoints, strict=True)},
        {name: canonical[name] for name in canonical if f"B/{name}" in stored},
        _limit(arrays, dtype),
        "float32" if dtype == "tf32" else dtype,
        difference.runner,
    )
    return Reproducer(script, stored, frameworks)


def _results(trace: Trace, dtype: str) -> dict[str, np.ndarray]:
    masks = {name: trace.arrays[name] for name in MASKING if name in trace.arrays}
    return {**trace.results(dtype), **masks}


def _formula(
    difference: Difference,
    location: Location,
    checkpoint: Checkpoint,
    results: Mapping[str, Mapping[str, np.ndarray]],
    own: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
) -> Formula:
    """Return the formula that computes the first differing result from earlier results.

    The formula reads only earlier results that both sides have.

    Args:
        difference: the first result that differs.
        location: the image and the token at which the result differs most.
        checkpoint: the checkpoint of side A.
        results: the results of both sides, by side and name.
        own: the results whose values the formula reads, by name.
        inputs: the images and the noise of the runs.

    Raises:
        MaeConvertError: the result cannot be computed from such results.
    """
    first = difference.first
    common = {name: own[name] for name in results["A"] if name in results["B"]}
    common |= _implied(first, own, common)
    config, tensors = checkpoint.configuration.model, checkpoint.tensors
    model = Model(checkpoint.family, config, checkpoint.task, tensors, common, inputs)
    if formula := formula_of(first, model, location):
        return formula
    raise MaeConvertError(
        f"{first} is the first result that differs, but it cannot be computed from earlier "
        "results that both sides have, so it cannot be isolated",
        hint=(
            "add intermediate activations to ACTIVATIONS in the file of your code"
            if difference.framework == FOREIGN
            else "see the tensors and the code in the output of the verification"
        ),
    )


def _implied(
    first: str, own: Mapping[str, np.ndarray], common: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the block inputs that only one side records, but that must be equal on both sides.

    They must be equal because a later result, which depends on them, is equal on both sides.

    Args:
        first: the first result that differs.
        own: all results of the side that recorded the block inputs, by name.
        common: the results that both sides have.
    """
    order = execution_order(first)
    later = [execution_order(name) for name in common if execution_order(name) < order]
    last = max(later, default=order[:0])
    names = (n for n in own if n.endswith((".embedding", ".output")) and n not in common)
    return {name: own[name] for name in names if execution_order(name) < last}


def _plain(framework: str | None) -> str:
    """Return the framework in which the script computes the result of a side.

    It is the side's own `framework` if this is "tensorflow" or "jax", otherwise (also for None)
    "torch".
    """
    return framework if framework in ("tensorflow", "jax") else "torch"


def first_difference(verification: Verification) -> Difference:
    """Return the first result that differs between side A and another side.

    This is a result of B in float64 or, if B agrees with A, a result of another runner. If all
    runners agree in float64, it is the first result whose rounding error is too large.

    Raises:
        MaeConvertError: no result differs.
    """
    if not verification.runs:
        raise MaeConvertError("no step can be isolated: no model was run", hint=SEE_CHECKS)
    b = verification.runs[1].side.framework or ""
    if (first := verification.verdict.first_divergence) and not first.startswith(GRADIENT):
        return Difference(first, verification.traces[1], b)
    failed = [check.name for check in verification.verdict.failed()]
    others = zip(verification.verdict.witnesses[2:], verification.traces[2:], strict=True)
    sides = [("", verification.traces[1], b)]
    sides += [(f"{w['side']}/", trace, str(w["framework"])) for w, trace in others]
    for prefix, trace, framework in sides:
        own = [name.removeprefix(prefix) for name in failed if name.startswith(prefix)]
        names = [n.removeprefix("function/") for n in own if n.startswith("function/")]
        if names := [name for name in names if not name.startswith(GRADIENT)]:
            first = min(names, key=execution_order)
            return Difference(first, trace, framework, runner=_runner(prefix))
    for prefix, trace, framework in sides:
        own = [name.removeprefix(prefix) for name in failed if name.startswith(prefix)]
        for dtype in ROUNDED:
            starts = (f"{dtype}/A/", f"{dtype}/B/")
            names = [n.split("/", 2)[2] for n in own if n.startswith(starts)]
            if names := [name for name in names if not name.startswith(GRADIENT)]:
                first = min(names, key=execution_order)
                return Difference(first, trace, framework, dtype, _runner(prefix))
    only = (
        "only gradients differ, and steps of the backward pass are not isolated"
        if any(f"/{GRADIENT}" in name for name in failed)
        else "no result of the runs differs"
    )
    raise MaeConvertError(f"no step can be isolated: {only}", hint=SEE_CHECKS)


def _runner(prefix: str) -> str:
    """Return the runner in the prefix of a check's name, such as "timm" for "against timm/"."""
    return prefix.removeprefix("against ").removesuffix("/")


def _exact(a: Trace, difference: Difference) -> np.ndarray | None:
    """Return A's float64 array of the result that differs, as a reference for less precise arrays.

    Return None if the differing arrays are in float64 themselves, or if A has no float64 array.
    """
    if difference.dtype == "float64":
        return None
    return a.results("float64").get(difference.first)


def _location(a: np.ndarray, b: np.ndarray, exact: np.ndarray | None) -> Location:
    """Return the image that differs most and, if the result has tokens, its most differing token.

    Args:
        a: the result of side A.
        b: the result of the other side: side B, or a runner of `--against`.
        exact: the float64 result, if rounding errors are compared; the larger error of the two
            sides is used.
    """
    if a.ndim == 0:
        return Location(0, None, 0)
    if a.shape != b.shape:
        distance = np.abs(a)
    elif exact is not None and exact.shape == a.shape:
        distance = np.fmax(*(np.abs(array.astype(np.float64) - exact) for array in (a, b)))
    else:
        distance = np.abs(a.astype(np.float64) - b)
    distance = np.nan_to_num(distance.astype(np.float64), nan=np.inf)
    image = int(distance.reshape(len(distance), -1).max(axis=1).argmax())
    if a.ndim != 3 or a.shape != b.shape:
        return Location(image, None, 0)
    return Location(image, int(distance[image].max(axis=-1).argmax()), a.shape[1])


def _cut(array: np.ndarray, location: Location, formula: Formula) -> np.ndarray:
    """Return the part of an array at a location: one image, or one of the image's tokens.

    Only one token is returned if the formula computes each token independently of other tokens.
    The token is counted from the end, because an input of the formula may have additional tokens,
    such as the class token, at the beginning.
    """
    if array.ndim == 0:
        return array
    chosen = array[location.image : location.image + 1]
    if not formula.one_token or location.token is None or chosen.ndim != 3:
        return chosen
    number = chosen.shape[1] - location.tokens + location.token
    return chosen[:, number : number + 1]


def _arrays(
    formula: Formula,
    location: Location,
    results: Mapping[str, np.ndarray],
    checkpoint: Checkpoint,
    inputs: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return the arrays that a formula reads from one side: inputs and tensors, by name."""
    arrays = {name: _cut(results[r], location, formula) for name, r in formula.inputs.items()}
    for name, canonical in formula.tensors.items():
        if canonical in checkpoint.tensors:
            values = np.asarray(checkpoint.tensors[canonical].load()).astype(np.float64)
            arrays[name] = values.reshape(len(values), -1) if values.ndim > 3 else values
    config, tensors = checkpoint.configuration.model, checkpoint.tensors
    model = Model(checkpoint.family, config, checkpoint.task, tensors, results, inputs)
    for name, (part, row) in formula.rows.items():
        arrays[name] = position_row(tensors, part, row, model)
    return {**arrays, **formula.arrays}


def _shared(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays; an array that is equal on both sides is included only once.

    The names of both sides' arrays begin with "A/" or "B/"; the name of an array that is equal on
    both sides has no such prefix.
    """
    stored = {name: array for name, array in arrays.items() if name.startswith("result/")}
    for name in (n[2:] for n in arrays if n.startswith("A/")):
        a, b = arrays[f"A/{name}"], arrays.get(f"B/{name}")
        if b is not None and np.array_equal(a, b, equal_nan=True):
            stored[name] = a
        else:
            stored[f"A/{name}"] = a
            stored |= {} if b is None else {f"B/{name}": b}
    return stored


def _limit(arrays: Mapping[str, np.ndarray], dtype: str) -> float:
    """Return the largest allowed error for the results in `arrays`; see `Script.limit`."""
    if dtype != "float64":
        return CEILING_UNITS * UNIT_ROUNDOFF[dtype]
    measured = relative_error(arrays["result/B"], arrays["result/A"])
    return min(FUNCTION_LIMIT, measured / 2)  # possibly only a single element differs


def _settings(checkpoint: Checkpoint, first: str) -> dict[str, Any]:
    """Return epsilon, activation and number of heads of the step that computes the result `first`.

    The reproducer's code for the step reads them by name: "eps", "activation" and "heads".
    """
    model = checkpoint.configuration.model
    decoder = first.startswith("decoder.") or (first == "logits" and checkpoint.task == "pretrain")
    block = model.decoder_block if decoder else model.encoder_block
    own = {"decoder.norm": "decoder_norm_eps", "head.norm": "fc_norm_eps"}.get(first, "")
    eps = getattr(model, own, block.eps) if own else block.eps
    return {"eps": eps, "activation": model.hidden_act, "heads": block.heads}


def write_reproducer(reproducer: Reproducer, folder: Path) -> str:
    """Write a reproducer, run it, and return its output.

    The folder contains ``reproduce.py``, ``reproduce.npz`` and ``output.txt``.

    Raises:
        OutputError: the folder exists, or cannot be written.
        MaeConvertError: the script failed, or shows no difference.
    """
    if folder.exists():
        raise OutputError(folder, " exists", hint="specify a directory that does not exist")
    with staging_for(folder) as staging:
        directory = staging / "reproducer"
        directory.mkdir()
        np.savez(directory / "reproduce.npz", **dict(reproducer.arrays), allow_pickle=False)
        (directory / "reproduce.py").write_text(
            script_text(reproducer.script, tuple(reproducer.frameworks))
        )
        printed = "\n".join(
            _run(directory, reproducer, *each) for each in reproducer.frameworks.items()
        )
        (directory / "output.txt").write_text(printed)
        try:
            rename_to_new(directory, folder)
        except OSError as error:
            raise OutputError(
                folder, f" cannot be written: {error.strerror}", hint="specify another directory"
            ) from error
    return printed


def _run(directory: Path, reproducer: Reproducer, framework: str, python: str | None) -> str:
    command = [python or sys.executable, str(directory / "reproduce.py"), framework]
    limit = Clock(None).left()
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            env=environment_of_child(TF_CPP_MIN_LOG_LEVEL="3"), timeout=limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise MaeConvertError(
            f"the reproducer did not end within {limit:g} seconds",
            hint=f"set {TIME_LIMIT_VARIABLE} to a larger number of seconds; 0 means no limit",
        ) from error
    ended = (
        process.returncode in (0, 1) and "Traceback (most recent call last)" not in process.stderr
    )
    if not ended or not process.stdout:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise MaeConvertError(f"the reproducer failed on {framework}: {last}")
    if process.returncode == 0:
        script = reproducer.script
        reason = (
            f"if only the step that computes {script.first} is run, its results do not differ"
            if script.dtype == "float64"
            else f"the rounding errors in {script.dtype} add up over several steps, and the "
            f"rounding error of {script.first} alone is not too large"
        )
        raise MaeConvertError(f"the reproducer shows no difference: {reason}")
    return process.stdout
