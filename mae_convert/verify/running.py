"""Run a checkpoint in a child process, one framework each, and collect its trace."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.checkpoint import Checkpoint
from mae_convert.containers.bytefile import ByteFile
from mae_convert.errors import MaeConvertError, MissingRequirementError
from mae_convert.verify.gradients import with_canonical_gradients
from mae_convert.verify.job import Job
from mae_convert.verify.pinned import pinned
from mae_convert.verify.sides import Side
from mae_convert.verify.staging import stage
from mae_convert.verify.trace import Trace, describe, read_trace

WORKER = Path(__file__).with_name("worker.py")
DEFAULT_DTYPES = ("float64", "float32")


@dataclass(frozen=True)
class Request:
    """What of a checkpoint is to be run and kept.

    Attributes:
        dtypes: precisions; float64 is the proof.
        taps: keep every step between.
        gradients: keep the gradient of the objective for every trainable parameter.
        mask_ratio: run with this ratio; None is the configured one.
    """

    dtypes: tuple[str, ...] = DEFAULT_DTYPES
    taps: bool = True
    gradients: bool = False
    mask_ratio: float | None = None


@dataclass(frozen=True)
class Run:
    """One checkpoint to be run, by whom, for what, and whether its file is as it is.

    Attributes:
        checkpoint: what to run.
        side: with what; ``framework`` must be chosen.
        request: what to keep.
        as_stored: the checkpoint's tensors are those of its file; False after declared steps.
    """

    checkpoint: Checkpoint
    side: Side
    request: Request = field(default_factory=Request)
    as_stored: bool = True


@dataclass(frozen=True)
class Running:
    """A child process at work."""

    run: Run
    description: Future[Mapping[str, Any]]
    folder: tempfile.TemporaryDirectory[str]
    process: subprocess.Popen[str]
    output: Path
    held: Sequence[ByteFile] = ()

    def stop(self) -> None:
        """End the child if it still runs, and remove what it was given."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

    def result(self) -> Trace:
        """Wait for the child and for what describes it, and return its trace.

        Raises:
            MissingRequirementError: the child could not import its framework.
            MaeConvertError: the child failed; its last words are in the message.
        CheckpointError: a file of the checkpoint was written to meanwhile.
        """
        try:
            _, errors = self.process.communicate()
            if self.process.returncode == 0 and self.output.exists():
                for file in self.held:
                    file.require_unchanged()
                metadata, arrays = read_trace(self.output)
                own = json.loads(metadata)
                described = self.description.result()
                return with_canonical_gradients(Trace({**described, **own}, arrays))
        finally:
            self.stop()
        side = self.run.side
        if self.process.returncode == 0:
            raise MaeConvertError(f"{side.python} ran and wrote nothing; is it a Python?")
        said = [line for line in errors.strip().splitlines() if line.strip()]
        last = said[-1].removeprefix("worker: ") if said else f"signal {-self.process.returncode}"
        kind = MissingRequirementError if self.process.returncode == 3 else MaeConvertError
        raise kind(f"the {side.framework} run failed: {last}")


def start(run: Run, inputs: Mapping[str, np.ndarray]) -> Running:
    """Start the child process that runs a checkpoint on ``pixel_values`` and ``noise``."""
    side, request = run.side, run.request
    run.checkpoint.configuration.require_complete()
    assert side.framework is not None
    folder = tempfile.TemporaryDirectory(prefix="mae-convert-")
    work = Path(folder.name)
    np.savez(work / "inputs.npz", allow_pickle=False, **inputs)
    weights, loader, native = stage(run.checkpoint, side.framework, work, as_stored=run.as_stored)
    weights, held = pinned(weights, run.checkpoint, work)
    config = run.checkpoint.configuration.model
    if request.mask_ratio is not None:
        config = replace(config, mask_ratio=request.mask_ratio)
    job = Job(
        framework=side.framework,
        device=side.device,
        dtypes=request.dtypes,
        task=run.checkpoint.task,
        config=config.to_dict(),
        weights=str(weights),
        loader=loader,
        inputs=str(work / "inputs.npz"),
        output=str(work / "trace.safetensors"),
        taps=request.taps,
        gradients=request.gradients,
        mode=side.mode,
        description={
            "dtypes": list(request.dtypes),
            "taps": request.taps,
            "run_mask_ratio": config.mask_ratio,
        },
    )
    job.save(work / "job.json")
    process = _start_worker(side, work / "job.json")
    describing = partial(describe, run.checkpoint, side, inputs, native=native)
    description = _meanwhile(describing)
    return Running(run, description, folder, process, work / "trace.safetensors", held)


def _meanwhile(function: Callable[[], Mapping[str, Any]]) -> Future[Mapping[str, Any]]:
    """Hash in a thread of its own, which takes the time that the children leave."""
    executor = ThreadPoolExecutor(1, initializer=_give_way)
    future = executor.submit(function)
    executor.shutdown(wait=False)
    return future


def _give_way() -> None:
    if sys.platform == "linux":  # where a thread has a priority of its own
        thread = threading.get_native_id()
        lower = min(os.getpriority(os.PRIO_PROCESS, thread) + 10, 19)
        os.setpriority(os.PRIO_PROCESS, thread, lower)


def _start_worker(side: Side, job: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONNOUSERSITE": "1"}
    if side.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if side.framework == "jax":
        environment["JAX_ENABLE_X64"] = "1"
    # Two frameworks share the cores: a thread that has nothing to do is not to keep one busy.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # deterministic matrix products on CUDA
    return subprocess.Popen(
        [side.python or sys.executable, str(WORKER), str(job)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_together(runs: Sequence[Run], inputs: Mapping[str, np.ndarray]) -> list[Trace]:
    """Run several checkpoints at the same time on the same inputs and return their traces.

    Raises:
        MissingRequirementError: a child could not import its framework.
        MaeConvertError: a child failed, or TF32 is asked of a processor.
    """
    if any("tf32" in run.request.dtypes and run.side.device == "cpu" for run in runs):
        raise MaeConvertError(
            "TF32 exists on CUDA devices only; run both sides on one (--device-a cuda, --device-b"
            " cuda), or leave --dtype tf32 out"
        )
    running: list[Running] = []
    try:
        for run in runs:
            running.append(start(run, inputs))
        return [process.result() for process in running]
    finally:
        for process in running:
            process.stop()
