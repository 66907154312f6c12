"""Run transformers' TensorFlow classes, which exist until version 4.57, on ``tf_model.h5``.

The only intermediate activations that the classes return are hidden states. The loss with
normalized pixels is not compared, because the classes use the biased variance, which is an error
that mae-convert does not reproduce.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow
import transformers

from mae_convert.errors import Option
from mae_convert.families.mae.model_classes import TENSORFLOW_CLASSES
from mae_convert.runtime.job import Job
from mae_convert.runtime.loaders import LoadError


def versions() -> dict[str, str]:
    """Return the versions of the libraries that a result depends on."""
    return {
        "transformers": transformers.__version__,
        "tensorflow": tensorflow.__version__,
        "numpy": np.__version__,
    }


def settings() -> dict[str, Any]:
    """Return a dictionary: "tf32", whether TF32 is enabled, and "omits", the omitted results."""
    return {
        "tf32": tensorflow.config.experimental.tensor_float_32_execution_enabled(),
        "omits": ["loss_norm_pix"],
    }


def runs(job: Job, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield each dtype and its results, NumPy arrays by name.

    Raises:
        ImportError: this version of transformers has no TensorFlow classes.
        LoadError: the class cannot load the directory, or does not support an option of the job.
    """
    if job.step_outputs:
        raise LoadError(
            "the TensorFlow classes of transformers cannot be run step by step",
            hint=("leave out ", Option("isolate", True), ", or run this side with tensorflow"),
        )
    if not hasattr(transformers, TENSORFLOW_CLASSES[job.task]):
        raise ImportError(
            f"transformers {transformers.__version__} has no TensorFlow classes; specify the "
            "Python interpreter of an environment with transformers 4.57.6 and tf-keras"
        )
    if job.mode != "eager" or job.gradients or job.device != "cpu":
        raise LoadError(
            "transformers' TensorFlow classes can only be run eagerly, on the CPU, without "
            "gradients"
        )
    tensorflow.config.experimental.enable_tensor_float_32_execution(False)
    for dtype in job.dtypes:
        if dtype not in ("float64", "float32"):
            raise LoadError(
                "transformers' TensorFlow classes can only be run in float64 and float32, not in"
                f" {dtype}"
            )
        tensorflow.keras.backend.set_floatx(dtype)
        model = _build(job)
        if dtype == "float64":
            _make_constants_exact(model)
        results = _forward(model, job, inputs, dtype)
        yield dtype, {name: value.numpy() for name, value in results.items()}


def _build(job: Job) -> Any:
    transformers.logging.set_verbosity_error()
    _let_positions_be_float64()
    kind = getattr(transformers, TENSORFLOW_CLASSES[job.task])
    try:
        model, info = kind.from_pretrained(job.weights.path, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise LoadError(f"{kind.__name__} cannot load ", job.weights.path, f": {error}") from error
    if wrong := [key for keys in info.values() for key in keys]:
        raise LoadError(
            f"{kind.__name__} does not load all tensors of ", job.weights.path, f": {wrong[:4]}"
        )
    model.config.mask_ratio = job.config["mask_ratio"]
    return model


def _let_positions_be_float64() -> None:
    """Let transformers create the initial position embeddings in the model's dtype.

    The class of transformers creates them in float32 and assigns them to a variable of the model's
    dtype, which fails in float64. They are replaced when the weights are loaded.
    """
    from transformers.models.vit_mae import modeling_tf_vit_mae as module

    make = module.get_2d_sincos_pos_embed
    module.get_2d_sincos_pos_embed = lambda *args, **kwargs: tensorflow.cast(
        make(*args, **kwargs), tensorflow.keras.backend.floatx()
    )


def _make_constants_exact(model: Any) -> None:
    """Replace the constants that the library computes in float32 with float64 values.

    The constants are the square roots in GELU and in the scale of attention. If they stayed in
    float32, the results of the float64 run would be wrong by 2e-9.
    """

    def gelu(x: Any) -> Any:
        return 0.5 * x * (1 + tensorflow.math.erf(x * 0.5**0.5))

    decoder = model.decoder.decoder_layers if hasattr(model, "decoder") else ()
    for block in (*model.vit.encoder.layer, *decoder):
        if model.config.hidden_act == "gelu":
            block.intermediate.intermediate_act_fn = gelu
        attention = block.attention.self_attention
        root = attention.attention_head_size**0.5
        attention.sqrt_att_head_size = tensorflow.constant(root, "float64")


def _forward(model: Any, job: Job, inputs: Mapping[str, np.ndarray], dtype: str) -> dict[str, Any]:
    pixels = tensorflow.constant(inputs["pixel_values"], dtype=dtype)
    if job.task == "classify":
        outputs = model(pixels, output_hidden_states=True)
        results = {
            "logits": outputs.logits,
            "last_hidden_state": model.vit.layernorm(outputs.hidden_states[-1]),
        }
    else:
        # Encoder and decoder are called separately: the model cannot compute its loss in float64.
        noise = tensorflow.constant(inputs["noise"])
        outputs = model.vit(pixels, noise=noise, output_hidden_states=True)
        results = {
            "mask": tensorflow.cast(outputs.mask, "float32"),
            "ids_restore": tensorflow.cast(outputs.ids_restore, "int64"),
            "last_hidden_state": outputs.last_hidden_state,
        }
    if job.task == "pretrain":
        results |= _decoded(model, pixels, outputs, job)
    return results | {f"tap/{name}": value for name, value in _taps(outputs).items() if job.taps}


def _decoded(model: Any, pixels: Any, encoded: Any, job: Job) -> dict[str, Any]:
    logits = model.decoder(encoded.last_hidden_state, encoded.ids_restore).logits
    images = model.unpatchify(logits)  # (N, H, W, C)
    results = {"logits": logits, "reconstruction": tensorflow.transpose(images, (0, 3, 1, 2))}
    if job.config["mask_ratio"]:
        model.config.norm_pix_loss = False
        mask = tensorflow.cast(encoded.mask, pixels.dtype)
        results["loss"] = tensorflow.squeeze(model.forward_loss(pixels, logits, mask))
    return results


def _taps(outputs: Any) -> dict[str, Any]:
    embedding, *blocks = outputs.hidden_states
    names = [f"encoder.blocks.{number}.output" for number in range(len(blocks))]
    return {"encoder.embedding": embedding, **dict(zip(names, blocks, strict=True))}
