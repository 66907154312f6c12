"""The encoder that all three models share: patches in, tokens out."""

from typing import Any

import keras
from keras import ops

from reference_models.configuration import ViTMAEConfig
from reference_models.keras.layers import Initializer, LayerNorm, Trunk
from reference_models.keras.patches import patchify, take_tokens
from reference_models.outputs import Tensor, TrunkOutput, Wanted
from reference_models.positions import sincos_position_embedding


class PatchProjection(keras.layers.Layer):
    """The linear projection of patches (ViT, equation 1), its kernel stored as a convolution's."""

    def __init__(
        self, config: ViTMAEConfig, *, initializer: Initializer = None, name: str, dtype: Any
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.config = config
        self.initializer = initializer

    def build(self) -> None:
        """Make kernel (h, w, C, D) and bias (D,); the kernel is Xavier uniform as a matrix."""
        config, width = self.config, self.config.hidden_size
        limit = (6 / (config.patch_dim + width)) ** 0.5
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*config.patch_hw, config.num_channels, width),
            initializer=self.initializer or keras.initializers.RandomUniform(-limit, limit),
        )
        self.bias = self.add_weight(name="bias", shape=(width,), initializer="zeros")

    def call(self, patches: Tensor) -> Tensor:
        """Project patches (N, L, P) to tokens (N, L, D).

        The convolution does not overlap, so it is one matrix product over patches; written like
        this it can be given only those patches that are kept.
        """
        matrix = ops.reshape(self.kernel, (-1, self.config.hidden_size))  # (P, D)
        return ops.matmul(patches, matrix) + self.bias


class Embeddings(keras.layers.Layer):
    """Patch tokens and a class token, with their positions."""

    def __init__(
        self,
        config: ViTMAEConfig,
        *,
        learned_positions: bool,
        initializer: Initializer = None,
        name: str,
        dtype: Any,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.config = config
        self.learned_positions = learned_positions
        self.initializer = initializer
        self.projection = PatchProjection(
            config, initializer=initializer, name="projection", dtype=dtype
        )

    def build(self) -> None:
        """Make tokens, positions and projection."""
        config, width = self.config, self.config.hidden_size
        random = self.initializer or keras.initializers.RandomNormal(
            stddev=config.initializer_range
        )
        self.cls_token = self.add_weight(name="cls_token", shape=(1, 1, width), initializer=random)
        self.position_embeddings = add_positions(
            self,
            "position_embeddings",
            width,
            config,
            initializer=random.clone() if self.learned_positions else None,
        )
        with keras.name_scope("patch_embeddings"):
            self.projection.build()

    def call(self, pixel_values: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Return tokens (N, 1 + kept, D).

        Patches are picked by ``ids_keep`` (N, kept) before they are projected, so that nothing is
        computed on those that are masked; without it all are taken in order.
        """
        patches = patchify(pixel_values, self.config)
        positions = self.position_embeddings[:, 1:]
        if ids_keep is not None:
            patches = take_tokens(patches, ids_keep)
            positions = ops.take(positions[0], ids_keep, axis=0)  # (N, kept, D)
        tokens = self.projection(patches) + positions
        cls_token = self.cls_token + self.position_embeddings[:, :1]
        cls_tokens = ops.repeat(cls_token, ops.shape(tokens)[0], axis=0)
        return ops.concatenate([cls_tokens, tokens], axis=1)


def add_positions(
    layer: keras.layers.Layer, name: str, width: int, config: ViTMAEConfig, initializer: Any = None
) -> Any:
    """Add position embeddings (1, 1 + L, D) to a layer: fixed sines and cosines, or learned ones.

    They are learned where an initializer is given.
    """
    table = sincos_position_embedding(width, config.grid_hw)
    return layer.add_weight(
        name=name,
        shape=table.shape,
        initializer=initializer or (lambda _, dtype: ops.convert_to_tensor(table, dtype)),
        trainable=initializer is not None,
    )


class Encoder(Trunk):
    """A ViT without its head: embeddings, blocks and, where wanted, the final norm."""

    def __init__(
        self,
        config: ViTMAEConfig,
        *,
        learned_positions: bool = False,
        embedding_dropout: float = 0.0,
        final_norm: bool = True,
        initializer: Initializer = None,
        dtype: Any,
    ) -> None:
        super().__init__(name="vit", dtype=dtype)
        self.embeddings = Embeddings(
            config,
            learned_positions=learned_positions,
            initializer=initializer,
            name="embeddings",
            dtype=dtype,
        )
        self.embedding_dropout = keras.layers.Dropout(embedding_dropout, dtype=dtype)
        sizes = (
            config.hidden_size,
            config.num_attention_heads,
            config.intermediate_size,
            config.layer_norm_eps,
        )
        self.add_blocks(config, sizes, config.num_hidden_layers, "layer_._", initializer)
        self.norm = (
            LayerNorm(config.layer_norm_eps, name="layernorm", dtype=dtype) if final_norm else None
        )

    def build(self) -> None:
        """Make all variables of the encoder."""
        self.embeddings.build()
        with keras.name_scope("encoder"):
            self.build_blocks()
        if self.norm is not None:
            self.norm.build((None, None, self.width))

    def call(
        self, pixel_values: Tensor, wanted: Wanted, ids_keep: Tensor | None = None
    ) -> TrunkOutput:
        """Encode the patches ``ids_keep`` (N, kept) of images (N, C, H, W), or all in order.

        The tokens returned have gone through the final norm, where there is one.
        """
        tokens = self.embedding_dropout(self.embeddings(pixel_values, ids_keep))
        trunk = self.run_blocks(tokens, wanted, "encoder")
        if self.norm is None:
            return trunk
        normed = self.norm(trunk.tokens)
        taps = {**trunk.taps, "encoder.norm": normed} if wanted.taps else {}
        return trunk._replace(tokens=normed, taps=taps)
