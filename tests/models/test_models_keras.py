"""A script for transformers' TensorFlow classes runs with its import changed, in Keras 3.

Keras runs in a separate process without PyTorch (``models_worker.py``); the tests assert the
outcome of each of its checks.
"""

import importlib.util
import json

import pytest
from keras_process import checks_in, run_worker

FILES = ("models_worker.py", "keras_training.py", "keras_methods.py", "keras_serving.py")
QUICK = [name for file in FILES for name in checks_in(file)]
SLOW = [name for file in FILES for name in checks_in(file, "long_check_")]
IDIOMS = checks_in("tensorflow_idioms.py", "idiom_")


def skip_without(framework):
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")


def outcomes_of(servers, folder, backend, *arguments, worker="models_worker.py"):
    run_worker(servers, worker, backend, folder, *arguments)
    return json.loads((folder / "checks.json").read_text())


@pytest.fixture(scope="module")
def outcomes(fork_servers, tmp_path_factory):
    return outcomes_of(fork_servers, tmp_path_factory.mktemp("keras"), "tensorflow", "quick")


@pytest.fixture(scope="module", params=["tensorflow", "jax"])
def slow_outcomes(request, fork_servers, tmp_path_factory):
    skip_without(request.param)
    folder = tmp_path_factory.mktemp("keras")
    return outcomes_of(fork_servers, folder, request.param, "slow")


@pytest.fixture(scope="module")
def outcomes_on_jax(fork_servers, tmp_path_factory):
    skip_without("jax")
    return outcomes_of(fork_servers, tmp_path_factory.mktemp("keras"), "jax", "quick")


@pytest.fixture(scope="module")
def outcomes_of_idioms(fork_servers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("idioms")
    return outcomes_of(fork_servers, folder, "tensorflow", worker="tensorflow_idioms.py")


@pytest.mark.slow
@pytest.mark.parametrize("name", IDIOMS)
def test_scripts_for_transformers_4_run(outcomes_of_idioms, name):
    assert not outcomes_of_idioms[name], outcomes_of_idioms[name]


@pytest.mark.parametrize("name", QUICK)
def test_keras_checks_pass(outcomes, name):
    assert not outcomes[name], outcomes[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_slow_keras_checks_pass(slow_outcomes, name):
    assert not slow_outcomes[name], slow_outcomes[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_keras_checks_pass_on_jax(outcomes_on_jax, name):
    assert not outcomes_on_jax[name], outcomes_on_jax[name]
