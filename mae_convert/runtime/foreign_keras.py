"""Run a Keras model that external code creates."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from mae_convert.errors import Option
from mae_convert.runtime import keras_backend as backend
from mae_convert.runtime.foreign_code import Code, factory_argument, named_results
from mae_convert.runtime.job import Job, additional_inputs
from mae_convert.runtime.loaders import LoadError, assign_keras, numpy_arrays
from mae_convert.runtime.run_keras import Variable, as_numpy

INPUT = ":input"


def runs(
    code: Code, job: Job, inputs: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield each dtype and its results, NumPy arrays by name.

    Raises:
        LoadError: the code failed, the tensors do not fit the code's model, or the mode or ``MASK``
            is not supported.
    """
    if job.mode != "eager":
        raise LoadError("external code is run eagerly only", hint=Option("mode", "eager"))
    if code.mask == "torch.rand":
        raise LoadError(
            f'{code.label}: MASK = "torch.rand" is not possible for a Keras model',
            hint='write "argument" or None',
        )
    for dtype in job.dtypes:
        backend.set_precision(dtype, job.device)
        kind = "float32" if dtype == "tf32" else dtype
        keras.config.set_floatx(kind)
        with backend.device("cpu" if dtype == "float64" else job.device):
            results = _results(code, job, inputs, kind)
        yield dtype, {name: as_numpy(name, value, kind) for name, value in results.items()}


def _results(code: Code, job: Job, inputs: Mapping[str, np.ndarray], dtype: str) -> dict[str, Any]:
    with code.running():
        model = code.factory(factory_argument(job, dtype))
    if not isinstance(model, keras.Model):
        raise LoadError(f"{code.label} returns {type(model).__name__} and not a keras.Model")
    pixels = ops.convert_to_tensor(inputs["pixel_values"], dtype=dtype)
    noise = None if job.task == "classify" else ops.convert_to_tensor(inputs["noise"])
    more = {n: ops.convert_to_tensor(a) for n, a in additional_inputs(inputs).items()}

    def forward() -> Any:
        with code.running():
            if code.forward is not None:
                return code.forward(model, pixels, noise, **more)
            masked = () if noise is None or code.mask is None else (noise,)
            return model(pixels, *masked, **more)

    if not model.built:
        forward()
    _load(code, model, numpy_arrays(job.weights))
    taps = _recorded(code, model)
    results = named_results(code, job.task, forward())
    return {**results, **{f"tap/{name}": value for name, value in taps.items()}}


def _load(code: Code, model: Any, arrays: Mapping[str, Any]) -> None:
    """Assign the tensors of a checkpoint to the variables of a model, each exactly once."""
    if code.load_state is not None:
        state = {name: stored.load() for name, stored in arrays.items()}
        with code.running():
            code.load_state(model, state)
        return
    try:
        assign_keras([Variable(variable, model.name) for variable in model.weights], arrays)
    except LoadError as error:
        raise LoadError(
            f"{code.label}: ", error, hint="write a function load_state(model, state)"
        ) from error


def _recorded(code: Code, model: Any) -> dict[str, Any]:
    """Replace the ``call`` of layers, so that they record the activations that the code specifies.

    The method is replaced on the layer instances, so their classes are unchanged.

    Returns:
        A dictionary that is filled with the activations, by canonical name, when the model is
        called.
    """
    taps: dict[str, Any] = {}
    named = (layer for layer in model._flatten_layers(include_self=False) if layer.path)
    layers = {_path(layer, model): layer for layer in named}
    for name, path, part, parts in code.points():
        pattern = re.escape(path.removesuffix(INPUT)).replace(r"\{\}", r"(\d+)")
        matches = [(m, layer) for p, layer in layers.items() if (m := re.fullmatch(pattern, p))]
        if not matches:
            raise LoadError(
                f"{code.label}: ACTIVATIONS names the layer {path}, which the model does not have",
                hint=f"its layers are {', '.join(list(layers)[:8])} ...",
            )
        for match, layer in matches:
            canonical = name.replace("{}", match[1]) if "{}" in name else name
            of_input = path.endswith(INPUT)
            layer.call = _recording(layer.call, taps, canonical, of_input, part, parts)
    return taps


def _path(layer: Any, model: Any) -> str:
    return str(layer.path).removeprefix(f"{model.name}/")


def _recording(
    call: Callable[..., Any],
    taps: dict[str, Any],
    name: str,
    of_input: bool,
    part: int,
    parts: int,
) -> Callable[..., Any]:
    def recording(tokens: Any, *arguments: Any, **named: Any) -> Any:
        output = call(tokens, *arguments, **named)
        value = tokens if of_input else output[0] if isinstance(output, tuple) else output
        taps[name] = value if parts == 1 else ops.split(value, parts, axis=-1)[part]
        return output

    return recording
