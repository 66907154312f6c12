"""Run a checkpoint in a child process, with one framework per process, and collect its trace."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.errors import MaeConvertError, MissingRequirementError, Option, Text, from_json
from mae_convert.files.byte_ranges import ByteFile
from mae_convert.files.staging import scratch_directory
from mae_convert.runtime.child_files import linked_to_open_files, stage, stage_foreign
from mae_convert.runtime.children import (
    Child,
    Clock,
    environment_of_runner,
    python_process,
    stage_of,
)
from mae_convert.runtime.foreign import FOREIGN, ORIGINAL, ForeignCode
from mae_convert.runtime.job import Job, additional_inputs
from mae_convert.runtime.sides import WORKER, Side, classes_of
from mae_convert.runtime.trace import Trace, describe, map_trace, with_canonical_gradients
from mae_convert.runtime.worker import REPORT

UNREAD = 4  # the exit status of a worker whose library cannot read the file
DEFAULT_DTYPES = ("float64", "float32")


@dataclass(frozen=True)
class Request:
    """How to run a checkpoint, and which results to record."""

    dtypes: tuple[str, ...] = DEFAULT_DTYPES
    """The dtypes of the runs; float64 shows whether both sides compute the same function."""

    taps: bool = True
    """Whether to record intermediate activations."""

    gradients: bool = False
    """Whether to record the gradient of the objective for every trainable parameter."""

    mask_ratio: float | None = None
    """The mask ratio; None for the mask ratio in the configuration."""


@dataclass(frozen=True)
class Run:
    """A checkpoint, and how to run it."""

    checkpoint: Checkpoint
    """The checkpoint to run."""

    side: Side
    """The framework and its options; ``framework`` must be set."""

    request: Request = field(default_factory=Request)
    """How to run the model (dtypes, mask ratio), and which results to record."""

    as_stored: bool = True
    """Whether the checkpoint's tensors are run as they are stored; False after changes that a
    conversion declares, such as resampling."""

    step_outputs: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Activations (N, T, D) by name. Each activation is used as the input of the next step (such as
    a block) instead of the activation that the model computes. Empty for an ordinary run."""

    @property
    def foreign(self) -> ForeignCode | None:
        """The external code that runs the checkpoint; None if no external code is specified."""
        return self.side.foreign

    @property
    def label(self) -> str:
        """A phrase for messages, such as "the torch run"."""
        code = self.foreign
        return f"the {self.side.framework} run" if code is None else f"the run by {code.label}"


class UnreadFileError(MaeConvertError):
    """The library for a file's format cannot read the file."""


@dataclass(frozen=True)
class Running:
    """A running child process."""

    run: Run
    """The checkpoint, and how to run it."""

    description: Future[Mapping[str, Any]]
    """The metadata of the run, computed in a thread while the child runs."""

    process: Child
    """The child process."""

    job: Path
    """The job file of the child, in the child's directory."""

    output: Path
    """The trace file that the child writes."""

    clock: Clock
    """The time limit of the child."""

    opened: ExitStack
    """The context; closing it stops the child and removes the child's directory."""

    open_files: Sequence[ByteFile] = ()
    """Files of the checkpoint that must not change during the run."""

    def stop(self) -> None:
        """Terminate the child if it still runs, and remove its files."""
        self.opened.close()

    def result(self) -> Trace:
        """Wait for the child process and for the description of its run, and return the trace.

        Raises:
            MissingRequirementError: the child could not import its framework.
            UnreadFileError: the library for the format cannot read the file.
            MaeConvertError: the child failed or exceeded the time limit; the message contains the
                last line of its standard error or, if a signal or the time limit ended the child,
                the stage that it last reported, such as "while importing torch".
            CheckpointError: a file of the checkpoint was modified during the run.
        """
        with self.opened:
            errors = self._wait()
            if self.process.returncode == 0 and self.output.exists():
                for file in self.open_files:
                    file.require_unchanged()
                metadata, arrays = map_trace(self.output)
                own = json.loads(metadata)
                described = self.description.result()
                return with_canonical_gradients(Trace({**described, **own}, arrays))
            raise self._failure(errors)

    def _wait(self) -> str:
        """Wait until the child has ended; return its standard error."""
        try:
            return self.process.communicate(timeout=self.clock.left())[1]
        except subprocess.TimeoutExpired as late:
            raise self.clock.exceeded(self.run.label, self.job) from late

    def _failure(self, errors: str) -> MaeConvertError:
        side, status = self.run.side, self.process.returncode
        lines = [line for line in errors.strip().splitlines() if line.strip()]
        if self.run.foreign is not None and _was_ended(status, lines):
            said = f" (status {status}: {lines[-1]})" if status and lines else ""
            return MaeConvertError(
                f"{self.run.label} ended without a result{said}",
                hint="remove sys.exit from the code, and statements that run when it is imported"
                + (f"; is {side.python} a Python interpreter?" if side.python else ""),
            )
        if status == 0:
            return MaeConvertError(
                f"{side.python} ran but wrote no result", hint="is it a Python interpreter?"
            )
        last: Text = _reported(lines[-1]) if lines else f"status {status}"
        if status == UNREAD:
            return UnreadFileError(last)
        if status < 0:
            last = f"signal {-status} {stage_of(self.job)}"
        kind = MissingRequirementError if status == 3 else MaeConvertError
        if self.run.foreign is None:
            return kind(f"{self.run.label} failed: ", last)
        label = self.run.foreign.label
        has_label = MaeConvertError(last).message.startswith(label)
        return kind(last) if has_label else kind(f"{self.run.label} failed: ", last)


