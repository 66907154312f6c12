"""Run timm's own model, which is independent of this project, on a directory in timm's layout."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import timm
import torch

from mae_convert.errors import Option
from mae_convert.runtime.job import Job
from mae_convert.runtime.loaders import LoadError, require_safe_torch_load
from mae_convert.runtime.taps import Point, input_of, output_of, recording
from mae_convert.runtime.torch_runs import Results, settings, torch_runs
from mae_convert.runtime.torch_runs import versions as torch_versions

__all__ = ["runs", "settings", "versions"]


def versions() -> dict[str, str]:
    """Return the versions of the libraries that a result depends on."""
    return {"timm": timm.__version__, **torch_versions()}


def runs(job: Job, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield each dtype and its results, NumPy arrays by name. No patches are masked.

    Raises:
        LoadError: timm cannot load the directory, the inputs require masking, or the mode is not
            supported.
    """
    if job.mode not in ("eager", "train"):
        raise LoadError(
            "timm's model can only be run eagerly",
            hint=("pass ", Option("mode", "eager"), f", not {job.mode}"),
        )
    if job.task != "classify":
        shuffled = np.any(np.diff(inputs["noise"], axis=1) < 0)
        if job.config["mask_ratio"] or shuffled:
            raise LoadError("timm cannot remove patches", hint=("pass ", Option("unmasked", True)))
    if job.weights.format == "pth":
        require_safe_torch_load(torch.__version__)
    return torch_runs(job, inputs, build, forward, _points)


def build(job: Job) -> torch.nn.Module:
    """Return timm's model with the weights of a directory."""
    try:
        return timm.create_model(f"local-dir:{job.weights.path}", pretrained=True).eval()
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        raise LoadError("timm cannot load ", job.weights.path, f": {error}") from error


def forward(model: Any, call: Any, pixels: torch.Tensor, noise: torch.Tensor | None) -> Results:  # noqa: ARG001
    """Return the model's outputs, and its intermediate activations as ``tap/NAME``.

    Args:
        model: the model of the library.
        call: not used.
        pixels: (N, C, H, W).
        noise: (N, L); None for a classifier.
    """
    with recording(_points(model)) as taps:
        if noise is None:
            results = {"logits": model(pixels)}
        else:
            model.forward_features(pixels)
            results = {
                "mask": torch.zeros(noise.shape, dtype=torch.float32),
                "ids_restore": torch.arange(noise.shape[1]).expand(len(noise), -1).contiguous(),
            }
    if "encoder.norm" in taps:
        results["last_hidden_state"] = taps["encoder.norm"]
    return results | {f"tap/{name}": value for name, value in taps.items()}


def _points(model: Any) -> dict[str, Point]:
    points = {"encoder.embedding": input_of(model.blocks[0])}
    for number, block in enumerate(model.blocks):
        for index, part in enumerate("qkv"):
            points[f"encoder.blocks.{number}.{part}"] = _third(block.attn.qkv, index)
        points[f"encoder.blocks.{number}.attention"] = output_of(block.attn)
        points[f"encoder.blocks.{number}.mlp"] = output_of(block.mlp)
        points[f"encoder.blocks.{number}.output"] = output_of(block)
    if not isinstance(model.norm, torch.nn.Identity):
        points["encoder.norm"] = output_of(model.norm)
    if not isinstance(model.fc_norm, torch.nn.Identity):
        points["head.norm"] = Point(model.fc_norm, lambda _, out: out[:, None])  # (N, 1, D)
    return points


def _third(module: torch.nn.Module, index: int) -> Point:
    return Point(module, lambda _, out: out.chunk(3, dim=-1)[index])
