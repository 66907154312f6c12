"""The canonical schema of VideoMAE, and the configuration fields that follow from shapes."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mae_convert.families.canonical import (
    block_shapes,
    common_geometry,
    linear_shapes,
    norm_shapes,
    task_of,
)
from mae_convert.layouts.transforms import Schema, Shape
from reference_models.configuration import VideoMAEConfig

SCALED = "encoder.blocks.0.attention.scale"


def schema(config: VideoMAEConfig, task: str) -> Schema:
    """Return the name and shape of every canonical tensor of a model, in canonical order.

    Args:
        config: the model's configuration.
        task: "pretrain" (encoder and decoder), "encoder", or "classify".
    """
    pooled = task != "pretrain" and config.use_mean_pooling
    shapes = dict(_encoder(config, with_norm=not pooled))
    if task == "pretrain":
        shapes |= dict(_decoder(config))
    if task == "classify":
        shapes |= dict(norm_shapes("head.norm", config.hidden_size)) if pooled else {}
        shapes |= dict(linear_shapes("head", config.hidden_size, config.num_labels))
    return shapes


def _encoder(config: VideoMAEConfig, *, with_norm: bool) -> Iterator[tuple[str, Shape]]:
    width = config.hidden_size
    yield "encoder.patch_embedding.weight", (width, config.num_channels, *config.patch_shape)
    yield "encoder.patch_embedding.bias", (width,)
    yield from _blocks("encoder", width, config.intermediate_size, config.num_hidden_layers, config)
    if with_norm:
        yield from norm_shapes("encoder.norm", width)


def _decoder(config: VideoMAEConfig) -> Iterator[tuple[str, Shape]]:
    width, hidden = config.decoder_hidden_size, config.decoder_intermediate_size
    yield from linear_shapes("decoder.embed", config.hidden_size, width, bias=False)
    yield "decoder.mask_token", (1, 1, width)
    yield from _blocks("decoder", width, hidden, config.decoder_num_hidden_layers, config)
    yield from norm_shapes("decoder.norm", width)
    yield from linear_shapes("decoder.prediction", width, config.patch_dim)


def _blocks(
    part: str, width: int, hidden: int, count: int, config: VideoMAEConfig
) -> Iterator[tuple[str, Shape]]:
    biases, gammas = "qv" if config.qkv_bias else "", bool(config.layer_scale_init_value)
    for index in range(count):
        name = f"{part}.blocks.{index}"
        yield from block_shapes(name, width, hidden, biases=biases, gammas=gammas)


def geometry(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the configuration fields that follow from the shapes of canonical tensors.

    Position embeddings are not stored, so image size and number of frames do not follow from
    shapes. The field ``layer_scale`` is True if the model has a layer scale, because the shapes do
    not determine the initial value of the scale.

    Raises:
        LayoutError: a tensor that determines a size is missing or has a wrong number of axes.
    """
    fields = common_geometry(shapes, 5) | {"layer_scale": SCALED in shapes}
    task = task_of(shapes)
    if task == "classify":
        fields["use_mean_pooling"] = "head.norm.weight" in shapes
    if task == "encoder":
        fields["use_mean_pooling"] = "encoder.norm.weight" not in shapes
    return fields


def expected(measured: Mapping[str, Any], task: str, names: Iterable[str]) -> Schema:  # noqa: ARG001
    """Return the canonical tensor names and shapes of a model with the sizes in ``measured``.

    ``names`` is not used: the sizes determine every tensor.
    """
    left_out = ("layer_scale", "num_attention_heads")
    fields = {name: value for name, value in measured.items() if name not in left_out}
    config = VideoMAEConfig(
        **fields,
        image_size=measured["patch_size"],
        num_frames=measured["tubelet_size"],
        num_attention_heads=1,
        decoder_num_attention_heads=1,
        layer_scale_init_value=float(measured["layer_scale"]),
    )
    return schema(config, task)
