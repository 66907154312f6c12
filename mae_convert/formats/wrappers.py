"""Determine, without guessing, which mapping in a checkpoint contains the model's tensors."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_convert.errors import CheckpointError, Option, Text, join
from mae_convert.formats.opaque_objects import (
    GATHER,
    Effects,
    holder_of_tensors,
    reach,
    would_run_code,
)
from mae_convert.formats.pickle_types import Opaque, Ordered
from mae_convert.formats.settings import describe
from mae_convert.formats.torch_types import StoredTensor, TensorPlace
from mae_convert.text import shown

WRAPPERS = ("model", "state_dict", "module", "model_state", "model_state_dict")
"""Keys under which a checkpoint stores its model; DeepSpeed uses `module`."""

OTHER_WEIGHTS = ("teacher", "student", "model_ema", "state_dict_ema", "ema")
"""Keys of copies of the weights, such as moving averages. They are never chosen automatically."""

COPY = re.compile(r"(.*[_.-])?(ema|swa|averaged|shadow|momentum|target)([_.-].*)?", re.IGNORECASE)
"""The pattern of further keys, in addition to `OTHER_WEIGHTS`, of copies of the weights."""

EPOCH_KEYS = ("epoch", "meta")
LARGEST_EPOCH = 10**9  # a larger number indicates a damaged file
DEEPEST = 3
KEYS_SHOWN = 12
FLAT = re.compile(r"(.*\.)?_?flat_param(_\d+)?")

Keys = tuple[str, ...]


class NoSuchKeyError(CheckpointError):
    """The file has no tensors under the requested key."""


@dataclass(frozen=True)
class Selection:
    """The part of a checkpoint that contains the model."""

    tensors: Mapping[str, Any]
    """The model's tensors by name, each as the file describes it (a `TensorPlace`)."""

    wrapper: str | None
    """The key that contains the tensors, or a dotted path of keys; None for the top level."""

    beside: Mapping[str, object]
    """All other contents, by dotted key."""

    attributes: Mapping[str, Any] = field(default_factory=dict)
    """The Python attributes, such as `_metadata`, of the mapping that contains the tensors; empty
    if the mapping is not an OrderedDict."""

    around: tuple[Mapping, ...] = ()
    """The nested mappings that contain the model; the last mapping contains the tensors."""

    def settings(self, names: Iterable[str]) -> dict[str, str]:
        """Find settings, such as ``epoch``, among the contents besides the tensors (`beside`).

        A setting next to the model takes precedence over a setting at the top level.

        Args:
            names: the names of the settings.

        Returns:
            The dotted keys of the settings by name, without the settings that are not stored.
        """
        level = (self.wrapper or "").rpartition(".")[0]
        keys = {name: f"{level}.{name}" if level else name for name in names}
        keys_of = {name: key if key in self.beside else name for name, key in keys.items()}
        return {name: key for name, key in keys_of.items() if key in self.beside}


def epoch_in(settings: Mapping[str, Any] | None) -> int | None:
    """Return the epoch that a training program has stored, or None.

    The epoch is at the top level or in MMEngine's `meta`.

    Args:
        settings: the checkpoint's values of the keys in `EPOCH_KEYS`, as plain data; None if they
            cannot be read.
    """
    settings = settings or {}
    meta = settings.get("meta")
    for value in (settings.get("epoch"), meta.get("epoch") if isinstance(meta, Mapping) else None):
        if type(value) is int and 0 <= value <= LARGEST_EPOCH:  # a bool is not an epoch
            return value
    return None


