"""A script for transformers' TensorFlow classes runs with its import changed, in Keras 3.

Keras runs in a process of its own (``models_worker.py``), which PyTorch must not share; what is
asserted here is what came of each of its checks.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
from paths import HELPERS, ROOT

HABITS = HELPERS / "keras_habits.py"


def checks_in(file, prefix="check_"):
    return re.findall(rf"^def ({prefix}\w+)", file.read_text(), re.MULTILINE)


QUICK = [name for name in checks_in(HABITS) if HABITS.read_text().count(name) > 1]
SLOW = [name for name in checks_in(HABITS) if name not in QUICK]
SLOW += [name for name in checks_in(HELPERS / "keras_serving.py") if "saved_models" in name]
for file in ("models_worker.py", "keras_methods.py", "keras_serving.py"):
    QUICK += [name for name in checks_in(HELPERS / file) if name not in SLOW]
IDIOMS = checks_in(HELPERS / "tensorflow_idioms.py", "idiom_")


def skip_without(framework):
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")


def outcomes_of(folder, backend, *arguments, worker="models_worker.py"):
    subprocess.run(
        [sys.executable, HELPERS / worker, folder, *arguments],
        check=True,
        timeout=900,
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": str(ROOT),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "JAX_ENABLE_X64": "1",
        },
    )
    return json.loads((folder / "checks.json").read_text())


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return outcomes_of(tmp_path_factory.mktemp("keras"), "tensorflow", "quick")


@pytest.fixture(scope="module", params=["tensorflow", "jax"])
def slow_outcomes(request, tmp_path_factory):
    skip_without(request.param)
    return outcomes_of(tmp_path_factory.mktemp("keras"), request.param, "slow")


@pytest.fixture(scope="module")
def outcomes_on_jax(tmp_path_factory):
    skip_without("jax")
    return outcomes_of(tmp_path_factory.mktemp("keras"), "jax", "quick")


@pytest.fixture(scope="module")
def outcomes_of_idioms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("idioms")
    return outcomes_of(folder, "tensorflow", worker="tensorflow_idioms.py")


@pytest.mark.slow
@pytest.mark.parametrize("name", IDIOMS)
def test_scripts_for_transformers_4_run(outcomes_of_idioms, name):
    assert not outcomes_of_idioms[name], outcomes_of_idioms[name]


@pytest.mark.parametrize("name", QUICK)
def test_scripts_run(outcomes, name):
    assert not outcomes[name], outcomes[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_habits_are_kept(slow_outcomes, name):
    assert not slow_outcomes[name], slow_outcomes[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_scripts_run_on_jax(outcomes_on_jax, name):
    assert not outcomes_on_jax[name], outcomes_on_jax[name]
