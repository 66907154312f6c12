"""Short runs of the scripts that disturb conversions and corrupt files, started as by a user."""

import subprocess
import sys

import pytest
from paths import ROOT

SCRIPTS = ROOT / "scripts"


def table(script: str, *arguments: str, key: int = 0) -> dict[str, list[str]]:
    """Run a script that must report no failure; return the rows of its table by one cell."""
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    rows = [line.strip("| ").split(" | ") for line in process.stdout.splitlines() if "|" in line]
    return {row[key]: row for row in rows[2:]}


def test_no_race_condition_corrupts_an_output() -> None:
    rows = table("torture.py", "--moments", "1", "--target", "directory", "--only", "race", key=1)
    assert [row[-1] for row in rows.values()] == ["0"]


def test_corrupted_files_are_read_or_refused() -> None:
    containers = ("pth", "safetensors", "tf h5", "config.json")
    rows = table("fuzz.py", "--inputs", "120", "--only", *containers)
    assert set(rows) == {*containers, "all"}
    _, inputs, read, refused, *wrong = rows["all"]
    assert (int(inputs), wrong) == (120, ["0", "0", "0"])
    assert int(read) > 5
    assert int(refused) > 40


def test_corrupted_certificates_and_records_are_read_or_refused() -> None:
    rows = table("fuzz.py", "--inputs", "160", "--only", "verification.json", "trace")
    _, inputs, read, refused, *wrong = rows["all"]
    assert (int(inputs), wrong) == (160, ["0", "0", "0"])
    assert int(read) > 3  # 8 % of 3000 inputs were read
    assert int(refused) > 60


@pytest.mark.slow
def test_no_fault_corrupts_an_output() -> None:
    assert table("torture.py", "--moments", "20")


@pytest.mark.slow
def test_many_corrupted_files_of_every_container() -> None:
    assert int(table("fuzz.py", "--inputs", "20000")["all"][1]) >= 20000
