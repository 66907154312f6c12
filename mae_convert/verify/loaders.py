"""Put a checkpoint's arrays into a reference model by name, without any mapping table.

The PyTorch reference has the original's parameter names, so that a state dict of
facebookresearch/mae or timm is loaded as it is. The Keras reference has the variable names of
transformers' TensorFlow classes, so that ``tf_model.h5`` is loaded as it is, and a PyTorch file of
transformers by the rule by which that library itself renames (``modeling_tf_pytorch_utils``):
slashes become dots, ``layer_._0`` becomes ``layer.0``, kernel and gamma become weight, beta becomes
bias, and kernels are transposed. Files are opened with the frameworks' own readers.
"""

import argparse
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

INERT = (argparse.Namespace, pathlib.Path, pathlib.PosixPath, pathlib.PurePosixPath)


# The keys under which a checkpoint keeps its model. What has more than one of them comes here as a
# file of its own.
WRAPPERS = ("model", "state_dict", "module", "model_state", "model_state_dict")


class LoadError(Exception):
    """The file does not hold exactly the tensors of the reference model."""


def pytorch_state_dict(path: str) -> dict[str, Any]:
    """Return the tensors of a .pth, .safetensors or .npz file as PyTorch tensors, by name."""
    import torch

    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    if path.endswith(".npz"):
        with np.load(path, allow_pickle=False) as archive:
            return {n: torch.from_numpy(archive[n]) for n in archive if not n.startswith("__")}
    with torch.serialization.safe_globals([*INERT, *_numpy_scalar_globals()]):
        # Mapped, so that two processes on one machine do not each hold a copy of a large file.
        mapped = zipfile.is_zipfile(path)
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    parts = [part for key in WRAPPERS if isinstance(part := stored.get(key), Mapping)]
    found = (_tensors(part, torch.Tensor) for part in (*parts, stored))
    return next(filter(None, found), {})


def _tensors(stored: Mapping[str, Any], kind: type) -> dict[str, Any]:
    return {name: value for name, value in stored.items() if isinstance(value, kind)}


def _numpy_scalar_globals() -> list[Any]:
    scalar = np.float64(0).__reduce__()[0]
    return [scalar, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefd"}]


class Stored(NamedTuple):
    """An array that is still in its file."""

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


def tensorflow_arrays(path: str) -> dict[str, Stored]:
    """Return the arrays of a ``tf_model.h5`` by variable path, layer and name scope taken off."""
    import h5py

    arrays: dict[str, Stored] = {}
    file = h5py.File(path)

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            variable = name.split("/", 2)[2].removesuffix(":0")
            if variable in arrays:
                raise LoadError(f"two datasets are named {variable} once their scope is taken off")
            arrays[variable] = Stored(item.shape, lambda: item[()])

    file.visititems(collect)
    return arrays


def transformers_arrays(path: str, variables: Iterable[Any]) -> dict[str, Stored]:
    """Return the arrays of a transformers PyTorch file by variable path, by that library's rule."""
    state = _safetensors(path) if path.endswith(".safetensors") else _pytorch_as_numpy(path)
    arrays = {}
    for variable in variables:
        name, transposed = transformers_name(variable.path)
        # A bare ViTMAEModel is saved without the name of its only part.
        name = name if name in state else name.removeprefix("vit.")
        if name not in state:
            raise LoadError(f"{path} holds no tensor {name}")
        array = state.pop(name)
        arrays[variable.path] = _as_kernel(array) if transposed else array
    if state:
        raise LoadError(f"{path} holds tensors that the model has not: {sorted(state)[:4]}")
    return arrays


def _safetensors(path: str) -> dict[str, Stored]:
    from safetensors import safe_open

    file = safe_open(path, "numpy")
    return {
        name: Stored(tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name))
        for name in file.keys()  # noqa: SIM118
    }


def _pytorch_as_numpy(path: str) -> dict[str, Stored]:
    return {
        name: Stored(tuple(tensor.shape), tensor.numpy)
        for name, tensor in pytorch_state_dict(path).items()
    }


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
    """Assign every variable exactly once; nothing may be missing, left over or misshapen.

    One array at a time is read, so that a large model is in memory once.
    """
    remaining = dict(arrays)
    for variable in variables:
        stored = remaining.pop(variable.path, None)
        if stored is None:
            raise LoadError(f"the file holds no {variable.path}")
        if stored.shape != tuple(variable.shape):
            raise LoadError(
                f"{variable.path} has shape {stored.shape} in the file and {variable.shape} in the"
                " model"
            )
        variable.assign(stored.load())
    if remaining:
        raise LoadError(f"the file holds what the model has not: {sorted(remaining)[:4]}")
