"""Create a Keras reference model from tensors read one by one, and access a model's tensors.

The tensors have the names of the ``keras`` layout: the attribute path of a layer, and the index of
the variable in the layer.
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import keras
import numpy as np

from mae_convert.errors import LayoutError, MissingRequirementError
from mae_convert.files.workers import reuse_freed_memory
from mae_convert.formats.dtypes import DTYPES
from mae_convert.formats.tensor import LazyTensor
from mae_convert.runtime.keras_backend import Unset, backend_tensor, short_variable_names
from mae_convert.runtime.keras_backend import device as on_device
from mae_convert.runtime.loaders import LoadError
from mae_convert.runtime.read_ahead import read_aligned, reading_threads


def make(
    model_class: Any,
    config: Any,
    tensors: Sequence[LazyTensor],
    policy: str,
    device: str | None,
) -> Any:
    """Return a model with exactly these tensors, which are read in separate threads.

    Args:
        model_class: the class of the model.
        config: the configuration of the model.
        tensors: the tensors, with the names of the ``keras`` layout and the variable dtype of the
            policy.
        policy: the name of a Keras dtype policy.
        device: "cpu" or "cuda"; None for Keras's default.

    Raises:
        LayoutError: names, shapes or dtypes of the tensors differ from the model's.
        MissingRequirementError: the device does not exist.
    """
    if device is None:
        return _make(model_class, config, tensors, policy)
    try:
        with on_device(device.replace("gpu", "cuda").partition(":")[0]):
            return _make(model_class, config, tensors, policy)
    except LoadError as error:
        raise MissingRequirementError(error) from error


def _make(model_class: Any, config: Any, tensors: Sequence[LazyTensor], policy: str) -> Any:
    reuse_freed_memory()
    with reading_threads() as threads:
        arrays = threads.map(read_aligned, tensors)
        with short_variable_names():
            model = model_class(config, dtype=policy, initializer=Unset())
        variables = [variable_at(model, tensor.name) for tensor in tensors]
        if {id(v) for v in variables} != {id(v) for v in model.weights} or len(variables) > len(
            model.weights
        ):
            raise LayoutError(
                f"the checkpoint has {len(variables)} tensors, but the model has "
                f"{len(model.weights)}"
            )
        for variable, tensor, array in zip(variables, tensors, arrays, strict=True):
            if tuple(variable.shape) != tensor.shape or variable.dtype != str(tensor.dtype):
                raise LayoutError(
                    f"{tensor.name} is {tensor.dtype} of shape {tensor.shape} in the checkpoint and"
                    f" {variable.dtype} of shape {tuple(variable.shape)} in the model"
                )
            variable.assign(backend_tensor(array))
    return model


def variable_at(model: Any, name: str) -> Any:
    """Return the variable with a ``keras`` layout name, such as ``encoder/block_0/fc1/vars/0``.

    Raises:
        LayoutError: the model has no such variable.
    """
    *attributes, _, index = name.split("/")
    try:
        # A layer's own variables come before the variables of its sublayers.
        return reduce(getattr, attributes, model).weights[int(index)]
    except (AttributeError, IndexError) as error:
        raise LayoutError(f"the model has no variable {name}") from error


def tensors_of(model: Any, names: Iterable[str]) -> dict[str, LazyTensor]:
    """Return a model's tensors by name in the ``keras`` layout; reading a tensor copies it."""
    return {name: _lazy(name, variable_at(model, name)) for name in names}


def _lazy(name: str, variable: Any) -> LazyTensor:
    def load() -> np.ndarray:
        return np.asarray(keras.ops.convert_to_numpy(variable.value))

    return LazyTensor(name, tuple(variable.shape), DTYPES[variable.dtype], load)
