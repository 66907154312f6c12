"""Child processes of a framework, forked from a process that has imported it.

Importing PyTorch takes a second of CPU time and importing TensorFlow three, for each side of each
verification. ``ForkServers.popen`` replaces ``subprocess.Popen`` where the children of a
verification are started: the same script runs, with the same arguments, environment and standard
streams, in a separate process. Other commands, such as another interpreter, are started as usual.

``python fork_server.py MODULE`` starts a server; its standard input is the socket of its requests.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from mae_convert.diagnose.candidate_process import CANDIDATE_WORKER
from mae_convert.runtime import children, worker
from mae_convert.runtime.sides import WORKER

# Variables that a framework reads while it is imported: other values need another server.
READ_AT_IMPORT = ("PYTHON", "KERAS", "TF_", "OMP_", "MKL_", "CUDA", "CUBLAS", "XLA", "JAX",
                  "TORCH_", "PYTORCH_")  # fmt: skip
LONGEST_REQUEST = 1 << 20


# ------------------------------------------------------------------------------- in the server


def _preload(module: str) -> None:
    """Import the modules that a child imports first; PyTorch and candidate runs share a server."""
    if module.endswith("run_keras"):
        os.environ["KERAS_BACKEND"] = "tensorflow"
    importlib.import_module(module)
    if module.endswith("run_foreign"):  # their code imports PyTorch
        importlib.import_module("mae_convert.runtime.foreign_torch")
    if module.endswith("run_transformers"):  # imports the models, which are loaded on first access
        from transformers import (  # noqa: F401
            ViTForImageClassification,
            ViTMAEForPreTraining,
            ViTMAEModel,
        )
    gc.freeze()


def serve(requests: socket.socket) -> None:
    """Fork a process for each request, until the other end is closed."""
    while True:
        text, streams, _, _ = socket.recv_fds(requests, LONGEST_REQUEST, 4)
        with suppress(ChildProcessError):
            while os.waitpid(-1, 0 if not text else os.WNOHANG)[0]:
                pass
        if not text:
            return
        if os.fork() == 0:
            requests.close()
            _run_and_report(json.loads(text), streams)
        for stream in streams:
            os.close(stream)


def _run_and_report(request: dict, streams: list[int]) -> None:
    """Run a request in a child; write its process id and then its status to the last pipe."""
    *standard, report = streams
    child = os.fork()
    if child == 0:
        os.close(report)
        _become(request, standard)
    for stream in standard:
        os.close(stream)
    os.write(report, f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    with suppress(BrokenPipeError):
        os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(request: dict, standard: list[int]) -> None:
    """Run a script as ``python SCRIPT ARGUMENTS`` does."""
    for number, stream in enumerate(standard):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    sys.argv[:] = request["arguments"]
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


# --------------------------------------------------------------------------- where it is asked


class ForkedProcess:
    """The part of ``subprocess.Popen`` used by verification, for a process forked by a server."""

    def __init__(
        self,
        server: socket.socket,
        request: dict[str, Any],
        *,
        stdin: Any,
        stdout: Any,
        stderr: Any,
    ) -> None:
        self.args = request["arguments"]
        self.returncode: int | None = None
        with ExitStack() as child_end:
            self.stdin, reads = _stream(stdin, child_end, "w")
            self.stdout, writes = _stream(stdout, child_end, "r")
            self.stderr, complains = _stream(stderr, child_end, "r")
            self._report, reports = _stream(subprocess.PIPE, child_end, "r")
            text = json.dumps(request).encode()
            socket.send_fds(server, [text], [reads, writes, complains, reports])
        self.pid = int(self._report.readline())

    def poll(self) -> int | None:
        """Return the exit status, or None if the process still runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process to end and return its exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        if self.returncode is None:
            self._require_input(self._report, timeout)
            self.returncode = int(self._report.readline())
            self._report.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        """Read standard error to its end, wait for the process, and return the text.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        end = None if timeout is None else time.monotonic() + timeout
        read = bytearray()
        while True:
            self._require_input(self.stderr, None if end is None else end - time.monotonic())
            if not (more := os.read(self.stderr.fileno(), 1 << 16)):
                break
            read += more
        self.wait(None if end is None else end - time.monotonic())
        return None, read.decode()

    def kill(self) -> None:
        """End the process if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _require_input(self, stream: IO[str], timeout: float | None) -> None:
        """Wait until a stream has something to read, or has ended."""
        if not select.select([stream], [], [], timeout if timeout is None else max(timeout, 0))[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)


def _stream(request: Any, child_end: ExitStack, mode: str) -> tuple[IO[str] | None, int]:
    """Return the parent's and the child's end of a stream; ``child_end`` closes the latter."""
    if request == subprocess.PIPE:
        reading, writing = os.pipe()
        ours, other = (writing, reading) if mode == "w" else (reading, writing)
        child_end.callback(os.close, other)
        return open(ours, mode), other  # noqa: PTH123
    if request == subprocess.DEVNULL:
        null = os.open(os.devnull, os.O_RDWR)
        child_end.callback(os.close, null)
        return None, null
    return None, request if isinstance(request, int) else request.fileno()


class ForkServers:
    """A server for each framework and its environment variables; they end with the context."""

    def __init__(self) -> None:
        self._servers: dict[tuple[Any, ...], socket.socket] = {}
        self._opened = ExitStack()

    def __enter__(self) -> "ForkServers":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Context in which the children of verifications are forked."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(children, "subprocess", SimpleNamespace(Popen=self.popen))
            yield

    def popen(self, command: list[str], *, env: dict[str, str], text: bool, **streams: Any) -> Any:
        """Start ``python SCRIPT JOB`` as ``subprocess.Popen`` does."""
        python, *arguments = command
        module = _runner(*arguments) if python == sys.executable else None
        if module is None:
            return subprocess.Popen(command, env=env, text=text, **streams)
        server = (module, *sorted(i for i in env.items() if i[0].startswith(READ_AT_IMPORT)))
        if server not in self._servers:
            self._servers[server] = self._start(module, env)
        request = {"arguments": arguments, "environment": env, "directory": str(Path.cwd())}
        return ForkedProcess(self._servers[server], request, **streams)

    def _start(self, module: str, environment: dict[str, str]) -> socket.socket:
        ours, child_end = socket.socketpair()
        with child_end:
            server = subprocess.Popen(
                [sys.executable, __file__, module], stdin=child_end, env=environment,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        self._opened.callback(server.wait)
        self._opened.enter_context(ours)
        return ours


def _runner(script: str, job: str) -> str | None:
    """Return the module of the server that runs a script, or None if no server can run it."""
    if Path(script) == CANDIDATE_WORKER:
        return "mae_convert.diagnose.candidate_run"
    described = json.loads(Path(job).read_text())
    by_tf_classes = (described["framework"], described["loader"]) == worker.TF_CLASSES
    if Path(script) != WORKER or described["framework"] == "jax" or by_tf_classes:
        return None
    return f"mae_convert.runtime.{worker.RUNNERS[described['framework']]}"


if __name__ == "__main__":
    _preload(sys.argv[1])
    serve(socket.socket(fileno=0))
