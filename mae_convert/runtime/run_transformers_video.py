"""Run transformers' PyTorch classes for videos, which take pixels (N, T, C, H, W) and a mask."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open

from mae_convert.runtime.job import Job, StoredWeights, class_named
from mae_convert.runtime.loaders import LoadError
from mae_convert.runtime.run_pytorch import all_patches
from mae_convert.runtime.run_transformers import build, points_of_blocks, versions
from mae_convert.runtime.taps import Point, input_of, output_of, recording
from mae_convert.runtime.torch_runs import Results, torch_runs
from mae_convert.runtime.torch_runs import settings as torch_settings
from reference_models.pytorch.patches import mask_in_order, unpatchify

__all__ = ["runs", "settings", "versions"]


def settings() -> dict[str, Any]:
    """Return a dictionary: PyTorch's settings that a result depends on, and "omits".

    "omits" is the list of the omitted results. The losses are omitted because the library never
    computes them in float64.
    """
    return {**torch_settings(), "omits": ["loss", "loss_norm_pix"]}


def runs(job: Job, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield each dtype and its results, NumPy arrays by name.

    Raises:
        LoadError: the class cannot load the directory, or does not load all tensors.
    """
    config = class_named(job.configuration).from_dict(job.config)
    return torch_runs(job, inputs, _build, partial(forward, config), _points)


def _build(job: Job) -> torch.nn.Module:
    """Return the model of transformers, loaded from the directory of the job.

    Raises:
        LoadError: the class cannot load the directory, does not load all tensors, or loads the
            biases of queries and values as zeros.
    """
    model = build(job)
    require_biases(model, job.weights)
    return model


def require_biases(model: torch.nn.Module, weights: StoredWeights) -> None:
    """Check that the library has loaded the stored biases of queries and values.

    Versions of transformers from 5.0 until pull request 48675 loaded them as zeros.

    Raises:
        LoadError: all of these biases are zero in the model, but not in the file.
    """
    names = re.compile(r"(query|value)\.bias|[qv]_bias|(q|v)_proj\.bias")
    loaded = [p for name, p in model.named_parameters() if names.search(name)]
    if not loaded or any(bool(parameter.any()) for parameter in loaded):
        return
    files = [file for path in weights.files for file in Path(path).glob("*.safetensors")]
    for file in files:
        with safe_open(file, "pt") as stored:
            if any(bool(stored.get_tensor(n).any()) for n in stored.keys() if names.search(n)):  # noqa: SIM118
                raise LoadError(
                    f"transformers {transformers.__version__} loads the biases of queries and"
                    " values as zeros. Versions from 5.0 have this bug until transformers' pull"
                    " request 48675, which corrects it",
                    hint="use another version of transformers for this comparison",
                )


def forward(
    config: Any,
    model: Any,
    call: Any,  # noqa: ARG001
    pixels: torch.Tensor,
    noise: torch.Tensor | None,
) -> Results:
    """Return the model's outputs, and its intermediate activations as ``tap/NAME``.

    Args:
        config: the configuration, which determines the number of visible patches.
        model: the model of the library.
        call: not used.
        pixels: (N, C, T, H, W).
        noise: (N, L); None for a classifier.
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
