"""Run transformers' own PyTorch classes on a directory in their layout.

Versions 4 and 5 name their modules differently; both are supported.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from mae_convert.errors import Option
from mae_convert.runtime.job import Job, class_named
from mae_convert.runtime.loaders import LoadError, require_safe_torch_load
from mae_convert.runtime.taps import Point, input_of, output_of, recording
from mae_convert.runtime.torch_runs import Results, settings, torch_runs
from mae_convert.runtime.torch_runs import versions as torch_versions

__all__ = ["runs", "settings", "versions"]

# The attributes of a block that compute q, k, v, attention and mlp, by the attribute for q. The
# first entry is for transformers 5, the second for transformers 4.
PARTS = {
    "attention.q_proj": ("attention.q_proj", "attention.k_proj", "attention.v_proj",
                         "attention.o_proj", "mlp"),
    "attention.attention.query": ("attention.attention.query", "attention.attention.key",
                                  "attention.attention.value", "attention.output.dense",
                                  "output.dense"),
}  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of the libraries that a result depends on."""
    return {"transformers": transformers.__version__, **torch_versions()}


def runs(job: Job, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield each dtype and its results, NumPy arrays by name.

    Raises:
        LoadError: the class cannot load the directory or does not load all tensors, or the job's
            mode is neither "eager" nor "train".
    """
    if job.mode not in ("eager", "train"):
        raise LoadError(
            "transformers' classes can only be run eagerly; ",
            Option("mode", job.mode),
            " is not supported",
        )
    if job.weights.format == "pth":
        require_safe_torch_load(torch.__version__)
    return torch_runs(job, inputs, build, forward, _points)


def build(job: Job) -> nn.Module:
    """Return the library's model with the weights of a directory.

    Raises:
        LoadError: the class cannot load the directory, or does not load all tensors.
    """
    transformers.logging.set_verbosity_error()
    kind = class_named(job.model)
    try:
        model, info = kind.from_pretrained(job.weights.path, output_loading_info=True)
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        raise LoadError(f"{kind.__name__} cannot load ", job.weights.path, f": {error}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(what):
            raise LoadError(
                f"{kind.__name__} has {what} in ", job.weights.path, f": {sorted(info[what])[:4]}"
            )
    model.config.mask_ratio = job.config["mask_ratio"]
    return model.eval()


def forward(model: Any, call: Any, pixels: torch.Tensor, noise: torch.Tensor | None) -> Results:  # noqa: ARG001
    """Return the model's outputs, and its intermediate activations as ``tap/NAME``.

    Args:
        model: the model of the library.
        call: not used.
        pixels: (N, C, H, W).
        noise: (N, L); None for a classifier.
    """
    with recording(_points(model)) as taps:
        outputs = model(pixels) if noise is None else model(pixels, noise=noise)
    results = {"last_hidden_state": taps["encoder.norm"]}
    for name in ("logits", "mask", "ids_restore"):
        if getattr(outputs, name, None) is not None:
            results[name] = getattr(outputs, name)
    if hasattr(model, "decoder"):
        results["reconstruction"] = model.unpatchify(outputs.logits)
        if outputs.mask.any():
            results |= _both_losses(model, pixels, noise)
    return results | {f"tap/{name}": value for name, value in taps.items()}


def _both_losses(model: Any, pixels: torch.Tensor, noise: torch.Tensor | None) -> Results:
    """Return the losses without and with per-patch normalization of the pixels.

    For each loss, ``norm_pix_loss`` is set in the model's config.

    Args:
        model: the pre-training model of the library.
        pixels: (N, C, H, W).
        noise: (N, L), determines the removed patches; None to let the model draw random noise.
    """
    configured, losses = model.config.norm_pix_loss, {}
    for name, normalized in (("loss", False), ("loss_norm_pix", True)):
        model.config.norm_pix_loss = normalized
        losses[name] = model(pixels, noise=noise).loss
    model.config.norm_pix_loss = configured
    return losses


def _points(model: Any) -> dict[str, Point]:
    trunk = getattr(model, "vit", model)
    blocks = trunk.layers if hasattr(trunk, "layers") else trunk.encoder.layer
    points = {"encoder.embedding": input_of(blocks[0])}
    points |= points_of_blocks(blocks, "encoder")
    points["encoder.norm"] = output_of(trunk.layernorm)
    if hasattr(model, "decoder"):
        points["decoder.embedding"] = input_of(model.decoder.decoder_layers[0])
        points |= points_of_blocks(model.decoder.decoder_layers, "decoder")
        points["decoder.norm"] = output_of(model.decoder.decoder_norm)
    return points


def points_of_blocks(blocks: Any, stack: str) -> dict[str, Point]:
    """Return the `Point` of each activation in the blocks of an encoder or decoder, by name."""
    names = {name for name, _ in blocks[0].named_modules()}
    parts = next(parts for first, parts in PARTS.items() if first in names)
    points = {}
    for number, block in enumerate(blocks):
        for tap, part in zip(("q", "k", "v", "attention", "mlp"), parts, strict=True):
            points[f"{stack}.blocks.{number}.{tap}"] = output_of(block.get_submodule(part))
        points[f"{stack}.blocks.{number}.output"] = output_of(block)
    return points