def _was_ended(status: int, lines: Sequence[str]) -> bool:
    """Return whether external code ended the child process, for example by ``sys.exit``.

    In this case, the standard error contains neither an error report nor a traceback.
    """
    failed = any(line.startswith((REPORT, "Traceback ")) for line in lines)
    return status == 0 or (status > 0 and not failed)


def _reported(line: str) -> Text:
    """Return the error message in the last line that a child wrote to standard error."""
    reported = line.removeprefix(REPORT)
    try:
        return from_json(reported) if reported != line else line
    except ValueError:  # a line of another program with the same prefix
        return reported


def start(run: Run, inputs: Mapping[str, np.ndarray], unread: str | None = None) -> Running:
    """Start the child process that runs a checkpoint.

    Args:
        run: the checkpoint, and how it is run.
        inputs: ``pixel_values``, ``noise`` and additional inputs of the comparison.
        unread: why the library of the file format could not read the checkpoint's files in an
            earlier run; None if there was no earlier run.

    Raises:
        MaeConvertError: the configuration is incomplete, the weights cannot be prepared for the
            runner, or the interpreter cannot be run.
    """
    with ExitStack() as opened:
        work = opened.enter_context(scratch_directory())
        job, converted_by, open_files = _prepare(run, inputs, work, unread)
        process = opened.enter_context(_worker(run.side, job))
        describing = partial(describe, run.checkpoint, run.side, inputs, converted_by=converted_by)
        return Running(
            run,
            _in_background(describing),
            process,
            job,
            work / "trace.safetensors",
            Clock(run.side.time_limit),
            opened.pop_all(),
            open_files,
        )


