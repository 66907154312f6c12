"""Child processes of verifications that are forked from processes with an imported framework.

Importing PyTorch takes a second of CPU time and importing TensorFlow three, for each side of each
verification. ``ForkServers.popen`` replaces ``subprocess.Popen`` where the children of a
verification are started. Unlike a sweep, tests have a server for each framework, in which the
runner of this project is imported too. The processes of pytest-xdist use the same servers, which
their controller starts when one of them first requests them (``shared_servers``).

``python fork_server.py MODULE`` starts a server; its standard input is the socket of its requests.
"""

import gc
import importlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest

from mae_convert.diagnose.candidate_process import CANDIDATE_WORKER
from mae_convert.runtime import children, worker
from mae_convert.runtime.children import environment_of_runner
from mae_convert.runtime.fork_server import READY, ForkedProcess, ForkServer, fork_server, serve
from mae_convert.runtime.sides import WORKER

SCRIPT = Path(__file__).with_name("forked_script.py")
# Variables that a framework reads while it is imported: other values need another server.
READ_AT_IMPORT = ("PYTHON", "KERAS", "TF_", "OMP_", "MKL_", "CUDA", "CUBLAS", "XLA", "JAX",
                  "TORCH_", "PYTORCH_")  # fmt: skip


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


class ForkServers:
    """A server for each framework and its environment variables; they end with the context.

    Args:
        address: the address of `shared_servers`, which starts the servers; None to start them here.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._servers: dict[tuple[Any, ...], ForkServer] = {}
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
        requests = self.server(module, env).requests
        return ForkedProcess(requests, arguments, environment=env, **streams)

    def run(
        self, module: str, script: Path, *arguments: Any, environment: Mapping[str, str]
    ) -> None:
        """Run a script as `start` does, and check that its exit status is 0."""
        finish(self.start(module, script, *arguments, environment=environment))

    def start(
        self, module: str, script: Path, *arguments: Any, environment: Mapping[str, str]
    ) -> ForkedProcess:
        """Start ``python SCRIPT ARGUMENTS`` in a process that has imported a runner.

        Its standard output is discarded. `finish` waits for it.

        Args:
            module: the module of the runner, such as "mae_convert.runtime.run_keras".
            script: the script.
            arguments: the arguments of the script.
            environment: the environment variables of the process, which `module` does not need.
        """
        return ForkedProcess(
            self.server(module, environment_of_runner("cpu")).requests,
            [str(SCRIPT), str(script), *map(str, arguments)], environment=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def server(self, module: str, environment: Mapping[str, str]) -> ForkServer:
        """Return the server that has imported a module, after it has done so."""
        server = self.started(module, environment)
        assert server.is_ready()
        return server

    def started(self, module: str, environment: Mapping[str, str]) -> ForkServer:
        """Return the server of a module, which may still be importing it."""
        read = {k: v for k, v in environment.items() if k.startswith(READ_AT_IMPORT)}
        if read.get("KERAS_BACKEND") == "tensorflow":  # as in every server of Keras
            del read["KERAS_BACKEND"]
        key = (module, *sorted(read.items()))
        if key not in self._servers:
            self._servers[key] = (
                self._opened.enter_context(fork_server(environment, [__file__, module]))
                if self._address is None
                else self._requested(module, environment)
            )
        return self._servers[key]

    def _requested(self, module: str, environment: Mapping[str, str]) -> ForkServer:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._address)
            connection.sendall(f"{json.dumps([module, dict(environment)])}\n".encode())
            message, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        assert message == READY
        requests = self._opened.enter_context(socket.socket(fileno=descriptors[0]))
        return ForkServer(requests, environment)


def finish(process: ForkedProcess) -> None:
    """Wait for a process of `ForkServers.start`, and check that its exit status is 0."""
    errors = process.communicate(timeout=900)[1]
    process.stderr.close()
    assert process.returncode == 0, errors


@contextmanager
def shared_servers() -> Iterator[str]:
    """Start servers for other processes, when they request them; they end with the context.

    Yields:
        The address for `ForkServers`.
    """
    with ForkServers() as servers, TemporaryDirectory() as folder, ExitStack() as opened:
        listener = opened.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(address := f"{folder}/servers")
        listener.listen()
        thread = threading.Thread(target=_send_servers, args=(listener, servers))
        thread.start()
        opened.callback(thread.join)
        opened.callback(listener.shutdown, socket.SHUT_RDWR)
        yield address


def _send_servers(listener: socket.socket, servers: ForkServers) -> None:
    """Send the socket of the requested server through each connection, until it is shut down."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, connection.makefile() as lines:
            module, environment = json.loads(lines.readline())
            server = servers.started(module, environment)
            socket.send_fds(connection, [READY], [server.requests.fileno()])


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
    gc.disable()  # all that is imported stays
    _preload(sys.argv[1])
    gc.enable()
    serve()
