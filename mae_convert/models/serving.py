"""Keras models as SavedModels that TensorFlow Serving runs without this project.

Every signature takes any number of images. ``serving_default`` maps ``pixel_values`` (N, C, H, W)
to ``last_hidden_state`` (N, 1 + L, D) of all patches in their order or, in a classifier, to
``logits`` (N, K). Models that mask patches have a second signature, which also takes ``noise``
(N, L). In a pre-training model, this signature is ``reconstruct``; it returns ``logits``, ``mask``,
``ids_restore``, ``loss`` and ``reconstruction`` (N, H, W, C), in which only the removed patches are
predicted. In an encoder, it is ``encode_visible``; it returns ``last_hidden_state``, ``mask`` and
``ids_restore``.
"""

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from mae_convert.models.export import encoder_function, float_dtype, pixel_shape

Function = Any  # a tf.function of tensors, which returns tensors by name


def serving_functions(model: Any) -> dict[str, Function]:
    """Return a dictionary from the name of each signature to its function.

    Args:
        model: a Keras model of `mae_convert.models`, on TensorFlow.
    """
    if model.task == "classify":
        return {"serving_default": _logits(model)}
    second = {"pretrain": _reconstruct, "encoder": _encode_visible}[model.task]
    return {"serving_default": encoder_function(model), second.__name__.strip("_"): second(model)}


def export_saved_model(model: Any, target: str | Path, *, verbose: bool | None = None) -> None:
    """Write a SavedModel with the signatures of `serving_functions`.

    Args:
        model: a Keras model of `mae_convert.models`, on TensorFlow.
        target: the directory.
        verbose: whether to print the signatures; None for the default of Keras.
    """
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, function in serving_functions(model).items():
        function.get_concrete_function()
        # Keras exports the first function of an archive under the name "serving_default" too.
        archive.add_endpoint("serve" if name == "serving_default" else name, function)
    archive.write_out(str(target), **({} if verbose is None else {"verbose": verbose}))


def _specs(model: Any, *, noise: bool = False) -> list[tf.TensorSpec]:
    pixels = tf.TensorSpec(pixel_shape(model), float_dtype(model), "pixel_values")
    if not noise:
        return [pixels]
    return [pixels, tf.TensorSpec((None, model.config.num_patches), "float32", "noise")]


def _logits(model: Any) -> Function:
    @tf.function(input_signature=_specs(model))
    def logits(pixel_values: Any) -> dict[str, Any]:
        return {"logits": model(pixel_values, return_dict=True, training=False).logits}

    return logits


def _encode_visible(model: Any) -> Function:
    @tf.function(input_signature=_specs(model, noise=True))
    def encode_visible(pixel_values: Any, noise: Any) -> dict[str, Any]:
        outputs = model(pixel_values, noise=noise, return_dict=True, training=False)
        names = ("last_hidden_state", "mask", "ids_restore")
        return {name: outputs[name] for name in names}

    return encode_visible


def _reconstruct(model: Any) -> Function:
    @tf.function(input_signature=_specs(model, noise=True))
    def reconstruct(pixel_values: Any, noise: Any) -> dict[str, Any]:
        outputs = model(pixel_values, noise=noise, return_dict=True, training=False)
        names = ("loss", "logits", "mask", "ids_restore")
        images = model.reconstruct(pixel_values, outputs.logits, outputs.mask)
        return {**{n: outputs[n] for n in names if n in outputs}, "reconstruction": images}

    return reconstruct
