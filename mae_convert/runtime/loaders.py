"""Load a checkpoint's arrays into a reference model by name, without a mapping table.

The PyTorch reference model has the parameter names of facebookresearch/mae, so that a state dict of
that code or of timm is loaded unchanged. The Keras reference model has the variable names of
transformers' TensorFlow classes, so that ``tf_model.h5`` is loaded unchanged. For a PyTorch file of
transformers, that library's own rule (``modeling_tf_pytorch_utils``) is applied to the variable
names: slashes become dots, ``layer_._0`` becomes ``layer.0``, kernel and gamma become weight, and
beta becomes bias. In addition, kernels are transposed.

Files are read by the libraries of their formats: ``torch.load``, safetensors, NumPy and h5py.
Apart from the rule above, tensors are only selected and renamed: several files are merged, unused
tensors are dropped, and prefixes are removed.
"""

import argparse
import hashlib
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mae_convert.checkpoint.prefixes import without
from mae_convert.errors import MaeConvertError
from mae_convert.runtime.job import ReadTensors, StoredWeights

INERT = (argparse.Namespace, pathlib.Path, pathlib.PosixPath, pathlib.PurePosixPath)
IN_ARCHIVE = "model.weights.h5"  # the weights in a .keras file
OF_NPZ = ("__config__", "__conversion__")  # settings in NumPy archives, which are not tensors
SAFE_TORCH = (2, 6)
T = TypeVar("T")


class LoadError(MaeConvertError):
    """A checkpoint cannot be loaded into a model, or the model cannot be run as requested."""


class UnreadError(LoadError):
    """The library for a file's format cannot read the file."""


def tensors_in(
    weights: StoredWeights, read: Callable[[StoredWeights, str], Mapping[str, T]]
) -> dict[str, T]:
    """Return the tensors that the model uses, from all files, by their stored names.

    Args:
        weights: the files.
        read: a function that takes `weights` and the path of a file, and returns the tensors in
            the file by name.

    Raises:
        LoadError: a tensor is in two files.
    """
    tensors: dict[str, T] = {}
    for file in weights.files:
        part = read(weights, file)
        if twice := tensors.keys() & part.keys():
            raise LoadError(f"the tensor {min(twice)} is in two files, one of which is {file}")
        tensors |= part
    unused = set(weights.unused)
    return {name: tensor for name, tensor in tensors.items() if name not in unused}


def renamed(tensors: Mapping[str, T], prefixes: Iterable[str]) -> dict[str, T]:
    """Return tensors with prefixes removed from their names.

    Raises:
        LoadError: two tensors have the same name after a prefix is removed.
    """
    for prefix in prefixes:
        shorter = {without(prefix, name): tensor for name, tensor in tensors.items()}
        if len(shorter) != len(tensors):
            raise LoadError(f"two tensors have the same name without the prefix {prefix}")
        tensors = shorter
    return dict(tensors)


def pytorch_state_dict(weights: StoredWeights) -> dict[str, Any]:
    """Return the tensors of .pth, .safetensors or .npz files as PyTorch tensors, by name."""
    return renamed(tensors_in(weights, _pytorch_tensors), weights.prefixes)


def _pytorch_tensors(weights: StoredWeights, path: str) -> dict[str, Any]:
    import torch

    if weights.format == "pth":
        return _saved_by_torch(path, weights.key)
    if weights.format == "safetensors":
        from safetensors.torch import load_file

        return read_by("safetensors", path, partial(load_file, path))
    return {n: torch.from_numpy(stored.load()) for n, stored in _npz(path).items()}


def _saved_by_torch(path: str, key: str) -> dict[str, Any]:
    import torch

    require_safe_torch_load(torch.__version__)
    with torch.serialization.safe_globals([*INERT, *_numpy_scalar_globals()]):
        # Memory-mapped, so that two processes on one machine do not both have a copy of a large
        # file.
        load = partial(torch.load, path, map_location="cpu", weights_only=True, mmap=_can_map(path))
        stored = read_by("torch.load", path, load)
    values = list(_at(stored, key)) if key else [stored]
    if len(values) != 1 or not isinstance(values[0], Mapping):
        raise LoadError(
            path, f" does not have a single dictionary of tensors at {key or 'its top level'}"
        )
    return {n: value for n, value in values[0].items() if isinstance(value, torch.Tensor)}