def _prepare(
    run: Run, inputs: Mapping[str, np.ndarray], work: Path, unread: str | None
) -> tuple[Path, str | None, Sequence[ByteFile]]:
    """Write the input files of the child process to the directory `work`.

    Args:
        run: the checkpoint, and how to run it.
        inputs: the inputs of the run, by name.
        work: the child's directory.
        unread: why the library of the file format could not read the checkpoint's files in an
            earlier run; None if there was no earlier run.

    Returns:
        Three values: the job file; a phrase for reports that names the part of mae-convert that
            reads or converts the tensors, or None if the library of the file format reads the
            checkpoint's files; and the open files, which must not change during the run.
    """
    side, request = run.side, run.request
    run.checkpoint.configuration.require_complete()
    assert side.framework is not None
    model_inputs = inputs_of(run.checkpoint, inputs)
    np.savez(work / "inputs.npz", allow_pickle=False, **model_inputs)
    step_outputs = _save_arrays(run.step_outputs, work / "step_outputs.safetensors")
    if run.foreign is not None and run.foreign.kind != ORIGINAL:
        try:
            staged = stage_foreign(run.checkpoint, run.foreign.layout, work, unread)
        except MaeConvertError as error:
            hint = f"change LAYOUT in the file of {run.foreign.label}"
            raise MaeConvertError(error, hint=hint) from error
    else:
        framework = "torch" if run.foreign else side.framework
        staged = stage(run.checkpoint, framework, work, as_stored=run.as_stored, unread=unread)
    staged, open_files = linked_to_open_files(staged, run.checkpoint, work)
    config = run.checkpoint.configuration.model
    if request.mask_ratio is not None:
        config = replace(config, mask_ratio=request.mask_ratio)
    job = Job(
        framework=side.framework,
        device=side.device,
        dtypes=request.dtypes,
        task=run.checkpoint.task,
        config=config.to_dict(),
        **classes_of(run.checkpoint, side.framework),
        weights=staged.weights,
        loader=staged.loader,
        inputs=str(work / "inputs.npz"),
        output=str(work / "trace.safetensors"),
        taps=request.taps,
        gradients=request.gradients,
        mode=side.mode,
        description={
            **({"foreign": run.foreign.label} if run.foreign else {}),
            "dtypes": list(request.dtypes),
            "taps": request.taps,
            "run_mask_ratio": config.mask_ratio,
            "additional_inputs": list(additional_inputs(model_inputs)),
        },
        confirmed=staged.confirmed,
        step_outputs=step_outputs,
        foreign=run.foreign.plain() if run.foreign else None,
    )
    job.save(work / "job.json")
    return work / "job.json", staged.converted_by, open_files


def inputs_of(checkpoint: Checkpoint, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the inputs of a comparison without additional inputs that the model does not take."""
    taken = checkpoint.family.additional_shapes(checkpoint.configuration.model)
    others = additional_inputs(inputs)
    return {name: a for name, a in inputs.items() if name in taken or name not in others}


def _save_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> str:
    """Write arrays to a safetensors file and return its path; without arrays, return ""."""
    if not arrays:
        return ""
    save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)
    return str(path)


def _in_background(function: Callable[[], Mapping[str, Any]]) -> Future[Mapping[str, Any]]:
    """Call a function in a separate thread with a low priority; return a Future for its result."""
    executor = ThreadPoolExecutor(1, initializer=_lower_priority)
    future = executor.submit(function)
    executor.shutdown(wait=False)
    return future


def _lower_priority() -> None:
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        thread = threading.get_native_id()
        lower = min(os.getpriority(os.PRIO_PROCESS, thread) + 10, 19)
        os.setpriority(os.PRIO_PROCESS, thread, lower)


def _worker(side: Side, job: Path) -> AbstractContextManager[Child]:
    environment = environment_of_runner(side.device)
    if side.framework == FOREIGN:  # Keras reads the variable when it is imported
        environment.setdefault("KERAS_BACKEND", "tensorflow")
    if side.framework == "jax":
        environment["JAX_ENABLE_X64"] = "1"
    in_server = side.framework == "torch" and side.device == "cpu" and side.mode != "compiled"
    return python_process(
        side.python,
        [WORKER, job],
        environment,
        side.fork_server if in_server else None,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def run_together(runs: Sequence[Run], inputs: Mapping[str, np.ndarray]) -> list[Trace]:
    """Run several checkpoints at the same time on the same inputs and return their traces.

    Raises:
        MissingRequirementError: a child could not import its framework.
        MaeConvertError: a child failed, or TF32 is requested on a CPU.
    """
    if any("tf32" in run.request.dtypes and run.side.device == "cpu" for run in runs):
        raise MaeConvertError(
            "TF32 exists on CUDA devices only",
            hint=(
                *("run both sides on a CUDA device (", Option("device_a", "cuda"), ", "),
                *(Option("device_b", "cuda"), "), or leave ", Option("run_dtype", "tf32"), " out"),
            ),
        )
    running: list[Running] = []
    try:
        for run in runs:
            running.append(start(run, inputs))
        return [_result(process, inputs) for process in running]
    finally:
        for process in running:
            process.stop()


def _result(running: Running, inputs: Mapping[str, np.ndarray]) -> Trace:
    """Wait for a child process and return its trace.

    If the library in the child cannot read the file, another child is started; it gets the tensors
    from mae-convert's reader.
    """
    try:
        return running.result()
    except UnreadFileError as error:
        again = start(running.run, inputs, unread=str(error))
    try:
        return again.result()
    finally:
        again.stop()
