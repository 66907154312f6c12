"""The parent's side of candidate runs: start the child process, send requests, stop it."""

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

from mae_convert.checkpoint import Checkpoint
from mae_convert.containers import write_file
from mae_convert.containers.staging import scratch_directory
from mae_convert.diagnose.hypotheses import Hypothesis
from mae_convert.diagnose.search import Answer
from mae_convert.errors import MaeConvertError
from mae_convert.layouts import LAYOUTS
from mae_convert.transforms import Fuse
from mae_convert.verify.children import Clock, environment_of_child, python_process
from mae_convert.verify.job import Job
from mae_convert.verify.sides import Side, choose_side
from mae_convert.verify.staging import stage
from mae_convert.verify.trace import Trace

CANDIDATE_WORKER = Path(__file__).with_name("candidate_worker.py")


@dataclass(frozen=True)
class Subject:
    """One side of a comparison: what was run, and what came out.

    Attributes:
        checkpoint: what was run.
        trace: its results.
        as_stored: whether the checkpoint's tensors are those of its file.
    """

    checkpoint: Checkpoint
    trace: Trace
    as_stored: bool = True


def places(checkpoint: Checkpoint) -> dict[str, tuple[str, int, int]]:
    """Return where each canonical tensor stands in the PyTorch reference model.

    Returns:
        Canonical name → parameter, which of its equal parts, and how many it has.
    """
    table = LAYOUTS["facebook"].table_for(checkpoint.task)
    return {
        name: (rule.external, part, len(rule.canonicals))
        for rule in table.expand(checkpoint.tensors)
        for part, name in enumerate(rule.canonicals)
        if isinstance(rule.transform, Fuse) or len(rule.canonicals) == 1
    }


