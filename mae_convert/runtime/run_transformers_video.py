"""Run transformers' PyTorch classes for videos, whose inputs are (N, T, C, H, W) and a mask."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from mae_convert.runtime.job import Job
from mae_convert.runtime.model_class import class_named
from mae_convert.runtime.run_pytorch import all_patches
from mae_convert.runtime.run_transformers import build, points_of_blocks, versions
from mae_convert.runtime.taps import Point, input_of, output_of, recording
from mae_convert.runtime.torch_runs import Results, torch_runs
from mae_convert.runtime.torch_runs import settings as torch_settings
from reference_models.pytorch.patches import mask_in_order, unpatchify

__all__ = ["runs", "settings", "versions"]


def settings() -> dict[str, Any]:
    """Return what else matters for a result; the library computes its loss in float32 at best."""
    return {**torch_settings(), "omits": ["loss", "loss_norm_pix"]}


def runs(job: Job, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield each dtype and its results, NumPy arrays by name.

    Raises:
        LoadError: the class cannot load the directory, or not all of it.
    """
    config = class_named(job.configuration).from_dict(job.config)
    return torch_runs(job, inputs, build, partial(forward, config), _points)


def forward(
    config: Any,
    model: Any,
    call: Any,  # noqa: ARG001
    pixels: torch.Tensor,
    noise: torch.Tensor | None,
) -> Results:
    """Return the outputs and the taps; ``noise`` is None for a classifier.

    Args:
        config: the configuration, which tells how many patches are kept.
        model: the library's model.
        call: not used.
        pixels: (N, C, T, H, W).
        noise: (N, L).
    """
    videos = pixels.transpose(1, 2)
    results: Results = {}
    if noise is None:
        mask = None
    else:
        mask, _, ids_restore = mask_in_order(noise, config.num_kept)
        results = {"mask": mask, "ids_restore": ids_restore}
    with recording(_points(model)) as taps:
        outputs = model(videos) if mask is None else model(videos, bool_masked_pos=mask > 0)
    hidden = getattr(outputs, "last_hidden_state", taps.get("encoder.norm"))
    if hidden is not None:
        results["last_hidden_state"] = hidden
    if hasattr(outputs, "logits"):
        results["logits"] = outputs.logits
    if mask is not None and hasattr(model, "decoder"):
        results["reconstruction"] = unpatchify(all_patches(outputs.logits, mask), config)
    return results | {f"tap/{name}": value for name, value in taps.items()}


def _points(model: Any) -> dict[str, Point]:
    trunk = getattr(model, "videomae", model)
    points = {"encoder.embedding": input_of(trunk.encoder.layer[0])}
    points |= points_of_blocks(trunk.encoder.layer, "encoder")
    if getattr(trunk, "layernorm", None) is not None:
        points["encoder.norm"] = output_of(trunk.layernorm)
    if hasattr(model, "decoder"):
        points["decoder.embedding"] = input_of(model.decoder.decoder_layers[0])
        points |= points_of_blocks(model.decoder.decoder_layers, "decoder")
        points["decoder.norm"] = output_of(model.decoder.norm)
    return points
