"""Fixtures of the tests of the Keras models."""

import json

import pytest
from keras_process import run_worker


@pytest.fixture(scope="module")
def slow_checks(request, fork_servers, tmp_path_factory):
    """Run the slow checks of a worker; the parameter names the worker and the backend.

    Returns:
        The traceback of each check by its name; None where the check passed.
    """
    worker, backend = request.param
    folder = tmp_path_factory.mktemp(backend)
    (folder / "jobs.json").write_text("[]")
    run_worker(fork_servers, worker, backend, folder, "slow")
    return json.loads((folder / "checks.json").read_text())
