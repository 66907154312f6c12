"""Candidate runs in the parent process: start the child process, send requests, stop the child."""

import json
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.diagnose.hypotheses import Hypothesis
from mae_convert.diagnose.search import CandidateResult
from mae_convert.errors import MaeConvertError
from mae_convert.files.staging import scratch_directory
from mae_convert.formats import write_file
from mae_convert.formats.registry import SAFETENSORS
from mae_convert.layouts.transforms import Fuse
from mae_convert.runtime.child_files import stage
from mae_convert.runtime.children import Child, Clock, environment_of_child, python_process
from mae_convert.runtime.job import Job
from mae_convert.runtime.sides import Side, choose_side, classes_of
from mae_convert.runtime.trace import Trace

CANDIDATE_WORKER = Path(__file__).with_name("candidate_worker.py")


@dataclass(frozen=True)
class SideResult:
    """The checkpoint of one side of a comparison, and the trace of its run."""

    checkpoint: Checkpoint
    """The checkpoint that was run."""

    trace: Trace
    """The trace with the results of the run."""

    as_stored: bool = True
    """Whether the tensors are as stored in the checkpoint's file.

    It is False if changes that a conversion record declares, such as another image size, were
    applied to the tensors before the run.
    """


def parameter_locations(checkpoint: Checkpoint) -> dict[str, tuple[str, int, int]]:
    """Return the location of each canonical tensor in the PyTorch reference model.

    Returns:
        (parameter, index, count) by canonical name: the tensor is part `index` of `count` equal
        parts of the parameter.
    """
    table = checkpoint.family.layout("original").table_for(checkpoint.task)
    return {
        name: (rule.external, part, len(rule.canonicals))
        for rule in table.expand(checkpoint.tensors)
        for part, name in enumerate(rule.canonicals)
        if isinstance(rule.transform, Fuse) or len(rule.canonicals) == 1
    }


