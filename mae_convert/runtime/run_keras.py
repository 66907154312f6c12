"""Run the Keras reference model for a job, on TensorFlow or JAX."""

import gc
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops
from safetensors.numpy import load_file

from mae_convert.runtime import keras_backend as backend
from mae_convert.runtime import objective
from mae_convert.runtime.job import Job, StoredWeights, additional_inputs, class_named
from mae_convert.runtime.keras_steps import replace_steps
from mae_convert.runtime.loaders import (
    LoadError,
    Stored,
    assign_keras,
    confirm,
    numpy_arrays,
    read_by,
    tensorflow_arrays,
    transformers_arrays,
)
from reference_models.keras.numerics import cross_entropy
from reference_models.keras.patches import take_tokens


def versions() -> dict[str, str]:
    """Return the versions of the libraries that a result depends on."""
    module = __import__(keras.backend.backend())
    return {
        module.__name__: module.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def settings() -> dict[str, Any]:
    """Return the backend's settings that a result depends on: float32 precision and determinism."""
    if keras.backend.backend() == "jax":
        import jax

        return {"tf32": jax.config.jax_default_matmul_precision != "highest"}
    import tensorflow

    return {
        "deterministic_algorithms": True,  # by keras_backend.set_precision
        "tf32": tensorflow.config.experimental.tensor_float_32_execution_enabled(),
    }


def runs(
    job: Job, inputs: Mapping[str, np.ndarray], stored: Mapping[str, Stored]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield each dtype and its results, NumPy arrays by name.

    Args:
        job: the checkpoint, the dtypes of the runs, and the results to return.
        inputs: ``pixel_values``, for masked tasks ``noise``, and additional inputs of the model.
        stored: the arrays of the job's files by name; empty if Keras itself reads the file.

    Raises:
        LoadError: the file does not contain exactly the tensors of the model, or a result does not
            have the requested dtype.
    """
    confirm(job.confirmed, by_torch=False)
    exact: dict[str, Stored] = {}
    for dtype in job.dtypes:
        backend.set_precision(dtype, job.device)
        kind = "float32" if dtype == "tf32" else dtype
        with backend.device("cpu" if dtype == "float64" else job.device):
            model = build(job, kind, stored, exact)
            results = _results(model, job, inputs, kind)
        yield dtype, {name: as_numpy(name, value, kind) for name, value in results.items()}
        exact = _values(model) if dtype == "float64" else {}
        # Memory never holds more than one model: a deleted model is not yet freed.
        del model, results
        gc.collect()


def _values(model: Any) -> dict[str, Stored]:
    """Return a model's values by variable path; each value can be loaded only once."""
    values = {v.path: ops.convert_to_tensor(v.value) for v in _without_root(model)}
    return {n: Stored(tuple(v.shape), partial(values.pop, n)) for n, v in values.items()}


def _results(model: Any, job: Job, inputs: Mapping[str, np.ndarray], dtype: str) -> dict[str, Any]:
    pixels = ops.convert_to_tensor(inputs["pixel_values"], dtype=dtype)
    others = additional_inputs(inputs)
    if job.task != "classify":
        others["noise"] = inputs["noise"]
    names, tensors = tuple(others), tuple(map(ops.convert_to_tensor, others.values()))
    training = job.mode == "train"

    computed = _isolate_steps(model, job, dtype)

    def run(pixels: Any, *tensors: Any) -> dict[str, Any]:
        results = forward(model, training, pixels, **dict(zip(names, tensors, strict=True)))
        results |= {f"tap/{name}": value for name, value in computed.items()}
        return {n: value for n, value in results.items() if job.taps or not n.startswith("tap/")}

    def scalar(pixels: Any, *tensors: Any) -> Any:
        return _objective(run(pixels, *tensors), job.task)

    results = backend.compiled(run, model, job.mode)(pixels, *tensors)
    if job.gradients:
        variables, names_of_variables = model.trainable_variables, layout_names(model)
        gradients = backend.gradients(scalar, variables, job.mode)(pixels, *tensors)
        results |= {
            f"grad/{names_of_variables[id(variable)]}": gradient
            for variable, gradient in zip(variables, gradients, strict=True)
            if gradient is not None
        }
    return results


def _isolate_steps(model: Any, job: Job, dtype: str) -> dict[str, Any]:
    """Replace the input of each step of the model by an activation that the job specifies.

    Return a dictionary that is filled with the computed activations when the model is called; see
    `replace_steps`. It remains empty if the job specifies no activations.
    """
    if not job.step_outputs:
        return {}
    given = load_file(job.step_outputs)
    return replace_steps(
        model, {name: ops.convert_to_tensor(array, dtype) for name, array in given.items()}
    )


def layout_names(model: Any) -> dict[int, str]:
    """Return a dictionary from the ``id`` of each variable to its name in the ``keras`` layout.

    A name consists of the attribute path of a layer, and the index of the variable in that layer.
    """
    names: dict[int, str] = {}

    def walk(layer: Any, path: str) -> None:
        inner = {n: v for n, v in vars(layer).items() if isinstance(v, keras.layers.Layer)}
        below = {id(weight) for value in inner.values() for weight in value.weights}
        own = [weight for weight in layer.weights if id(weight) not in below]
        names.update({id(weight): f"{path}vars/{at}" for at, weight in enumerate(own)})
        for name, value in inner.items():
            walk(value, f"{path}{name}/")

    walk(model, "")
    return names


def build(job: Job, dtype: str, stored: Mapping[str, Stored], exact: Mapping[str, Stored]) -> Any:
    """Return the reference model with the weights of a job, in a dtype.

    Args:
        job: the checkpoint and the class of the model.
        dtype: the dtype of the weights and of the computation.
        stored: the arrays of the job's files by name.
        exact: the values of an earlier float64 model by variable path, to be used instead of
            `stored`; empty if there was no earlier model.
    """
    config = class_named(job.configuration).from_dict(job.config)
    with backend.short_variable_names():
        model = class_named(job.model)(config, dtype=dtype, initializer=backend.Unset())
    variables = _without_root(model)
    if exact:
        assign_keras(variables, exact)
    elif job.loader == "keras":
        load_weights_file(model, job.weights)
    elif job.loader in ("transformers-tf", "transformers-tf, shards"):
        arrays = tensorflow_arrays(stored, scoped=job.loader == "transformers-tf")
        assign_keras(variables, arrays)
    else:
        assign_keras(variables, transformers_arrays(job.weights.path, stored, variables))
    return model


def load_weights_file(model: Any, weights: StoredWeights) -> None:
    """Load a ``.weights.h5`` or ``.keras`` file with Keras.

    Raises:
        LoadError: Keras cannot read the file, or the numbers of tensors in the file and in the
            model differ. Keras itself ignores additional tensors.
    """
    read_by("Keras", weights.path, partial(model.load_weights, weights.path))
    stored = numpy_arrays(weights)
    if len(stored) != len(model.weights):
        raise LoadError(
            weights.path, f" has {len(stored)} tensors, but the model has {len(model.weights)}"
        )


class Variable:
    """A variable of a model; its path does not begin with the model's name."""

    def __init__(self, variable: Any, root: str) -> None:
        self.path = variable.path.removeprefix(f"{root}/")
        self.shape = variable.shape
        self._variable = variable

    @property
    def value(self) -> Any:
        """The value of the variable."""
        return self._variable.value

    def assign(self, value: Any) -> None:
        """Assign an array or tensor to the variable; it is converted to the variable's dtype.

        If `value` is an array, nothing else may use it afterwards, because TensorFlow may use the
        array's memory; see `keras_backend.backend_tensor`.
        """
        if isinstance(value, np.ndarray):
            value = backend.backend_tensor(value)
        self._variable.assign(ops.convert_to_tensor(value))


def _without_root(model: Any) -> list[Variable]:
    return [Variable(variable, model.name) for variable in model.weights]


def forward(
    model: Any, training: bool, pixels: Any, noise: Any = None, **additional: Any
) -> dict[str, Any]:
    """Return the model's outputs by name, and its intermediate activations as ``tap/NAME``.

    Args:
        model: a Keras reference model.
        training: the argument ``training`` of the model.
        pixels: the images or videos.
        noise: the masking noise (N, L); None for a classifier.
        additional: the additional inputs of the model, by name.
    """
    if noise is None:
        outputs = model(pixels, output_taps=True, training=training, **additional)
        results = {"logits": outputs.logits}
        if "encoder.norm" in outputs.taps:
            results["last_hidden_state"] = outputs.taps["encoder.norm"]
    else:
        outputs = model(pixels, noise=noise, output_taps=True, training=training, **additional)
        results = {"mask": outputs.mask, "ids_restore": outputs.ids_restore}
        results["last_hidden_state"] = _last_hidden_state(outputs)
    if hasattr(model, "forward_loss"):
        results |= _pretraining_results(model, pixels, outputs)
    return results | {f"tap/{name}": value for name, value in outputs.taps.items()}


def _last_hidden_state(outputs: Any) -> Any:
    hidden = getattr(outputs, "last_hidden_state", None)  # a pre-training model has none
    return outputs.taps["encoder.norm"] if hidden is None else hidden


def _pretraining_results(model: Any, pixels: Any, outputs: Any) -> dict[str, Any]:
    """Return the logits, the reconstruction and, if patches are removed, both losses.

    ``loss`` is the loss for pixels, and ``loss_norm_pix`` is the loss for pixels that are
    normalized in each patch.
    """
    results = {
        "logits": outputs.logits,
        "reconstruction": model.unpatchify(all_patches(outputs.logits, outputs.mask)),
    }
    if model.config.num_kept < model.config.num_patches:
        for name, normalized in (("loss", False), ("loss_norm_pix", True)):
            results[name] = model.forward_loss(
                pixels, outputs.logits, outputs.mask, norm_pix_loss=normalized
            )
    return results


def all_patches(logits: Any, mask: Any) -> Any:
    """Return predictions (N, L, P) of all patches.

    If a model predicts only the removed patches, the predictions of visible patches are zeros.

    Args:
        logits: (N, M, P), in the order of the image; M is L or the number of removed patches.
        mask: (N, L), 1 if a patch is removed.
    """
    if logits.shape[1] == mask.shape[1]:
        return logits
    padded = ops.pad(logits, ((0, 0), (mask.shape[1] - logits.shape[1], 0), (0, 0)))
    positions = ops.argsort(ops.argsort(mask, axis=1), axis=1)
    return take_tokens(padded, positions)


def _objective(results: Mapping[str, Any], task: str) -> Any:
    """Return the scalar whose gradient is compared; see the module ``objective``."""
    if task == "pretrain":
        if "loss" not in results:
            raise LoadError("without masking there is no loss and therefore no gradient")
        return results["loss"]
    if task == "classify":
        logits = results["logits"]
        targets = ops.convert_to_tensor(objective.labels(*map(int, logits.shape)))
        return cross_entropy(logits, targets)
    hidden = results["last_hidden_state"]
    shape = tuple(map(int, hidden.shape))
    weights = ops.convert_to_tensor(objective.cotangent(shape), dtype=hidden.dtype)
    return ops.sum(hidden * weights) / shape[0]


def as_numpy(name: str, value: Any, dtype: str) -> np.ndarray:
    """Return a result as an array; a bfloat16 result is converted to float32.

    Raises:
        LoadError: the result does not have the requested dtype.
    """
    if name == "mask":
        return ops.convert_to_numpy(ops.cast(value, "float32"))
    if name == "ids_restore":
        return ops.convert_to_numpy(value).astype(np.int64)
    dtype_of_value = keras.backend.standardize_dtype(value.dtype)
    # A loss over a float32 mask is summed in float32 at least.
    wide = name in ("loss", "loss_norm_pix") and dtype_of_value == "float32"
    if dtype_of_value != dtype and not (wide and dtype != "float64"):
        raise LoadError(f"{name} has dtype {dtype_of_value}, although {dtype} was requested")
    exact = ops.cast(value, "float32") if dtype == "bfloat16" else value  # NumPy has no bfloat16
    return backend.as_array(exact)
