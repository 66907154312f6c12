"""The golden cases, and the result of a run of the command line."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from paths import GOLDEN


@dataclass(frozen=True)
class Case:
    """One golden case: a checkpoint of the original code, and the results of that code."""

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
        if self.name == "finetune_cls_tiny":  # a pooled classifier has the same names
            options += ["--global-pool", "token"]
        return options


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)
