"""What a PyTorch checkpoint holds, once its pickle is read: the model, its settings, the rest."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mae_convert.containers.contents import Contents
from mae_convert.containers.messages import damaged, shown
from mae_convert.containers.plain import describe, plain_mapping
from mae_convert.containers.tensor import LazyTensor
from mae_convert.containers.torch_types import Storage, StoredTensor
from mae_convert.errors import CheckpointError

WRAPPERS = ("model", "state_dict")
SETTINGS = ("config", "conversion", "args")
KEYS_SHOWN = 12

LARGEST_OVERLAP = 1 << 24
"""Elements that a tensor may have beyond those of its storage, as an expanded view has."""

ReadStorage = Callable[[Storage, np.dtype], np.ndarray]
"""Returns the elements of a storage as a flat array of one dtype."""


def pth_contents(path: Path, value: object, read: ReadStorage) -> Contents:
    """Return the weights and the rest of what a pickle described.

    Args:
        path: the file, for messages.
        value: what the pickle holds.
        read: a way to the file's storages.

    Raises:
        CheckpointError: it holds no weights that are recognised, or a tensor lies outside its
            storage.
    """
    model, wrapper, beside = _select_model(path, value)
    if not all(isinstance(name, str) for name in model):
        raise CheckpointError(f"{path} names some of its tensors by what is not text")
    settings = {name: plain_mapping(beside.get(name)) for name in SETTINGS}
    ignored = {
        shown(name): describe(item) for name, item in beside.items() if settings.get(name) is None
    }
    return Contents(
        kind="pth",
        tensors={
            name: _lazy(path, name, item, read)
            for name, item in model.items()
            if isinstance(item, StoredTensor)
        },
        config=settings["config"],
        conversion=settings["conversion"],
        training_args=settings["args"],
        ignored=ignored,
        wrapper=wrapper,
    )


def _select_model(path: Path, value: object) -> tuple[Mapping, str | None, Mapping]:
    """Return the mapping that holds the tensors, its key, and everything that is not a tensor."""
    if not isinstance(value, Mapping):
        raise CheckpointError(
            f"{path} holds {describe(value)} and not the weights of a model by name; "
            "write them with torch.save({'model': model.state_dict()}, ...)"
        )
    for wrapper in WRAPPERS:
        model = value.get(wrapper)
        if isinstance(model, Mapping) and _has_tensors(model):
            beside = {name: item for name, item in value.items() if name != wrapper}
            return model, wrapper, {**beside, **_others(model, f"{wrapper}.")}
    if _has_tensors(value):
        return value, None, _others(value, "")
    keys = ", ".join(shown(key) for key in list(value)[:KEYS_SHOWN])
    raise CheckpointError(
        f"{path} has no tensors at its top level, under 'model' or under 'state_dict'; it has "
        f"{keys or 'nothing'}{', …' if len(value) > KEYS_SHOWN else ''}; "
        "write the part that holds the model to a file of its own"
    )


def _has_tensors(value: Mapping) -> bool:
    return any(isinstance(item, StoredTensor) for item in value.values())


def _others(model: Mapping, prefix: str) -> dict:
    return {
        f"{prefix}{name}": item
        for name, item in model.items()
        if not isinstance(item, StoredTensor)
    }


def _lazy(path: Path, name: str, tensor: StoredTensor, read: ReadStorage) -> LazyTensor:
    storage, itemsize = tensor.storage, tensor.dtype.itemsize
    if storage.dtype not in (None, tensor.dtype):
        raise _outside(path, name)
    held = storage.count if storage.dtype is not None else storage.count // itemsize
    count = math.prod(tensor.shape)
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((extent - 1) * stride for extent, stride in steps)
    if (count and last >= held) or count > held + LARGEST_OVERLAP:
        raise _outside(path, name)

    def load() -> np.ndarray:
        if count == 0:
            return np.empty(tensor.shape, tensor.dtype)
        flat = read(storage, tensor.dtype)
        if tensor.strides == _contiguous_strides(tensor.shape):
            return flat[tensor.offset : tensor.offset + count].reshape(tensor.shape)
        return np.lib.stride_tricks.as_strided(
            flat[tensor.offset :],
            tensor.shape,
            tuple(stride * itemsize for stride in tensor.strides),
            writeable=False,
        )

    return LazyTensor(name, tensor.shape, tensor.dtype, load)


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _outside(path: Path, name: str) -> CheckpointError:
    return damaged(path, f"the tensor {shown(name)} does not fit the data that hold it")
