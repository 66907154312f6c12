"""What a Python program asks for in several forms, and sentences in which it recognises itself."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mae_convert.errors import ConfigurationError, MaeConvertError

# The arguments of Python that are options of the command line, and whether they are switches.
ARGUMENTS = {
    "--num-heads": "num_attention_heads",
    "--decoder-num-heads": "decoder_num_attention_heads",
    "--layer-norm-eps": "layer_norm_eps",
    "--decoder-layer-norm-eps": "decoder_layer_norm_eps",
    "--global-pool": "global_pool",
    "--norm-pix-loss": "norm_pix_loss",
    "--mask-ratio": "mask_ratio",
    "--source-image-size": "source_image_size",
    "--image-size": "image_size",
    "--num-labels": "num_labels",
    "--state-key": "state_key",
    "--task": "task",
    "--dtype": "dtype",
    "--device": "device",
    "--max-shard-size": "max_shard_size",
    "--against": "against",
    "--time-limit": "time_limit",
    "--overwrite": "overwrite=True",
    "--unmasked": "unmasked=True",
}
OPTION = re.compile(r"(?<![(\w-])(--[a-z-]+)( (?:encoder|pretrain|classify|float\d\d|cpu|cuda)\b)?")
SIDE = re.compile(r"[1-9]\d*")


@contextmanager
def naming_arguments() -> Iterator[None]:
    """Name the arguments of Python in what is refused, beside the options of the command line."""
    try:
        yield
    except MaeConvertError as error:
        error.args = (OPTION.sub(_both, str(error)),)
        raise


def _both(option: re.Match[str]) -> str:
    argument, value = ARGUMENTS.get(option[1]), option[2]
    if argument is None:
        return option[0]
    given = f'{argument}="{value.strip()}"' if value else argument
    return f"{given} ({option[0]})"


def dtype_named(dtype: Any, known: tuple[str, ...]) -> str | None:
    """Return the name of a dtype that is given by name, or as PyTorch's, NumPy's or TensorFlow's.

    Raises:
        ConfigurationError: it is none of those that are known.
    """
    if dtype is None:
        return None
    name = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    if name not in known:
        raise ConfigurationError(f"unknown dtype {name!r}; choose {', '.join(known)}")
    return name


def size_named(size: Any) -> tuple[int, int] | None:
    """Return height and width: of one number for a square, a pair, or a text as 224 or 224x192.

    Raises:
        ConfigurationError: it is no size.
    """
    if size is None:
        return None
    sides = size.lower().split("x") if isinstance(size, str) else size
    pair = list(sides) if isinstance(sides, list | tuple) else [sides]
    whole = [_whole(side) for side in pair]
    if len(whole) not in (1, 2) or not all(whole):
        raise ConfigurationError(
            f"image_size cannot be {size!r}; give one number of pixels, or (height, width)"
        )
    return whole[0], whole[-1]


def _whole(side: Any) -> int:
    """Return a number of pixels, or 0 for what is none."""
    if isinstance(side, str):
        return int(side) if SIDE.fullmatch(side.strip()) else 0
    try:
        number = 0 if isinstance(side, bool) else int(side)
    except (TypeError, ValueError, OverflowError):
        return 0
    return number if number == side and number > 0 else 0
