"""Outputs of the models, accessible by attribute, by index, as a tuple or as a dictionary.

Each output is a named tuple of the values that are set, so that compilers and tree utilities can
flatten and rebuild it. A value that was not requested is not a field of the tuple; the attribute
with its name is ``None``.
"""

from collections import namedtuple
from collections.abc import Iterator
from itertools import chain, combinations
from typing import Any, NamedTuple

from reference_models.outputs import (
    ImageClassifierOutput,
    ViTMAEForPreTrainingOutput,
    ViTMAEModelOutput,
)


class EncoderOutput(NamedTuple):
    """The outputs of a classifier's encoder."""

    last_hidden_state: Any
    """(N, 1 + L, D), after the final norm, if there is one."""

    hidden_states: Any = None
    """The output of the embeddings and of each block, each (N, 1 + L, D); None if they were not
    requested."""

    attentions: Any = None
    """Attention probabilities of each block, each (N, heads, 1 + L, 1 + L); None if they were not
    requested."""


# The optional fields of each output, except ``taps``, which transformers does not have.
OPTIONAL: dict[Any, tuple[str, ...]] = {
    ViTMAEModelOutput: ("hidden_states", "attentions"),
    EncoderOutput: ("hidden_states", "attentions"),
    ViTMAEForPreTrainingOutput: ("loss", "hidden_states", "attentions"),
    ImageClassifierOutput: ("loss", "hidden_states", "attentions"),
}


def _getitem(self: Any, key: Any) -> Any:
    if not isinstance(key, str):
        return tuple.__getitem__(self, key)
    if key not in self._fields:
        raise KeyError(key)
    return getattr(self, key)


def _contains(self: Any, name: object) -> bool:
    return name in self._fields


def _keys(self: Any) -> tuple[str, ...]:
    """Return the names of the values that are set."""
    return tuple(self._fields)


def _values(self: Any) -> tuple[Any, ...]:
    """Return the values that are set."""
    return tuple(self)


def _items(self: Any) -> tuple[tuple[str, Any], ...]:
    """Return a pair (name, value) for each value that is set."""
    return tuple(zip(self._fields, self, strict=True))


def _get(self: Any, name: str, default: Any = None) -> Any:
    """Return the value of the field `name`, or `default` if the field is not set."""
    return getattr(self, name) if name in self._fields else default


def _reduce(self: Any) -> tuple[Any, ...]:
    return _rebuilt, (type(self).__name__, dict(_items(self)))


METHODS = {
    "__getitem__": _getitem,
    "__contains__": _contains,
    "__reduce__": _reduce,
    "keys": _keys,
    "values": _values,
    "items": _items,
    "get": _get,
    "to_tuple": _values,
}


def _class(kind: Any, present: tuple[str, ...]) -> Any:
    made: Any = namedtuple(kind.__name__, present, module=__name__)  # type: ignore[misc]
    for name, method in METHODS.items():
        setattr(made, name, method)
    for name in OPTIONAL[kind]:
        if name not in present:
            setattr(made, name, None)
    made.__doc__ = kind.__doc__
    return made


def _classes() -> Iterator[tuple[tuple[str, tuple[str, ...]], Any]]:
    """Yield a pair for each possible output: its key (class name, field names) and its class.

    All classes are created on import, because compilers do not support classes that are created
    during a call.
    """
    for kind, optional in OPTIONAL.items():
        fields = [name for name in kind._fields if name != "taps"]
        subsets = chain.from_iterable(
            combinations(optional, count) for count in range(len(optional) + 1)
        )
        for absent in subsets:
            present = tuple(name for name in fields if name not in absent)
            yield (kind.__name__, present), _class(kind, present)


CLASSES = dict(_classes())


def _rebuilt(kind: str, items: dict[str, Any]) -> Any:
    return CLASSES[kind, tuple(items)](**items)


def output_of(result: NamedTuple, *, as_tuple: bool = False, without: tuple[str, ...] = ()) -> Any:
    """Convert the output of a reference model to an output with the interface of transformers.

    Args:
        result: the output of a reference model.
        as_tuple: return a plain tuple of the values that are set.
        without: names of fields to leave out.
    """
    fields = {
        name: value
        for name, value in zip(result._fields, result, strict=True)
        if value is not None and name != "taps" and name not in without
    }
    if as_tuple:
        return tuple(fields.values())
    return CLASSES[type(result).__name__, tuple(fields)](*fields.values())
