"""Trace a checkpoint: run it in a child process and keep every result, named and hashed."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mae_convert.checkpoint import Checkpoint
from mae_convert.containers import write_file
from mae_convert.containers.tensor import LazyTensor
from mae_convert.convert import execute
from mae_convert.errors import (
    CheckpointError,
    MaeConvertError,
    MissingRequirementError,
    OutputError,
)
from mae_convert.planning import plan_conversion
from mae_convert.record import files_sha256
from mae_convert.rounding import DTYPES
from mae_convert.verify.inputs import inputs_sha256, load_inputs, random_inputs
from mae_convert.verify.job import FRAMEWORKS, Job

# Which loader reads which spelling's own names into which framework's reference model. What is not
# here goes through the mapping tables, and is then witnessed but not proven.
NATIVE_LOADERS: Mapping[tuple[str, str], str] = {
    ("facebook", "torch"): "facebook",
    ("transformers-tf", "tensorflow"): "transformers-tf",
    ("transformers-tf", "jax"): "transformers-tf",
    ("transformers, names of version 4", "tensorflow"): "transformers",
    ("transformers, names of version 4", "jax"): "transformers",
    ("keras", "tensorflow"): "keras",
    ("keras", "jax"): "keras",
}
# The layout that a checkpoint is converted to where its own names are not the framework's.
STAGED_AS = {"torch": ("facebook", ".pth"), "tensorflow": ("keras", ".weights.h5")}
STAGED_AS["jax"] = STAGED_AS["tensorflow"]
HDF5 = {"tf_h5": ".h5", "keras_h5": ".weights.h5"}
INSTALL = {
    "torch": "pip install 'mae-convert[torch]'",
    "tensorflow": "pip install 'mae-convert[tensorflow]'",
    "jax": "pip install 'mae-convert[jax]'",
}
DESCRIBED = ("checkpoint", "task", "config", "inputs", "dtypes", "tensors", "steps", "native",
             "image_mean", "image_std")  # fmt: skip
WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Side:
    """How one side of a comparison is run.

    Attributes:
        framework: "torch", "tensorflow" or "jax"; None chooses the one that proves most.
        device: where runs other than float64 happen, "cpu" or "cuda".
        python: the interpreter of the child process; None is this one.
    """

    framework: str | None = None
    device: str = "cpu"
    python: str | None = None


@dataclass(frozen=True)
class Trace:
    """The results of one side, and what they are the results of."""

    description: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> "Trace":
        """Read a trace file.

        Raises:
            CheckpointError: the file is not a trace.
        """
        try:
            with safe_open(path, "numpy") as file:
                description = json.loads((file.metadata() or {})["trace"])
                if missing := [key for key in DESCRIBED if key not in description]:
                    raise KeyError(missing[0])
                return cls(description, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not a trace; make one with `mae-convert trace CKPT {path}`"
            ) from error


def choose_side(checkpoint: Checkpoint, side: Side) -> Side:
    """Return the side with its framework chosen: one that reads the names natively, if it is here.

    Raises:
        MissingRequirementError: a framework that was asked for, or any at all, is missing.
    """
    if side.framework is not None:
        if side.framework not in FRAMEWORKS:
            raise MaeConvertError(
                f"unknown framework {side.framework!r}; choose {', '.join(FRAMEWORKS)}"
            )
        if not _has(side.framework, side.python):
            raise _missing(side.framework, side.python)
        return side
    native = [f for f in FRAMEWORKS if (checkpoint.table.name, f) in NATIVE_LOADERS]
    for framework in dict.fromkeys([*native, *FRAMEWORKS]):
        if _has(framework, side.python):
            return replace(side, framework=framework)
    raise _missing(native[0] if native else "torch", side.python)


def _has(framework: str, python: str | None) -> bool:
    """Return whether an interpreter finds a framework, without importing it here."""
    modules = {"torch": ("torch",)}.get(framework, (framework, "keras"))
    if python is None:
        return all(importlib.util.find_spec(module) for module in modules)
    probe = f"import importlib.util as u,sys; sys.exit(not all(u.find_spec(m) for m in {modules}))"
    try:
        return (
            subprocess.run([python, "-c", probe], check=False, capture_output=True).returncode == 0
        )
    except OSError as error:
        raise MaeConvertError(f"cannot run the interpreter {python}: {error.strerror}") from error


def _missing(framework: str, python: str | None) -> MissingRequirementError:
    where = "here" if python is None else f"in the environment of {python}"
    return MissingRequirementError(f"{framework} is not installed {where}; {INSTALL[framework]}")


def describe(
    checkpoint: Checkpoint,
    side: Side,
    inputs: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Return a trace's metadata: everything that a verdict needs besides the results.

    ``tensors`` holds shape, dtype and SHA-256 of every canonical tensor.
    """
    sha256 = files_sha256(checkpoint.container.files)["sha256"]
    return {
        "format": 1,
        "checkpoint": {"name": str(checkpoint.path), "sha256": sha256},
        "layout": checkpoint.layout.name,
        "task": checkpoint.task,
        "framework": side.framework,
        "native": (checkpoint.table.name, side.framework) in NATIVE_LOADERS,
        "device": side.device,
        "config": checkpoint.configuration.model.to_dict(),
        "image_mean": list(checkpoint.configuration.image_mean),
        "image_std": list(checkpoint.configuration.image_std),
        "assumed": checkpoint.configuration.assumed(),
        "inputs": inputs_sha256(inputs),
        "steps": list((checkpoint.container.conversion or {}).get("steps", [])),
        "tensors": {
            name: [list(tensor.shape), str(tensor.dtype), _sha256(tensor)]
            for name, tensor in checkpoint.tensors.items()
        },
    }


