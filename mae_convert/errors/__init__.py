"""The exceptions of mae-convert; each message states what is wrong and what to do, in a sentence.

A message refers to an option by its neutral name, ``Option("num_heads")``, which is rendered where
the message is shown: as ``--num-heads`` by the command line, as ``num_heads=`` in Python, and as
``num_heads`` for the plan of a sweep.

`signals` turns signals into exceptions, and `shortage` explains exceptions that a lack of memory,
file descriptors, processes or disk space has caused.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Union

from mae_convert.text import for_terminal
from mae_convert.text.redaction import without_secrets

LONGEST = 1200
Value = str | int | float | bool | None


@dataclass(frozen=True)
class Option:
    """An option that a message names: a command-line option or an argument of a function."""

    name: str
    """The neutral name, from which the name in each interface is made, such as ``num_heads``."""

    value: Value = None
    """The value that the message proposes or refuses; True or False for a switch, None if the
    message names the option alone."""

    placeholder: str = ""
    """A placeholder that is shown instead of a value, such as ``HxW``."""


# The parts of a message. A part may be another error, whose message is inserted.
Text = Union[str, Option, Path, "MaeConvertError", Sequence["Text"]]
OptionStyle = Callable[[Option], str]

# Options with a different name in the interface: the dtype and the mask ratio of a run are distinct
# from the dtype of a conversion and the mask ratio of a configuration.
ON_COMMAND_LINE = {"run_dtype": "dtype", "run_mask_ratio": "mask_ratio"}
IN_PYTHON = {"run_dtype": "dtypes", "run_mask_ratio": "mask_ratio"}
IN_PLAN = {"run_mask_ratio": "at_mask_ratio"}


def as_option(option: Option) -> str:
    """Return an option as on a command line, such as ``--num-heads 12``."""
    name = ON_COMMAND_LINE.get(option.name, option.name).replace("_", "-")
    if isinstance(option.value, bool):
        return f"--{name}" if option.value else f"--no-{name}"
    value = option.placeholder if option.value is None else shlex.quote(str(option.value))
    return f"--{name} {value}".rstrip()


def as_argument(option: Option) -> str:
    """Return an option as an argument of a Python function: ``num_heads=12``."""
    name = IN_PYTHON.get(option.name, option.name)
    if option.value is None:
        return f"{name}={option.placeholder}"
    quoted = isinstance(option.value, str)
    return f"{name}=" + (json.dumps(option.value) if quoted else str(option.value))


def as_field(option: Option) -> str:
    """Return an option as a field in the plan of a sweep: ``num_heads: 12``."""
    name = IN_PLAN.get(option.name, option.name)
    if isinstance(option.value, bool):
        return f"{name}: {str(option.value).lower()}"
    value = option.placeholder if option.value is None else option.value
    return f"{name}: {value}" if value != "" else name


def render(text: Text, style: OptionStyle) -> str:
    """Return a text as a string; ``style`` renders each `Option` in the text."""
    if isinstance(text, str):
        return text
    if isinstance(text, Option):
        return style(text)
    if isinstance(text, Path):
        return str(text)
    if isinstance(text, MaeConvertError):
        return text.render(style)
    return "".join([render(part, style) for part in text])


def join(texts: Iterable[Text], separator: str) -> Text:
    """Return texts with a separator between them, like ``str.join`` for strings."""
    parts: list[Text] = []
    for text in texts:
        parts += [separator, text] if parts else [text]
    return tuple(parts)


def to_json(text: Text) -> str:
    """Return a text as JSON, from which another process restores it with `from_json`."""

    def plain(part: Text) -> Any:
        if isinstance(part, str | Path):
            return str(part)
        if isinstance(part, Option):
            return asdict(part)
        return [plain(p) for p in _parts(part)]

    return json.dumps(plain(text))


def from_json(line: str) -> Text:
    """Return the text that `to_json` wrote.

    Raises:
        ValueError: the line was not written by `to_json`.
    """

    def text(part: Any) -> Text:
        if isinstance(part, str):
            return part
        if isinstance(part, list):
            return tuple(map(text, part))
        try:
            return Option(**part)
        except TypeError as error:
            raise ValueError(
                f"{part!r} is not a string, a list or the fields of an Option"
            ) from error

    return text(json.loads(line))


def one_line(sentence: str) -> str:
    """Return a message on one printable line, shortened and without credentials."""
    plain = for_terminal(without_secrets(sentence))
    if len(plain) > LONGEST:
        return f"{plain[: LONGEST // 2]} [...] {plain[-LONGEST // 2 :]}"
    return plain


class MaeConvertError(Exception):
    """The input or the call was wrong; the command line prints the error and exits with status 2.

    Text from files and servers in the message is shortened and made printable, and credentials in
    it are removed. ``str(error)`` shows options as arguments of Python; `render` shows them in
    another style.

    Args:
        message: what is wrong: strings, options and paths, which are concatenated.
        hint: what to do about it; it follows the message after a semicolon.
        path: the file or directory that the error is about. Default: the first `Path` in the
            message, or None.
        option: the name of the option that the error is about, in the form of `Option.name`.
            Default: the first `Option` in the message, or None.
    """

    exit_status = 2
    path: Path | str | None
    option: str | None
    _message: tuple[Text, ...]
    _hint: Text

    def __init__(
        self,
        *message: Text,
        hint: Text = "",
        path: Path | str | None = None,
        option: str | None = None,
    ) -> None:
        inner = message[-1] if message else ""
        path = path or (inner.path if isinstance(inner, MaeConvertError) else None)
        if isinstance(inner, MaeConvertError) and not hint:  # its hint applies to this error too
            message, hint = (*message[:-1], inner._message), inner._hint
        self._message, self._hint = message, hint
        named = list(_leaves(self.parts))
        self.path = path or next((part for part in named if isinstance(part, Path)), None)
        self.option = option or next((o.name for o in named if isinstance(o, Option)), None)
        super().__init__(self.render(as_argument))

    @property
    def parts(self) -> Sequence[Text]:
        """Message and hint, with options and paths as separate parts."""
        return (*self._message, "; ", self._hint) if self._hint else self._message

    @property
    def message(self) -> str:
        """What is wrong, without the hint."""
        return one_line(render(self._message, as_argument))

    @property
    def hint(self) -> str:
        """What to do about the error; empty if the message states this or nothing can be done."""
        return one_line(render(self._hint, as_argument))

    def render(self, style: OptionStyle) -> str:
        """Return message and hint with options rendered by a style such as `as_option`."""
        return one_line(render(self.parts, style))

    def renamed(self, path: Path, name: str) -> "MaeConvertError":
        """Return a copy of the error in which `name` replaces `path`, also within longer paths."""

        def shown(part: Text) -> Text:
            if isinstance(part, str | Option):
                return part
            if isinstance(part, Path):
                if not part.is_relative_to(path):
                    return part
                return "/".join([name, *part.relative_to(path).parts])
            return tuple(map(shown, _parts(part)))

        error = _restored(type(self), self.args, self.__dict__)
        error._message = tuple(map(shown, self._message))
        error._hint = shown(self._hint)
        error.path = name if self.path == path else self.path
        error.args = (error.render(as_argument),)
        return error

    def __reduce__(self) -> Any:
        """Pickle the error with its fields, so that it can be sent from one process to another."""
        return _restored, (type(self), self.args, dict(self.__dict__))


def _restored(kind: type[MaeConvertError], args: tuple[str, ...], fields: Mapping[str, Any]) -> Any:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


def _leaves(text: Text) -> Iterator[str | Option | Path]:
    if isinstance(text, str | Option | Path):
        yield text
    else:
        for part in _parts(text):
            yield from _leaves(part)


def _parts(text: Union["MaeConvertError", Sequence[Text]]) -> Sequence[Text]:
    return text.parts if isinstance(text, MaeConvertError) else text


class CheckpointError(MaeConvertError):
    """A file or directory is not a checkpoint that can be read."""


class LayoutError(MaeConvertError):
    """The names or shapes of tensors do not match the layout in which they are read or written."""


class ConfigurationError(MaeConvertError):
    """A field of the model configuration is missing, impossible or contradicted."""


class ImageError(MaeConvertError, ValueError):
    """The argument is not an image, or cannot be preprocessed as requested."""


class OutputError(MaeConvertError):
    """The output already exists, cannot be written, or differs when it is read back."""


class HubError(MaeConvertError):
    """The Hugging Face Hub refused a request, or its response is invalid."""


class MissingRequirementError(MaeConvertError):
    """A required framework, package or network connection is missing; exit status 3."""

    exit_status = 3
