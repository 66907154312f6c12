"""Progress is shown on a terminal, and not in a pipe."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from paths import DEMO

DEMO = DEMO / "checkpoint.pth"


def convert(target: Path, stderr: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "mae_convert", "convert", DEMO, target, "--to", "transformers"]
    environment = {**os.environ, "TERM": "xterm"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment)


def output_on_a_terminal(target: Path) -> tuple[int, str]:
    """Return the status of a conversion and what it wrote to a terminal as standard error."""
    ours, its = pty.openpty()
    with convert(target, its) as child, os.fdopen(ours, "rb", buffering=0) as terminal:
        os.close(its)
        message = b""
        try:
            while piece := terminal.read(4096):
                message += piece
        except OSError:  # how a terminal signals that no writer is left
            pass
    return child.returncode, message.decode()


def test_bytes_rate_and_time_left_on_a_terminal(tmp_path: Path) -> None:
    status, message = output_on_a_terminal(tmp_path / "out")
    assert status == 0
    worked_on = 3 * DEMO.stat().st_size / 1e6  # read and hashed, written, compared
    assert f"/{worked_on:.1f} MB" in message
    assert "0:00:" in message
    assert message.endswith("\x1b[2K")  # at the end, the line is empty


def test_refusal_prints_only_the_error(tmp_path: Path) -> None:
    status, message = output_on_a_terminal(tmp_path / "nowhere" / "out")
    assert status == 2
    assert message.startswith("mae-convert: ")
    assert len(message.strip().splitlines()) == 1


def test_no_progress_is_printed_in_a_pipe(tmp_path: Path) -> None:
    with convert(tmp_path / "out", subprocess.PIPE) as child:
        _, stderr = child.communicate()
    assert (child.returncode, stderr) == (0, b"")