def _sha256(tensor: LazyTensor) -> str:
    array = np.ascontiguousarray(tensor.load())
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()


def trace(
    checkpoint: Checkpoint,
    side: Side,
    inputs: Mapping[str, np.ndarray],
    output: Path,
    *,
    dtypes: Sequence[str] = ("float64", "float32"),
    taps: bool = True,
    mask_ratio: float | None = None,
    as_stored: bool = True,
) -> "Running":
    """Start the child process that runs a checkpoint; its trace appears at ``output``.

    Args:
        checkpoint: what to run.
        side: with what; ``framework`` must be chosen.
        inputs: ``pixel_values`` and ``noise``.
        output: trace file to write.
        dtypes: runs to make.
        taps: keep every step between.
        mask_ratio: run with this ratio instead of the configured one.
        as_stored: the checkpoint's tensors are those of its file; False after declared steps.
    """
    assert side.framework is not None
    folder = tempfile.TemporaryDirectory(prefix="mae-convert-")
    work = Path(folder.name)
    np.savez(work / "inputs.npz", allow_pickle=False, **inputs)
    weights, loader = stage(checkpoint, side.framework, work, as_stored=as_stored)
    config = checkpoint.configuration.model
    if mask_ratio is not None:
        config = replace(config, mask_ratio=mask_ratio)
    description = describe(checkpoint, side, inputs)
    job = Job(
        framework=side.framework,
        device=side.device,
        dtypes=tuple(dtypes),
        task=checkpoint.task,
        config=config.to_dict(),
        weights=str(weights),
        loader=loader,
        inputs=str(work / "inputs.npz"),
        output=str(output.resolve()),
        taps=taps,
        description={**description, "dtypes": list(dtypes), "taps": taps},
    )
    job.save(work / "job.json")
    return Running(side, folder, start_worker(side, work / "job.json"), output)


