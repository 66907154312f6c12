"""A minimal reproducer of a failed verification: one step, one image, the relevant tensors.

All results before the first one that differs agree, so the step that computes it can be isolated:
its inputs from A, its tensors in A and in B, and both results. A script that needs only NumPy and
one framework computes the step again with the tensors of each side.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.diagnose.reproducer import SCRIPT
from mae_convert.errors import MaeConvertError, OutputError
from mae_convert.files.atomic import rename_to_new
from mae_convert.files.staging import staging_beside
from mae_convert.runtime.children import Clock, environment_of_child
from mae_convert.runtime.trace import Trace
from mae_convert.verify.distance import relative_error
from mae_convert.verify.localise import BLOCK_TAP, execution_order
from mae_convert.verify.verification import Verification

FIELDS = {"eps": "layer_norm_eps", "activation": "hidden_act", "heads": "num_attention_heads"}
PARTS = ("q", "k", "v")


@dataclass(frozen=True)
class Step:
    """A step of a model."""

    kind: str
    """The kind in the script: "projection", "attention", "mlp", "sum", "norm" or "linear"."""

    inputs: Mapping[str, str]
    """Input name in the script → name of the result."""

    tensors: Mapping[str, str]
    """Tensor name in the script → canonical name."""

    one_token: bool = True
    """Whether the tokens are computed independently of each other."""


@dataclass(frozen=True)
class Reproducer:
    """A differing step with its arrays and settings."""

    first: str
    """The differing result."""

    kind: str
    """The kind of the step."""

    arrays: Mapping[str, np.ndarray]
    """The arrays: input/NAME, A/NAME and B/NAME for tensors, result/A and result/B."""

    settings: Mapping[str, Mapping[str, Any]]
    """The settings of A and B: epsilon, activation and number of heads."""

    frameworks: Mapping[str, str | None]
    """The frameworks for the script, each with a Python interpreter; None for the current one."""


def reduced(verification: Verification) -> Reproducer:
    """Return a minimal reproducer of a failed verification.

    Raises:
        MaeConvertError: nothing differs in float64, or the first difference is not in a step that
            can be isolated.
    """
    differing = _first_difference(verification)
    if differing is None:
        raise MaeConvertError(
            "there is nothing to reduce: no result of the runs differs in float64",
            hint="see the failed checks in the table",
        )
    first, b, framework_b = differing
    a, model = verification.traces[0], verification.runs[0].checkpoint
    step = step_of(first, a, model)
    if step is None:
        raise MaeConvertError(
            f"{first} is the first result that differs, but it is not computed by one step of a "
            "block, a norm or a linear layer, so it cannot be isolated",
            hint="see the tensors and the code in the output of the verification",
        )
    exact, other = a.results("float64"), b.results("float64")
    results = {"result/A": exact[first], "result/B": other[first]}
    inputs = {f"input/{name}": exact[result] for name, result in step.inputs.items()}
    arrays = _smallest({**inputs, **results}, one_token=step.one_token)
    for side, run in zip("AB", verification.runs, strict=True):
        for name, canonical in step.tensors.items():
            if canonical in run.checkpoint.tensors:
                values = run.checkpoint.tensors[canonical].load()
                arrays[f"{side}/{name}"] = np.asarray(values).astype(np.float64)
    settings = {
        side: _settings(run.checkpoint, first)
        for side, run in zip("AB", verification.runs, strict=True)
    }
    frameworks = {_plain(run.side.framework): run.side.python for run in verification.runs[::-1]}
    frameworks.setdefault(_plain(framework_b), None)
    return Reproducer(first, step.kind, arrays, settings, frameworks)


def _plain(framework: str | None) -> str:
    """Return the framework of the script for the framework or library that runs a side."""
    return framework if framework in ("tensorflow", "jax") else "torch"


def _first_difference(verification: Verification) -> tuple[str, Trace, str] | None:
    """Return the first result that differs from A's, its trace and the framework of the run.

    The trace is that of B or, if B agrees with A, of a further runner.
    """
    if not verification.runs:
        return None
    if first := verification.verdict.first_divergence:
        return first, verification.traces[1], verification.runs[1].side.framework or ""
    for runner, trace in zip(
        verification.verdict.witnesses[2:], verification.traces[2:], strict=True
    ):
        prefix = f"{runner['side']}/function/"
        failed = (
            check.name for check in verification.verdict.failed() if check.name.startswith(prefix)
        )
        names = [name.removeprefix(prefix) for name in failed]
        if names:
            return min(names, key=execution_order), trace, str(runner["framework"])
    return None


def step_of(first: str, trace: Trace, model: Checkpoint) -> Step | None:
    """Return the step that computes a result from earlier results, or None."""
    results = trace.results("float64")
    if match := BLOCK_TAP.fullmatch(first):
        return _step_of_block(f"{match[1]}.blocks.{match[2]}", match[3], results)
    before = _before(first, results)
    norm = {"encoder.norm", "decoder.norm"}
    if first in norm and before and results[before].shape == results[first].shape:
        return Step("norm", {"x": before}, _leaves("norm", first))
    if first == "logits" and model.task == "pretrain" and "decoder.norm" in results:
        return Step("linear", {"x": "decoder.norm"}, _leaves("linear", "decoder.prediction"))
    if first == "logits" and model.task == "classify":
        head = _leaves("linear", "head")
        if "head.norm" in results:
            return Step("class", {"x": "head.norm"}, head, False)
        if getattr(model.configuration.model, "global_pool", "") == "token":
            return Step("class", {"x": "encoder.norm"}, head, False)
    return None


def _step_of_block(block: str, part: str, results: Mapping[str, np.ndarray]) -> Step | None:
    tokens = _before(f"{block}.q", results)
    if tokens is None:
        return None
    if part in PARTS:
        tensors = {**_leaves("norm", f"{block}.norm1"),
                   **_leaves("linear", f"{block}.attention.{part}")}  # fmt: skip
        return Step("projection", {"x": tokens}, tensors)
    if part == "attention":
        inputs = {name: f"{block}.{name}" for name in PARTS}
        return Step("attention", inputs, _leaves("linear", f"{block}.attention.output"), False)
    inputs = {"x": tokens, "attention": f"{block}.attention"}
    if part == "mlp":
        tensors = {**_leaves("norm", f"{block}.norm2"), **_leaves("fc1", f"{block}.mlp.fc1"),
                   **_leaves("fc2", f"{block}.mlp.fc2")}  # fmt: skip
        return Step("mlp", inputs, tensors)
    return Step("sum", {**inputs, "mlp": f"{block}.mlp"}, {})


def _leaves(name: str, module: str) -> dict[str, str]:
    return {f"{name}.{leaf}": f"{module}.{leaf}" for leaf in ("weight", "bias")}


def _before(result: str, results: Mapping[str, np.ndarray]) -> str | None:
    """Return the name of the block input for a step."""
    streams = [name for name in results if name.endswith((".output", ".embedding"))]
    earlier = [name for name in streams if execution_order(name) < execution_order(result)]
    same = [name for name in earlier if name.partition(".")[0] == result.partition(".")[0]]
    return max(same, key=execution_order, default=None)


def _smallest(arrays: Mapping[str, np.ndarray], *, one_token: bool) -> dict[str, np.ndarray]:
    """Return the arrays of the image and, if possible, of the token that differ most."""
    a, b = arrays["result/A"], arrays["result/B"]
    distance = np.nan_to_num(np.abs(a - b), nan=np.inf) if a.shape == b.shape else np.abs(a)
    image = int(distance.reshape(len(distance), -1).max(axis=1).argmax())
    chosen = {name: array[image : image + 1] for name, array in arrays.items()}
    if not one_token or a.ndim < 3 or a.shape != b.shape:
        return chosen
    token = int(distance[image].max(axis=-1).argmax())
    counts = {name: array.shape[1] for name, array in chosen.items()}
    last = a.shape[1] - token  # from the end, because inputs may have more tokens at the start
    return {name: x[:, counts[name] - last : counts[name] - last + 1] for name, x in chosen.items()}


def _settings(checkpoint: Checkpoint, first: str) -> dict[str, Any]:
    model = checkpoint.configuration.model
    decoder = first.startswith("decoder.") or first == "logits"
    settings = {name: getattr(model, field) for name, field in FIELDS.items()}
    if decoder and checkpoint.task == "pretrain":
        settings["heads"] = model.decoder_num_attention_heads
        settings["eps"] = model.decoder_eps
    return settings


def write_reproducer(reproducer: Reproducer, folder: Path) -> str:
    """Write a reproducer, run it, and return its output.

    The folder contains ``reproduce.py``, ``reproduce.npz`` and ``output.txt``.

    Raises:
        OutputError: the folder exists or cannot be written.
        MaeConvertError: the script failed or shows no difference.
    """
    if folder.exists():
        raise OutputError(folder, " exists", hint="specify a directory that does not exist")
    facts = {"first": reproducer.first, "kind": reproducer.kind, "settings": reproducer.settings}
    with staging_beside(folder) as staging:
        target = staging / "reproducer"
        target.mkdir()
        np.savez(target / "reproduce.npz", **dict(reproducer.arrays), allow_pickle=False)
        usual = " ".join(reproducer.frameworks)
        script = SCRIPT.replace("FACTS_HERE", json.dumps(facts)).replace("USUAL", usual)
        (target / "reproduce.py").write_text(script)
        printed = "\n".join(_run(target, *each) for each in reproducer.frameworks.items())
        (target / "output.txt").write_text(printed)
        if relative_error(reproducer.arrays["result/B"], reproducer.arrays["result/A"]) == 0:
            raise MaeConvertError("the reproducer shows no difference; nothing was written")
        try:
            rename_to_new(target, folder)
        except OSError as error:
            raise OutputError(folder, f" cannot be written: {error.strerror}") from error
    return printed


def _run(script: Path, framework: str, python: str | None) -> str:
    command = [python or sys.executable, str(script / "reproduce.py"), framework]
    limit = Clock(None).left()
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            env=environment_of_child(TF_CPP_MIN_LOG_LEVEL="3"), timeout=limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise MaeConvertError(f"the reproducer did not end within {limit} seconds") from error
    if process.returncode not in (0, 1):
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise MaeConvertError(f"the reproducer failed on {framework}: {last}")
    return process.stdout
