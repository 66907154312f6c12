"""A script for transformers' TensorFlow classes runs with its import changed, in Keras 3.

Keras runs in a process of its own (``models_worker.py``), which PyTorch must not share; what is
asserted here is what came of each of its checks.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECKS = [
    name
    for file in ("models_worker.py", "keras_habits.py")
    for name in re.findall(r"^def (check_\w+)", (HERE / file).read_text(), re.MULTILINE)
]


def outcomes_of(folder, backend, python=sys.executable):
    subprocess.run(
        [python, HERE / "models_worker.py", folder],
        check=True,
        timeout=900,
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": str(HERE.parent),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "JAX_ENABLE_X64": "1",
        },
    )
    return json.loads((folder / "checks.json").read_text())


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return outcomes_of(tmp_path_factory.mktemp("keras"), "tensorflow")


@pytest.mark.parametrize("name", CHECKS)
def test_on_tensorflow(outcomes, name):
    assert not outcomes[name], outcomes[name]
