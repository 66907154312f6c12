"""The canonical schema of MAE-ST, and the configuration fields that follow from shapes."""

from collections.abc import Iterator, Mapping
from typing import Any

from mae_convert.errors import LayoutError
from mae_convert.families.canonical import (
    block_shapes,
    common_geometry,
    dimension,
    linear_shapes,
    norm_shapes,
    task_of,
)
from mae_convert.layouts.transforms import Schema, Shape
from reference_models.configuration import MAESTConfig

POSITIONS = ("spatial", "temporal", "class", "joint")


def schema(config: MAESTConfig, task: str) -> Schema:
    """Return the name and shape of every canonical tensor of a model, in canonical order."""
    width = config.hidden_size
    shapes = dict(_tokens("encoder", width, config))
    shapes["encoder.patch_embedding.weight"] = (width, config.num_channels, *config.patch_shape)
    shapes["encoder.patch_embedding.bias"] = (width,)
    shapes |= dict(
        _blocks("encoder", width, config.intermediate_size, config.num_hidden_layers, config)
    )
    # A classifier has its norm after the mean of the tokens.
    shapes |= dict(norm_shapes("head.norm" if task == "classify" else "encoder.norm", width))
    if task == "pretrain":
        shapes |= dict(_decoder(config))
    if task == "classify":
        shapes |= dict(linear_shapes("head", width, config.num_labels))
    return shapes


def _tokens(part: str, width: int, config: MAESTConfig) -> Iterator[tuple[str, Shape]]:
    time, rows, columns = config.grid_shape
    if config.cls_embed:
        yield f"{part}.cls_token", (1, 1, width)
    if not config.sep_pos_embed:
        length = config.class_tokens + config.num_patches
        yield f"{part}.joint_position_embedding", (1, length, width)
        return
    yield f"{part}.spatial_position_embedding", (1, rows * columns, width)
    yield f"{part}.temporal_position_embedding", (1, time, width)
    if config.cls_embed:
        yield f"{part}.class_position_embedding", (1, 1, width)


def _decoder(config: MAESTConfig) -> Iterator[tuple[str, Shape]]:
    width, hidden = config.decoder_hidden_size, config.decoder_intermediate_size
    yield from linear_shapes("decoder.embed", config.hidden_size, width)
    yield "decoder.mask_token", (1, 1, width)
    yield from _tokens("decoder", width, config)
    yield from _blocks("decoder", width, hidden, config.decoder_num_hidden_layers, config)
    yield from norm_shapes("decoder.norm", width)
    yield from linear_shapes("decoder.prediction", width, config.prediction.patch_dim)


def _blocks(
    part: str, width: int, hidden: int, count: int, config: MAESTConfig
) -> Iterator[tuple[str, Shape]]:
    biases = "qkv" if config.qkv_bias else ""
    for index in range(count):
        yield from block_shapes(f"{part}.blocks.{index}", width, hidden, biases=biases)


def geometry(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the configuration fields that follow from the shapes of canonical tensors.

    In addition, the result contains ``spatial_patches``, the number of patches of a time step (for
    separate positions), or ``num_patches``, the number of all patches (for joint positions), and
    ``predicted_length``, the number of predicted frames of a patch.

    Raises:
        LayoutError: a tensor that determines a size is missing or has a wrong number of axes.
    """
    fields = common_geometry(shapes, 5)
    with_class = "encoder.cls_token" in shapes
    separate = "encoder.spatial_position_embedding" in shapes
    fields |= {"cls_embed": with_class, "sep_pos_embed": separate}
    if separate:
        fields["spatial_patches"] = dimension(
            shapes, "encoder.spatial_position_embedding", 3, axis=1
        )
        if fields["spatial_patches"] == 1 and not with_class:
            # A model with a class token and joint positions has the same shapes, and Keras files
            # have no names that distinguish the two models.
            raise LayoutError("a model with one patch at each time step is not supported")
        steps = dimension(shapes, "encoder.temporal_position_embedding", 3, axis=1)
        fields["num_frames"] = steps * fields["tubelet_size"]
    else:
        length = dimension(shapes, "encoder.joint_position_embedding", 3, axis=1)
        fields["num_patches"] = length - with_class
    if task_of(shapes) == "pretrain":
        outputs = dimension(shapes, "decoder.prediction.weight", 2, axis=0)
        _, channels, _, *patch = shapes["encoder.patch_embedding.weight"]
        fields["predicted_length"] = outputs // (patch[0] * patch[1] * channels)
    return fields


def expected(measured: Mapping[str, Any], task: str) -> Schema:
    """Return the canonical tensor names and shapes of a model with the sizes in ``measured``."""
    left_out = ("spatial_patches", "num_patches", "predicted_length", "num_attention_heads")
    fields = {name: value for name, value in measured.items() if name not in left_out}
    patch, tubelet = measured["patch_size"], measured["tubelet_size"]
    height, width = (patch, patch) if isinstance(patch, int) else patch
    frames = measured.get("num_frames", tubelet)
    spatial_patches = measured.get("spatial_patches") or measured["num_patches"]
    predicted = measured.get("predicted_length", tubelet) * frames // tubelet
    config = MAESTConfig(
        **{
            **fields,
            "num_frames": frames,
            "image_size": (spatial_patches * height, width),
            "pred_t_dim": predicted,
            "num_attention_heads": 1,
            "decoder_num_attention_heads": 1,
        }
    )
    return schema(config, task)