def trace_to_file(
    checkpoint: Checkpoint,
    side: Side,
    output: Path,
    *,
    inputs: Path | None,
    seed: int,
    batch: int,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Trace a checkpoint on inputs from a file, or on random ones, and write the trace.

    Raises:
        OutputError: the output exists, or there is no such directory.
    """
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists already; pass --overwrite to replace it")
    if output.exists() and not _is_trace(output):
        raise OutputError(f"{output} is not a trace and is not replaced; choose another name")
    if not output.resolve().parent.is_dir():
        raise OutputError(f"there is no directory {output.parent} to write {output.name} into")
    model = checkpoint.configuration.model
    arrays = load_inputs(inputs, model) if inputs else random_inputs(model, batch=batch, seed=seed)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        trace(checkpoint, choose_side(checkpoint, side), arrays, partial, **options).result()
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _is_trace(path: Path) -> bool:
    try:
        Trace.load(path)
    except CheckpointError:
        return False
    return True


def start_worker(side: Side, job: Path) -> subprocess.Popen[str]:
    """Start the child process of a side."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONNOUSERSITE": "1"}
    if side.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if side.framework == "jax":
        environment["JAX_ENABLE_X64"] = "1"
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # deterministic matrix products on CUDA
    return subprocess.Popen(
        [side.python or sys.executable, str(WORKER), str(job)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@dataclass(frozen=True)
class Running:
    """A child process at work."""

    side: Side
    folder: tempfile.TemporaryDirectory[str]
    process: subprocess.Popen[str]
    output: Path

    def stop(self) -> None:
        """End the child if it still runs, and remove what it was given."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

    def result(self) -> Trace:
        """Wait for the child and return its trace.

        Raises:
            MissingRequirementError: the child could not import its framework.
            MaeConvertError: the child failed; its last words are in the message.
        """
        try:
            _, errors = self.process.communicate()
        finally:
            self.stop()
        if self.process.returncode == 0 and self.output.exists():
            return Trace.load(self.output)
        if self.process.returncode == 0:
            raise MaeConvertError(f"{self.side.python} ran and wrote nothing; is it a Python?")
        said = [line for line in errors.strip().splitlines() if line.strip()]
        last = said[-1].removeprefix("worker: ") if said else f"signal {-self.process.returncode}"
        kind = MissingRequirementError if self.process.returncode == 3 else MaeConvertError
        raise kind(f"the {self.side.framework} run failed: {last}")


def stage(
    checkpoint: Checkpoint, framework: str, work: Path, *, as_stored: bool = True
) -> tuple[Path, str]:
    """Return the file for the child and the loader that reads it.

    A file whose names are the framework's own is given as it is, so that no code of ours stands
    between the bytes and the model. Where the names are so, but have a prefix, or the tensors are
    spread over several files, the tensors are put into one file under these names, without a
    table. Others are converted by the tables.
    """
    loader = NATIVE_LOADERS.get((checkpoint.table.name, framework))
    # Only PyTorch reads its own container; the other frameworks are not to import it.
    foreign = framework != "torch" and checkpoint.container.kind == "pth"
    if loader is not None and as_stored and _is_plain(checkpoint) and not foreign:
        return checkpoint.container.weights_file, loader
    if loader is not None:
        kind = checkpoint.container.kind
        kind, suffix = (kind, HDF5[kind]) if kind in HDF5 else ("safetensors", ".safetensors")
        staged = work / f"weights{suffix}"
        tensors = checkpoint.container.tensors.values()
        write_file(staged, kind, tensors if framework == "torch" else map(_widened, tensors))
        return staged, loader
    layout, suffix = STAGED_AS[framework]
    staged = work / f"weights{suffix}"
    execute(plan_conversion(checkpoint, staged, layout, dtype=_exact_dtype(checkpoint)))
    return staged, layout


def _is_plain(checkpoint: Checkpoint) -> bool:
    """Return whether a loader finds the tensors by itself: one file, names and key as they are."""
    container = checkpoint.container
    return (
        len(container.files) == 1
        and container.state_key is None
        and "." not in (container.wrapper or "")
        and not checkpoint.prefix.removed
    )


def _widened(tensor: LazyTensor) -> LazyTensor:
    """Return a tensor as HDF5 and NumPy can hold it: float32 has every value of bfloat16."""
    if tensor.dtype != DTYPES["bfloat16"]:
        return tensor
    wide = DTYPES["float32"]
    return replace(tensor, dtype=wide, load=lambda: tensor.load().astype(wide))


def _exact_dtype(checkpoint: Checkpoint) -> str | None:
    """Return a dtype that holds all values as they are, where one for all tensors is needed."""
    dtypes = {str(tensor.dtype) for tensor in checkpoint.tensors.values()}
    if len(dtypes) == 1 and "bfloat16" not in dtypes:
        return None
    return "float64" if "float64" in dtypes else "float32"
