"""Contents of a checkpoint besides tensors: settings as plain values, other data as descriptions.

Nothing is imported or run. Configuration libraries store settings in one of two forms. Most
libraries store objects in a pickle. The settings are the values that the pickle passes to these
objects. The settings are read only if they have exactly the form that the library writes. mmengine
and mmcv store a text of Python assignments, which is parsed into a syntax tree; literals, lists and
`dict(...)` are read. Everything else is ignored.
"""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mae_convert.formats.opaque_objects import Effects
from mae_convert.formats.pickle_types import NumpyArray, NumpyDtype, Opaque, Record
from mae_convert.formats.torch_types import TensorPlace
from mae_convert.text import LONGEST_SHOWN, plural, shown

UNKNOWN = object()
"""Placeholder for a value that cannot be read."""

CONTAINERS = ("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig")
NODES = "omegaconf.nodes."
ATTRIBUTE_DICTS = (
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
CONFIG_DICTS = (
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "yacs.config.CfgNode",
    "fvcore.common.config.CfgNode",
    "detectron2.config.config.CfgNode",
    "addict.addict.Dict",
    "easydict.EasyDict",
    "box.box.Box",
)
MAPPINGS = (*ATTRIBUTE_DICTS, *CONFIG_DICTS)
"""Types that are subclasses of dict; the items of an object of such a type are its settings."""


def settings_in(item: Opaque) -> Any:
    """Return the settings in an object of a configuration library: a mapping, a list or a value.

    Objects inside the mapping or list are returned unchanged.

    Returns:
        The settings, or `UNKNOWN` if the object has another type or form.
    """
    if item.is_name:
        return UNKNOWN
    if item.name in CONTAINERS:
        content = _omegaconf_state(item, "_content")
        return content if type(content) in (dict, list) else UNKNOWN
    if item.name.startswith(NODES):
        return _resolved(_omegaconf_state(item, "_val"))
    return _items(item) if item.name in MAPPINGS else UNKNOWN


def _omegaconf_state(item: Opaque, name: str) -> Any:
    """Return the item `name` of the state that omegaconf sets on an object, or `UNKNOWN`."""
    state = item.received[0] if len(item.received) == 1 else None
    return state.get(name, UNKNOWN) if isinstance(state, dict) else UNKNOWN


def _resolved(value: Any) -> Any:
    """Return `value`, which an omegaconf node contains, or `UNKNOWN`.

    The result is `UNKNOWN` if the value is not specified ("???") or refers to another value ("${").
    """
    text = value if isinstance(value, str) else ""
    return UNKNOWN if "${" in text or text == "???" else value


def _items(item: Opaque) -> Any:
    """Return the items of an object whose type is a subclass of dict.

    The result is `UNKNOWN` if the object was created with arguments other than a dict, or if its
    keys are not distinct texts.
    """
    _, *arguments, _ = item.arguments or (None, None)
    pairs: list[tuple[Any, Any]] = []
    if len(arguments) == 1 and isinstance(arguments[0], dict):
        pairs += arguments[0].items()
    elif arguments:
        return UNKNOWN
    for handed in item.received:
        if isinstance(handed, list) and len(handed) % 2 == 0:
            pairs += zip(handed[::2], handed[1::2], strict=True)
    names = [name for name, _ in pairs]
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        return UNKNOWN
    return dict(pairs)


OUTERMOST_SHOWN = 24
NAMES_SHOWN = 8

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

    Tuples, sets and arrays become lists, and keys become text. Supported values without a JSON
    type, such as tensors, become descriptions. Objects of unsupported types are left out, but
    objects of configuration libraries (see `settings_in`) are replaced by their settings.
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
    """Return the settings in an object of a configuration library, or any other value unchanged."""
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
    """Return a short description of a value, such as "24 tensors and settings" or "49"."""
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
    """Return the number of tensors and the number of other values that are not containers.

    The contents of a container that occurs several times are counted once.
    """
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


def outermost(value: object) -> Iterator[tuple[str, Opaque | NumpyArray]]:
    """Yield the objects and arrays in a value that were not read, each with its dotted path.

    Objects and arrays inside another object that was not read are left out.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("", value)]
    while waiting:
        path, item = waiting.pop()
        if isinstance(item, TensorPlace) or id(item) in seen:
            continue
        if isinstance(item, Opaque) or (isinstance(item, NumpyArray) and item.unread):
            yield path, item
            seen.add(id(item))
        elif isinstance(item, Mapping | list | tuple | set | frozenset | Record):
            seen.add(id(item))
            waiting.extend(reversed(list(_items_with_paths(path, item))))


def _items_with_paths(path: str, item: Any) -> Iterator[tuple[str, object]]:
    """Yield the contents of an item, with their dotted paths.

    The contents are the values in a collection, the objects that are keys of a mapping, or the
    state of a `Record`. Plain values, such as numbers and texts, are left out.
    """
    if isinstance(item, Record):
        yield path, item.state
        return
    for key in item if isinstance(item, Mapping) else ():
        if isinstance(key, Opaque):
            yield path, key
    pairs = item.items() if isinstance(item, Mapping) else enumerate(item)
    for key, value in pairs:
        if not isinstance(value, str | int | float | bool | bytes | None):
            named = str(key)[:LONGEST_SHOWN]
            yield (f"{path}.{named}" if path else named)[:LONGEST_SHOWN], value


def passed_over(value: object, effects: Effects) -> dict[str, str]:
    """Return descriptions of the objects of a pickle that are not read, and of unused names.

    Args:
        value: the value of the pickle.
        effects: the operations of the pickle; they list the names that it mentions.

    Returns:
        A description of each object by its dotted path in `value`, for at most `OUTERMOST_SHOWN`
        objects. The key "other places", if present, has the number of other such objects, and the
        key "other names in the pickle" the other names that the pickle mentions.
    """
    descriptions: dict[str, str] = {}
    named: set[str] = set()
    more = 0
    for path, item in outermost(value):
        if len(descriptions) == OUTERMOST_SHOWN:
            more += 1
            continue
        descriptions[shown(path) or "the pickle"] = in_words(item)
        named |= {item.name} if isinstance(item, Opaque) else set()
    if more:
        descriptions["other places"] = f"{more} more objects of unsupported types"
    inner = [name for name in effects.names() if name not in named]
    if inner:
        listed = ", ".join(map(shown, inner[:NAMES_SHOWN])) + ", …" * (len(inner) > NAMES_SHOWN)
        descriptions["other names in the pickle"] = f"neither imported nor called: {listed}"
    return descriptions


def in_words(item: Opaque | NumpyArray) -> str:
    """Return a description of an object that is not read."""
    if isinstance(item, NumpyArray):
        return "an array of objects, times or records, which no weight needs; not read"
    values = "" if settings_in(item) is UNKNOWN else "; its values are read as plain data"
    return (
        f"{'the name' if item.is_name else 'an object of'} {shown(item.name)}, which no weight "
        f"needs; nothing was imported or called{values}"
    )


LONGEST_CONFIG_TEXT = 1 << 18
DEEPEST_CONFIG_TEXT = 40


def read_config_text(text: str) -> dict[str, Any] | None:
    """Return the values that the configuration text of mmengine or mmcv assigns, by name.

    Returns:
        The values as plain data, or None if the text is not Python or assigns nothing.
    """
    if len(text) > LONGEST_CONFIG_TEXT:
        return None
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    values: dict[str, Any] = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=node):
                try:
                    values[name] = _value(node, 0)
                except ValueError:
                    values.pop(name, None)
            case ast.Expr(value=ast.Constant()):  # a string that is used as a comment
                pass
            case _:  # another statement may change the assigned values in unknown ways
                return None
    return values or None


def _value(node: ast.expr, depth: int) -> Any:
    """Return the value of an expression.

    Args:
        node: the expression.
        depth: the number of collections that contain the expression.

    Raises:
        ValueError: the expression is not a literal, or is nested too deeply.
    """
    if depth > DEEPEST_CONFIG_TEXT:
        raise ValueError("nested too deeply for settings")
    match node:
        case ast.Constant(value=str() | bool() | int() | float() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return [_value(item, depth + 1) for item in items]
        case ast.Dict(keys=keys, values=items):
            names = [_name(key) for key in keys]
            return _literals(dict(zip(names, items, strict=True)), depth)
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            return _literals({_name(keyword.arg): keyword.value for keyword in keywords}, depth)
        case _:
            raise ValueError("not a literal")


def _name(key: ast.expr | str | None) -> str:
    if isinstance(key, ast.Constant):
        key = key.value if isinstance(key.value, str) else repr(key.value)
    if not isinstance(key, str):
        raise ValueError("a mapping that includes another mapping")
    return key


def _literals(items: dict[str, ast.expr], depth: int) -> dict[str, Any]:
    """Return the values of the items that are literals, by name; other items are left out.

    Args:
        items: the items of a mapping, by name.
        depth: the number of collections that contain the mapping.
    """
    values = {}
    for name, node in items.items():
        try:
            values[name] = _value(node, depth + 1)
        except ValueError:
            continue
    return values