class CandidateProcess:
    """A child process that runs the model of one side with hypotheses applied."""

    def __init__(
        self,
        result: SideResult,
        inputs: Mapping[str, np.ndarray],
        mask_ratio: float,
        *,
        other: Checkpoint | None = None,
        other_tensors: Sequence[str] = (),
        python: str | None = None,
        time_limit: float | None = None,
    ) -> None:
        """Start the child.

        Args:
            result: the side whose model is changed.
            inputs: ``pixel_values`` and ``noise``.
            mask_ratio: the mask ratio of both runs.
            other: the checkpoint of the other side; None if hypotheses use none of its tensors.
            other_tensors: names of tensors of the other side that hypotheses may use.
            python: the Python interpreter of an environment with PyTorch; None for the current
                interpreter.
            time_limit: seconds that one candidate run may take; None for the default of
                ``children.Clock``.

        Raises:
            MissingRequirementError: PyTorch is not installed.
        """
        side = Side("torch", python=python, time_limit=time_limit)
        side = choose_side(result.checkpoint, side)
        self._traces: list[tuple[Trace, Path]] = []
        self._files_written = 0
        with ExitStack() as opened:
            self.work = opened.enter_context(scratch_directory())
            self._start(
                self._job_description(result, inputs, mask_ratio, other, other_tensors),
                side,
                opened,
            )
            self._opened = opened.pop_all()

    def _job_description(
        self,
        result: SideResult,
        inputs: Mapping[str, np.ndarray],
        mask_ratio: float,
        other: Checkpoint | None,
        other_tensors: Sequence[str],
    ) -> dict[str, Any]:
        """Write the files that the child needs, and return the job description for the child.

        Args:
            result: the run of the side whose model the child changes.
            inputs: the inputs of both sides.
            mask_ratio: the mask ratio of both runs.
            other: the checkpoint of the other side; None if hypotheses use none of its tensors.
            other_tensors: the canonical names of the tensors of `other` that hypotheses may use.
        """
        others = None
        if other is not None and other_tensors:
            others = str(self.work / "other.safetensors")
            write_file(others, SAFETENSORS, [other.tensors[name] for name in other_tensors])
        job = candidate_job(result, inputs, mask_ratio, self.work)
        return {
            "job": asdict(job),
            "locations": parameter_locations(result.checkpoint),
            "other": others,
        }

    def _start(self, description: Mapping[str, Any], side: Side, opened: ExitStack) -> None:
        """Start the child, which is stopped when `opened` is closed.

        Args:
            description: the result of `_job_description`.
            side: how the child runs the model.
            opened: the contexts to close when the child is no longer needed.
        """
        self._side, self._job = side, self.work / "candidates.json"
        self._job.write_text(json.dumps(description))
        self._errors = self.work / "errors.txt"
        errors = opened.enter_context(self._errors.open("w"))
        self._process = opened.enter_context(
            python_process(
                side.python,
                [CANDIDATE_WORKER, self._job],
                environment_of_child(CUDA_VISIBLE_DEVICES=""),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        )

    def __enter__(self) -> "CandidateProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def compare(
        self, hypotheses: Sequence[Hypothesis], trace: Trace, start: str | None = None
    ) -> CandidateResult | None:
        """Run the model with hypotheses applied and compare the results with a trace.

        Args:
            hypotheses: the hypotheses, applied one after the other.
            trace: the trace to compare with.
            start: the first result to compute; earlier results are taken from the trace. None to
                compute all results.

        Returns:
            The first result that differs, if any, and the largest error of the results that agree;
            None if a hypothesis does not fit the model.

        Raises:
            MaeConvertError: the child failed or took too long.
        """
        response = self._request(hypotheses, trace, start=start, dtype=None)
        return None if "error" in response else CandidateResult(**response)

    def unexplained(self, hypothesis: Hypothesis, trace: Trace, dtype: str, at: str) -> float:
        """Return the fraction of the error of the result `at` that a hypothesis does not remove.

        The error is the difference between the result in the trace and the result that the model
        computes from the trace's earlier results. The fraction is infinity if the hypothesis does
        not fit the model, or if the error is 0.

        Args:
            hypothesis: the hypothesis.
            trace: the trace with the results.
            dtype: the dtype of the recorded run and of the new run.
            at: the name of the result.

        Raises:
            MaeConvertError: the child failed or took too long.
        """
        response = self._request([hypothesis], trace, start=at, dtype=dtype)
        return float(response.get("unexplained", float("inf")))

    def _request(
        self, hypotheses: Sequence[Hypothesis], trace: Trace, **more: str | None
    ) -> dict[str, Any]:
        steps = [hypothesis.plain() for hypothesis in hypotheses]
        return self._send({"steps": steps, "trace": str(self._file_of(trace)), **more})

    def _send(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request to the child and return the response.

        Raises:
            MaeConvertError: the child failed or took too long.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        clock = Clock(self._side.time_limit)
        with _killed_after_time_limit(self._process, clock) as late:
            try:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = ""
        if not line:
            if late.is_set():
                raise clock.exceeded("the search for the cause", self._job)
            raise MaeConvertError(
                f"the child process that runs the changed model failed: {self._last_error_line()}"
            )
        response: dict[str, Any] = json.loads(line)
        return response

    def _last_error_line(self) -> str:
        lines = self._errors.read_text().strip().splitlines()
        return lines[-1] if lines else f"signal {-self._process.wait()}"

    def _file_of(self, trace: Trace) -> Path:
        """Return the path of a file with the trace's results; the first call writes the file."""
        for traced, path in self._traces:
            if traced is trace:
                return path
        for _, path in self._traces[:-1]:
            path.unlink()
        self._files_written += 1
        path = self.work / f"trace-{self._files_written}.safetensors"
        save_file({n: np.asarray(a, order="C") for n, a in trace.arrays.items()}, path)
        self._traces = [*self._traces[-1:], (trace, path)]
        return path

    def stop(self) -> None:
        """Stop the child and remove its files."""
        self._opened.close()


def candidate_job(
    result: SideResult, inputs: Mapping[str, np.ndarray], mask_ratio: float, work: Path
) -> Job:
    """Write the files with which a child loads the model of a side; return the job description."""
    read = result.trace.description["native"] or result.trace.description["framework"] != "torch"
    staged = stage(
        result.checkpoint,
        "torch",
        work,
        as_stored=result.as_stored,
        unread=None if read else "the request was not received",
    )
    np.savez(work / "inputs.npz", allow_pickle=False, **inputs)
    config = {**result.checkpoint.configuration.model.to_dict(), "mask_ratio": mask_ratio}
    return Job(
        framework="torch",
        device="cpu",
        dtypes=("float64",),
        task=result.checkpoint.task,
        config=config,
        **classes_of(result.checkpoint, "torch"),
        weights=staged.weights,
        loader=staged.loader,
        inputs=str(work / "inputs.npz"),
        output="",
        taps=True,
        gradients=False,
        mode="eager",
        description={},
    )


@contextmanager
def _killed_after_time_limit(process: Child, clock: Clock) -> Iterator[threading.Event]:
    """Kill a child when the time of `clock` is over; the yielded event is set if this happens."""
    late = threading.Event()

    def kill() -> None:
        late.set()
        process.kill()

    left = clock.left()
    timer = None if left is None else threading.Timer(left, kill)
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield late
    finally:
        if timer is not None:
            timer.cancel()


@dataclass(frozen=True)
class Explanation:
    """The causes of a difference that candidate runs confirmed."""

    causes: tuple[str, ...] = ()
    """Sentences about causes, each confirmed by a candidate run."""

    changed_tensors: tuple[str, ...] = ()
    """Canonical tensors that the confirmed hypotheses change, in the order of the hypotheses."""

    keys: tuple[str, ...] = ()
    """The kinds of the causes, for statistics in tests."""


@dataclass(frozen=True)
class Pair:
    """Two sides with different results, and the inputs of both runs."""

    a: SideResult
    """The side to which hypotheses are applied."""

    b: SideResult
    """The side whose results are to be explained."""

    inputs: Mapping[str, np.ndarray]
    """``pixel_values`` and ``noise``."""

    mask_ratio: float
    """The mask ratio of both runs."""

    names: tuple[str, str] = ("A", "B")
    """The names of the two sides in sentences."""

    python: str | None = None
    """The Python interpreter that runs the candidates, of an environment with PyTorch; None for the
    current interpreter."""

    time_limit: float | None = None
    """Seconds that one candidate run may take; None for the default of ``children.Clock``."""

    process_class: type[CandidateProcess] = CandidateProcess
    """The class that runs candidates; tests specify another class."""

    def swapped(self) -> "Pair":
        """Return the pair with its sides exchanged."""
        names = (self.names[1], self.names[0])
        return replace(self, a=self.b, b=self.a, names=names)

    def start_process(
        self, result: SideResult, other_tensors: Sequence[str] = ()
    ) -> CandidateProcess:
        """Start the child process that runs the model of one side.

        Args:
            result: the side whose model is run.
            other_tensors: names of tensors of the other side that hypotheses may use.
        """
        other = self.b if result is self.a else self.a
        return self.process_class(
            result,
            self.inputs,
            self.mask_ratio,
            other=other.checkpoint,
            other_tensors=other_tensors,
            python=self.python,
            time_limit=self.time_limit,
        )


def is_finite(trace: Trace, name: str, dtype: str = "float64") -> bool:
    """Return whether all values of the result `name` are finite in a trace's run in `dtype`."""
    keys = (f"{dtype}/tap/{name}", f"{dtype}/{name}", name)
    results = [trace.arrays[key] for key in keys if key in trace.arrays]
    return all(bool(np.isfinite(array).all()) for array in results)