def require_safe_torch_load(version: str) -> None:
    """Require a PyTorch version whose ``torch.load(weights_only=True)`` is safe.

    Versions before 2.6 run TorchScript programs (CVE-2025-32434).

    Raises:
        ImportError: PyTorch is older.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < SAFE_TORCH:
        raise ImportError(
            f"torch.load of PyTorch {version} can run code from a file (CVE-2025-32434) and is "
            "therefore not used; install torch>=2.6, or convert the file to safetensors first"
        )


def _can_map(path: str) -> bool:
    """Return whether a file can be memory-mapped: its storages are not compressed."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _at(stored: Any, key: str) -> Iterator[Any]:
    """Yield the values at a dotted key: ``stored["a"]["b"]`` for the key ``a.b``.

    There may be several values, because the keys may contain dots themselves.
    """
    for name, value in stored.items() if isinstance(stored, Mapping) else ():
        if name == key:
            yield value
        elif isinstance(name, str) and key.startswith(f"{name}."):
            yield from _at(value, key.removeprefix(f"{name}."))


def read_by(library: str, path: str, load: Callable[[], T]) -> T:
    """Return the result of a library's reader.

    Raises:
        UnreadError: the library cannot read the file.
    """
    try:
        return load()
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        name = pathlib.Path(path).name  # only its name: the message may be published
        raise UnreadError(f"{library} cannot read {name}: {_reason(error, path)}") from error


def _reason(error: Exception, path: str) -> str:
    """Return an error's first line, without PyTorch's advice to disable weights_only.

    Args:
        error: the error of a library that reads a file.
        path: the path of the file; in the result, it is replaced by the file's name.
    """
    text = str(error).strip().rpartition("WeightsUnpickler error: ")[2]
    lines = (line.partition(". Please")[0].strip() for line in text.splitlines())
    relevant = (line for line in lines if line and not line.startswith("Weights only load failed"))
    words = next(relevant, type(error).__name__)
    return words.replace(path, pathlib.Path(path).name).strip()[:200]


def _numpy_scalar_globals() -> list[Any]:
    scalar = np.float64(0).__reduce__()[0]
    return [scalar, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefd"}]


class Stored(NamedTuple):
    """The shape of a stored array, and a function that reads and returns the array."""

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


def numpy_arrays(weights: StoredWeights) -> dict[str, Stored]:
    """Return the shapes and readers of the arrays in .safetensors, .npz or HDF5 files, by name."""
    return renamed(tensors_in(weights, _arrays), weights.prefixes)


def _arrays(weights: StoredWeights, path: str) -> dict[str, Stored]:
    if weights.format == "safetensors":
        return read_by("safetensors", path, partial(_safetensors, path))
    if weights.format == "npz":
        return _npz(path)
    if weights.format in ("tf_h5", "keras_h5"):
        return read_by("h5py", path, partial(_hdf5, path))
    if weights.format == "keras_archive":
        return read_by("h5py", path, lambda: _hdf5(zipfile.ZipFile(path).open(IN_ARCHIVE)))
    raise LoadError(f"no library in this process reads {weights.format} files")


def _hdf5(path: Any) -> dict[str, Stored]:
    """Return the datasets that are listed in a file's attributes, or all if there is no list."""
    import h5py

    file = h5py.File(path, "r")
    names: list[str] = []
    if layers := _listed(file, "layer_names"):
        names = [name for layer in layers for name in _names_of_layer(file, layer)]
    else:
        file.visititems(lambda n, item: names.append(n) if isinstance(item, h5py.Dataset) else None)
    return {name: _dataset(file[name]) for name in names}


def _names_of_layer(file: Any, layer: str) -> list[str]:
    """Return the paths of a layer's weights.

    Files with shards list the paths of weights in place of names of layers. If `layer` is such a
    path, it is returned unchanged.
    """
    if not hasattr(file[layer], "keys"):
        return [layer]
    return [f"{layer}/{name}" for name in _listed(file[layer], "weight_names")]


def _dataset(item: Any) -> Stored:
    return Stored(item.shape, lambda: item[()])


def _listed(group: Any, attribute: str) -> list[str]:
    """Return the names in an attribute; Keras splits a long list into numbered attributes."""
    if attribute in group.attrs:
        return [_text(name) for name in group.attrs[attribute]]
    numbered = (f"{attribute}{number}" for number in range(len(group.attrs)))
    return [_text(name) for part in numbered if part in group.attrs for name in group.attrs[part]]


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _npz(path: str) -> dict[str, Stored]:
    def read() -> dict[str, np.ndarray]:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive if name not in OF_NPZ}

    arrays = read_by("NumPy", path, read)
    return {name: Stored(array.shape, partial(_same, array)) for name, array in arrays.items()}


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _safetensors(path: str) -> dict[str, Stored]:
    from safetensors import safe_open

    with suppress(ImportError):  # registers bfloat16 in NumPy
        import ml_dtypes  # noqa: F401
    file = safe_open(path, "numpy")
    return {
        name: Stored(tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name))
        for name in file.keys()  # noqa: SIM118
    }


