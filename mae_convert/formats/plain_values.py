"""Convert non-tensor contents of a checkpoint to plain values for JSON and short descriptions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mae_convert.formats.opaque_objects import in_words
from mae_convert.formats.pickle_types import NumpyArray, NumpyDtype, Opaque
from mae_convert.formats.settings_objects import UNKNOWN, settings_in
from mae_convert.formats.torch_types import TensorPlace
from mae_convert.text import plural

LARGEST_COUNT = 100_000
LONGEST_TEXT = 60
DEEPEST = 32


class _Budget:
    """Limits the copying of a value that is small in the file but huge when it is expanded."""

    def __init__(self) -> None:
        self.left = LARGEST_COUNT

    def spend(self, depth: int) -> None:
        self.left -= 1
        if self.left < 0 or depth > DEEPEST:
            raise ValueError("too many values for settings")


def plain_mapping(value: object) -> dict[str, Any] | None:
    """Return a mapping as JSON values, or None if it is not a mapping of settings.

    Tuples, sets and arrays become lists, keys become text, and values without a JSON type become
    descriptions. Objects of unsupported types are left out, except the settings of configuration
    libraries.
    """
    value = _opened(value)
    if not isinstance(value, Mapping):
        return None
    try:
        return _plain(value, _Budget(), 0)
    except ValueError:
        return None


def _is_read(key: object) -> bool:
    parts = key if isinstance(key, tuple) else (key,)
    return not any(isinstance(part, Opaque) for part in parts)


def _opened(value: object) -> object:
    """Return the settings in a value, which may be an object of a configuration library."""
    for _ in range(DEEPEST):
        if isinstance(value, NumpyArray) and value.unread:
            return UNKNOWN
        if not isinstance(value, Opaque):
            return value
        value = settings_in(value)
    return UNKNOWN


def _plain(value: Any, budget: _Budget, depth: int) -> Any:
    budget.spend(depth)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        items = {key: _opened(item) for key, item in value.items() if _is_read(key)}
        return {
            key if isinstance(key, str) else repr(key): _plain(item, budget, depth + 1)
            for key, item in items.items()
            if item is not UNKNOWN
        }
    if isinstance(value, list | tuple | set | frozenset):
        opened = map(_opened, value)
        return [_plain(item, budget, depth + 1) for item in opened if item is not UNKNOWN]
    if isinstance(value, NumpyArray) and value.array.size <= budget.left:
        return value.array.tolist()
    return describe(value)


def describe(value: object) -> str:
    """Describe a value in a few words: "24 tensors and settings", "49", "3 settings"."""
    if isinstance(value, TensorPlace):
        return f"a tensor of shape {value.shape}"
    if isinstance(value, Opaque) or (isinstance(value, NumpyArray) and value.unread):
        return in_words(value)
    if isinstance(value, NumpyArray):
        return f"an array of shape {value.array.shape}"
    if isinstance(value, NumpyDtype):
        return str(value.dtype)
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return _describe_collection(value)
    if isinstance(
        value, np.generic | str | bytes | bool | int | float | complex | range | slice | None
    ):
        return _shorten(repr(value))
    return f"a value of type {type(value).__name__}"


def _describe_collection(value: Any) -> str:
    tensors, others = _count(value)
    if not tensors:
        return plural(others, "setting") if others else "empty"
    counted = plural(tensors, "tensor")
    return f"{counted} and settings" if others else counted


def _count(value: object) -> tuple[int, int]:
    """Return the number of tensors and of other leaves; each shared container counts once."""
    tensors = others = 0
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping | list | tuple | set | frozenset):
            if id(item) not in seen:
                seen.add(id(item))
                waiting.extend(item.values() if isinstance(item, Mapping) else item)
        elif isinstance(item, TensorPlace | NumpyArray):
            tensors += 1
        else:
            others += 1
    return tensors, others


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
