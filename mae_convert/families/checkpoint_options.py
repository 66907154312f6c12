"""The table of options for configuration fields that a checkpoint does not store.

The options of the command line, the fields of a sweep's plan and the arguments in Python are
generated from this table. An option sets a field of the model's configuration. Fields have the same
names as in transformers; some options have shorter names.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol

from mae_convert.errors import ConfigurationError, Option

LARGEST_COUNT = 1_000_000  # a larger number is a typing error and would exhaust the memory
SIDE = re.compile("0*[1-9][0-9]{0,5}")
BYTES = re.compile(r"([1-9][0-9]{0,14})([KMGT]?)(i?)B", re.IGNORECASE)
TRUE = ("true", "t", "yes", "y", "on", "1")
FALSE = ("false", "f", "no", "n", "off", "0")


class Kind(Protocol):
    """The type of the values of an option."""

    @property
    def metavar(self) -> str:
        """The placeholder for a value in help texts."""

    @property
    def expected(self) -> str:
        """A description of the valid values, for use in messages."""

    def read(self, text: str) -> Any:
        """Return the value that a text represents.

        Raises:
            ValueError: the text does not represent a value of this type; the message states why.
        """


@dataclass(frozen=True)
class Words:
    """The type of options whose value is any text."""

    metavar: str = "TEXT"
    expected: str = "a text"

    def read(self, text: str) -> str:
        """Return the text."""
        return text


class Switch(NamedTuple):
    """The type of options whose value is True or False."""

    metavar: str = "BOOLEAN"
    expected: str = "true or false"

    def read(self, text: str) -> bool:
        """Return the value of a text such as "true", "yes" or "1"."""
        word = text.strip().lower()
        if word not in (*TRUE, *FALSE):
            raise ValueError(f"{text!r} is not {self.expected}")
        return word in TRUE


@dataclass(frozen=True)
class Choice:
    """The type of options whose value is one of several names, or a synonym of a name."""

    choices: tuple[str, ...]
    synonyms: Mapping[str, str] = field(default_factory=dict)

    @property
    def metavar(self) -> str:
        """The names, separated by "|", in one pair of brackets: "[a|b]"."""
        return f"[{'|'.join(self.choices)}]"

    @property
    def expected(self) -> str:
        """The names, separated by commas."""
        return ", ".join(self.choices)

    def read(self, text: str) -> str:
        """Return the name that the text is, or of which it is a synonym.

        Raises:
            ValueError: the text is neither a name nor a synonym of a name.
        """
        name = self.synonyms.get(text, text)
        if name not in self.choices:
            raise ValueError(f"{text!r} is not one of {self.expected}")
        return name


class Whole(NamedTuple):
    """A whole number between two limits."""

    least: int = 1
    most: int | None = LARGEST_COUNT
    metavar: str = "INTEGER"
    expected: str = "a whole number"

    def read(self, text: str) -> int:
        """Return the number; raise ValueError if it is not whole or not between the limits."""
        try:
            number = int(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {self.expected}") from None
        if number < self.least:
            raise ValueError(f"{number} is less than {self.least}")
        if self.most is not None and number > self.most:
            raise ValueError(f"{number} is more than {self.most}")
        return number


class Number(NamedTuple):
    """A finite number in a half-open interval: at least `least`, and less than `below`."""

    least: float = -math.inf
    below: float = math.inf
    metavar: str = "FLOAT"
    expected: str = "a number"

    def read(self, text: str) -> float:
        """Return the number; raise ValueError if it is not finite or not in the interval."""
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{text!r} is not {self.expected}")
        if number < self.least:
            raise ValueError(f"{number:g} is less than {self.least:g}")
        if number >= self.below:
            raise ValueError(f"{number:g} is not less than {self.below:g}")
        return number


class ImageSize(NamedTuple):
    """Height and width of an image in pixels: one number for a square, or HxW."""

    metavar: str = "HxW"
    expected: str = "224 or 224x192 (height x width)"

    def read(self, text: str) -> tuple[int, int]:
        """Return (height, width)."""
        sides = text.lower().split("x")
        if len(sides) > 2 or not all(SIDE.fullmatch(side) for side in sides):
            raise ValueError(f"{text!r} is not a size; write {self.expected}")
        return int(sides[0]), int(sides[-1])


class ByteSize(NamedTuple):
    """A number of bytes, such as 500MB, 2GB or 2GiB."""

    metavar: str = "SIZE"
    expected: str = "500MB or 2GB"

    def read(self, text: str) -> int:
        """Return the number of bytes; raise ValueError if the text is not a size."""
        match = BYTES.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a size; write {self.expected}")
        power = " KMGT".index(match[2].upper() or " ")
        return int(match[1]) * (1024 if match[3] else 1000) ** power


def size_of_image(size: Any, name: str = "image_size") -> tuple[int, int] | None:
    """Return (height, width) of a size, which is a number, a pair or a text such as 224x192.

    Args:
        size: the size, or None, which is returned unchanged.
        name: the name of the argument in the error message.

    Raises:
        ConfigurationError: the value is not a size.
    """
    if size is None:
        return None
    sides = size.lower().split("x") if isinstance(size, str) else size
    pair = list(sides) if isinstance(sides, list | tuple) else [sides]
    pixels = [_pixels(side) for side in pair]
    if len(pixels) not in (1, 2) or not all(pixels):
        raise ConfigurationError(
            f"{name} cannot be {size!r}",
            hint="pass one number of pixels, or (height, width)",
            option=name,
        )
    return pixels[0], pixels[-1]


def _pixels(side: Any) -> int:
    """Return a number of pixels, or 0 if the value is not a number of pixels."""
    if isinstance(side, str):
        return int(side) if SIDE.fullmatch(side.strip()) else 0
    try:
        number = 0 if isinstance(side, bool) else int(side)
    except (TypeError, ValueError, OverflowError):
        return 0
    return number if number == side and number > 0 else 0


def name_of_dtype(dtype: Any, names: tuple[str, ...]) -> str | None:
    """Return the name of a dtype of PyTorch, NumPy or TensorFlow; a name is returned unchanged.

    The result is None if `dtype` is None.

    Raises:
        ConfigurationError: the name is not one of `names`.
    """
    if dtype is None:
        return None
    name = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    if name not in names:
        raise ConfigurationError(
            f"unknown dtype {name!r}", hint=f"choose {', '.join(names)}", option="dtype"
        )
    return name


POOLING = ("token", "avg")


class CheckpointOption(NamedTuple):
    """An option for a field that a checkpoint does not store."""

    name: str
    """The name of the option, such as ``num_heads`` (on the command line, ``--num-heads``). In
    Python, the name of the field, such as ``num_attention_heads``, is accepted too."""

    kind: Kind
    """The type of the option's values."""

    help: str
    """The description of the option in help texts."""

    metavar: str = ""
    """The placeholder for a value in help texts, if it differs from `Kind.metavar`."""

    tasks: tuple[str, ...] = ("pretrain", "encoder", "classify")
    """The tasks for which the option has an effect."""


