"""Fixtures of several test files: the golden cases, and the command line as a user runs it."""

import gc
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from golden_cases import Case, Result
from paths import GOLDEN

# Several processes share the cores, so a waiting thread of PyTorch must not keep a core busy, which
# doubles the CPU time of small models. PyTorch reads this variable when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Slow test files. If one of them were started last, all other processes would wait for it.
LONG = {
    "test_children.py",
    "test_models_keras.py",
    "test_mutants.py",
    "test_pretrain.py",
    "test_prithvi.py",
    "test_reference_families_keras.py",
    "test_reference_keras.py",
    "test_runners.py",
    "test_sweep.py",
    "test_visualize.py",
}


# The address at which the processes of pytest-xdist request fork servers.
SERVERS = pytest.StashKey[str]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Run the slow files first; the random order within both groups is kept."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Exclude what collection imports, which stays, from the searches for unreachable objects.

    During collection these searches would take as long as a third of everything else, and later
    each full search would take a third of a second.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """Print how to repeat the random order of a failed run."""
    seed = config.getoption("randomly_seed", None)
    if exitstatus == pytest.ExitCode.TESTS_FAILED and seed is not None:
        terminalreporter.write_line(f"the order of this run: --randomly-seed={seed}")


@pytest.fixture(autouse=True)
def same_signal_handlers():
    """Check that a test restores the signal handlers of this process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.fixture(scope="session")
def golden():
    return GOLDEN


@pytest.fixture(scope="session")
def case():
    return Case


@pytest.fixture(scope="session")
def run():
    """Run the command line in a process of its own, as a user does."""

    def run(*arguments: Any, cwd: Path | None = None, env: dict[str, str] | None = None) -> Result:
        process = subprocess.run(
            [sys.executable, "-m", "mae_convert", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            timeout=600,
        )
        return Result(process.returncode, process.stdout, process.stderr)

    return run


@pytest.fixture(scope="session")
def certified(tmp_path_factory):
    """A model directory with the certificate of its verification, and its source.

    Both sides are run by PyTorch, which is fast: the verdict is "passed", not "proven".
    """
    from mae_convert.checkpoint.open import open_checkpoint
    from mae_convert.convert.execute import execute
    from mae_convert.convert.plan import plan_conversion
    from mae_convert.families.checkpoint_options import Flags
    from mae_convert.runtime.sides import Side
    from mae_convert.verify.certificate import write_certificate
    from mae_convert.verify.verification import run_verification

    case = Case("pretrain_tiny")
    flags = Flags(num_attention_heads=case.facts["num_heads"],
                  decoder_num_attention_heads=case.facts["decoder_num_heads"])  # fmt: skip
    target = tmp_path_factory.mktemp("certified") / "model"
    source = open_checkpoint(case.checkpoint, flags)
    execute(plan_conversion(source, target, "transformers"))
    converted = open_checkpoint(target)
    torch = Side("torch")
    verification = run_verification(source, converted, torch, torch)
    assert verification.verdict.passed
    write_certificate(verification, converted)
    return target


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hugging Face Hub on the loopback interface, which the client in this process uses.

    The client reads its settings when it is imported, so they are set in its module.
    """
    import time

    from hub_server import LocalHub
    from huggingface_hub import constants

    with LocalHub(tmp_path / "hub") as local:
        template = local.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": local.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(tmp_path / "hf-cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
            "HF_STORED_TOKENS_PATH": str(tmp_path / "no-tokens"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("MAE_CONVERT_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        # Instead of waiting for a busy server, the client records the delay.
        local.waits = []
        monkeypatch.setattr(time, "sleep", local.waits.append)
        yield local


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Pass the address of the shared fork servers to a process that pytest-xdist starts."""
    config = node.config
    if SERVERS not in config.stash:
        from fork_server import shared_servers

        opened = ExitStack()
        config.add_cleanup(opened.close)
        config.stash[SERVERS] = opened.enter_context(shared_servers())
    node.workerinput["fork_servers"] = config.stash[SERVERS]


@pytest.fixture(scope="session")
def fork_servers(pytestconfig):
    from fork_server import ForkServers

    address = getattr(pytestconfig, "workerinput", {}).get("fork_servers")
    with ForkServers(address) as servers:
        yield servers


@pytest.fixture
def forked_children(fork_servers):
    """Fork the child processes of verifications, so that they need not import their framework."""
    with fork_servers.used():
        yield


@pytest.fixture
def command(capfd, monkeypatch, forked_children):
    """Run the command line in this process, without starting a new interpreter.

    Child processes are forked from processes that have imported their frameworks.
    """
    from mae_convert.cli.main import main

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    # The command line sets handlers of its own.
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

    def command(*arguments: Any, cwd: Path | None = None) -> Result:
        if cwd is not None:
            monkeypatch.chdir(cwd)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return command
