"""Child processes that run a framework: how they are started, and how long they may take.

Nothing is imported from the current directory, and no child outlives its parent: the standard input
of the child is a pipe that is closed when the parent ends (see ``worker``).
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mae_convert.errors import MaeConvertError, Option
from mae_convert.runtime.fork_server import ForkedProcess, ForkServer
from mae_convert.runtime.worker import stage_file

DEFAULT_TIME_LIMIT = 3600.0
TIME_LIMIT_VARIABLE = "MAE_CONVERT_TIME_LIMIT"
Child = subprocess.Popen[str] | ForkedProcess


def environment_of_child(**more: str) -> dict[str, str]:
    """Return environment variables with which Python imports nothing from the current directory.

    They are the variables of this process, with PYTHONSAFEPATH=1, with only absolute paths in
    PYTHONPATH, and with `more`. Python before 3.11 ignores PYTHONSAFEPATH and searches for modules
    in the directory of the script first.
    """
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1", **more}
    # An empty entry, as in PYTHONPATH=$PYTHONPATH:/opt/lib, is the current directory.
    entries = environment.pop("PYTHONPATH", "").split(os.pathsep)
    if absolute := [entry for entry in entries if os.path.isabs(entry)]:  # noqa: PTH117 (text)
        environment["PYTHONPATH"] = os.pathsep.join(absolute)
    return environment


def environment_of_runner(device: str) -> dict[str, str]:
    """Return the environment of a process that runs a model on a device, "cpu" or "cuda"."""
    environment = environment_of_child(TF_CPP_MIN_LOG_LEVEL="3")
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    # Two frameworks share the cores: idle threads must not keep a core busy.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # deterministic matrix products on CUDA
    return environment


@contextmanager
def python_process(
    python: str | None,
    arguments: list[Path],
    environment: Mapping[str, str],
    server: ForkServer | None = None,
    **pipes: Any,
) -> Iterator[Child]:
    """Start a Python interpreter, and kill it at the end of the context.

    Args:
        python: the interpreter; None for the current interpreter.
        arguments: the script and its arguments.
        environment: the environment variables of the process.
        server: a fork server, which starts the process if a forked process would run with the same
            interpreter and environment as a new process; None to always start a new process.
        pipes: arguments of ``subprocess.Popen``. By default, standard input is a pipe to which
            nothing is written.

    Raises:
        MaeConvertError: the interpreter cannot be run.
    """
    with _pipe_to_parent() as end:
        command = [python or sys.executable, *map(str, arguments)]
        streams = {"stdin": end, **pipes}
        process: Child | None = None
        try:
            if server is not None:
                process = server.fork(command, environment, **streams)
            if process is None:
                process = subprocess.Popen(command, env=environment, text=True, **streams)
        except OSError as error:
            raise cannot_run(python, error) from error
        try:
            yield process
        finally:
            process.kill()
            for stream in (process.stdin, process.stdout, process.stderr):
                _close(stream)
            process.wait()


def cannot_run(python: str | None, error: OSError) -> MaeConvertError:
    """Return the error for a Python interpreter that cannot be run.

    Args:
        python: the path of the interpreter, as specified by the user; None for the current one.
        error: the error of the operating system.
    """
    return MaeConvertError(
        f"cannot run the interpreter {python or sys.executable}: {error.strerror}",
        hint="specify the interpreter of an environment, such as .venv/bin/python",
    )


@contextmanager
def _pipe_to_parent() -> Iterator[int]:
    """Yield the reading end of a pipe that is closed when this process ends.

    A child process reads from the pipe to notice that its parent has ended. The writing end is open
    only in this process.
    """
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def _close(stream: IO[str] | None) -> None:
    if stream is not None:
        with suppress(OSError):  # unsent data, and a process that has ended
            stream.close()


class Clock:
    """The time limit of a child process, measured from the creation of this object.

    Args:
        seconds: the limit; 0 for no limit; None for the value of the environment variable
            ``MAE_CONVERT_TIME_LIMIT`` or, if it is not set, one hour.

    Raises:
        MaeConvertError: the limit is not a number of seconds.
    """

    def __init__(self, seconds: float | None) -> None:
        self.limit = _from_environment() if seconds is None else seconds
        if not self.limit >= 0:
            raise MaeConvertError(
                f"the time limit is {self.limit} seconds", hint="specify 0 or more"
            )
        self._end = time.monotonic() + self.limit

    def left(self) -> float | None:
        """Return the remaining seconds; None without a limit."""
        return max(0.0, self._end - time.monotonic()) if self.limit else None

    def exceeded(self, what: str, job: Path) -> MaeConvertError:
        """Return the error for an exceeded limit.

        Args:
            what: a phrase that names the child in the message, such as "the torch run".
            job: the job file of the child; its directory has a file with the child's current stage.
        """
        return MaeConvertError(
            f"{what} was terminated after {self.limit:g} seconds, {stage_of(job)}",
            hint=(
                "give it more time with ",
                Option("time_limit", placeholder="SECONDS"),
                " (0 means no limit)",
            ),
        )


def stage_of(job: Path) -> str:
    """Return the stage that the child of a job last reported, such as "while importing torch"."""
    with suppress(OSError):
        if stage := stage_file(job).read_text():
            return f"while {stage}"
    return "while it was starting"


def _from_environment() -> float:
    text = os.environ.get(TIME_LIMIT_VARIABLE)
    if not text:
        return DEFAULT_TIME_LIMIT
    try:
        return float(text)
    except ValueError as error:
        raise MaeConvertError(
            f"{TIME_LIMIT_VARIABLE}={text} is not a number of seconds", hint="0 means no limit"
        ) from error
