"""The types that a checkpoint's pickle may use, and the plain data that replaces each of them.

All supported names are listed here: no name in a file is ever imported. A path becomes a string, an
`argparse.Namespace` becomes a dict, and a tensor becomes a description of its location. A value
that is short in the file but huge in memory, such as `set(range(10**12))` or `bytes(10**12)`, is
refused.
"""

import pathlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mae_convert.formats.tensor import possible_shape
from mae_convert.formats.torch_types import (
    REBUILDERS,
    STORAGES,
    TORCH_DTYPES,
    StorageType,
    StoredTensor,
    refuse_changing_state,
)

SCALARS = (str, bytes, int, float, complex, bool, type(None))
BUILTINS = ("builtins", "__builtin__")
TYPE_NAMES = ("int", "float", "str", "bool", "list", "dict", "tuple", "Ellipsis")
TENSOR_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter")
ENCODINGS = ("latin1", "latin-1", "utf8", "utf-8", "ascii")
NUMPY_DTYPE = re.compile(r"[<>|=]?[biufcSU][0-9]{1,6}")
NOT_READ = re.compile(r"[<>|=]?[OMmV][0-9]{0,6}")
"""NumPy's type codes of arrays that are not read: arrays of Python objects, times and records."""


@dataclass(frozen=True)
class Maker:
    """A type or function that a pickle may call; the function `make` is called in its place."""

    name: str
    make: Callable[..., object]


class WouldRunCodeError(Exception):
    """The result of a call in a pickle cannot be determined without running code."""


class Opaque:
    """A placeholder for an unsupported type or function, or for an object that it would create.

    The type or function is neither imported nor called. An instance equals only itself.

    Attributes:
        name: the dotted name of the type or function in the pickle.
        arguments: the arguments of the call that would create the object; None if this is a
            placeholder for the type or function itself.
        received: the states and items that the pickle has set on the object.
    """

    __slots__ = ("arguments", "name", "received")

    def __init__(self, name: str, arguments: tuple | None = None) -> None:
        self.name = name
        self.arguments = arguments
        self.received: list[Any] = []

    @property
    def is_name(self) -> bool:
        """Whether this is a placeholder for a type or function rather than for an object."""
        return self.arguments is None


@runtime_checkable
class Stateful(Protocol):
    """A value that a pickle completes after creating it."""

    def set_state(self, state: Any) -> None:
        """Set the state; raise ValueError or TypeError if it is invalid."""


class Fields(dict):
    """The attributes of an `argparse.Namespace`, by name."""

    def set_state(self, state: Any) -> None:
        """Set the attributes."""
        self.update(_attributes(state))


class Ordered(dict):
    """An OrderedDict with optional attributes, such as `_metadata` of a state dict."""

    def __init__(self, items: Any = ()) -> None:
        super().__init__(items)
        self.attributes: Mapping[str, Any] = {}

    def set_state(self, state: Any) -> None:
        """Set the attributes."""
        self.attributes = _attributes(state)


class NumpyDtype:
    """A NumPy dtype of numbers or text; a pickle creates it and then sets its byte order."""

    def __init__(self, code: Any, *_: object) -> None:
        if isinstance(code, str) and NOT_READ.fullmatch(code):
            raise WouldRunCodeError
        if not NUMPY_DTYPE.fullmatch(code):
            raise ValueError("a NumPy dtype that is neither numeric nor text")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        """Set the byte order, which is the second value of the pickled state.

        Raises:
            ValueError: the state belongs to a structured dtype.
        """
        _, order, subdtype, names, fields, *_ = state
        if order not in ("<", ">", "|", "=") or any((subdtype, names, fields)):
            raise ValueError("a structured NumPy dtype")
        self.dtype = self.dtype.newbyteorder(order)


