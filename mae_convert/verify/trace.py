"""A trace: the results of one side of a comparison, named and hashed, in one safetensors file."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mae_convert.canonical import TASKS
from mae_convert.checkpoint import Checkpoint
from mae_convert.containers.tensor import sha256
from mae_convert.errors import CheckpointError
from mae_convert.record import files_sha256
from mae_convert.verify.inputs import inputs_sha256
from mae_convert.verify.sides import Side
from reference_models.configuration import ViTMAEConfig

FORMAT = 1
GRADIENT = "grad/"  # begins the names of gradients among a run's results
DESCRIBED: Mapping[str, type] = {
    "checkpoint": dict,
    "task": str,
    "config": dict,
    "inputs": str,
    "dtypes": list,
    "tensors": dict,
    "steps": list,
    "native": bool,
    "image_mean": list,
    "image_std": list,
}
PARTS = {
    "checkpoint": ["name", "sha256"],
    "config": [field.name for field in fields(ViTMAEConfig)],
}
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Trace:
    """The results of one side, and what they are the results of.

    Attributes:
        description: framework, versions, device, configuration, hashes; see ``describe``.
        arrays: ``DTYPE/RESULT``, ``DTYPE/tap/NAME`` and ``DTYPE/grad/NAME`` for each run, and
            ``mask`` and ``ids_restore``, which no dtype changes.
    """

    description: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> "Trace":
        """Read a trace file.

        Raises:
            CheckpointError: the file is not there, is not a trace, or is one of another version.
        """
        if not path.exists():
            raise CheckpointError(f"{path} does not exist")
        try:
            description, arrays = read_trace(path)
            check_description(description)
            refuse_control_characters(description)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not a trace; make one with `mae-convert trace CKPT {path}`"
            ) from error
        if description.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} is a trace of format {description.get('format')!r}, and this version of"
                f" mae-convert reads {FORMAT}; trace the checkpoint again"
            )
        return cls(description, arrays)

    def results(self, dtype: str) -> dict[str, np.ndarray]:
        """Return what one run gave: results by name, taps by theirs, gradients as ``grad/NAME``."""
        prefix = f"{dtype}/"
        return {
            name.removeprefix(prefix).removeprefix("tap/"): array
            for name, array in self.arrays.items()
            if name.startswith(prefix)
        }


def check_description(description: Mapping[str, Any]) -> None:
    """Check that a description has what the judge asks it for.

    Raises:
        KeyError: something is missing.
        TypeError: something is of another type.
        ValueError: the configuration is impossible.
    """
    for name, kind in DESCRIBED.items():
        if not isinstance(description[name], kind):
            raise TypeError(f"{name} is {description[name]!r}")
    for part, names in PARTS.items():
        if missing := [name for name in names if name not in description[part]]:
            raise KeyError(missing[0])
    ViTMAEConfig.from_dict(description["config"])
    if description["task"] not in TASKS:
        raise ValueError(f"unknown task {description['task']}")
    if "float64" not in description["dtypes"] and "own_errors" in description:
        raise ValueError("no float64 run")
    if not all(isinstance(step.get("step"), str) for step in description["steps"]):
        raise ValueError("a step has no name")


def refuse_control_characters(value: Any) -> None:
    """Check that no text of a file that others made can steer a terminal.

    Raises:
        ValueError: it can.
    """
    if isinstance(value, str) and CONTROL.search(value):
        raise ValueError(f"it holds control characters: {value!r}")
    if isinstance(value, Mapping):
        for key, item in value.items():
            refuse_control_characters(key)
            refuse_control_characters(item)
    if isinstance(value, (list, tuple)):
        for item in value:
            refuse_control_characters(item)


def read_trace(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what a trace file says of itself, and its arrays; errors are those of the reader."""
    with safe_open(path, "numpy") as file:
        description = json.loads((file.metadata() or {})["trace"])
        return description, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def describe(
    checkpoint: Checkpoint, side: Side, inputs: Mapping[str, np.ndarray], *, native: bool
) -> dict[str, Any]:
    """Return a trace's metadata: everything that a verdict needs besides the results.

    ``tensors`` holds shape, dtype and SHA-256 of every canonical tensor.
    """
    return {
        "format": FORMAT,
        "checkpoint": {
            "name": checkpoint.name,
            "sha256": files_sha256(checkpoint.container.files)["sha256"],
        },
        "layout": checkpoint.layout.name,
        "task": checkpoint.task,
        "framework": side.framework,
        "native": native,
        "device": side.device,
        "mode": side.mode,
        "config": checkpoint.configuration.model.to_dict(),
        "image_mean": list(checkpoint.configuration.image_mean),
        "image_std": list(checkpoint.configuration.image_std),
        "labels": list(checkpoint.configuration.labels or ()),
        "assumed": checkpoint.configuration.assumed(),
        "inputs": inputs_sha256(inputs),
        "steps": list((checkpoint.container.conversion or {}).get("steps", [])),
        "tensors": {
            name: [list(tensor.shape), str(tensor.dtype), sha256(tensor)]
            for name, tensor in checkpoint.tensors.items()
        },
    }
