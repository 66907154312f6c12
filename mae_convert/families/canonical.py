"""The canonical tensor names that all families have in common.

Query, key and value are separate, matrices have PyTorch's orientation ``(out, in)``, convolution
kernels are ``(out, channels, [frames,] height, width)``, and dtypes are never changed. A schema is
a mapping from canonical names to shapes; it is a function of configuration and task only.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mae_convert.errors import ConfigurationError, LayoutError, Option
from mae_convert.layouts.transforms import Shape

TASKS = ("pretrain", "encoder", "classify")
# The batch norm before the head of a linear probe; it is folded into the head when it is read.
BATCH_NORM = "head.batch_norm."

Rows = Iterator[tuple[str, Shape]]


def block_shapes(
    name: str, width: int, hidden: int, *, biases: str = "qkv", gammas: bool = False
) -> Rows:
    """Yield names and shapes of the tensors of a transformer block.

    Args:
        name: the prefix of the names.
        width: the width of the tokens.
        hidden: the width of the hidden layer of the MLP.
        biases: which of query, key and value have a bias, as "qkv" or "qv".
        gammas: whether attention and MLP have a layer scale (``gamma_1``, ``gamma_2``).
    """
    yield from norm_shapes(f"{name}.norm1", width)
    for part in ("q", "k", "v"):
        yield from linear_shapes(f"{name}.attention.{part}", width, width, bias=part in biases)
    yield from linear_shapes(f"{name}.attention.output", width, width)
    yield from norm_shapes(f"{name}.norm2", width)
    yield from linear_shapes(f"{name}.mlp.fc1", width, hidden)
    yield from linear_shapes(f"{name}.mlp.fc2", hidden, width)
    if gammas:
        yield f"{name}.attention.scale", (width,)
        yield f"{name}.mlp.scale", (width,)


def norm_shapes(name: str, width: int) -> Rows:
    """Yield the names and shapes of the tensors of a layer normalization."""
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def linear_shapes(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Rows:
    """Yield the names and shapes of the tensors of a linear layer."""
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def task_of(names: Mapping[str, Any]) -> str:
    """Return the task of a set of canonical names."""
    if any(name.startswith("decoder.") for name in names):
        return "pretrain"
    return "classify" if any(name.startswith("head.") for name in names) else "encoder"


def dimension(shapes: Mapping[str, Shape], name: str, rank: int, *, axis: int) -> int:
    """Return the size of one axis of a canonical tensor.

    Raises:
        LayoutError: the tensor is missing, does not have `rank` dimensions, or has no elements.
    """
    shape = shapes.get(name)
    if shape is None:
        raise LayoutError(
            f"the tensor for {name} is missing, so the model's size cannot be determined",
            hint="save the checkpoint again with all tensors of the model",
        )
    if len(shape) != rank or 0 in shape:
        raise LayoutError(f"the tensor for {name} has shape {shape}; {rank} dimensions are needed")
    return shape[axis]


def depth(names: Mapping[str, Any], prefix: str) -> int:
    """Return the number of blocks under a prefix: one more than the highest index.

    Raises:
        LayoutError: the depth is larger than the number of names, so blocks are missing.
    """
    index = re.compile(re.escape(prefix) + r"(\d+)\.")
    indices = [int(match[1]) for name in names if (match := index.match(name))]
    highest = max(indices, default=-1)
    if highest >= len(names):
        raise LayoutError(f"block {highest} is present, but there are only {len(names)} tensors")
    return highest + 1


def square_grid(count: int) -> tuple[int, int] | None:
    """Return (rows, columns) of a square grid of ``count`` patches, or None if there is none."""
    side = math.isqrt(count)
    return (side, side) if side * side == count else None


def check_task(task: str, available: str, *, whole: str = "", heads: bool = True) -> None:
    """Check that a checkpoint contains a model for a requested task.

    Args:
        task: the requested task.
        available: the task of the checkpoint.
        whole: a clause for the error message: which official checkpoints of the family contain a
            decoder. "" for no clause.
        heads: whether the family has classifiers.

    Raises:
        ConfigurationError: the checkpoint has no decoder or head, or the task is unknown.
    """
    if task not in TASKS:
        raise ConfigurationError(f"unknown task {task!r}", hint=f"the tasks are {', '.join(TASKS)}")
    if task in (available, "encoder"):
        return
    if task == "pretrain":
        where = f"; {whole}" if whole else ""
        raise ConfigurationError(
            f"this checkpoint has no decoder (its task is {available}), so it cannot be converted "
            f"to a pre-training model{where}",
            hint=(*(("or ",) if whole else ()), "pass ", Option("task", "encoder")),
        )
    if not heads:
        raise ConfigurationError(
            "models of this family have no classifier head",
            hint=("pass ", Option("task", "encoder"), " for the encoder alone"),
        )
    raise ConfigurationError(
        f"there is no classifier head in this checkpoint (its task is {available})",
        hint=(
            *(
                "pass ",
                Option("task", "encoder"),
                ", fine-tune it first, or convert it with a new ",
            ),
            *("head: ", Option("num_labels", placeholder="N"), " without ", Option("task")),
        ),
    )


def common_geometry(shapes: Mapping[str, Shape], rank: int) -> dict[str, Any]:
    """Return the configuration fields that several families derive from shapes in the same way.

    Args:
        shapes: the shapes of canonical tensors.
        rank: the number of dimensions of the patch embedding's weight: 4 for images, 5 for videos.

    Raises:
        LayoutError: a tensor that determines a size is missing or has a wrong number of axes.
    """
    kernel = "encoder.patch_embedding.weight"
    width = dimension(shapes, kernel, rank, axis=0)
    channels, *frames, patch_height, patch_width = shapes[kernel][1:]
    square = patch_height == patch_width
    fields: dict[str, Any] = {
        "hidden_size": width,
        "num_channels": channels,
        **({"tubelet_size": frames[0]} if frames else {}),
        "patch_size": patch_height if square else (patch_height, patch_width),
        "num_hidden_layers": depth(shapes, "encoder.blocks."),
        "intermediate_size": dimension(shapes, "encoder.blocks.0.mlp.fc1.weight", 2, axis=0),
        "qkv_bias": any(name.endswith(".attention.q.bias") for name in shapes),
    }
    task = task_of(shapes)
    if task == "pretrain":
        fields["decoder_hidden_size"] = dimension(shapes, "decoder.mask_token", 3, axis=2)
        fields["decoder_num_hidden_layers"] = depth(shapes, "decoder.blocks.")
        hidden = dimension(shapes, "decoder.blocks.0.mlp.fc1.weight", 2, axis=0)
        fields["decoder_intermediate_size"] = hidden
    if task == "classify":
        fields["num_labels"] = dimension(shapes, "head.weight", 2, axis=0)
    return fields
