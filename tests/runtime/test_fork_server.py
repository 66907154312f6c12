"""Children that are forked from a process that has imported a framework."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mae_convert.runtime.children import environment_of_child, python_process
from mae_convert.runtime.fork_server import fork_server
from mae_convert.runtime.sides import WORKER

ENVIRONMENT = environment_of_child(NUMBER="7")
# Prints what a child can find out about itself.
DESCRIBE = """
import os, resource, signal, sys, threading
print(sys.argv, __name__, os.getcwd(), sys.path, sys.stdin.read(), file=sys.stderr)
print(sorted(os.environ.items()), os.umask(0), os.getpgrp(), os.getsid(0), file=sys.stderr)
print([signal.getsignal(number) for number in signal.valid_signals()], file=sys.stderr)
print(signal.pthread_sigmask(signal.SIG_BLOCK, []), file=sys.stderr)
print([resource.getrlimit(number) for number in range(16)], file=sys.stderr)
print(sorted(os.listdir("/proc/self/fd")), threading.enumerate()[1:], file=sys.stderr)
print("out", flush=True)
sys.exit(3)
"""
SLEEPS = "import time\nprint(1, flush=True)\ntime.sleep(60)"
PIPES = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@pytest.fixture
def server():
    """A fork server that has imported a module of the standard library."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the processes of a sweep
    with fork_server(ENVIRONMENT, [WORKER, "--serve", "colorsys"]) as server:
        assert server.is_ready()
        yield server
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A function that returns the command that runs a script."""
    monkeypatch.chdir(tmp_path)

    def command(text):
        (tmp_path / "script.py").write_text(text)
        return [sys.executable, str(tmp_path / "script.py"), "argument"]

    return command


def test_forked_child_is_as_a_new_one(server, command):
    describe, results = command(DESCRIBE), []
    new = subprocess.Popen(describe, env=ENVIRONMENT, text=True, **PIPES)
    for child in (new, server.fork(describe, ENVIRONMENT, **PIPES)):
        assert child.stdout.read() == "out\n"
        child.stdout.close()
        results.append((child.stderr.read(), child.wait(60)))
        child.stderr.close()
    assert results[0] == results[1]
    assert "('NUMBER', '7')" in results[0][0]
    assert results[0][1] == 3


def test_child_is_not_forked_if_a_new_one_would_be_different(server, command):
    python, *arguments = command("")
    assert server.fork([f"{python}-other", *arguments], ENVIRONMENT, **PIPES) is None
    assert server.fork([python, *arguments], {**ENVIRONMENT, "NUMBER": "8"}, **PIPES) is None


def test_if_the_server_has_ended_a_child_is_a_new_process(server, command):
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    arguments = [Path(word) for word in command("raise SystemExit(5)")[1:]]
    with python_process(None, arguments, ENVIRONMENT, server, **PIPES) as child:
        assert isinstance(child, subprocess.Popen)
        assert child.wait(60) == 5


def test_forked_child_is_ended_on_request_and_with_its_parent(server, command):
    sleeps = command(SLEEPS)
    killed, other = (server.fork(sleeps, ENVIRONMENT, **PIPES) for _ in range(2))
    assert (killed.stdout.readline(), other.stdout.readline()) == ("1\n", "1\n")
    assert server.running() == [killed.pid, other.pid]
    with pytest.raises(subprocess.TimeoutExpired):
        killed.communicate(timeout=0.05)
    killed.kill()
    assert killed.wait(60) == killed.poll() == -signal.SIGKILL
    assert server.running() == [other.pid]
    other._disconnect()  # as if this process had ended
    assert other.stdout.read() == ""
    for child in (killed, other):
        child.stdout.close()
        child.stderr.close()
