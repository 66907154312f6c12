"""Which part of a checkpoint is the model: one mapping of tensors, which is never guessed."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_convert.containers.inert import Ordered
from mae_convert.containers.messages import GATHER, shown
from mae_convert.containers.plain import describe
from mae_convert.containers.torch_types import TensorPlace
from mae_convert.errors import CheckpointError

WRAPPERS = ("model", "state_dict", "module", "model_state", "model_state_dict")
"""Keys under which a checkpoint keeps its model; `module` is DeepSpeed's."""

OTHER_WEIGHTS = ("teacher", "student", "model_ema", "state_dict_ema", "ema")
"""Keys of weights that are a model too: beside one of these, or alone, none is chosen unasked."""

DEEPEST = 3
KEYS_SHOWN = 12
FLAT = re.compile(r"(.*\.)?_?flat_param(_\d+)?")

Place = tuple[str, ...]


class NoSuchKeyError(CheckpointError):
    """The file has no tensors under the key that was asked for."""


@dataclass(frozen=True)
class Selection:
    """The part of a checkpoint that holds the model.

    Attributes:
        tensors: the model's tensors by name, each as the file describes it (a `TensorPlace`).
        wrapper: the key under which they stand, dotted where it is deeper, or None.
        beside: everything else, by dotted key.
        attributes: those of the mapping itself, where it is an OrderedDict.
    """

    tensors: Mapping[str, Any]
    wrapper: str | None
    beside: Mapping[str, object]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, names: Iterable[str]) -> dict[str, str]:
        """Return the keys in `beside` of what stands next to the model, or else at the top."""
        level = (self.wrapper or "").rpartition(".")[0]
        keys = {name: f"{level}.{name}" if level else name for name in names}
        found = {name: key if key in self.beside else name for name, key in keys.items()}
        return {name: key for name, key in found.items() if key in self.beside}


def select_model(path: Path, value: object, state_key: str | None) -> Selection:
    """Return the model's tensors and what stands beside them.

    Args:
        path: the file, for messages.
        value: what the file holds.
        state_key: the key of the tensors, dotted where it is deeper; by default one of `WRAPPERS`,
            or the top level where no such key holds tensors.

    Raises:
        NoSuchKeyError: there are no tensors at `state_key`.
        CheckpointError: there are no tensors, more than one mapping may be meant, or a tensor's
            name is not text.
    """
    if not isinstance(value, Mapping):
        raise CheckpointError(
            f"{path} holds {describe(value)} and not the weights of a model by name; "
            "write them with torch.save({'model': model.state_dict()}, ...)"
        )
    holders = dict(_holders(value))
    place = _chosen(path, value, holders, state_key)
    model = holders[place]
    if not all(isinstance(name, str) for name in model):
        raise CheckpointError(f"{path} names some of its tensors by what is not text")
    tensors = {name: item for name, item in model.items() if isinstance(item, TensorPlace)}
    attributes = model.attributes if isinstance(model, Ordered) else {}
    return Selection(tensors, ".".join(place) or None, dict(_beside(value, place)), attributes)


def check_not_flat(path: Path, names: Iterable[str]) -> None:
    """Require that no tensor is a flat parameter of FSDP: many in one, their bounds not told.

    Raises:
        CheckpointError: one is.
    """
    for name in names:
        if FLAT.fullmatch(name):
            raise CheckpointError(
                f"{path} holds flat FSDP parameters ({shown(name)}), in which the tensors cannot "
                f"be told apart; {GATHER}"
            )


def _holders(value: Mapping) -> Iterator[tuple[Place, Mapping]]:
    """Yield every mapping that holds tensors directly, and where it stands; shallow ones first."""
    seen = {id(value)}
    level: list[tuple[Place, Mapping]] = [((), value)]
    for _ in range(DEEPEST + 1):
        yield from ((place, mapping) for place, mapping in level if _has_tensors(mapping))
        below: list[tuple[Place, Mapping]] = []
        for place, mapping in level:
            for key, item in mapping.items():
                if isinstance(key, str) and isinstance(item, Mapping) and id(item) not in seen:
                    seen.add(id(item))
                    below.append(((*place, key), item))
        level = below


def _has_tensors(value: Mapping) -> bool:
    return any(isinstance(item, TensorPlace) for item in value.values())


def _chosen(
    path: Path, value: Mapping, holders: Mapping[Place, Mapping], state_key: str | None
) -> Place:
    """Return where the model stands: at the key that was said, or at the only one it can be."""
    if state_key is not None:
        for place in holders:
            if ".".join(place) == state_key:
                return place
        raise NoSuchKeyError(f"{path} has no tensors under {state_key}{_keys(value, holders)}")
    for depth in (1, 0, *range(2, DEEPEST + 1)):
        places = [place for place in holders if len(place) == depth]
        possible = [p for p in places if not p or p[-1] in (*WRAPPERS, *OTHER_WEIGHTS)]
        if len(possible) == 1 and (not possible[0] or possible[0][-1] in WRAPPERS):
            return possible[0]
        if possible:
            flags = " or ".join(f"--state-key {'.'.join(place)}" for place in possible)
            raise CheckpointError(
                f"{path} does not say which of its weights are meant: it has {_listed(value)}; "
                f"say it with {flags}"
            )
    raise CheckpointError(
        f"{path} has no tensors at its top level or under {', '.join(WRAPPERS)}"
        f"{_keys(value, holders)}"
    )


def _keys(value: Mapping, holders: Mapping[Place, Mapping]) -> str:
    """Return the rest of a sentence: which keys there are, and which of them hold tensors."""
    places = [".".join(place) for place in holders if place]
    where = f"; name the model's with --state-key: {_listed(places)}" if places else ""
    return f"; it has {_listed(value)}{where or '; name a file that holds weights'}"


def _listed(keys: Iterable[object]) -> str:
    names = [shown(key) for key in keys]
    return f"{', '.join(names[:KEYS_SHOWN]) or 'nothing'}{', …' * (len(names) > KEYS_SHOWN)}"


def _beside(value: Mapping, place: Place) -> Iterator[tuple[Any, object]]:
    """Yield everything but the model's tensors; the names of what stands deeper are dotted."""
    prefix = ""
    for key in place:
        yield from ((_dotted(prefix, name), v) for name, v in value.items() if name != key)
        value, prefix = value[key], f"{prefix}{key}."
    for name, item in value.items():
        if not isinstance(item, TensorPlace):
            yield _dotted(prefix, name), item


def _dotted(prefix: str, name: object) -> object:
    return f"{prefix}{name}" if prefix else name