def select_model(
    path: Path, value: object, state_key: str | None, effects: Effects | None = None
) -> Selection:
    """Return the model's tensors and the other contents of a checkpoint.

    Args:
        path: the file, for messages.
        value: the value of the pickle in the file.
        state_key: the key of the tensors, or a dotted path of keys. None for one of `WRAPPERS`, or
            for the top level if no such key contains tensors.
        effects: the operations of the pickle on objects of unsupported types; None if there are no
            such operations.

    Raises:
        NoSuchKeyError: there are no tensors at `state_key`.
        CheckpointError: there are no tensors, several mappings may be the model, a tensor's name is
            not text, or an object of an unsupported type contains or received the weights.
    """
    if isinstance(value, Opaque):
        raise would_run_code(path, value.name)
    if not isinstance(value, Mapping):
        raise CheckpointError(
            path,
            f" contains {describe(value)} instead of the named weights of a model",
            hint="write the weights with torch.save({'model': model.state_dict()}, ...)",
        )
    holders = dict(_holders(value))
    hidden = dict(_hidden(value))
    effects = effects or Effects()
    chosen = _chosen(path, value, holders, hidden, effects, state_key)
    model = holders[chosen]
    if not all(isinstance(name, str) for name in model):
        raise CheckpointError(
            path,
            " has tensor names that are not text",
            hint="save the state dict of the model: its keys are text",
        )
    tensors = {name: item for name, item in model.items() if isinstance(item, TensorPlace)}
    selection = Selection(
        tensors=tensors,
        wrapper=".".join(chosen) or None,
        beside=dict(_beside(value, chosen)),
        attributes=model.attributes if isinstance(model, Ordered) else {},
        around=tuple(_around(value, chosen)),
    )
    _check_untouched(path, selection, effects)
    return selection


def _around(value: Mapping, keys: Keys) -> Iterator[Mapping]:
    yield value
    for key in keys:
        value = value[key]
        yield value


def _hidden(value: Mapping) -> Iterator[tuple[Keys, Opaque]]:
    """Yield the objects of unsupported types in nested mappings, with their paths."""
    seen = {id(value)}
    level: list[tuple[Keys, Mapping]] = [((), value)]
    for _ in range(DEEPEST):
        below: list[tuple[Keys, Mapping]] = []
        for keys, mapping in level:
            for key, item in mapping.items():
                if not isinstance(key, str):
                    continue
                if isinstance(item, Opaque):
                    yield (*keys, key), item
                elif isinstance(item, Mapping) and id(item) not in seen:
                    seen.add(id(item))
                    below.append(((*keys, key), item))
        level = below


SHADOWED = frozenset(dir(dict)) | {"move_to_end"}


def _check_untouched(path: Path, selection: Selection, effects: Effects) -> None:
    """Require that no object of an unsupported type can have changed the model.

    An object may have changed the model if it received a mapping that contains the weights, or if
    one of the model's tensors was an argument of the call that created the object. An object in the
    mapping of the weights may itself be a weight.

    Args:
        path: the file, for messages.
        selection: the model's tensors, and the mappings that contain them.
        effects: the operations of the pickle on objects of unsupported types.

    Raises:
        CheckpointError: an object can have changed the model, or may be one of its weights.
    """
    among = [*selection.around[-1].values(), *(key for part in selection.around for key in part)]
    if opaque := next((item for item in among if isinstance(item, Opaque)), None):
        raise would_run_code(path, opaque.name)
    for part in selection.around:
        attributes = part.attributes if isinstance(part, Ordered) else {}
        if names := sorted(SHADOWED & {name for name in attributes if isinstance(name, str)}):
            raise CheckpointError(
                path,
                " is not opened: the mapping that contains its weights has an attribute "
                f"{shown(names[0])}, which replaces the method of the same name",
                hint=(
                    "write the weights again, with torch.save({'model': model.state_dict()}, ...), "
                    "in the program that wrote the file"
                ),
            )
    if not effects.calls:
        return
    calls = reach(effects.calls, effects, calls_only=True)
    everything = reach(effects.calls, effects, calls_only=False)
    keys = {t.storage.key for t in selection.tensors.values() if isinstance(t, StoredTensor)}
    touched = [
        *calls.rebuilders,
        *(calls.storages[key] for key in sorted(keys & calls.storages.keys())),
        *(everything.containers[id(p)] for p in selection.around if id(p) in everything.containers),
    ]
    if touched:
        raise CheckpointError(
            path,
            f" is not opened: its pickle passes the weights to {shown(touched[0])}, which cannot "
            "be evaluated without running code",
            hint=(
                "write only the weights, with torch.save({'model': model.state_dict()}, ...), in "
                "the program that wrote the file"
            ),
        )


