"""The fields of a plan: what a job can say, of which type, and what it is called elsewhere.

They have the names of the options of `convert`, `verify` and `publish`, so that whoever knows these
can write a plan. Where two commands have an option of one name, the field says whose it is.
"""

import math
from collections.abc import Mapping
from typing import Any

import click

from mae_convert.cli.options import (
    COUNT,
    DEVICE,
    DTYPE,
    FRAMEWORK,
    MODE,
    POOLING,
    RUN_DTYPE,
    SECONDS,
    ByteSize,
    ImageSize,
)
from mae_convert.errors import MaeConvertError
from mae_convert.families import layout_names
from mae_convert.families.canonical import TASKS
from mae_convert.runtime.job import FRAMEWORKS
from mae_convert.text import did_you_mean


class Witness(click.ParamType):
    """A framework that runs the target too, with its Python where that is another one."""

    name = "FRAMEWORK[=PYTHON]"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return it as it is written."""
        if str(value).partition("=")[0] not in FRAMEWORKS:
            self.fail(f"{value!r} is no witness; write {', '.join(FRAMEWORKS)}", param, ctx)
        return str(value)


PAIR = {"framework": FRAMEWORK, "device": DEVICE, "python": click.STRING, "mode": MODE}

CHECKPOINT: Mapping[str, click.ParamType] = {
    "state_key": click.STRING,
    "num_heads": COUNT,
    "decoder_num_heads": COUNT,
    "layer_norm_eps": click.FLOAT,
    "decoder_layer_norm_eps": click.FLOAT,
    "global_pool": POOLING,
    "norm_pix_loss": click.BOOL,
    "mask_ratio": click.FloatRange(0, 1, max_open=True),
    "source_image_size": ImageSize(),
}
CONVERT: Mapping[str, click.ParamType] = {
    "to": click.Choice(sorted(layout_names())),
    "task": click.Choice(TASKS),
    "dtype": DTYPE,
    "image_size": ImageSize(),
    "sincos_positions": click.BOOL,
    "in_channels": COUNT,
    "num_labels": COUNT,
    "max_shard_size": ByteSize(),
    "bin": click.BOOL,
    "prefix": click.STRING,
}
VERIFY: Mapping[str, click.ParamType] = {
    "verify": click.BOOL,
    **{f"{name}_{side}": kind for name, kind in PAIR.items() for side in "ab"},
    "against": Witness(),
    "run_dtype": RUN_DTYPE,
    "at_mask_ratio": click.FloatRange(0, 1, max_open=True),
    "inputs": click.STRING,
    "images": click.STRING,
    "seed": click.IntRange(min=0),
    "batch": COUNT,
    "unmasked": click.BOOL,
    "gradients": click.BOOL,
    "require_proof": click.BOOL,
    "certify": click.BOOL,
    "time_limit": SECONDS,
}
PUBLISH: Mapping[str, click.ParamType] = {
    "publish": click.STRING,
    "branch": click.STRING,
    "create_pr": click.BOOL,
    "private": click.BOOL,
    "license": click.STRING,
    "license_name": click.STRING,
    "license_link": click.STRING,
    "base_model": click.STRING,
    "unverified": click.BOOL,
}
FIELDS: Mapping[str, click.ParamType] = {
    "source": click.STRING,
    "target": click.STRING,
    **CHECKPOINT,
    **CONVERT,
    **VERIFY,
    **PUBLISH,
}
# A list of these is one job's; a list of any other field makes a job of each of its values.
LISTS = ("against", "run_dtype")
LOCAL = ("inputs", "images")  # local paths, beside the plan


def check_name(name: str) -> None:
    """Refuse a name that no field has.

    Raises:
        MaeConvertError: there is no such field.
    """
    if name not in FIELDS:
        raise MaeConvertError(f"there is no such field{_nearest(name)}")


def parse(name: str, value: Any) -> Any:
    """Return a field's value as its type has it, as plain data; None stays.

    Raises:
        MaeConvertError: there is no such field, or the value is none of its type.
    """
    check_name(name)
    if value is None:
        return None
    kind = FIELDS[name]
    wrong = MaeConvertError(f"{value!r} is no value of it; write {_wanted(kind)}")
    if isinstance(value, dict | list):
        raise wrong
    if isinstance(value, bool) != (kind is click.BOOL) and not isinstance(value, str):
        raise wrong
    if isinstance(value, str) and not value.strip():
        raise wrong
    if isinstance(value, str) and "\0" in value:
        raise MaeConvertError(f"{value!r} holds a NUL character; leave it out")
    try:
        parsed = kind.convert(value if kind is click.BOOL else str(value), None, None)
    except click.BadParameter as error:
        if kind is click.BOOL or "is not a valid" in error.message:
            raise wrong from error
        raise MaeConvertError(error.message) from error
    if isinstance(parsed, float) and not math.isfinite(parsed):
        raise wrong
    return list(parsed) if isinstance(parsed, tuple) else parsed


def _wanted(kind: click.ParamType) -> str:
    if isinstance(kind, click.Choice):
        return ", ".join(map(str, kind.choices))
    if kind is click.BOOL:
        return "true or false"
    if isinstance(kind, click.IntRange):
        return "a whole number"
    return "a number" if kind is click.FLOAT or isinstance(kind, click.FloatRange) else "a text"


def _nearest(name: str) -> str:
    return did_you_mean(name, FIELDS) or f"; fields are {', '.join(FIELDS)}"
