"""Run many checkpoints in few child processes, one for each framework."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.runtime.child_files import stage
from mae_convert.runtime.job import Job, additional_inputs
from mae_convert.runtime.running import inputs_of
from mae_convert.runtime.sides import Side, classes_of
from mae_convert.runtime.trace import Trace, describe
from mae_convert.runtime.worker import RUNNERS

if TYPE_CHECKING:
    from fork_server import ForkServers

WORKER = Path(__file__).with_name("worker.py")
DTYPES = ("float64", "float32")
# Models as small as these are faster with one thread.
ENVIRONMENT = {"PATH": "", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "",
               "OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1",
               "TF_NUM_INTEROP_THREADS": "1"}  # fmt: skip
AT_ONCE = 100  # jobs of one child: its memory grows with each


@dataclass(frozen=True)
class Run:
    """A checkpoint to be run.

    Attributes:
        checkpoint: the checkpoint.
        framework: "torch" or "tensorflow".
        inputs: ``pixel_values`` and ``noise``.
        mask_ratio: the mask ratio of the run.
        fault: the name of a fault in the code, or None.
    """

    checkpoint: Checkpoint
    framework: str
    inputs: Mapping[str, np.ndarray]
    mask_ratio: float
    fault: str | None = None


def prepare(run: Run, folder: Path) -> Path:
    """Write the job of a run and return its file."""
    folder.mkdir(parents=True)
    given = inputs_of(run.checkpoint, run.inputs)
    np.savez(folder / "inputs.npz", **given)
    staged = stage(run.checkpoint, run.framework, folder)
    model = replace(run.checkpoint.configuration.model, mask_ratio=run.mask_ratio)
    description = describe(
        run.checkpoint, Side(run.framework), run.inputs, converted_by=staged.converted_by
    )
    job = Job(
        framework=run.framework,
        device="cpu",
        dtypes=DTYPES,
        task=run.checkpoint.task,
        config=model.to_dict(),
        **classes_of(run.checkpoint, run.framework),
        weights=staged.weights,
        loader=staged.loader,
        inputs=str(folder / "inputs.npz"),
        output=str(folder / "trace.safetensors"),
        taps=True,
        gradients=False,
        mode="eager",
        description={
            **description,
            "dtypes": list(DTYPES),
            "taps": True,
            "run_mask_ratio": run.mask_ratio,
            "additional_inputs": list(additional_inputs(given)),
        },
    )
    job.save(folder / "job.json")
    return folder / "job.json"


def run_all(
    runs: Sequence[Run], folder: Path, servers: "ForkServers | None" = None
) -> list[Trace | str]:
    """Return the trace of each run, or its error message.

    Args:
        runs: the runs.
        folder: the folder of their files.
        servers: servers from which the child processes are forked; None for new processes.
    """
    jobs = [prepare(run, folder / str(number)) for number, run in enumerate(runs)]
    for framework in dict.fromkeys(run.framework for run in runs):
        listed = [
            (str(job), run.fault)
            for job, run in zip(jobs, runs, strict=True)
            if run.framework == framework
        ]
        for start in range(0, len(listed), AT_ONCE):
            run_jobs(listed[start : start + AT_ONCE], framework, folder / "list.json", servers)
    return [_result(job.with_name("trace.safetensors")) for job in jobs]


def run_jobs(
    jobs: Sequence[tuple[str, str | None]],
    framework: str,
    listed: Path,
    servers: "ForkServers | None" = None,
) -> None:
    """Run jobs in one child process.

    Args:
        jobs: the file of each job, and the name of a fault in the code or None.
        framework: "torch" or "tensorflow".
        listed: the file that lists the jobs, which is written.
        servers: servers from which the child process is forked; None for a new process.
    """
    listed.write_text(json.dumps(jobs))
    if servers is not None:
        module = f"mae_convert.runtime.{RUNNERS[framework]}"
        servers.run(module, WORKER, framework, listed, environment=ENVIRONMENT)
        return
    command = [sys.executable, str(WORKER), framework, str(listed)]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)


def _result(path: Path) -> Trace | str:
    error = path.with_name(f"{path.name}.error")
    return error.read_text() if error.exists() else Trace.load(path)