class NumpyArray:
    """A NumPy array; a pickle creates it empty and then sets its contents with `set_state`."""

    def __init__(self, *_: object) -> None:
        self.array = np.empty(0)
        self.unread: str | None = None  # the name of the dtype if the dtype is unsupported
        self.elements: Any = None  # the pickled state if the dtype is unsupported

    def set_state(self, state: Any) -> None:
        """Set the contents, given version, shape, dtype, order and bytes."""
        _, shape, dtype, fortran, data = state
        if isinstance(dtype, Opaque):
            self.unread, self.elements = dtype.name, (state, self.elements)
            return
        self.array = _array_of(data, dtype, shape, "F" if fortran else "C")


class Record:
    """The state of an object of a supported type; a record equals only itself."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: Any = {}

    def set_state(self, state: Any) -> None:
        """Set the state without checks: code that reads a field checks it."""
        self.state = state


def _attributes(state: Any) -> dict:
    """Return the attributes in `state`, which a pickle sets on an object.

    An attribute named `__setstate__` is refused: Python would call it if the pickle set the state
    of the object a second time.

    Raises:
        TypeError: `state` is not a mapping, or contains `__setstate__`.
    """
    if not isinstance(state, dict) or "__setstate__" in state:
        raise TypeError("attributes that are not a mapping from names to values")
    return state


def check_hashable(key: Any) -> Any:
    """Return `key` unchanged if it may be a key: a scalar, a record, or a tuple of these.

    Nested tuples are refused: a short pickle can describe a tuple whose hash takes practically
    unlimited time to compute.

    Raises:
        TypeError: the value cannot be a key.
    """
    parts = key if type(key) is tuple else (key,)
    if not all(isinstance(part, (*SCALARS, Record, Opaque)) for part in parts):
        raise TypeError("a key that is not a scalar")
    return key


def _listed(items: Any) -> Any:
    if not isinstance(items, list | tuple | set | frozenset):
        raise TypeError("items that are not a list, tuple or set")
    return items


def _array_of(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, NumpyDtype) or not possible_shape(shape) or order not in ("C", "F"):
        raise ValueError("an invalid NumPy array")
    return np.frombuffer(_make_bytes(data), dtype.dtype).reshape(shape, order=order)


def _numpy_scalar(dtype: Any, data: Any) -> object:
    return _array_of(data, dtype, (), "C").item()


def _numpy_from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> NumpyArray:
    made = NumpyArray()
    made.array = _array_of(data, dtype, shape, order)
    return made


def _make_bytes(data: Any = b"", encoding: str = "latin-1") -> bytes:
    if encoding not in ENCODINGS:
        raise ValueError("an unknown encoding")
    return data.encode(encoding) if isinstance(data, str) else b"".join([data])


def _make_dict(pairs: Any = ()) -> dict:
    items = pairs.items() if isinstance(pairs, dict) else _listed(pairs)
    return {check_hashable(key): value for key, value in items}


def _make_ordered(pairs: Any = ()) -> Ordered:
    return Ordered(_make_dict(pairs))


def _make_fields() -> Fields:
    return Fields()


def _make_default_dict(_factory: object = None, pairs: Any = ()) -> dict:
    return _make_dict(pairs)


def _make_set(items: Any = ()) -> set:
    return {check_hashable(item) for item in _listed(items)}


def _make_frozen_set(items: Any = ()) -> frozenset:
    return frozenset(_make_set(items))


def _make_slice(*ends: Any) -> slice:
    return slice(*map(check_hashable, ends))


def _make_size(extents: Any = ()) -> tuple[int, ...]:
    return tuple(int(extent) for extent in _listed(extents))


def _make_text(*parts: Any) -> str:
    """Return a device or a memory layout as text: "cuda:0" for the arguments ("cuda", 0)."""
    if not all(isinstance(part, str | int) for part in parts):
        raise TypeError("a name that is not text")
    return ":".join(map(str, parts))


def _make_posix_path(*parts: str) -> str:
    return str(pathlib.PurePosixPath(*parts))


def _make_windows_path(*parts: str) -> str:
    return str(pathlib.PureWindowsPath(*parts))


def _make_history(*_: object) -> Record:
    return Record("a history of values")


def _make_attribute(owner: Any, name: Any) -> str:
    """Replace ``getattr``, with which mmengine's pickles refer to methods of HistoryBuffer.

    Returns:
        The name of the method.

    Raises:
        WouldRunCodeError: the object is not mmengine's HistoryBuffer.
    """
    if not isinstance(owner, Maker) or owner.make is not _make_history:
        raise WouldRunCodeError
    return _make_text(name)


def _rebuild_from_type(function: Any, kind: object, arguments: Any, state: Any) -> object:
    if kind not in TENSOR_TYPES:
        raise TypeError("a tensor of an invalid type")
    refuse_changing_state(state)
    tensor = function.make(*_listed(arguments))
    if not isinstance(tensor, StoredTensor):
        raise TypeError("a tensor subclass without a tensor")
    return tensor


def _builtin_makers() -> dict[str, Callable[..., object]]:
    makers: dict[str, Callable[..., object]] = {
        "set": _make_set,
        "frozenset": _make_frozen_set,
        "complex": complex,
        "range": range,
        "xrange": range,
        "slice": _make_slice,
        "bytes": _make_bytes,
        "bytearray": _make_bytes,
        "getattr": _make_attribute,
    }
    return {f"{module}.{name}": make for module in BUILTINS for name, make in makers.items()}


def _library_makers() -> dict[str, Callable[..., object]]:
    paths = {
        f"{module}.{prefix}{name}": make
        for module in ("pathlib", "pathlib._local")
        for prefix in ("", "Pure")
        for name, make in (("PosixPath", _make_posix_path), ("WindowsPath", _make_windows_path))
    }
    return {
        **paths,
        "argparse.Namespace": _make_fields,
        "types.SimpleNamespace": _make_fields,
        "collections.OrderedDict": _make_ordered,
        "collections.defaultdict": _make_default_dict,
        "collections.Counter": _make_dict,
        "_codecs.encode": _make_bytes,
        "mmengine.logging.history_buffer.HistoryBuffer": _make_history,
    }


def _numpy_makers() -> dict[str, Callable[..., object]]:
    makers: dict[str, Callable[..., object]] = {
        "multiarray._reconstruct": NumpyArray,
        "multiarray.scalar": _numpy_scalar,
        "numeric._frombuffer": _numpy_from_buffer,
    }
    return {
        **{f"numpy.{core}.{name}": makers[name] for core in ("core", "_core") for name in makers},
        "numpy.dtype": NumpyDtype,
        "numpy.ndarray": NumpyArray,
    }


def _torch_makers() -> dict[str, Callable[..., object]]:
    return {
        **REBUILDERS,
        "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
        "torch.Size": _make_size,
        "torch.device": _make_text,
        "torch.serialization._get_layout": _make_text,
    }


def _values() -> dict[str, object]:
    """Return the replacements of the names that a pickle uses as values and does not call.

    These are the names of types, dtypes and storage types.
    """
    return {
        **{f"{module}.{name}": name for module in BUILTINS for name in TYPE_NAMES},
        "__builtin__.long": "int",
        "__builtin__.unicode": "str",
        **{f"torch.{name}": f"torch.{name}" for name in TORCH_DTYPES},
        **{f"torch.{name}": StorageType(of) for name, of in STORAGES.items()},
        "torch.storage.UntypedStorage": StorageType(None),
        **{name: name for name in TENSOR_TYPES},
    }


def _table() -> dict[str, object]:
    makers = {**_builtin_makers(), **_library_makers(), **_numpy_makers(), **_torch_makers()}
    return {**{name: Maker(name, make) for name, make in makers.items()}, **_values()}


INERT: Mapping[str, object] = _table()