def tensorflow_arrays(stored: Mapping[str, Stored], *, scoped: bool) -> dict[str, Stored]:
    """Return the arrays of a file of transformers' TensorFlow classes by variable path.

    Args:
        stored: the arrays by their names in the file.
        scoped: whether names begin with a layer and a name scope, as in ``tf_model.h5`` but not in
            shards.

    Raises:
        LoadError: two names are the same without the layer and the name scope.
    """
    arrays: dict[str, Stored] = {}
    for name, array in stored.items():
        variable = (name.split("/", 2)[-1] if scoped else name).removesuffix(":0")
        if variable in arrays:
            raise LoadError(f"two datasets are named {variable} after their name scope is removed")
        arrays[variable] = array
    return arrays


def transformers_arrays(
    path: str, stored: Mapping[str, Stored], variables: Iterable[Any]
) -> dict[str, Stored]:
    """Return the arrays of a transformers PyTorch file by the paths of Keras variables.

    Tensors are renamed and transposed by transformers' own rule; see `transformers_name`.

    Args:
        path: the file, for error messages.
        stored: the arrays by their names in the file.
        variables: the variables of the model.

    Raises:
        LoadError: a tensor of the model is missing, or the file has other tensors.
    """
    state = dict(stored)
    arrays = {}
    for variable in variables:
        name, transposed = transformers_name(variable.path)
        # ViTMAEModel, which has no decoder, is saved without the prefix "vit.".
        name = name if name in state else name.removeprefix("vit.")
        if name not in state:
            raise LoadError(path, f" has no tensor {name}")
        array = state.pop(name)
        arrays[variable.path] = _as_kernel(array) if transposed else array
    if state:
        raise LoadError(
            path, f" contains tensors that the model does not have: {sorted(state)[:4]}"
        )
    return arrays


def transformers_name(variable_path: str) -> tuple[str, bool]:
    """Return the PyTorch name of a TensorFlow variable, and whether its array is transposed."""
    *modules, leaf = variable_path.replace("_._", "/").split("/")
    leaf_name = {"kernel": "weight", "gamma": "weight", "beta": "bias"}.get(leaf, leaf)
    return ".".join([*modules, leaf_name]), leaf == "kernel"


def _as_kernel(weight: Stored) -> Stored:
    axes = (2, 3, 1, 0) if len(weight.shape) == 4 else tuple(range(len(weight.shape)))[::-1]
    shape = tuple(weight.shape[axis] for axis in axes)
    return Stored(shape, lambda: np.ascontiguousarray(weight.load().transpose(axes)))


def assign_keras(variables: Iterable[Any], arrays: Mapping[str, Stored]) -> None:
    """Assign to each variable the array whose name is the path of the variable.

    One array is read at a time, so a large model is in memory only once.

    Raises:
        LoadError: an array is missing, has another shape, or belongs to no variable.
    """
    remaining = dict(arrays)
    for variable in variables:
        stored = remaining.pop(variable.path, None)
        if stored is None:
            raise LoadError(f"the file has no tensor {variable.path}")
        if stored.shape != tuple(variable.shape):
            raise LoadError(
                f"{variable.path} has shape {stored.shape} in the file and {variable.shape} in the"
                " model"
            )
        variable.assign(stored.load())
    if remaining:
        raise LoadError(
            f"the file contains tensors that the model does not have: {sorted(remaining)[:4]}"
        )


def confirm(reading: ReadTensors | None, *, by_torch: bool) -> None:
    """Check that a file format's library reads the same tensors as mae-convert's reader has read.

    Args:
        reading: hashes of the tensors that mae-convert has read; None to skip the check.
        by_torch: whether PyTorch is the framework of this process.

    Raises:
        LoadError: names, dtypes, shapes or bytes of the tensors differ.
    """
    if reading is None:
        return
    by_library: Mapping[str, Any]
    if by_torch:
        by_library = tensors_in(reading.weights, _pytorch_tensors)
    else:
        by_library = tensors_in(reading.weights, _arrays)
    if by_library.keys() != reading.tensors.keys():
        names = sorted(by_library.keys() ^ reading.tensors.keys())
        raise LoadError(
            f"{reading.weights.path}: the library and mae-convert do not read the same tensors, "
            f"for example {names[0]}"
        )
    for name, value in by_library.items():
        digest = _digest_of_tensor(value) if by_torch else _digest_of_array(value.load())
        if digest != list(reading.tensors[name]):
            raise LoadError(
                f"{reading.weights.path}: the library reads {name} differently from mae-convert"
            )


def _digest_of_tensor(tensor: Any) -> list[Any]:
    import torch

    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    kind = str(tensor.dtype).removeprefix("torch.")
    return [kind, list(tensor.shape), hashlib.sha256(flat.numpy()).hexdigest()]


def _digest_of_array(array: np.ndarray) -> list[Any]:
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    digest = hashlib.sha256(little.reshape(-1).view(np.uint8).data).hexdigest()
    return [str(little.dtype), list(array.shape), digest]
