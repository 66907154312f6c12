"""Run the Keras reference model for a job, on TensorFlow or JAX."""

from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import keras
import numpy as np
from keras import ops

from mae_convert.verify.job import Job
from mae_convert.verify.loaders import (
    LoadError,
    assign_keras,
    tensorflow_arrays,
    transformers_arrays,
)
from reference_models.configuration import ViTMAEConfig
from reference_models.keras import (
    TFViTForImageClassification,
    TFViTMAEForPreTraining,
    TFViTMAEModel,
)

MODELS = {
    "pretrain": TFViTMAEForPreTraining,
    "encoder": TFViTMAEModel,
    "classify": TFViTForImageClassification,
}


def versions() -> dict[str, str]:
    """Return the versions that matter for a result of this framework."""
    backend = __import__(keras.backend.backend())
    return {
        backend.__name__: backend.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def runs(job: Job, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each dtype and its results, NumPy arrays by name.

    Raises:
        LoadError: the file's tensors are not exactly the model's.
    """
    for dtype in job.dtypes:
        with _device("cpu" if dtype == "float64" else job.device):
            results = forward(build(job, dtype), job, inputs, dtype)
        yield dtype, {name: _as_numpy(name, value, dtype) for name, value in results.items()}


def _device(device: str) -> Any:
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_device(jax.devices({"cuda": "gpu"}.get(device, device))[0])
    import tensorflow

    if device == "cpu":
        return tensorflow.device("/CPU:0")
    if not tensorflow.config.list_physical_devices("GPU"):
        raise LoadError("this TensorFlow sees no CUDA device; pass --device cpu")
    # TF32 would make float32 on a GPU something else than float32.
    tensorflow.config.experimental.enable_tensor_float_32_execution(False)
    return tensorflow.device("/GPU:0")


def build(job: Job, dtype: str) -> Any:
    """Return the reference model in a dtype with the job's weights."""
    model = MODELS[job.task](ViTMAEConfig.from_dict(job.config), dtype=dtype)
    if job.loader == "keras":
        load_weights_file(model, job.weights)
    elif job.loader == "transformers-tf":
        assign_keras(_without_root(model), tensorflow_arrays(job.weights))
    else:
        variables = _without_root(model)
        assign_keras(variables, transformers_arrays(job.weights, variables))
    return model


def load_weights_file(model: Any, path: str) -> None:
    """Load ``.weights.h5`` by Keras itself, which accepts surplus tensors silently: count them."""
    try:
        model.load_weights(path)
    except (ValueError, KeyError) as error:
        raise LoadError(f"{path}: {error}") from error
    stored = []
    with h5py.File(path) as file:
        file.visititems(
            lambda n, item: stored.append(n) if isinstance(item, h5py.Dataset) else None
        )
    if len(stored) != len(model.weights):
        raise LoadError(f"{path} holds {len(stored)} tensors, the model {len(model.weights)}")


class Variable:
    """A model's variable under its path without the model's own name."""

    def __init__(self, variable: Any, root: str) -> None:
        self.path = variable.path.removeprefix(f"{root}/")
        self.shape = variable.shape
        self.assign = variable.assign


def _without_root(model: Any) -> list[Variable]:
    return [Variable(variable, model.name) for variable in model.weights]


def forward(model: Any, job: Job, inputs: Mapping[str, np.ndarray], dtype: str) -> dict[str, Any]:
    """Return the outputs that the job's task has, and the taps if they are asked for."""
    pixels = ops.convert_to_tensor(inputs["pixel_values"], dtype=dtype)
    if job.task == "classify":
        outputs = model(pixels, output_taps=True)
        results = {"logits": outputs.logits}
        if "encoder.norm" in outputs.taps:
            results["last_hidden_state"] = outputs.taps["encoder.norm"]
    else:
        noise = ops.convert_to_tensor(inputs["noise"])
        outputs = model(pixels, noise=noise, output_taps=True)
        results = {"mask": outputs.mask, "ids_restore": outputs.ids_restore}
        results["last_hidden_state"] = outputs.taps["encoder.norm"]
    if job.task == "pretrain":
        results |= pretraining_results(model, pixels, outputs)
    taps = outputs.taps if job.taps else {}
    return results | {f"tap/{name}": value for name, value in taps.items()}


def pretraining_results(model: Any, pixels: Any, outputs: Any) -> dict[str, Any]:
    """Return logits, reconstruction and both losses (neither where nothing is removed)."""
    results = {
        "logits": outputs.logits,
        "reconstruction": model.unpatchify(outputs.logits),
    }
    if np.any(ops.convert_to_numpy(outputs.mask)):
        for name, normalised in (("loss", False), ("loss_norm_pix", True)):
            results[name] = model.forward_loss(
                pixels, outputs.logits, outputs.mask, norm_pix_loss=normalised
            )
    return results


def _as_numpy(name: str, value: Any, dtype: str) -> np.ndarray:
    if name == "mask":
        return ops.convert_to_numpy(ops.cast(value, "float32"))
    if name == "ids_restore":
        return ops.convert_to_numpy(value).astype(np.int64)
    found = keras.backend.standardize_dtype(value.dtype)
    # A loss over a float32 mask is summed in float32 at least.
    wide = name in ("loss", "loss_norm_pix") and found == "float32"
    if found != dtype and not (wide and dtype != "float64"):
        raise LoadError(f"{name} came out as {found}, though {dtype} was asked for")
    exact = ops.cast(value, "float32") if dtype == "bfloat16" else value  # NumPy has no bfloat16
    return ops.convert_to_numpy(exact)
