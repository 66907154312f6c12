"""Write PyTorch checkpoints without PyTorch: ``torch.load(weights_only=True)`` reads them."""

import math
import pickle
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mae_convert.errors import OutputError
from mae_convert.formats.archive_write import Record, zip_layout
from mae_convert.formats.output_file import FileLayout
from mae_convert.formats.pth_read import ATTRIBUTE
from mae_convert.formats.tensor import LazyTensor
from mae_convert.formats.torch_types import STORAGES

FOLDER = "checkpoint/"

_STORAGE_NAMES: Mapping[str, str] = {dtype: name for name, dtype in STORAGES.items()}


def pth_layout(
    tensors: Sequence[LazyTensor],
    config: Mapping | None,
    conversion: Mapping | None,
    state_key: str | None = "model",
) -> FileLayout:
    """Return the layout of a checkpoint.

    The tensors are under the key `state_key`. The settings `config` and `conversion` are under the
    keys of the same names; a setting that is None is not stored.
    Settings that are None are left out.

    If `state_key` is None, the file contains a plain state dict for `load_state_dict`: an
    OrderedDict, like the result of `state_dict()`. The settings are then stored in an attribute of
    the OrderedDict, like PyTorch's `_metadata`: `load_state_dict` ignores the attribute, and saving
    the state dict again keeps it.
    """
    extra = {"config": config, "conversion": conversion}
    settings = {name: value for name, value in extra.items() if value is not None}
    if state_key is not None:
        parts = {name: _value(value) for name, value in settings.items()}
        return _checkpoint(_mapping({state_key: _model(tensors), **parts}), tensors)
    return _checkpoint(_state_dict(tensors, {ATTRIBUTE: settings} if settings else {}), tensors)


def bin_layout(
    tensors: Sequence[LazyTensor], config: Mapping | None, conversion: Mapping | None
) -> FileLayout:
    """Return the layout of a file with only tensors, such as transformers' `pytorch_model.bin`.

    Raises:
        OutputError: a configuration or a conversion record is passed; such a file cannot store it.
    """
    if config is not None or conversion is not None:
        raise OutputError(
            "a .bin file cannot store a configuration",
            hint="write the configuration to a file in the same directory",
        )
    return _checkpoint(_model(tensors), tensors)


def _checkpoint(value: bytes, tensors: Sequence[LazyTensor]) -> FileLayout:
    """Return the file layout of a pickle and its storages."""
    return zip_layout(
        [
            Record(f"{FOLDER}data.pkl", b"".join((pickle.PROTO, b"\x02", value, pickle.STOP))),
            Record(f"{FOLDER}byteorder", b"little"),
            *(Record(f"{FOLDER}data/{n}", b"", t.nbytes) for n, t in enumerate(tensors)),
            Record(f"{FOLDER}version", b"3\n"),
        ]
    )


def _model(tensors: Sequence[LazyTensor]) -> bytes:
    return _mapping(_items(tensors))


def _items(tensors: Sequence[LazyTensor]) -> dict[str, bytes]:
    return {tensor.name: _tensor(key, tensor) for key, tensor in enumerate(tensors)}


def _state_dict(tensors: Sequence[LazyTensor], attributes: Mapping[str, Any]) -> bytes:
    """Return the pickle opcodes that create an OrderedDict of tensors and set its attributes."""
    made = _call("collections", "OrderedDict", []) + _filled(_items(tensors))
    return made + (_value(attributes) + pickle.BUILD if attributes else b"")


def _tensor(key: int, tensor: LazyTensor) -> bytes:
    """Return the pickle opcodes that create a contiguous tensor with its own storage `key`."""
    count = math.prod(tensor.shape)
    strides = tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
    description = [_value(0), _tuple(map(_value, tensor.shape)), _tuple(map(_value, strides))]
    settings = [_value(False), _call("collections", "OrderedDict", [])]
    if storage_type := _STORAGE_NAMES.get(str(tensor.dtype)):
        kind = _name("torch", storage_type)
        return _call(
            "torch._utils",
            "_rebuild_tensor_v2",
            [_storage(key, kind, count), *description, *settings],
        )
    kind = _name("torch.storage", "UntypedStorage")
    dtype = _name("torch", str(tensor.dtype))
    storage = _storage(key, kind, tensor.nbytes)
    return _call("torch._utils", "_rebuild_tensor_v3", [storage, *description, *settings, dtype])


def _storage(key: int, kind: bytes, count: int) -> bytes:
    identity = [_value("storage"), kind, _value(str(key)), _value("cpu"), _value(count)]
    return _tuple(identity) + pickle.BINPERSID


def _call(module: str, function: str, arguments: Iterable[bytes]) -> bytes:
    return _name(module, function) + _tuple(arguments) + pickle.REDUCE


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _tuple(items: Iterable[bytes]) -> bytes:
    return b"".join((pickle.MARK, *items, pickle.TUPLE))


def _mapping(items: Mapping[str, bytes]) -> bytes:
    return pickle.EMPTY_DICT + _filled(items)


def _filled(items: Mapping[str, bytes]) -> bytes:
    pairs = (_value(name) + item for name, item in items.items())
    return b"".join((pickle.MARK, *pairs, pickle.SETITEMS))


def _value(value: Any) -> bytes:
    """Return the pickle opcodes that create a value, which consists of JSON types."""
    match value:
        case None:
            return pickle.NONE
        case bool():
            return pickle.NEWTRUE if value else pickle.NEWFALSE
        case int():
            encoded = pickle.encode_long(value)
            return pickle.LONG1 + bytes([len(encoded)]) + encoded
        case float():
            return pickle.BINFLOAT + struct.pack(">d", value)
        case str():
            encoded = value.encode("utf-8", "surrogatepass")
            return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded
        case Mapping():
            return _mapping({name: _value(item) for name, item in value.items()})
        case _:
            items = b"".join(map(_value, value))
            return pickle.EMPTY_LIST + pickle.MARK + items + pickle.APPENDS
