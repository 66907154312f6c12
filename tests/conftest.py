"""What several test files share: the golden cases, and the command line as a user runs it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "data" / "golden"


@dataclass(frozen=True)
class Case:
    """One golden case: a checkpoint of the original code and what that code computed."""

    name: str

    @property
    def checkpoint(self) -> Path:
        return GOLDEN / self.name / "checkpoint.pth"

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads((GOLDEN / self.name / "case.json").read_text())

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / self.name / "golden.npz") as archive:
            return dict(archive)

    @property
    def heads(self) -> list[str]:
        facts = self.facts
        options = ["--num-heads", str(facts["num_heads"])]
        if facts["kind"] == "pretrain":
            options += ["--decoder-num-heads", str(facts["decoder_num_heads"])]
        return options


@pytest.fixture(scope="session")
def golden():
    return GOLDEN


@pytest.fixture(scope="session")
def case():
    return Case


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def run():
    """Run the command line in a process of its own, as a user does."""

    def run(*arguments: Any, cwd: Path | None = None, env: dict[str, str] | None = None) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "mae_convert", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            timeout=600,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run
