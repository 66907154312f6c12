"""The transformer block of a ViT (Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1).

The names of layers and name scopes give variables the paths that they have in the TF classes of
transformers. The names of attributes are the paths in a ``.weights.h5`` file. Attention and
normalization are written with basic operations, because the layers of Keras are not exact in
float64 on every backend.

Shape comments: N images, T tokens, H heads, width D.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from reference_models.configuration import BlockConfig
from reference_models.keras.numerics import ACTIVATION_FUNCTIONS, mean, widen
from reference_models.outputs import Taps, Tensor

Initializer = Any
"""A Keras initializer for all variables with random initial values; None for the defaults."""


def dense(units: int, initializer: Initializer, *, name: str, dtype: Any) -> keras.layers.Dense:
    """Return a dense layer, whose kernel is by default initialized with Xavier uniform values."""
    return keras.layers.Dense(
        units, kernel_initializer=initializer or "glorot_uniform", name=name, dtype=dtype
    )


def dropout(rate: float, *, dtype: Any) -> Callable[[Tensor], Tensor]:
    """Return a dropout layer or, for a rate of 0, a function that returns its argument.

    A Keras layer takes time to create and to call even if its rate is 0.
    """
    return keras.layers.Dropout(rate, dtype=dtype) if rate else unchanged


def unchanged(tensor: Tensor) -> Tensor:
    """Return the argument."""
    return tensor


def affine(tokens: Tensor, layer: keras.layers.Dense) -> Tensor:
    """Apply a dense layer to tokens (..., D) without calling it as a Keras layer.

    In eager mode, the overhead of the call would be larger than the time of a small matrix product.
    """
    if layer.quantization_mode is not None:
        return layer(tokens)
    product = ops.matmul(tokens, layer.kernel)
    return product if layer.bias is None else product + layer.bias


class LayerNorm(keras.layers.Layer):
    """Layer normalization over the last axis (arXiv:1607.06450), computed in at least float32."""

    def __init__(self, epsilon: float, *, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the variables of scale and shift."""
        self.gamma = self.add_weight(name="gamma", shape=input_shape[-1:], initializer="ones")
        self.beta = self.add_weight(name="beta", shape=input_shape[-1:], initializer="zeros")

    def call(self, tokens: Tensor) -> Tensor:
        """Normalize tokens (..., D)."""
        x = widen(tokens)
        x = x - mean(x, axis=-1, keepdims=True)
        variance = mean(ops.square(x), axis=-1, keepdims=True)
        x = x * ops.rsqrt(variance + self.epsilon) * widen(self.gamma) + widen(self.beta)
        return ops.cast(x, self.compute_dtype)


class Attention(keras.layers.Layer):
    """Multi-head self-attention (ViT, appendix A)."""

    def __init__(
        self, config: BlockConfig, *, initializer: Initializer = None, name: str, dtype: Any
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.width, self.heads = config.width, config.heads
        # The Xavier uniform range of one matrix that contains all three, as in the original.
        joint_xavier = initializer or keras.initializers.VarianceScaling(0.5, "fan_avg", "uniform")
        self.query, self.key, self.value = (
            keras.layers.Dense(
                config.width,
                use_bias=config.qkv_bias and (part != "key" or config.key_bias),
                kernel_initializer=joint_xavier.clone(),
                name=part,
                dtype=dtype,
            )
            for part in ("query", "key", "value")
        )
        self.projection = dense(config.width, initializer, name="dense", dtype=dtype)
        self.probability_dropout = dropout(config.attention_dropout, dtype=dtype)
        self.dropout = dropout(config.dropout, dtype=dtype)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the variables of the projections of queries, keys, values and output."""
        with keras.name_scope("attention"):
            for layer in (self.query, self.key, self.value):
                layer.build(input_shape)
        with keras.name_scope("output"):
            self.projection.build(input_shape)

    def call(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Apply self-attention to tokens (N, T, D).

        Intermediate activations are written into ``taps`` unless it is None.
        """
        query, key, value = (affine(tokens, dense) for dense in (self.query, self.key, self.value))
        scale = (self.width // self.heads) ** -0.5
        q, k, v = (self._split_heads(part) for part in (query * scale, key, value))
        scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2)))  # (N, H, T, T)
        probabilities = ops.softmax(scores, axis=-1)
        mixed = ops.matmul(self.probability_dropout(probabilities), v)  # (N, H, T, D / H)
        mixed = ops.transpose(mixed, (0, 2, 1, 3))  # (N, T, H, D / H)
        output = affine(ops.reshape(mixed, (-1, *tokens.shape[1:])), self.projection)  # (N, T, D)
        output = self.dropout(output)
        if taps is not None:
            taps.update(q=query, k=key, v=value, attention=output, probabilities=probabilities)
        return output

    def _split_heads(self, tokens: Tensor) -> Tensor:
        count = tokens.shape[1]
        split = ops.reshape(tokens, (-1, count, self.heads, self.width // self.heads))
        return ops.transpose(split, (0, 2, 1, 3))  # (N, H, T, D / H)


class Block(keras.layers.Layer):
    """Pre-norm block: attention and MLP with residual connections (ViT, equations 2 and 3)."""

    def __init__(
        self, config: BlockConfig, *, initializer: Initializer = None, name: str, dtype: Any
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.norm1 = LayerNorm(config.eps, name="layernorm_before", dtype=dtype)
        self.attention = Attention(config, initializer=initializer, name="attention", dtype=dtype)
        self.norm2 = LayerNorm(config.eps, name="layernorm_after", dtype=dtype)
        self.fc1 = dense(config.hidden, initializer, name="dense", dtype=dtype)
        self.activation = ACTIVATION_FUNCTIONS[config.act]
        self.fc2 = dense(config.width, initializer, name="dense", dtype=dtype)
        self.dropout = dropout(config.dropout, dtype=dtype)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create all variables of the block."""
        for layer in (self.norm1, self.attention, self.norm2):
            layer.build(input_shape)
        with keras.name_scope("intermediate"):
            self.fc1.build(input_shape)
        with keras.name_scope("output"):
            self.fc2.build((*input_shape[:-1], self.fc1.units))

    def call(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Map tokens (N, T, D) to (N, T, D).

        Intermediate activations are written into ``taps`` unless it is None.
        """
        tokens = tokens + self.attention(self.norm1(tokens), taps=taps)
        return tokens + self.mlp(self.norm2(tokens), taps)

    def mlp(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Apply two linear layers with an activation between them to tokens (N, T, D).

        Intermediate activations are written into ``taps`` unless it is None.
        """
        hidden = self.activation(affine(tokens, self.fc1))
        output = self.dropout(affine(hidden, self.fc2))
        if taps is not None:
            taps.update(mlp=output)
        return output
