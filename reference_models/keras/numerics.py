"""Arithmetic that is exact in float64 on every backend.

GELU and attention of Keras use float32 constants, and on JAX ``ops.mean``, ``ops.tanh``,
``ops.sin`` and ``result_type`` convert float64 to float32. This module uses only operations that
keep float64.
"""

import math
from collections.abc import Callable

import keras
from keras import ops

from reference_models.outputs import Tensor


def widen(x: Tensor) -> Tensor:
    """Cast a floating-point tensor to float32, unless it is float32 or float64 already."""
    return x if x.dtype in ("float32", "float64") else ops.cast(x, "float32")


def mean(x: Tensor, axis: int, *, keepdims: bool = False) -> Tensor:
    """Return the mean over an axis of fixed length."""
    return ops.sum(x, axis=axis, keepdims=keepdims) / x.shape[axis]


def gelu(x: Tensor) -> Tensor:
    """Return x times the cumulative standard normal distribution function at x."""
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))


def gelu_tanh(x: Tensor) -> Tensor:
    """Return the tanh approximation of GELU (arXiv:1606.08415, section 2).

    It is written with the logistic function, because (1 + tanh y) / 2 = sigmoid(2 y) for every y.
    """
    return x * ops.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x))


def quick_gelu(x: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x)."""
    return x * ops.sigmoid(1.702 * x)


def silu(x: Tensor) -> Tensor:
    """Return x * sigmoid(x)."""
    return x * ops.sigmoid(x)


def sines_and_cosines(angles: Tensor) -> Tensor:
    """Return sines followed by cosines along the last axis, in the dtype of the angles."""
    if keras.backend.backend() == "jax":
        import jax.numpy as jnp

        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)


def widest_float() -> str:
    """Return "float64", or "float32" on JAX where float64 is not enabled."""
    if keras.backend.backend() != "jax":
        return "float64"
    import jax

    return "float64" if jax.config.jax_enable_x64 else "float32"


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": ops.relu,
    "silu": silu,
    "swish": silu,
}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits and labels, a scalar.

    Args:
        logits: (N, K).
        labels: class numbers (N,), or the probabilities of the classes (N, K). The result is NaN
            if a class number is not in [0, K).

    Raises:
        ValueError: the number of labels differs from the number of images, N.
    """
    logits = widen(logits)
    if None not in (labels.shape[0], logits.shape[0]) and labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"{labels.shape[0]} labels for {logits.shape[0]} images; pass one label per image"
        )
    if len(labels.shape) == 1:
        is_class = ops.logical_and(labels >= 0, labels < logits.shape[-1])
        logits = ops.where(ops.expand_dims(is_class, -1), logits, float("nan"))
        labels = ops.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    labels = ops.cast(labels, logits.dtype)
    losses = -ops.sum(labels * ops.log_softmax(logits, axis=-1), axis=-1)  # (N,)
    return ops.sum(losses) / ops.sum(ops.ones_like(losses))
