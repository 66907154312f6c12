"""Run many checkpoints in few child processes, one for each framework."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.runtime.child_files import stage
from mae_convert.runtime.job import Job, additional_inputs
from mae_convert.runtime.running import inputs_of
from mae_convert.runtime.sides import Side, classes_of
from mae_convert.runtime.trace import Trace, describe

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


def run_all(runs: Sequence[Run], folder: Path) -> list[Trace | str]:
    """Return the trace of each run, or its error message."""
    jobs = [prepare(run, folder / str(number)) for number, run in enumerate(runs)]
    for framework in dict.fromkeys(run.framework for run in runs):
        listed = [
            (str(job), run.fault)
            for job, run in zip(jobs, runs, strict=True)
            if run.framework == framework
        ]
        for start in range(0, len(listed), AT_ONCE):
            (folder / "list.json").write_text(json.dumps(listed[start : start + AT_ONCE]))
            subprocess.run(
                [sys.executable, str(WORKER), framework, str(folder / "list.json")],
                check=True,
                capture_output=True,
                env=ENVIRONMENT,
            )
    return [_result(job.with_name("trace.safetensors")) for job in jobs]


def _result(path: Path) -> Trace | str:
    error = path.with_name(f"{path.name}.error")
    return error.read_text() if error.exists() else Trace.load(path)
