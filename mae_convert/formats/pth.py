"""The contents of a PyTorch checkpoint after its pickle is read: model, settings, the rest."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.errors import CheckpointError
from mae_convert.files.byte_ranges import ByteFile
from mae_convert.files.messages import damaged, shown
from mae_convert.formats.config_text import read_config_text
from mae_convert.formats.contents import Contents
from mae_convert.formats.opaque_objects import Effects, passed_over
from mae_convert.formats.plain_values import describe, plain_mapping
from mae_convert.formats.registry import PTH
from mae_convert.formats.tensor import LazyTensor
from mae_convert.formats.torch_types import Storage, StoredTensor
from mae_convert.formats.wrappers import EPOCH_KEYS, Selection, epoch_in, select_model

SETTINGS = ("config", "conversion")
ARGUMENTS = ("hparams", "hyper_parameters", "args")
NESTED = ("config", "cfg")
"""Keys of a configuration among Lightning's hyper-parameters."""
"""Keys of the training arguments, of Lightning and of many training programs. The last one takes
precedence."""

META, CONFIG_TEXTS = "meta", ("cfg", "config")
"""The keys of mmengine and mmcv for training metadata, and, in it, for the configuration."""

ATTRIBUTE = "mae_convert"
"""The attribute of a plain state dict (an OrderedDict) in which its configuration is stored."""

LARGEST_OVERLAP = 1 << 24
"""Limit on the elements that a tensor may have beyond those of its storage (expanded views)."""

ReadStorage = Callable[[Storage, np.dtype, int, tuple[int, ...]], Callable[[], np.ndarray]]
"""Returns a function that reads an array of a dtype and a shape from an offset of a storage."""


def pth_contents(
    file: ByteFile,
    value: object,
    read: ReadStorage,
    state_key: str | None = None,
    effects: Effects | None = None,
) -> Contents:
    """Return the weights and the other contents of a checkpoint's pickle.

    Args:
        file: the file.
        value: the value of the pickle.
        read: returns a function that reads from one of the file's storages.
        state_key: the key of the weights, if they cannot be recognised.
        effects: the operations of the pickle on objects of unsupported types.

    Raises:
        CheckpointError: it contains no weights that are recognised, or a tensor outside its
            storage.
    """
    path, effects = file.path, effects or Effects()
    selection = select_model(path, value, state_key, effects)
    keys = selection.settings((*SETTINGS, *ARGUMENTS, META))
    settings = {name: plain_mapping(selection.beside[key]) for name, key in keys.items()}
    used = {keys[name] for name, value in settings.items() if value is not None}
    settings = {**_carried(selection), **settings}
    progress = {name: selection.beside[key] for name, key in selection.settings(EPOCH_KEYS).items()}
    return Contents(
        kind=PTH,
        tensors={name: lazy(path, name, item, read) for name, item in selection.tensors.items()},
        files=(file,),
        config=settings.get("config"),
        conversion=settings.get("conversion"),
        training_args=training_arguments(settings),
        ignored={
            **{
                shown(name): describe(item)
                for name, item in selection.beside.items()
                if name not in used
            },
            **passed_over(value, effects),
        },
        passed_over=effects.names(),
        wrapper=selection.wrapper,
        epoch=epoch_in(plain_mapping(progress)),
    )


def training_arguments(settings: Mapping[str, dict | None]) -> dict[str, Any] | None:
    """Return the training arguments in a checkpoint, or None if there are none.

    Args:
        settings: the plain mappings under the keys `ARGUMENTS` and `META`.

    Returns:
        The arguments by name: those of Lightning's `hyper_parameters` and of `args` in one mapping,
            to which those under "config" or "cfg" are added; and mmengine's metadata under "meta",
            in which "cfg" is its configuration as nested mappings.
    """
    given = [part for name in ARGUMENTS if (part := settings.get(name)) is not None]
    nested = [
        inner for part in given for name in NESTED if isinstance(inner := part.get(name), dict)
    ]
    found = [*nested, *given]
    meta = settings.get(META)
    if meta is not None:
        texts = {name: meta[name] for name in CONFIG_TEXTS if isinstance(meta.get(name), str)}
        read = {name: read_config_text(text) for name, text in texts.items()}
        found.append({META: {**meta, **{k: v for k, v in read.items() if v is not None}}})
    return {name: value for part in found for name, value in part.items()} if found else None


def _carried(selection: Selection) -> dict[str, dict | None]:
    """Return the settings that are stored in an attribute of a state dict."""
    carried = selection.attributes.get(ATTRIBUTE)
    if not isinstance(carried, Mapping):
        return {}
    return {name: plain_mapping(carried.get(name)) for name in ("config", "conversion")}


def lazy(path: Path, name: str, tensor: StoredTensor, read: ReadStorage) -> LazyTensor:
    """Return a tensor that is read from its storage on demand.

    Raises:
        CheckpointError: the tensor exceeds its storage.
    """
    storage, itemsize = tensor.storage, tensor.dtype.itemsize
    if storage.dtype not in (None, tensor.dtype):
        raise _outside(path, name)
    held = storage.count if storage.dtype is not None else storage.count // itemsize
    count = math.prod(tensor.shape)
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((extent - 1) * stride for extent, stride in steps)
    if (count and last >= held) or count > held + LARGEST_OVERLAP:
        raise _outside(path, name)

    return LazyTensor(name, tensor.shape, tensor.dtype, _way_to(tensor, last, read))


def _way_to(tensor: StoredTensor, last: int, read: ReadStorage) -> Callable[[], np.ndarray]:
    """Return a function that reads a tensor whose last element is number `last` of its storage."""
    shape, dtype, first = tensor.shape, tensor.dtype, tensor.offset
    if 0 in shape:
        return lambda: np.empty(shape, dtype)
    if tensor.strides == _contiguous_strides(shape):
        return read(tensor.storage, dtype, first, shape)
    read_range = read(tensor.storage, dtype, first, (last - first + 1,))
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    return lambda: np.lib.stride_tricks.as_strided(read_range(), shape, strides, writeable=False)


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _outside(path: Path, name: str) -> CheckpointError:
    return damaged(path, f"the tensor {shown(name)} does not fit its storage")