def _option(name: str, kind: Kind, help: str, **more: Any) -> Any:
    return field(default=None, metadata={"option": CheckpointOption(name, kind, help, **more)})


@dataclass(frozen=True)
class Flags:
    """Configuration fields that the user specified; None for fields that were not specified."""

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
        "Whether the model was trained to predict pixels normalized per patch.",
        tasks=("pretrain",),
    )
    mask_ratio: float | None = _option(
        "mask_ratio",
        Number(0, 1),
        "Fraction of the patches that are removed from the encoder's input.",
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
        "Number of frames of the model's input.",
    )

    def given(self) -> dict[str, Any]:
        """Return a dictionary of the fields that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}


STATE_KEY = CheckpointOption(
    "state_key",
    Words(),
    "Key of the weights, or the prefix of their names, if a file contains several models (teacher, "
    "model_ema).",
    metavar="KEY",
)
# The options by the names of their fields in `Flags`.
OF_FIELDS: Mapping[str, CheckpointOption] = {f.name: f.metadata["option"] for f in fields(Flags)}
# The names of arguments in Python: names of options and names of fields, except image_size and
# num_frames, which are arguments for the image size and the frames of the requested model.
ARGUMENTS: Mapping[str, str] = {
    name: option.name
    for field_name, option in OF_FIELDS.items()
    for name in (option.name, field_name)
    if name not in ("image_size", "num_frames")
}
CHECKPOINT_OPTIONS: tuple[CheckpointOption, ...] = (STATE_KEY, *OF_FIELDS.values())


def named(name: str, value: Any = None, placeholder: str = "") -> Option:
    """Return the option that sets a field of the configuration, as a part of a message.

    Args:
        name: the name of the field.
        value: the value that the message proposes or refuses; None to name the option alone.
        placeholder: text that is shown instead of a value, such as ``HxW``.
    """
    return Option(OF_FIELDS[name].name, value, placeholder)


def flags_of(values: Mapping[str, Any]) -> Flags:
    """Return the configuration fields that the values of options specify, as `Flags`.

    Args:
        values: the values by option name; None values and options for other purposes are ignored.

    Raises:
        ConfigurationError: the value of an image size is not a size.
    """
    fields = {
        field_name: values[option.name]
        for field_name, option in OF_FIELDS.items()
        if values.get(option.name) is not None
    }
    if "image_size" in fields:
        height, width = size_of_image(fields["image_size"], "source_image_size") or (0, 0)
        fields["image_size"] = height if height == width else (height, width)
    return Flags(**fields)


def flags_of_arguments(arguments: Mapping[str, Any], function: str) -> Flags:
    """Return the configuration fields that keyword arguments specify, as `Flags`.

    Args:
        arguments: the values; each key is the name of an option or of a field.
        function: the name of the function, for messages.

    Raises:
        TypeError: an argument has another name, or two arguments specify the same option.
        ConfigurationError: the image size is not a number or a pair of numbers.
    """
    if unknown := sorted(arguments.keys() - ARGUMENTS):
        names = ", ".join(option.name for option in OF_FIELDS.values())
        raise TypeError(f"{function} has no argument {unknown[0]!r}; the arguments are {names}")
    values: dict[str, Any] = {}
    for accepted, value in arguments.items():
        name = ARGUMENTS[accepted]
        if values.get(name) is not None and value is not None:
            raise TypeError(f"{function} got {name} twice: also as the argument {accepted}")
        values[name] = value
    return flags_of(values)
