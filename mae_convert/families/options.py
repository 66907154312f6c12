"""The options that say what a checkpoint's file does not: the one table of them.

The options of the command line, the fields of a sweep's plan and the arguments of Python are made
from it. An option gives a field of the model's configuration, which has the name that transformers
gives it; the option's own name is shorter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mae_convert.errors import Option
from mae_convert.families.option_values import (
    Choice,
    ImageSize,
    Kind,
    Number,
    Switch,
    Whole,
    Words,
    size_of_image,
)

POOLING = ("token", "avg")


@dataclass(frozen=True)
class CheckpointOption:
    """An option about a checkpoint."""

    name: str
    """The neutral name; the field's name is accepted in Python too."""

    kind: Kind
    """The kind of its values."""

    help: str
    """Its description in help texts."""

    metavar: str = ""
    """The placeholder of a value in help texts, if it is not that of the kind."""

    tasks: tuple[str, ...] = ("pretrain", "encoder", "classify")
    """The tasks for which it has an effect."""


def _option(name: str, kind: Kind, help: str, **more: Any) -> Any:
    return field(default=None, metadata={"option": CheckpointOption(name, kind, help, **more)})


@dataclass(frozen=True)
class Flags:
    """What the user specifies of a checkpoint's configuration; None where nothing is."""

    num_attention_heads: int | None = _option(
        "num_heads", Whole(), "Number of attention heads of the encoder."
    )
    decoder_num_attention_heads: int | None = _option(
        "decoder_num_heads",
        Whole(),
        "Number of attention heads of the decoder.",
        tasks=("pretrain",),
    )
    layer_norm_eps: float | None = _option(
        "layer_norm_eps", Number(), "Epsilon of the layer norms."
    )
    decoder_layer_norm_eps: float | None = _option(
        "decoder_layer_norm_eps",
        Number(),
        "Epsilon of the decoder's layer norms, if it differs from the encoder's.",
        tasks=("pretrain",),
    )
    global_pool: str | None = _option(
        "global_pool",
        Choice(POOLING),
        "Pooling of a classifier: the class token, or the mean of the patch tokens.",
        tasks=("classify",),
    )
    norm_pix_loss: bool | None = _option(
        "norm_pix_loss",
        Switch(),
        "Whether the model was trained to predict pixels normalised per patch.",
        tasks=("pretrain",),
    )
    mask_ratio: float | None = _option(
        "mask_ratio",
        Number(0, 1),
        "Fraction of the patches that is removed.",
        tasks=("pretrain", "encoder"),
    )
    image_size: int | tuple[int, int] | None = _option(
        "source_image_size",
        ImageSize(),
        "Image size of the stored position embeddings, if the grid of patches is not square.",
    )
    num_frames: int | None = _option(
        "source_num_frames",
        Whole(),
        "Frames of a video that the model takes.",
    )

    def given(self) -> dict[str, Any]:
        """Return the fields that are specified."""
        return {name: value for name, value in vars(self).items() if value is not None}


STATE_KEY = CheckpointOption(
    "state_key",
    Words(),
    "Key of the weights, or the prefix of their names, if a file contains several models (teacher, "
    "model_ema).",
    metavar="KEY",
)
# By the field of `Flags` that each gives.
OF_FIELDS: Mapping[str, CheckpointOption] = {f.name: f.metadata["option"] for f in fields(Flags)}
# The names of arguments in Python: those of the options, and those of the fields; without
# image_size and num_frames, which there are those that a model is made for.
ARGUMENTS: Mapping[str, str] = {
    name: option.name
    for field_name, option in OF_FIELDS.items()
    for name in (option.name, field_name)
    if name not in ("image_size", "num_frames")
}
CHECKPOINT_OPTIONS: tuple[CheckpointOption, ...] = (STATE_KEY, *OF_FIELDS.values())


def named(name: str, value: Any = None, placeholder: str = "") -> Option:
    """Return the option that gives a field of the configuration, as a part of a message."""
    return Option(OF_FIELDS[name].name, value, placeholder)


def flags_of(values: Mapping[str, Any]) -> Flags:
    """Return the flags that options give.

    Args:
        values: values by the option's name; what is None or not about a configuration is left out.

    Raises:
        ConfigurationError: an image size is not a size.
    """
    given = {
        field_name: values[option.name]
        for field_name, option in OF_FIELDS.items()
        if values.get(option.name) is not None
    }
    if "image_size" in given:
        height, width = size_of_image(given["image_size"], "source_image_size") or (0, 0)
        given["image_size"] = height if height == width else (height, width)
    return Flags(**given)


def flags_of_arguments(arguments: Mapping[str, Any], function: str) -> Flags:
    """Return the flags that a Python program gives, by the names of options or of fields.

    Raises:
        TypeError: there is no option of such a name, or it is given by both of its names.
    """
    if unknown := sorted(arguments.keys() - ARGUMENTS):
        names = ", ".join(option.name for option in OF_FIELDS.values())
        raise TypeError(
            f"{function} has no argument {unknown[0]!r}; what can be specified is {names}"
        )
    values: dict[str, Any] = {}
    for accepted, value in arguments.items():
        name = ARGUMENTS[accepted]
        if values.get(name) is not None and value is not None:
            raise TypeError(f"{function} got {name} twice, the second time as {accepted}")
        values[name] = value
    return flags_of(values)
