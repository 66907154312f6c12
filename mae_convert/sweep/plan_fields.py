"""The fields of a plan (names, types, the corresponding options), and the job that they specify.

A field has the name of the option of `convert`, `verify` or `publish` that it corresponds to. Where
two commands have an option of the same name, the fields have different names, for example ``dtype``
for `convert` and ``run_dtype`` for `verify`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mae_convert.errors import MaeConvertError
from mae_convert.families import layout_names
from mae_convert.families.canonical import TASKS
from mae_convert.families.checkpoint_options import (
    CHECKPOINT_OPTIONS,
    ByteSize,
    Choice,
    ImageSize,
    Kind,
    Number,
    Switch,
    Whole,
    Words,
)
from mae_convert.files.strict_json import in_unicode
from mae_convert.formats.dtypes import DTYPES
from mae_convert.runtime.foreign import FORMS, names_code
from mae_convert.runtime.run_options import (
    DEVICES,
    FRAMEWORK_SYNONYMS,
    FRAMEWORKS,
    MODES,
    RUN_DTYPES,
)
from mae_convert.text import did_you_mean
from mae_convert.text.redaction import without_credentials

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Runner(Words):
    """The type of a field that specifies what runs a model: a framework or external code."""

    with_python: bool = False
    """Whether the text may name a Python interpreter, in the form FRAMEWORK=PYTHON."""

    def read(self, text: str) -> str:
        """Return the text; another name of a framework is replaced: "pytorch" by "torch".

        Raises:
            ValueError: the text is neither a framework nor external code.
        """
        name, equals, python = text.partition("=")
        framework = FRAMEWORK_SYNONYMS.get(name, name)
        if framework in FRAMEWORKS and (self.with_python or not equals):
            return f"{framework}{equals}{python}"
        if not names_code(text):
            raise ValueError(
                f"{text!r} is neither a framework nor code that runs a model; write "
                f"one of {', '.join(FRAMEWORKS)}, or specify code as {FORMS}"
            )
        return text


PAIR: Mapping[str, Kind] = {
    "framework": Runner(),
    "device": Choice(DEVICES),
    "python": Words(),
    "mode": Choice(MODES),
}
CHECKPOINT: Mapping[str, Kind] = {option.name: option.kind for option in CHECKPOINT_OPTIONS}
CONVERT: Mapping[str, Kind] = {
    "to": Choice(tuple(sorted(layout_names()))),
    "task": Choice(TASKS),
    "dtype": Choice(tuple(DTYPES)),
    "image_size": ImageSize(),
    "num_frames": Whole(),
    "sincos_positions": Switch(),
    "in_channels": Whole(),
    "num_labels": Whole(),
    "max_shard_size": ByteSize(),
    "bin": Switch(),
    "prefix": Words(),
}
VERIFY: Mapping[str, Kind] = {
    "verify": Switch(),
    **{f"{name}_{side}": kind for name, kind in PAIR.items() for side in "ab"},
    "against": Runner(with_python=True),
    "run_dtype": Choice(RUN_DTYPES),
    "at_mask_ratio": Number(0, 1),
    "inputs": Words(),
    "images": Words(),
    "seed": Whole(0, None),
    "batch": Whole(),
    "unmasked": Switch(),
    "gradients": Switch(),
    "require_proof": Switch(),
    "certify": Switch(),
    "time_limit": Number(0),
}
PUBLISH: Mapping[str, Kind] = {
    "publish": Words(),
    "branch": Words(),
    "create_pr": Switch(),
    "private": Switch(),
    "license": Words(),
    "license_name": Words(),
    "license_link": Words(),
    "base_model": Words(),
    "unverified": Switch(),
}
FIELDS: Mapping[str, Kind] = {
    "source": Words(),
    "target": Words(),
    **CHECKPOINT,
    **CONVERT,
    **VERIFY,
    **PUBLISH,
}
# Fields whose value is a list; a list for any other field creates a job for each value.
LISTS = ("against", "run_dtype")
RUNNERS = ("framework_a", "framework_b", "against")  # may name external code
INTERPRETERS = ("python_a", "python_b")
LOCAL = ("inputs", "images")  # local paths, relative to the plan


def check_name(name: str) -> None:
    """Check that a field exists.

    Raises:
        MaeConvertError: the field does not exist.
    """
    if name not in FIELDS:
        raise MaeConvertError("there is no such field", hint=_nearest(name))


def parse(name: str, value: Any) -> Any:
    """Return a value converted to the type of its field, in a form that JSON can represent.

    None is returned unchanged.

    Raises:
        MaeConvertError: the field does not exist, or the value does not have its type.
    """
    check_name(name)
    if value is None:
        return None
    kind = FIELDS[name]
    if isinstance(value, str):
        is_valid = bool(value.strip())
    else:
        is_valid = isinstance(value, bool) == isinstance(kind, Switch)
    if isinstance(value, dict | list) or not is_valid:
        raise MaeConvertError(
            f"{value!r} is not a valid value", hint=f"write {kind.expected}", option=name
        )
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and "\0" in value:
        raise MaeConvertError(
            f"{value!r} contains a NUL character", hint="leave it out", option=name
        )
    try:
        parsed = kind.read(str(value))
    except ValueError as error:
        raise MaeConvertError(str(error), option=name) from error
    return list(parsed) if isinstance(parsed, tuple) else parsed


def _nearest(name: str) -> str:
    return did_you_mean(name, FIELDS) or f"fields are {', '.join(FIELDS)}"


@dataclass(frozen=True)
class Job:
    """A job of a sweep: the operations on one source checkpoint."""

    source: str
    """A path, a URL, a reference to the Hub or the name of an official checkpoint."""

    target: str | None
    """The path or URL of the target; None if the plan specifies no target."""

    settings: Settings = field(default_factory=dict)
    """The other fields of the job in the plan, with values as returned by `parse`."""

    where: str = ""
    """The position of the job in the plan: file and line, or the command line."""

    @cached_property
    def key(self) -> str:
        """The identifier of this job: a hash of its fields, independent of file contents."""
        what = json.dumps([self.source, self.target, dict(self.settings)], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """Return the fields of `Row` that identify this job; credentials in URLs are removed.

        A path that is not valid UTF-8 is written with escape sequences, because SQLite stores
        Unicode text.
        """
        settings = {name: value for name, value in self.settings.items() if name != "to"}
        return {
            "key": self.key,
            "source": in_unicode(without_credentials(self.source)),
            "target": self.target and in_unicode(without_credentials(self.target)),
            "layout": self.settings.get("to"),
            "settings": settings,
        }

    @property
    def converts(self) -> bool:
        """Whether the job converts its source, rather than only verifying an existing target."""
        return "to" in self.settings

    @property
    def verifies(self) -> bool:
        """Whether the job includes a verification, which runs the models."""
        return bool(self.settings.get("verify"))

    @property
    def needs_gpu(self) -> bool:
        """Whether a checkpoint is run on a GPU."""
        return "cuda" in (self.settings.get("device_a"), self.settings.get("device_b"))
