"""Runs Keras in separate processes, because the tests import PyTorch."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from fork_server import ForkServers
from paths import HELPERS, ROOT

BACKENDS = [name for name in ("tensorflow", "jax") if importlib.util.find_spec(name)]


def checks_in(worker: str, prefix: str = "check_") -> list[str]:
    """Return the names of the functions of a script that are checks, without importing it."""
    return re.findall(rf"^def ({prefix}\w+)", (HELPERS / worker).read_text(), re.MULTILINE)


def run_worker(
    servers: ForkServers, worker: str, backend: str, folder: Path, *arguments: str
) -> Path:
    """Run a script of this folder on a backend of Keras, and return the folder of its results.

    A process that uses TensorFlow is forked from one that has imported it.
    """
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "PYTHONPATH": str(ROOT),
    }
    if backend == "tensorflow":
        module = "mae_convert.runtime.run_keras"
        servers.run(module, HELPERS / worker, folder, *arguments, environment=environment)
        return folder
    done = subprocess.run(
        [sys.executable, HELPERS / worker, folder, *arguments],
        env=environment, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder
