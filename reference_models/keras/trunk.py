"""Stacks of blocks, and base classes of the encoders and decoders of several families.

The order in which layers and variables are created must not change, because saved files and
optimizers number them in this order. Shape comments: N images, L patches, T tokens, width D.
"""

from typing import Any

import keras

from reference_models.configuration import BlockConfig
from reference_models.keras.blocks import Block, Initializer, LayerNorm, dense
from reference_models.keras.patches import PatchProjection
from reference_models.outputs import Taps, Tensor, record


class Trunk(keras.layers.Layer):
    """A layer with a stack of blocks; base class of encoder and decoder.

    The blocks are stored as numbered attributes, not as a list, so that their paths in files are
    ``block_0``, ``block_1`` and so on.

    Args:
        config: the configuration of the model.
        initializer: the initializer of all weights; None for the initializers of the paper.
        name: the layer's name.
        dtype: the dtype policy of the layer.
    """

    block_class: type[Block] = Block

    def __init__(
        self, config: Any, *, initializer: Initializer = None, name: str, dtype: Any
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.config, self.initializer = config, initializer

    def add_blocks(self, config: BlockConfig, depth: int, prefix: str) -> None:
        """Add ``depth`` blocks; the name of a block is ``prefix`` and its index."""
        self.width, self.depth = config.width, depth
        for index in range(depth):
            block = self.block_class(
                config,
                initializer=self.initializer,
                name=f"{prefix}{index}",
                dtype=self.dtype_policy,
            )
            setattr(self, f"block_{index}", block)

    def add_position_layers(self) -> None:
        """Add the layers that compute position embeddings; most families have no such layers."""

    def build_positions(self) -> None:
        """Create the class token and the position embeddings; some families have neither."""

    def add_table(self, name: str, length: int = 1) -> Any:
        """Add and return a variable (1, length, D).

        Its initial values are drawn by ``self.initializer`` or, if this is None, from a normal
        distribution with the standard deviation ``initializer_range``.
        """
        random = keras.initializers.RandomNormal(stddev=self.config.initializer_range)
        return self.add_weight(
            name=name, shape=(1, length, self.width), initializer=self.initializer or random
        )

    def build_blocks(self) -> None:
        """Create all variables of the blocks."""
        for block in self._blocks():
            block.build((None, None, self.width))

    def run_blocks(self, tokens: Tensor, name: str, taps: Taps | None = None) -> Tensor:
        """Apply the blocks to tokens (N, T, D).

        Unless ``taps`` is None, `tokens` and the activations of the blocks are recorded in it: for
        the name "encoder" as ``encoder.embedding``, ``encoder.blocks.0.q`` and so on.
        """
        if taps is None:
            for block in self._blocks():
                tokens = block(tokens)
            return tokens
        taps.record(name, {"embedding": tokens})
        for index, block in enumerate(self._blocks()):
            block_taps = taps.of_block()
            tokens = block(tokens, taps=block_taps)
            taps.record(f"{name}.blocks.{index}", {**(block_taps or {}), "output": tokens})
        return tokens

    def _blocks(self) -> list[Block]:
        return [getattr(self, f"block_{index}") for index in range(self.depth)]


class VideoEncoder(Trunk):
    """Base class of encoders for videos: patch projection, blocks and, if requested, a final norm.

    A subclass adds position embeddings and defines ``call``. In addition to the arguments of
    `Trunk`, it takes ``final_norm``: whether there is a final norm.
    """

    def __init__(
        self,
        config: Any,
        *,
        final_norm: bool = True,
        initializer: Initializer = None,
        dtype: Any,
    ) -> None:
        super().__init__(config, initializer=initializer, name="encoder", dtype=dtype)
        self.projection = PatchProjection(
            config, config.hidden_size, initializer=initializer, name="projection", dtype=dtype
        )
        self.add_blocks(config.encoder_block, config.num_hidden_layers, "layer.")
        self.add_position_layers()
        self.norm: Any = (
            LayerNorm(config.layer_norm_eps, name="layernorm", dtype=dtype) if final_norm else None
        )

    def build(self) -> None:
        """Create all variables of the encoder."""
        self.build_positions()
        self.projection.build()
        self.build_blocks()
        if self.norm is not None:
            self.norm.build((None, None, self.width))


class DecoderTrunk(Trunk):
    """Base class of decoders: mask token, linear layer, blocks, norm, prediction.

    Subclasses define ``call``. The constructor takes, in addition to the arguments of `Trunk`,
    ``outputs``: the number of values in a predicted patch, P.
    """

    def __init__(
        self, config: Any, *, outputs: int, initializer: Initializer = None, dtype: Any
    ) -> None:
        super().__init__(config, initializer=initializer, name="decoder", dtype=dtype)
        width = config.decoder_hidden_size
        self.embed = dense(width, initializer, name="decoder_embed", dtype=dtype)
        self.add_blocks(config.decoder_block, config.decoder_num_hidden_layers, "decoder_layers.")
        self.add_position_layers()
        self.norm = LayerNorm(config.decoder_eps, name="decoder_norm", dtype=dtype)
        self.prediction = dense(outputs, initializer, name="decoder_pred", dtype=dtype)

    def build(self) -> None:
        """Create all variables of the decoder."""
        self.mask_token = self.add_table("mask_token")
        self.build_positions()
        self.embed.build((None, None, self.config.hidden_size))
        self.build_blocks()
        self.norm.build((None, None, self.width))
        self.prediction.build((None, None, self.width))

    def predict(self, tokens: Tensor, class_tokens: int, taps: Taps | None) -> Tensor:
        """Apply blocks, norm and linear layer to tokens, and return predicted patches (N, L, P).

        The tokens are (N, class_tokens + L, D). The class tokens are not part of the result.

        Intermediate activations are written into ``taps`` unless it is None.
        """
        tokens = self.norm(self.run_blocks(tokens, "decoder", taps))
        record(taps, "decoder", norm=tokens)
        return self.prediction(tokens[:, class_tokens:])
