"""PyTorch's pickled tensors, as descriptions of the location of their values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mae_convert.formats import registry
from mae_convert.formats.dtypes import DtypesByName
from mae_convert.formats.tensor import possible_shape

TORCH_DTYPES = DtypesByName(registry.TORCH_DTYPES)
NUMPY_DTYPES = frozenset(TORCH_DTYPES[name] for name in registry.NUMPY_DTYPES)
"""Dtypes of NumPy itself, which HDF5 and .npz files can therefore store."""

STORAGES: Mapping[str, str] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}


@dataclass(frozen=True)
class StorageType:
    """The element type of a storage."""

    name: str | None
    """The name of the dtype; None for a storage of bytes."""

    @property
    def dtype(self) -> np.dtype | None:
        """The dtype of the elements; None for a storage of bytes."""
        return None if self.name is None else TORCH_DTYPES[self.name]


@dataclass(frozen=True)
class Storage:
    """A part of a storage in the file: `count` elements of the storage `key`, from `start` on."""

    key: str
    dtype: np.dtype | None
    count: int
    start: int = 0


@dataclass(frozen=True)
class TensorPlace:
    """A tensor described by a file; subclasses add the location of its values."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class StoredTensor(TensorPlace):
    """A tensor described by a pickle: a view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    strides: tuple[int, ...]


def natural(number: object) -> bool:
    """Return whether a value from a file is a valid number of bytes: an integer in [0, 2^62)."""
    return type(number) is int and 0 <= number < 1 << 62


def make_storage(kind: Any, key: Any, count: Any, view: Any = None) -> Storage:
    """Return the storage of a persistent id.

    Args:
        kind: the type of the elements.
        key: the name of the storage in the file.
        count: the number of elements of the storage.
        view: (key, first element, number of elements) if the id refers to a part of the storage,
            which is possible in files from before PyTorch 1.6.

    Raises:
        ValueError, TypeError: an argument has an invalid type or value.
    """
    _, start, length = (None, 0, count) if view is None else view
    if not isinstance(kind, StorageType) or not isinstance(key, str):
        raise TypeError("a storage without a type or a name")
    if not all(map(natural, (count, start, length))) or start + length > count:
        raise ValueError("an invalid storage")
    return Storage(key, kind.dtype, length, start)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any) -> StoredTensor:
    if not isinstance(storage, Storage) or not isinstance(dtype, np.dtype):
        raise TypeError("a tensor without a storage")
    if not possible_shape(shape) or type(strides) is not tuple or len(strides) != len(shape):
        raise ValueError("an invalid shape")
    if not all(map(natural, (offset, *strides))):
        raise ValueError("an invalid offset")
    return StoredTensor(tuple(shape), dtype, storage, offset, strides)


def _rebuild_tensor(storage: Storage, offset: Any, shape: Any, strides: Any) -> StoredTensor:
    return _tensor(storage, offset, shape, strides, storage.dtype)


def _rebuild_tensor_v2(
    storage: Storage, offset: Any, shape: Any, strides: Any, *settings: Any
) -> StoredTensor:
    _gradient, _hooks, *metadata = settings
    _refuse_lazy_bits(metadata)
    return _tensor(storage, offset, shape, strides, storage.dtype)


def _rebuild_tensor_v3(
    storage: Storage, offset: Any, shape: Any, strides: Any, *settings: Any
) -> StoredTensor:
    _gradient, _hooks, dtype, *metadata = settings
    _refuse_lazy_bits(metadata)
    return _tensor(storage, offset, shape, strides, TORCH_DTYPES[dtype.removeprefix("torch.")])


def _refuse_lazy_bits(metadata: list) -> None:
    if any(metadata):  # the stored bytes of a conjugate or negative view are not its values
        raise ValueError("a lazily conjugated tensor")


def _parameter(tensor: Any, *_: object) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise TypeError("a parameter without a tensor")
    return tensor


def _parameter_with_state(
    tensor: Any, _gradient: object, _hooks: object, state: Any
) -> StoredTensor:
    refuse_changing_state(state)
    return _parameter(tensor)


SETTABLE = frozenset(
    ("data", "grad", "real", "imag", "names", "requires_grad", "layout", "dtype", "device", "shape")
)
"""Attributes of a PyTorch tensor that change the tensor when they are set."""


def refuse_changing_state(state: Any) -> None:
    """Refuse attributes of a tensor in a pickle that could change the tensor's values.

    PyTorch sets each attribute by name: an attribute named `data` replaces the values.

    Args:
        state: a mapping of attributes by name, None, or a pair whose values are mappings or None.

    Raises:
        ValueError: an attribute has an effect in PyTorch, or its value is not plain data.
        TypeError: the attributes are not a mapping.
    """
    for attributes in state if type(state) is tuple and len(state) == 2 else (state,):
        for name, value in _items(attributes):
            if not isinstance(name, str) or name in SETTABLE or name.startswith("__"):
                raise ValueError("an attribute that changes its tensor")
            if not _is_plain(value):
                raise ValueError("a tensor's attribute whose value is not plain data")


def _items(attributes: Any) -> list[tuple[Any, Any]]:
    if attributes is None:
        return []
    if not isinstance(attributes, dict):
        raise TypeError("attributes without names")
    return list(attributes.items())


def _is_plain(value: Any) -> bool:
    values = value if type(value) in (list, tuple) else (value,)
    return all(item is None or type(item) in (bool, int, float, str) for item in values)


REBUILDERS: Mapping[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
}
