"""Objects of unsupported types in a pickle: nothing is imported or called to create them.

Instead, the arguments that a pickle passes to the type or function of such an object are recorded.
They answer two questions: does the object contain tensors, and could its creation have changed
values that are read? An unknown function that gets the weights as an argument could change the
weights. This cannot be excluded without running the function, so a file whose pickle passes weights
to an unknown function is refused.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mae_convert.errors import CheckpointError
from mae_convert.formats.pickle_types import Maker, NumpyArray, Opaque, Ordered, Record
from mae_convert.formats.torch_types import REBUILDERS, Storage, StoredTensor
from mae_convert.text import shown

GATHER = (
    "gather the tensors in the training program: on every process, state = "
    "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
    "options=torch.distributed.checkpoint.state_dict.StateDictOptions(full_state_dict=True)), and "
    "on the first process, torch.save({'model': state}, 'gathered.pth')"
)
"""Hint for checkpoints that store tensors in flat shards without their names and shapes."""

SHARDED = (
    "torch._utils._rebuild_wrapper_subclass",
    "torch.distributed.tensor.",
    "torch.distributed._tensor.",
    "torch.distributed._shard.",
)
"""Prefixes of the dotted names with which pickles refer to PyTorch's types of sharded tensors."""


@dataclass
class Effects:
    """Operations of a pickle that could change values that the pickle created earlier."""

    calls: list[Opaque] = field(default_factory=list)
    """The objects that were created by unsupported types or functions; each keeps the arguments of
    the call, and the states and items that it received later."""

    mentioned: list[str] = field(default_factory=list)
    """The dotted names in the pickle that are not supported (see `pickle_types`)."""

    storages: list[str] = field(default_factory=list)
    """The dotted names of unsupported storage types."""

    replaced: dict[int, tuple[object, list[object]]] = field(default_factory=dict)
    """The mappings and objects that the pickle changed after it created them. Maps the ``id`` of
    each to a pair: the mapping and its overwritten values, or the object and the states that were
    set on it."""

    def names(self) -> tuple[str, ...]:
        """Return each dotted name in the pickle that is not supported; none of them is imported."""
        return tuple(dict.fromkeys(self.mentioned))

    def replace(self, target: object, old: object) -> None:
        """Record that a pickle has overwritten a value of a mapping or the state of an object."""
        self.replaced.setdefault(id(target), (target, []))[1].append(old)


@dataclass(frozen=True)
class Reach:
    """The values that a pickle passes to objects of unsupported types.

    An object receives a value as an argument, as its state or as an item, either directly or inside
    another value.
    """

    containers: Mapping[int, str]
    """Maps the id of each received value that is not a scalar to the name of the receiver."""

    storages: Mapping[str, str]
    """Maps a storage's key to the name of an object that received the storage or its tensor."""

    rebuilders: Iterable[str] = ()
    """Names of objects that received a PyTorch function that creates tensors."""


def reach(opaques: Iterable[Opaque], effects: Effects, *, calls_only: bool) -> Reach:
    """Return the values that the pickle passes to objects of unsupported types.

    A value is passed as an argument of a call, as a state or as an item of a container, either
    directly or inside another value.

    Each value is visited once, so the time is linear in the size of the pickle.

    Args:
        opaques: the objects of unsupported types.
        effects: the operations of the pickle that could change values.
        calls_only: return only the values that are passed as arguments of calls.
    """
    containers: dict[int, str] = {}
    storages: dict[str, str] = {}
    rebuilders: list[str] = []
    waiting = [
        (received, opaque.name)
        for opaque in opaques
        for received in (opaque.arguments, *(() if calls_only else opaque.received))
    ]
    while waiting:
        item, name = waiting.pop()
        if isinstance(item, Storage):
            storages.setdefault(item.key, name)
        elif isinstance(item, StoredTensor):
            storages.setdefault(item.storage.key, name)
        elif isinstance(item, Maker) and item.name in REBUILDERS:
            rebuilders.append(name)
        if id(item) not in containers and (inner := list(_inside(item, effects))):
            waiting.extend((part, name) for part in inner)
        if not isinstance(item, str | int | float | bool | bytes | None):
            containers.setdefault(id(item), name)
    return Reach(containers, storages, rebuilders)


def _inside(item: object, effects: Effects) -> Iterator[object]:
    """Yield the values in `item`, including values that the pickle has overwritten.

    Nothing is yielded if `item` is not a container.
    """
    if isinstance(item, Mapping):
        yield from item.keys()
        yield from item.values()
        if isinstance(item, Ordered):
            yield item.attributes
    elif isinstance(item, list | tuple | set | frozenset):
        yield from item
    elif isinstance(item, Opaque):
        yield item.arguments
        yield from item.received
    elif isinstance(item, Record):
        yield item.state
    elif isinstance(item, NumpyArray):
        yield item.elements
    elif isinstance(item, slice):
        yield from (item.start, item.stop, item.step)
    if id(item) in effects.replaced:
        yield from effects.replaced[id(item)][1]


def holder_of_tensors(opaques: Iterable[Opaque], effects: Effects) -> str | None:
    """Return the name of an object to which the pickle passes a tensor; None if there is none.

    Args:
        opaques: the objects of unsupported types.
        effects: the operations of the pickle that could change values.
    """
    return next(iter(reach(opaques, effects, calls_only=False).storages.values()), None)


def would_run_code(path: Path, dotted: str) -> CheckpointError:
    """Return the error for a file that can only be read by running code.

    Args:
        path: the file.
        dotted: the dotted name, in the pickle, of the type or function that would be run.
    """
    if dotted.startswith(SHARDED):
        return CheckpointError(
            path,
            " contains tensors that are distributed over processes or wrapped in another type (its "
            f"pickle refers to {shown(dotted)})",
            hint=GATHER,
        )
    return CheckpointError(
        path,
        f" is not opened: its pickle refers to {shown(dotted)}, and loading the pickle would run"
        " code",
        hint=(
            "write only the weights, with torch.save({'model': model.state_dict()}, ...), in the "
            "program that wrote the file"
        ),
    )
