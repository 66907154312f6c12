"""The parent's end of a laboratory: start the child, ask it, stop it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mae_convert.checkpoint import Checkpoint
from mae_convert.containers import write_file
from mae_convert.errors import MaeConvertError
from mae_convert.layouts import LAYOUTS
from mae_convert.transforms import Fuse
from mae_convert.verify.explain.hypothesis import Hypothesis
from mae_convert.verify.explain.search import Answer
from mae_convert.verify.job import Job
from mae_convert.verify.sides import Side, choose_side
from mae_convert.verify.staging import stage
from mae_convert.verify.trace import Trace

LABORATORY = Path(__file__).with_name("laboratory.py")


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
    ) -> None:
        """Start the child.

        Args:
            subject: the side whose model is changed.
            inputs: ``pixel_values`` and ``noise``.
            mask_ratio: at which both sides were run.
            other: the other side.
            given: names of tensors of the other side that hypotheses may use.
            python: interpreter of an environment that has PyTorch.

        Raises:
            MissingRequirementError: there is no PyTorch.
        """
        side = choose_side(subject.checkpoint, Side("torch", python=python))
        self._folder = tempfile.TemporaryDirectory(prefix="mae-convert-")
        self.work = Path(self._folder.name)
        self._traces: list[tuple[Trace, Path]] = []
        self._made = 0
        others = None
        if other is not None and given:
            others = str(self.work / "other.safetensors")
            write_file(others, "safetensors", [other.tensors[name] for name in given])
        job = job_of(subject, inputs, mask_ratio, self.work)
        described = {"job": asdict(job), "places": places(subject.checkpoint), "other": others}
        self._begin(described, side)

    def _begin(self, described: Mapping[str, Any], side: Side) -> None:
        """Start the child."""
        (self.work / "laboratory.json").write_text(json.dumps(described))
        self._errors = self.work / "errors.txt"
        self._process = _start(side, self.work / "laboratory.json", self._errors)

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
        """Return the child's answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
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
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()


def job_of(
    subject: Subject, inputs: Mapping[str, np.ndarray], mask_ratio: float, work: Path
) -> Job:
    """Return what a trial needs to build the model of a side; its weights are put into a folder."""
    weights, loader, _ = stage(subject.checkpoint, "torch", work, as_stored=subject.as_stored)
    np.savez(work / "inputs.npz", allow_pickle=False, **inputs)
    config = {**subject.checkpoint.configuration.model.to_dict(), "mask_ratio": mask_ratio}
    return Job(
        framework="torch",
        device="cpu",
        dtypes=("float64",),
        task=subject.checkpoint.task,
        config=config,
        weights=str(weights),
        loader=loader,
        inputs=str(work / "inputs.npz"),
        output="",
        taps=True,
        gradients=False,
        mode="eager",
        description={},
    )


def _start(side: Side, job: Path, errors: Path) -> subprocess.Popen[str]:
    with errors.open("w") as file:
        return subprocess.Popen(
            [side.python or sys.executable, str(LABORATORY), str(job)],
            env={**os.environ, "PYTHONNOUSERSITE": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