def check_not_flat(path: Path, names: Iterable[str]) -> None:
    """Require that no tensor is a flat FSDP parameter, which contains several tensors.

    Raises:
        CheckpointError: a tensor is a flat FSDP parameter.
    """
    for name in names:
        if FLAT.fullmatch(name):
            raise CheckpointError(
                path,
                f" contains flat FSDP parameters ({shown(name)}), in which the tensors cannot be"
                " told apart",
                hint=GATHER,
            )


def _holders(value: Mapping) -> Iterator[tuple[Keys, Mapping]]:
    """Yield every mapping that directly contains tensors, with its path; the outermost first."""
    seen = {id(value)}
    level: list[tuple[Keys, Mapping]] = [((), value)]
    for _ in range(DEEPEST + 1):
        yield from ((keys, mapping) for keys, mapping in level if _has_tensors(mapping))
        below: list[tuple[Keys, Mapping]] = []
        for keys, mapping in level:
            for key, item in mapping.items():
                if isinstance(key, str) and isinstance(item, Mapping) and id(item) not in seen:
                    seen.add(id(item))
                    below.append(((*keys, key), item))
        level = below


def _has_tensors(value: Mapping) -> bool:
    return any(isinstance(item, TensorPlace) for item in value.values())


def _chosen(
    path: Path,
    value: Mapping,
    holders: Mapping[Keys, Mapping],
    hidden: Mapping[Keys, Opaque],
    effects: Effects,
    state_key: str | None,
) -> Keys:
    """Return the keys that lead to the model.

    Args:
        path: the file, for messages.
        value: the value of the pickle in the file.
        holders: the mappings that directly contain tensors, by the keys that lead to them.
        hidden: the objects of unsupported types, by the keys that lead to them.
        effects: the operations of the pickle on objects of unsupported types.
        state_key: the key of the model, or a dotted path of keys; None if there must be only one
            possible choice.

    Raises:
        NoSuchKeyError: there are no tensors at `state_key`.
        CheckpointError: no choice or several choices are possible, or an object of an unsupported
            type may contain the weights.
    """
    if state_key is not None:
        return _at_key(path, value, holders, hidden, state_key)
    for depth in (1, 0, *range(2, DEEPEST + 1)):
        outermost = [holder for holder in holders if len(holder) == depth]
        possible = [p for p in outermost if not p or p[-1] in WRAPPERS or _is_copy(p, holders[p])]
        possible += [p for p in holders if len(p) > depth > 0 and _is_copy(p[:1], holders[p])]
        unread = _unread(hidden, effects, max(depth, 1))
        if len(possible) == 1 and not unread and (not possible[0] or possible[0][-1] in WRAPPERS):
            return possible[0]
        if possible:
            raise _undecided(path, value, possible, unread)
    if name := holder_of_tensors(hidden.values(), effects):
        raise would_run_code(path, name)
    if holder := next((holder for holder in hidden if holder[-1] in WRAPPERS), None):
        raise would_run_code(path, hidden[holder].name)
    raise CheckpointError(
        f"{path} has no tensors at its top level or under {', '.join(WRAPPERS)}; it has"
        f" {_listed(value)}",
        hint=_which_key(holders),
        path=path,
    )


def _unread(hidden: Mapping[Keys, Opaque], effects: Effects, depth: int) -> list[Opaque]:
    """Return the objects of unsupported types that may be the model: they received tensors.

    Args:
        hidden: the objects of unsupported types in the checkpoint, by their keys.
        effects: the operations of the pickle; they show to which objects it passes tensors.
        depth: the maximum number of keys that lead to the model.
    """
    opaque = [item for keys, item in hidden.items() if _may_be_model(keys, depth)]
    return [item for item in opaque[:KEYS_SHOWN] if holder_of_tensors([item], effects)]


