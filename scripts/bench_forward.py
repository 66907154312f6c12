"""Time forward passes of this project's models and of other libraries' classes, in turn.

The models of this project are the reference models in PyTorch, and the classes of
`mae_convert.models` in TensorFlow. A model and the class that it is compared with run in the same
Python environment.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from bench_measure import by_turns, median, ratio, require

WORKER = Path(__file__).with_name("bench_worker.py")
TURN = 0.4
"""Seconds for which one model is run before the other model is run."""


class Comparison(NamedTuple):
    """A model of this project and a class of a library that computes the same function."""

    library: str
    framework: str
    part: str


COMPARISONS = (
    Comparison("transformers", "pytorch", "encoder"),
    Comparison("transformers", "pytorch", "full"),
    Comparison("transformers", "tensorflow", "encoder"),
    Comparison("transformers", "tensorflow", "full"),
    Comparison("transformers", "tensorflow", "classifier"),
    Comparison("timm", "pytorch", "classifier"),
)
MODES = ("eager", "compiled")


class Model:
    """A model in a separate process, which runs the model on request."""

    def __init__(self, process: subprocess.Popen, errors: IO[str]) -> None:
        self._process = process
        self._errors = errors

    def seconds(self, mode: str, batch: int, calls: int) -> float:
        """Return the mean time of a call in seconds.

        Args:
            mode: the kind of call that `bench_worker.py` makes, such as "eager" or "compiled".
            batch: the batch size.
            calls: the number of calls.
        """
        return self.measured(mode, batch, calls)[0]

    def measured(self, mode: str, batch: int, calls: int) -> tuple[float, float]:
        """Return the mean time and the mean processor time of a call, in seconds.

        Args:
            mode: the kind of call that `bench_worker.py` makes, such as "eager" or "compiled".
            batch: the batch size.
            calls: the number of calls.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(json.dumps([mode, batch, calls]), file=self._process.stdin, flush=True)
        if not (answer := self._process.stdout.readline()):
            self._errors.seek(0)
            last = self._errors.read().strip().rpartition("\n")[2]
            raise SystemExit(f"{' '.join(map(str, self._process.args))} failed: {last}")
        seconds, processor = map(float, answer.split())
        return seconds, processor

    def peak_memory(self) -> int:
        """Return the peak memory of the process in bytes."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10


@contextmanager
def started(python: Path, library: str, framework: str, size: str, part: str) -> Iterator[Model]:
    """Context manager that starts the process of a model and ends it after the ``with`` block.

    Args:
        python: the Python interpreter.
        library: the library of the model; "reference" for this project.
        framework: "pytorch" or "tensorflow".
        size: the size of the ViT, such as "base".
        part: "encoder", "full" (encoder and decoder) or "classifier".
    """
    keras = "tf_keras" if library == "transformers" else "keras"
    modules = ["torch"] if framework == "pytorch" else ["tensorflow", keras]
    require(python, *modules, *([] if library == "reference" else [library]))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if (library, framework) == ("transformers", "tensorflow"):
        environment["TF_USE_LEGACY_KERAS"] = "1"
    command = [python, WORKER, library, framework, size, part]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(command, stderr=errors, env=environment, **pipes) as process,
    ):
        yield Model(process, errors)
        assert process.stdin is not None
        process.stdin.close()


def rows(
    sizes: list[str],
    batches: list[int],
    pairs: int,
    pythons: dict[str, Path],
    frameworks: list[str],
) -> Iterator[dict[str, object]]:
    """Yield a row of the table for each comparison, model size, mode of `MODES` and batch size.

    Args:
        sizes: the sizes of the ViT.
        batches: the batch sizes.
        pairs: the number of measurements of each model.
        pythons: the Python interpreter for each library; other libraries are not compared.
        frameworks: the frameworks to measure.
    """
    for library, framework, part in COMPARISONS:
        if library not in pythons or framework not in frameworks:
            continue
        python = pythons[library]
        for size in sizes:
            with (
                started(python, "reference", framework, size, part) as ours,
                started(python, library, framework, size, part) as theirs,
            ):
                for mode in MODES:
                    for batch in batches:
                        a, b = alternated(ours, theirs, mode, batch, pairs)
                        yield {
                            "against": library,
                            "framework": framework,
                            "model": part,
                            "ViT": size,
                            "mode": mode,
                            "batch": batch,
                            "ours, ms": f"{1e3 * median(a):.0f}",
                            "theirs, ms": f"{1e3 * median(b):.0f}",
                            "theirs / ours": f"{ratio(b, a):.2f}",
                        }


def alternated(
    ours: Model, theirs: Model, mode: str, batch: int, pairs: int
) -> tuple[list[float], list[float]]:
    """Time both models in turn; return the times of `ours` and of `theirs`.

    Each time is the mean time of a call in seconds. The model that is timed first changes with each
    pair.

    Args:
        ours: a model of this project.
        theirs: the model to compare with.
        mode: "eager" or "compiled".
        batch: the batch size.
        pairs: how often each model is timed.
    """
    models = {"ours": ours, "theirs": theirs}
    for model in models.values():
        model.seconds(mode, batch, 2)  # compiles
    calls = max(1, round(TURN / min(model.seconds(mode, batch, 1) for model in models.values())))
    ways = {name: partial(model.seconds, mode, batch, calls) for name, model in models.items()}
    times = by_turns(ways, pairs)
    return times["ours"], times["theirs"]
