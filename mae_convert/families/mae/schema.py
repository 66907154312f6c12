"""The canonical naming: what every layout is translated to and from.

Query, key and value are apart, matrices have PyTorch's orientation ``(out, in)``, convolution
kernels are ``(out, channels, height, width)``, and no dtype is changed. A schema is a mapping from
canonical names to shapes; it is a function of the configuration and the task alone.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mae_convert.errors import ConfigurationError, LayoutError
from mae_convert.layouts.schema import Schema, Shape
from reference_models.configuration import ViTMAEConfig

# A linear probe's batch norm before its head: read, and folded into the head (see ``folding``).
BATCH_NORM = "head.batch_norm."


TASKS = ("pretrain", "encoder", "classify")


def schema(config: ViTMAEConfig, task: str) -> Schema:
    """Return the name and shape of every canonical tensor of a model, in canonical order.

    Args:
        config: the model's configuration.
        task: "pretrain" (encoder and decoder), "encoder", or "classify".
    """
    pooled = task == "classify" and config.normalises_mean
    shapes = dict(_encoder(config, with_norm=not pooled))
    if task == "pretrain":
        shapes |= dict(_decoder(config))
    if task == "classify":
        shapes |= dict(_head(config, with_norm=pooled))
    return shapes


def batch_norm_schema(width: int) -> Schema:
    """Return the tensors that a linear probe has besides those of a classifier."""
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
        yield from _block(
            f"encoder.blocks.{index}", width, config.intermediate_size, config.qkv_bias
        )
    if with_norm:
        yield from _norm("encoder.norm", width)


def _decoder(config: ViTMAEConfig) -> Iterator[tuple[str, Shape]]:
    width = config.decoder_hidden_size
    yield from _linear("decoder.embed", config.hidden_size, width)
    yield "decoder.mask_token", (1, 1, width)
    yield "decoder.position_embedding", (1, 1 + config.num_patches, width)
    for index in range(config.decoder_num_hidden_layers):
        yield from _block(
            f"decoder.blocks.{index}", width, config.decoder_intermediate_size, config.qkv_bias
        )
    yield from _norm("decoder.norm", width)
    yield from _linear("decoder.prediction", width, config.patch_dim)


def _head(config: ViTMAEConfig, *, with_norm: bool) -> Iterator[tuple[str, Shape]]:
    if with_norm:
        yield from _norm("head.norm", config.hidden_size)
    yield from _linear("head", config.hidden_size, config.num_labels)


def _block(name: str, width: int, hidden: int, qkv_bias: bool) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{name}.norm1", width)
    for part in ("q", "k", "v"):
        yield from _linear(f"{name}.attention.{part}", width, width, bias=qkv_bias)
    yield from _linear(f"{name}.attention.output", width, width)
    yield from _norm(f"{name}.norm2", width)
    yield from _linear(f"{name}.mlp.fc1", width, hidden)
    yield from _linear(f"{name}.mlp.fc2", hidden, width)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _linear(
    name: str, inputs: int, outputs: int, *, bias: bool = True
) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def task_of(names: Mapping[str, Any]) -> str:
    """Return the task that a set of canonical names serves."""
    if any(name.startswith("decoder.") for name in names):
        return "pretrain"
    return "classify" if any(name.startswith("head.") for name in names) else "encoder"


def geometry(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the configuration fields that the shapes of canonical tensors tell.

    ``image_size`` is not among them: shapes tell the number of patches only, given as
    ``num_patches``.

    Raises:
        LayoutError: a tensor that gives a width or a count is missing or has an impossible rank.
    """
    width = _dimension(shapes, "encoder.cls_token", 3, axis=2)
    _dimension(shapes, "encoder.patch_embedding.weight", 4, axis=0)
    channels, *patch = shapes["encoder.patch_embedding.weight"][1:]
    fields: dict[str, Any] = {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch[0] if patch[0] == patch[1] else tuple(patch),
        "num_patches": _dimension(shapes, "encoder.position_embedding", 3, axis=1) - 1,
        "num_hidden_layers": depth(shapes, "encoder.blocks."),
        "intermediate_size": _dimension(shapes, "encoder.blocks.0.mlp.fc1.weight", 2, axis=0),
        "qkv_bias": any(name.endswith(".attention.q.bias") for name in shapes),
    }
    task = task_of(shapes)
    if task == "pretrain":
        fields["decoder_hidden_size"] = _dimension(shapes, "decoder.mask_token", 3, axis=2)
        fields["decoder_num_hidden_layers"] = depth(shapes, "decoder.blocks.")
        fields["decoder_intermediate_size"] = _dimension(
            shapes, "decoder.blocks.0.mlp.fc1.weight", 2, axis=0
        )
    if task == "classify":
        fields["num_labels"] = _dimension(shapes, "head.weight", 2, axis=0)
        fields["global_pool"] = "avg" if "head.norm.weight" in shapes else "token"
    return fields


def _dimension(shapes: Mapping[str, Shape], name: str, rank: int, *, axis: int) -> int:
    shape = shapes.get(name)
    if shape is None:
        raise LayoutError(f"the tensor for {name} is missing, so the model's size is unknown")
    if len(shape) != rank or 0 in shape:
        raise LayoutError(f"the tensor for {name} has shape {shape}; {rank} dimensions are needed")
    return shape[axis]


def depth(names: Mapping[str, Any], prefix: str) -> int:
    """Return the number of blocks below a prefix: one more than the highest index.

    Raises:
        LayoutError: that is more than there are names, so that most blocks are missing.
    """
    index = re.compile(re.escape(prefix) + r"(\d+)\.")
    found = [int(match[1]) for name in names if (match := index.match(name))]
    highest = max(found, default=-1)
    if highest >= len(names):
        raise LayoutError(f"there is a block {highest} among {len(names)} tensors")
    return highest + 1


def square_grid(count: int) -> tuple[int, int] | None:
    """Return the square grid of ``count`` patches, or None when the count is no square."""
    side = math.isqrt(count)
    return (side, side) if side * side == count else None


def check_task(task: str, available: str) -> None:
    """Raise ConfigurationError unless a model of task ``available`` can serve ``task``."""
    if task not in TASKS:
        raise ConfigurationError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    if task in (available, "encoder"):
        return
    if task == "pretrain":
        raise ConfigurationError(
            f"there is no decoder in this checkpoint (its task is {available}), so it cannot become"
            " a pretrain model; full checkpoints with the decoder are the files named"
            " mae_visualize_vit_*.pth or *_full.pth at https://github.com/facebookresearch/mae and"
            " facebook/vit-mae-* on the Hub; or pass --task encoder"
        )
    raise ConfigurationError(
        f"there is no classifier head in this checkpoint (its task is {available}); fine-tune"
        " first, or pass --task encoder"
    )