def _may_be_model(keys: Keys, depth: int) -> bool:
    return len(keys) <= depth and keys[-1] in WRAPPERS


def _is_copy(keys: Keys, mapping: Mapping) -> bool:
    """Return whether a mapping of tensors is a copy of the model, such as a moving average.

    Args:
        keys: the keys that lead to the mapping; the last key determines whether it is a copy.
        mapping: the mapping.
    """
    if keys[-1] in OTHER_WEIGHTS:
        return True
    return bool(COPY.fullmatch(keys[-1])) and any(
        isinstance(item, TensorPlace) and len(item.shape) > 1 for item in mapping.values()
    )


def _undecided(
    path: Path, value: Mapping, possible: list[Keys], unread: list[Opaque]
) -> CheckpointError:
    keys = [".".join(holder) for holder in possible if holder]
    if not keys:  # tensors at the top level, which has no key
        return would_run_code(path, unread[0].name)
    options = [Option("state_key", shown(key)) for key in keys]
    objects = f" ({shown(unread[0].name)} is an unsupported object)" if unread else ""
    return CheckpointError(
        f"{path} contains several sets of weights: it has {_listed(value)}{objects}",
        hint=("choose with ", join(options, " or ")),
        path=path,
    )


def _at_key(
    path: Path,
    value: Mapping,
    holders: Mapping[Keys, Mapping],
    hidden: Mapping[Keys, Opaque],
    state_key: str,
) -> Keys:
    """Return the keys that lead to the mapping of tensors that `state_key` names.

    Args:
        path: the path of the checkpoint, for messages.
        value: the content of the checkpoint.
        holders: the mappings that contain tensors, by their keys.
        hidden: the objects of unsupported types, by their keys.
        state_key: the keys of the mapping, joined by dots.

    Raises:
        NoSuchKeyError: there are no tensors at `state_key`.
        CheckpointError: an object of an unsupported type is at `state_key`.
    """
    for keys in holders:
        if ".".join(keys) == state_key:
            return keys
    for keys, opaque in hidden.items():
        if ".".join(keys) == state_key:
            raise would_run_code(path, opaque.name)
    raise NoSuchKeyError(
        f"{path} has no tensors under {state_key}; it has {_listed(value)}",
        hint=_which_key(holders),
        path=path,
        option="state_key",
    )


def _which_key(holders: Mapping[Keys, Mapping]) -> Text:
    """Return a hint to specify one of the keys with tensors."""
    keys_of_holders = [".".join(path) for path in holders if path]
    if not keys_of_holders:
        return "specify a file that contains weights"
    options = [Option("state_key", shown(path)) for path in keys_of_holders[:KEYS_SHOWN]]
    return "specify the model's key with ", join(options, " or ")


def _listed(keys: Iterable[object]) -> str:
    names = [shown(key) for key in keys]
    return f"{', '.join(names[:KEYS_SHOWN]) or 'nothing'}{', …' * (len(names) > KEYS_SHOWN)}"


def _beside(value: Mapping, keys: Keys) -> Iterator[tuple[Any, object]]:
    """Yield the dotted key and the value of each item except the model's tensors.

    Args:
        value: the value of the pickle.
        keys: the keys that lead to the mapping of the model's tensors.
    """
    prefix = ""
    for key in keys:
        yield from ((_dotted(prefix, name), v) for name, v in value.items() if name != key)
        value, prefix = value[key], f"{prefix}{key}."
    for name, item in value.items():
        if not isinstance(item, TensorPlace):
            yield _dotted(prefix, name), item


def _dotted(prefix: str, name: object) -> object:
    return f"{prefix}{name}" if prefix else name
