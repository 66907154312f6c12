"""Child processes of verifications that are forked from processes with an imported framework.

Importing PyTorch takes a second of CPU time and importing TensorFlow three, for each side of each
verification. ``ForkServers.popen`` replaces ``subprocess.Popen`` where the children of a
verification are started. Unlike a sweep, tests have a server for each framework, in which the
runner of this project is imported too.

``python fork_server.py MODULE`` starts a server; its standard input is the socket of its requests.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mae_convert.diagnose.candidate_process import CANDIDATE_WORKER
from mae_convert.runtime import children, worker
from mae_convert.runtime.fork_server import ForkedProcess, ForkServer, fork_server, serve
from mae_convert.runtime.sides import WORKER

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
    """A server for each framework and its environment variables; they end with the context."""

    def __init__(self) -> None:
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
        key = (module, *sorted(i for i in env.items() if i[0].startswith(READ_AT_IMPORT)))
        if key not in self._servers:
            server = self._opened.enter_context(fork_server(env, [__file__, module]))
            assert server.is_ready()
            self._servers[key] = server
        return ForkedProcess(self._servers[key].requests, arguments, environment=env, **streams)


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
    serve()