class Laboratory:
    """A child process that holds one side's model and tries hypotheses on it."""

    def __init__(
        self,
        subject: Subject,
        inputs: Mapping[str, np.ndarray],
        mask_ratio: float,
        *,
        other: Checkpoint | None = None,
        given: Sequence[str] = (),
        python: str | None = None,
        time_limit: float | None = None,
    ) -> None:
        """Start the child.

        Args:
            subject: the side whose model is changed.
            inputs: ``pixel_values`` and ``noise``.
            mask_ratio: at which both sides were run.
            other: the other side.
            given: names of tensors of the other side that hypotheses may use.
            python: interpreter of an environment that has PyTorch.
            time_limit: seconds that an answer may take; see ``children.Clock``.

        Raises:
            MissingRequirementError: there is no PyTorch.
        """
        side = Side("torch", python=python, time_limit=time_limit)
        side = choose_side(subject.checkpoint, side)
        self._traces: list[tuple[Trace, Path]] = []
        self._made = 0
        with ExitStack() as opened:
            self.work = opened.enter_context(scratch_directory())
            self._begin(self._described(subject, inputs, mask_ratio, other, given), side, opened)
            self._opened = opened.pop_all()

    def _described(
        self,
        subject: Subject,
        inputs: Mapping[str, np.ndarray],
        mask_ratio: float,
        other: Checkpoint | None,
        given: Sequence[str],
    ) -> dict[str, Any]:
        """Write the files that the child needs, and return what says so."""
        others = None
        if other is not None and given:
            others = str(self.work / "other.safetensors")
            write_file(others, "safetensors", [other.tensors[name] for name in given])
        job = job_of(subject, inputs, mask_ratio, self.work)
        return {"job": asdict(job), "places": places(subject.checkpoint), "other": others}

    def _begin(self, described: Mapping[str, Any], side: Side, opened: ExitStack) -> None:
        """Start the child, which ends with a context."""
        self._side, self._job = side, self.work / "laboratory.json"
        self._job.write_text(json.dumps(described))
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

    def __enter__(self) -> "Laboratory":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def compare(
        self, hypotheses: Sequence[Hypothesis], trace: Trace, start: str | None = None
    ) -> Answer | None:
        """Return how far the model gets along a trace when hypotheses hold.

        Args:
            hypotheses: applied one after the other.
            trace: what to compare with.
            start: the first result to compute; what comes before it is taken from the trace.

        Returns:
            None where a hypothesis does not fit the model.
        """
        answer = self._ask(hypotheses, trace, start=start, dtype=None)
        return None if "error" in answer else Answer(**answer)

    def unexplained(self, hypothesis: Hypothesis, trace: Trace, dtype: str, at: str) -> float:
        """Return which part of the error of a trace's run at a result a hypothesis leaves."""
        answer = self._ask([hypothesis], trace, start=at, dtype=dtype)
        return float(answer.get("unexplained", float("inf")))

    def _ask(
        self, hypotheses: Sequence[Hypothesis], trace: Trace, **more: str | None
    ) -> dict[str, Any]:
        steps = [hypothesis.plain() for hypothesis in hypotheses]
        return self._exchange({"steps": steps, "trace": str(self._file_of(trace)), **more})

    def _exchange(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the child's answer.

        Raises:
            MaeConvertError: the child has failed, or took too long.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        clock = Clock(self._side.time_limit)
        with _killed_when_late(self._process, clock) as late:
            try:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = ""
        if not line:
            if late.is_set():
                raise clock.exceeded("the search for the cause", self._job)
            raise MaeConvertError(f"the child that runs the model failed: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        said = self._errors.read_text().strip().splitlines()
        return said[-1] if said else f"signal {-self._process.wait()}"

    def _file_of(self, trace: Trace) -> Path:
        """Return a file with the trace's results, written when it is asked for first."""
        for known, path in self._traces:
            if known is trace:
                return path
        for _, path in self._traces[:-1]:
            path.unlink()
        self._made += 1
        path = self.work / f"trace-{self._made}.safetensors"
        save_file({n: np.asarray(a, order="C") for n, a in trace.arrays.items()}, path)
        self._traces = [*self._traces[-1:], (trace, path)]
        return path

    def stop(self) -> None:
        """End the child and remove what it was given."""
        self._opened.close()


def job_of(
    subject: Subject, inputs: Mapping[str, np.ndarray], mask_ratio: float, work: Path
) -> Job:
    """Return what a trial needs to build the model of a side; its weights are put into a folder."""
    read = subject.trace.description["native"] or subject.trace.description["framework"] != "torch"
    staged = stage(
        subject.checkpoint,
        "torch",
        work,
        as_stored=subject.as_stored,
        unread=None if read else "it was not read",
    )
    np.savez(work / "inputs.npz", allow_pickle=False, **inputs)
    config = {**subject.checkpoint.configuration.model.to_dict(), "mask_ratio": mask_ratio}
    return Job(
        framework="torch",
        device="cpu",
        dtypes=("float64",),
        task=subject.checkpoint.task,
        config=config,
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
def _killed_when_late(process: subprocess.Popen[str], clock: Clock) -> Iterator[threading.Event]:
    """Kill a child that has not answered in time; give an event that says whether it was."""
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
    """What was found by running again.

    Attributes:
        causes: sentences; each was tested and holds.
        guilty: canonical tensors that were changed on the way from A to B, likeliest first.
        keys: the kinds of fault, for those who count.
    """

    causes: tuple[str, ...] = ()
    guilty: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two sides that part, and what both were run on.

    Attributes:
        a: the side that is changed.
        b: the side that is to be explained.
        inputs: ``pixel_values`` and ``noise``.
        mask_ratio: at which both were run.
        names: what the two are called in sentences.
        python: interpreter of an environment that has PyTorch.
        time_limit: seconds that an answer of the laboratory may take; see ``children.Clock``.
        laboratory: where hypotheses are tried.
    """

    a: Subject
    b: Subject
    inputs: Mapping[str, np.ndarray]
    mask_ratio: float
    names: tuple[str, str] = ("A", "B")
    python: str | None = None
    time_limit: float | None = None
    laboratory: type[Laboratory] = Laboratory

    def turned(self) -> "Pair":
        """Return the pair with its sides exchanged."""
        names = (self.names[1], self.names[0])
        return replace(self, a=self.b, b=self.a, names=names)

    def try_on(self, subject: Subject, given: Sequence[str] = ()) -> Laboratory:
        """Return a laboratory for one side, which is given tensors of the other."""
        other = self.b if subject is self.a else self.a
        return self.laboratory(
            subject, self.inputs, self.mask_ratio, other=other.checkpoint, given=given,
            python=self.python, time_limit=self.time_limit,
        )  # fmt: skip


def is_finite(trace: Trace, name: str, dtype: str = "float64") -> bool:
    """Return whether a result of a trace holds numbers only."""
    keys = (f"{dtype}/tap/{name}", f"{dtype}/{name}", name)
    found = [trace.arrays[key] for key in keys if key in trace.arrays]
    return all(bool(np.isfinite(array).all()) for array in found)
