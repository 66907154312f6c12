"""The canonical schema of Prithvi-EO, and the configuration fields that follow from shapes."""

from collections.abc import Iterator, Mapping
from typing import Any

from mae_convert.families.canonical import (
    block_shapes,
    common_geometry,
    dimension,
    linear_shapes,
    norm_shapes,
)
from mae_convert.layouts.transforms import Schema, Shape
from reference_models.configuration import PrithviConfig


def schema(config: PrithviConfig, task: str) -> Schema:
    """Return the name and shape of every canonical tensor of a model, in canonical order."""
    width = config.hidden_size
    shapes: Schema = {"encoder.cls_token": (1, 1, width)}
    shapes |= dict(_positions("encoder", width, config))
    shapes["encoder.patch_embedding.weight"] = (width, config.num_channels, *config.patch_shape)
    shapes["encoder.patch_embedding.bias"] = (width,)
    for index in range(config.num_hidden_layers):
        name = f"encoder.blocks.{index}"
        shapes |= dict(block_shapes(name, width, config.intermediate_size, biases=_biases(config)))
    shapes |= dict(norm_shapes("encoder.norm", width))
    return shapes | (dict(_decoder(config)) if task == "pretrain" else {})


def _biases(config: PrithviConfig) -> str:
    return "qkv" if config.qkv_bias else ""


def _positions(part: str, width: int, config: PrithviConfig) -> Iterator[tuple[str, Shape]]:
    yield f"{part}.position_embedding", (1, 1 + config.num_patches, width)
    for name in config.coords_encoding:
        yield f"{part}.{name}_scale", (1,)


def _decoder(config: PrithviConfig) -> Iterator[tuple[str, Shape]]:
    width, hidden = config.decoder_hidden_size, config.decoder_intermediate_size
    yield from linear_shapes("decoder.embed", config.hidden_size, width)
    yield "decoder.mask_token", (1, 1, width)
    yield from _positions("decoder", width, config)
    for index in range(config.decoder_num_hidden_layers):
        yield from block_shapes(f"decoder.blocks.{index}", width, hidden, biases=_biases(config))
    yield from norm_shapes("decoder.norm", width)
    yield from linear_shapes("decoder.prediction", width, config.patch_dim)


def geometry(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the configuration fields that follow from the shapes of canonical tensors.

    The shapes determine ``num_patches``, but neither the image size nor the number of frames.

    Raises:
        LayoutError: a tensor that determines a size is missing or has a wrong number of axes.
    """
    fields = common_geometry(shapes, 5)
    dimension(shapes, "encoder.cls_token", 3, axis=2)
    encoded = tuple(n for n in ("time", "location") if f"encoder.{n}_scale" in shapes)
    positions = dimension(shapes, "encoder.position_embedding", 3, axis=1)
    return {**fields, "num_patches": positions - 1, "coords_encoding": encoded}


def expected(measured: Mapping[str, Any], task: str) -> Schema:
    """Return the canonical tensor names and shapes of a model with the sizes in ``measured``."""
    left_out = ("num_patches", "num_attention_heads")
    fields = {name: value for name, value in measured.items() if name not in left_out}
    patch = measured["patch_size"]
    height, width = (patch, patch) if isinstance(patch, int) else patch
    config = PrithviConfig(
        **fields,
        image_size=(measured["num_patches"] * height, width),
        num_frames=measured["tubelet_size"],
        num_attention_heads=1,
        decoder_num_attention_heads=1,
    )
    return schema(config, task)
