"""Run TerraTorch's classes PrithviMAE and PrithviViT.

The tensors in the file must be named as in these classes.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from terratorch.models.backbones import prithvi_mae
from torch import Tensor, nn

from mae_convert.errors import Option
from mae_convert.runtime.job import Job, class_named
from mae_convert.runtime.loaders import LoadError, pytorch_state_dict
from mae_convert.runtime.taps import Point, input_of, output_of, recording
from mae_convert.runtime.torch_runs import Results, settings, torch_runs
from mae_convert.runtime.torch_runs import versions as torch_versions
from reference_models.positions import sincos_frequencies

__all__ = ["runs", "settings", "versions"]

SINES_AND_COSINES = "_get_1d_sincos_embed_from_grid_torch"  # computes the embeddings of coordinates


def versions() -> dict[str, str]:
    """Return the versions of the libraries that a result depends on."""
    return {name: version(name) for name in ("terratorch", "timm")} | torch_versions()


def runs(job: Job, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield each dtype and its results, NumPy arrays by name.

    Raises:
        LoadError: the class does not support the model or the mode, or the file's tensors are not
            the model's.
    """
    if job.mode not in ("eager", "train"):
        raise LoadError(
            "TerraTorch's model can only be run eagerly",
            hint=("pass ", Option("mode", "eager"), f", not {job.mode}"),
        )
    config = class_named(job.configuration).from_dict(job.config)
    return torch_runs(job, inputs, build, partial(forward, config), _points)


def build(job: Job) -> nn.Module:
    """Return TerraTorch's model with the weights of a file and the configured LayerNorm epsilon.

    TerraTorch's default for the epsilon has been 1e-5 since December 2024.

    Raises:
        LoadError: the library has no such model, or the tensors in the file do not fit the model.
    """
    config = class_named(job.configuration).from_dict(job.config)
    ratio = config.intermediate_size / config.hidden_size
    fields = {
        "img_size": config.image_hw,
        "patch_size": config.patch_shape,
        "num_frames": config.num_frames,
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": ratio,
        "norm_layer": partial(nn.LayerNorm, eps=config.layer_norm_eps),
        "coords_encoding": list(config.coords_encoding),
        "coords_scale_learn": config.coords_scale_learn,
    }
    if config.hidden_act != "gelu" or not config.qkv_bias:
        raise LoadError("TerraTorch's PrithviMAE requires GELU and biases of query, key and value")
    if job.task == "encoder":
        model = prithvi_mae.PrithviViT(**fields)
    else:
        if config.decoder_intermediate_size / config.decoder_hidden_size != ratio:
            raise LoadError(
                "TerraTorch's PrithviMAE requires the same mlp_ratio for encoder and decoder"
            )
        model = prithvi_mae.PrithviMAE(
            **fields,
            decoder_embed_dim=config.decoder_hidden_size,
            decoder_depth=config.decoder_num_hidden_layers,
            decoder_num_heads=config.decoder_num_attention_heads,
            mask_ratio=config.mask_ratio,
        )
        for module in model.decoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.decoder_eps
    try:
        model.load_state_dict(pytorch_state_dict(job.weights), strict=True)
    except RuntimeError as error:
        raise LoadError(job.weights.path, f": {error}") from error
    return model.eval()


def forward(
    config: Any,
    model: Any,
    call: Any,  # noqa: ARG001
    pixels: Tensor,
    noise: Tensor,
    *,
    temporal_coords: Tensor | None = None,
    location_coords: Tensor | None = None,
) -> Results:
    """Return the model's outputs, and its intermediate activations as ``tap/NAME``.

    TerraTorch's encoder draws its own noise, so its method ``random_masking`` is replaced by a
    method that uses the argument `noise`. In a float64 run, the sines and cosines of coordinates
    are computed in float64, which the library's own function does not support.

    Args:
        config: the configuration, which determines the mask ratio.
        model: the model of the library.
        call: not used.
        pixels: (N, C, T, H, W).
        noise: (N, L).
        temporal_coords: (N, T, 2), year and day of the year of each frame; None to embed no times.
        location_coords: (N, 2), latitude and longitude in degrees; None to embed no locations.
    """
    encoder = getattr(model, "encoder", model)
    masking, coordinates = encoder.random_masking, (temporal_coords, location_coords)
    with (
        patch.object(encoder, "random_masking", partial(masking, noise=noise)),
        patch.object(prithvi_mae, SINES_AND_COSINES, _coordinates(pixels.dtype)),
        recording(_points(model)) as taps,
    ):
        latent, mask, ids_restore = encoder(pixels, *coordinates, mask_ratio=config.mask_ratio)
        results: Results = {"mask": mask.float(), "ids_restore": ids_restore}
        results["last_hidden_state"] = latent
        if hasattr(model, "decoder"):
            logits = model.decoder(latent, ids_restore, *coordinates, input_size=pixels.shape)
            results["logits"] = logits
            results["reconstruction"] = model.unpatchify(logits)
            if mask.any():
                results |= _both_losses(model, pixels, logits, mask)
    return results | {f"tap/{name}": value for name, value in taps.items()}


def _both_losses(model: Any, pixels: Tensor, logits: Tensor, mask: Tensor) -> Results:
    losses = {}
    for name, normalized in (("loss", False), ("loss_norm_pix", True)):
        with patch.object(model, "norm_pix_loss", normalized):
            losses[name] = model.forward_loss(pixels, logits, mask)
    return losses


def _coordinates(dtype: torch.dtype) -> Callable[[int, Tensor], Tensor]:
    """Return a function that maps a width D and coordinates (M,) to embeddings (M, D).

    The embeddings are computed in float64 if `dtype` is float64, and otherwise by TerraTorch.
    """
    library = getattr(prithvi_mae, SINES_AND_COSINES)

    def embed(width: int, coordinates: Tensor) -> Tensor:
        if dtype != torch.float64:
            return library(width, coordinates)
        frequencies = torch.from_numpy(sincos_frequencies(width)).to(coordinates.device)
        angles = coordinates.double().flatten()[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    return embed


def _points(model: Any) -> dict[str, Point]:
    encoder = getattr(model, "encoder", model)
    points = _points_of_blocks(encoder.blocks, "encoder")
    points["encoder.norm"] = output_of(encoder.norm)
    if hasattr(model, "decoder"):
        points |= _points_of_blocks(model.decoder.decoder_blocks, "decoder")
        points["decoder.norm"] = output_of(model.decoder.decoder_norm)
    return points


def _points_of_blocks(blocks: Any, stack: str) -> dict[str, Point]:
    points = {f"{stack}.embedding": input_of(blocks[0])}
    for number, block in enumerate(blocks):
        name = f"{stack}.blocks.{number}"
        for index, part in enumerate("qkv"):
            points[f"{name}.{part}"] = _third(block.attn.qkv, index)
        points[f"{name}.attention"] = output_of(block.attn)
        points[f"{name}.mlp"] = output_of(block.mlp)
        points[f"{name}.output"] = output_of(block)
    return points


def _third(module: nn.Module, index: int) -> Point:
    return Point(module, lambda _, out: out.chunk(3, dim=-1)[index])
