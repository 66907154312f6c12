"""The canonical schema of the image MAE, and the configuration fields that follow from shapes."""

from collections.abc import Iterator, Mapping
from typing import Any

from mae_convert.families.canonical import (
    BATCH_NORM,
    block_shapes,
    common_geometry,
    dimension,
    linear_shapes,
    norm_shapes,
    task_of,
)
from mae_convert.layouts.transforms import Schema, Shape
from reference_models.configuration import ViTMAEConfig


def schema(config: ViTMAEConfig, task: str) -> Schema:
    """Return the name and shape of every canonical tensor of a model, in canonical order.

    Args:
        config: the model's configuration.
        task: "pretrain" (encoder and decoder), "encoder", or "classify".
    """
    pooled = task == "classify" and config.normalizes_mean
    shapes = dict(_encoder(config, with_norm=not pooled))
    if task == "pretrain":
        shapes |= dict(_decoder(config))
    if task == "classify":
        shapes |= dict(_head(config, with_norm=pooled))
    return shapes


def batch_norm_schema(width: int) -> Schema:
    """Return the name and shape of each tensor of the batch norm in a linear probe."""
    return {
        f"{BATCH_NORM}mean": (width,),
        f"{BATCH_NORM}variance": (width,),
        f"{BATCH_NORM}count": (),
    }


def _encoder(config: ViTMAEConfig, *, with_norm: bool) -> Iterator[tuple[str, Shape]]:
    width = config.hidden_size
    yield "encoder.cls_token", (1, 1, width)
    yield "encoder.position_embedding", (1, 1 + config.num_patches, width)
    yield "encoder.patch_embedding.weight", (width, config.num_channels, *config.patch_hw)
    yield "encoder.patch_embedding.bias", (width,)
    for index in range(config.num_hidden_layers):
        yield from block_shapes(
            f"encoder.blocks.{index}", width, config.intermediate_size, biases=_biases(config)
        )
    if with_norm:
        yield from norm_shapes("encoder.norm", width)


def _biases(config: ViTMAEConfig) -> str:
    return "qkv" if config.qkv_bias else ""


def _decoder(config: ViTMAEConfig) -> Iterator[tuple[str, Shape]]:
    width = config.decoder_hidden_size
    yield from linear_shapes("decoder.embed", config.hidden_size, width)
    yield "decoder.mask_token", (1, 1, width)
    yield "decoder.position_embedding", (1, 1 + config.num_patches, width)
    for index in range(config.decoder_num_hidden_layers):
        yield from block_shapes(
            f"decoder.blocks.{index}",
            width,
            config.decoder_intermediate_size,
            biases=_biases(config),
        )
    yield from norm_shapes("decoder.norm", width)
    yield from linear_shapes("decoder.prediction", width, config.patch_dim)


def _head(config: ViTMAEConfig, *, with_norm: bool) -> Iterator[tuple[str, Shape]]:
    if with_norm:
        yield from norm_shapes("head.norm", config.hidden_size)
    yield from linear_shapes("head", config.hidden_size, config.num_labels)


def geometry(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the configuration fields that follow from the shapes of canonical tensors.

    Shapes determine the number of patches, ``num_patches``, but not ``image_size``.

    Raises:
        LayoutError: a tensor that determines a size is missing or has a wrong number of axes.
    """
    width = dimension(shapes, "encoder.cls_token", 3, axis=2)
    positions = dimension(shapes, "encoder.position_embedding", 3, axis=1)
    fields = common_geometry(shapes, 4) | {"hidden_size": width, "num_patches": positions - 1}
    if task_of(shapes) == "classify":
        fields["global_pool"] = "avg" if "head.norm.weight" in shapes else "token"
    return fields
