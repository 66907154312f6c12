"""What a child process is asked to do: plain data that travels as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Our reference models on three backends, and two libraries whose own classes are further witnesses.
FRAMEWORKS = ("torch", "tensorflow", "jax", "transformers", "timm")
# "tf32" is float32 whose matrix products are rounded to 10 bits on the way, as CUDA devices offer.
RUN_DTYPES = ("float64", "float32", "tf32", "float16", "bfloat16")
MODES = ("eager", "compiled", "xla", "train")


@dataclass(frozen=True)
class Job:
    """One side of a comparison.

    Attributes:
        framework: one of ``FRAMEWORKS``.
        device: "cpu" or "cuda"; float64 always runs on the CPU, as the proof asks.
        dtypes: the runs to make, in order.
        task: "pretrain", "encoder" or "classify".
        config: fields of ViTMAEConfig.
        weights: file that holds the tensors.
        loader: how the file's names are those of the reference model (see ``loaders``).
        inputs: .npz with pixel_values and noise.
        output: the trace to write.
        taps: whether to keep every step between.
        gradients: whether to keep the gradient of the objective for every trainable parameter.
        mode: "eager"; "compiled" by torch.compile, tf.function or jax.jit; "xla" by tf.function's
            XLA compiler; "train" as in training, with dropout 0.
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
    gradients: bool
    mode: str
    description: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Job":
        """Read a job that ``save`` wrote."""
        fields = json.loads(path.read_text())
        return cls(**{**fields, "dtypes": tuple(fields["dtypes"])})
