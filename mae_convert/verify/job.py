"""What a child process is asked to do: plain data that travels as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FRAMEWORKS = ("torch", "tensorflow", "jax")
RUN_DTYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Job:
    """One side of a comparison.

    Attributes:
        framework: "torch", "tensorflow" or "jax".
        device: "cpu" or "cuda"; float64 always runs on the CPU, as the proof asks.
        dtypes: the runs to make, in order.
        task: "pretrain", "encoder" or "classify".
        config: fields of ViTMAEConfig.
        weights: file that holds the tensors.
        loader: how the file's names are those of the reference model (see ``loaders``).
        inputs: .npz with pixel_values and noise.
        output: the trace to write.
        taps: whether to keep every step between.
        description: metadata that is copied into the trace.
    """

    framework: str
    device: str
    dtypes: tuple[str, ...]
    task: str
    config: Mapping[str, Any]
    weights: str
    loader: str
    inputs: str
    output: str
    taps: bool
    description: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Job":
        """Read a job that ``save`` wrote."""
        fields = json.loads(path.read_text())
        return cls(**{**fields, "dtypes": tuple(fields["dtypes"])})
