"""VideoMAE (Tong et al. 2022, arXiv:2203.12602; version 2: Wang et al. 2023, arXiv:2303.16727).

A masked autoencoder for videos. Patches are tubelets of a few frames; an encoder without a class
token sees the visible patches, in the order of the video (section 3.3). The decoder gets the
encoder's output followed by mask tokens, all with their positions, and predicts the pixels of the
patches that the mask tokens represent.

Shape comments: N videos, L patches (time step by time step, row by row), P values in a patch
(frame, row, column, channel), width D.
"""

from typing import Any, Unpack

import keras
import numpy as np
from keras import ops

from reference_models.configuration import BlockConfig, VideoMAEConfig
from reference_models.keras.blocks import Block, Initializer, LayerNorm, dense
from reference_models.keras.model import ClassifierModel, MaskedModel
from reference_models.keras.numerics import mean
from reference_models.keras.patches import (
    PixelPrediction,
    check_noise,
    check_pixels,
    mask_in_order,
    patchify,
    take_tokens,
)
from reference_models.keras.trunk import Trunk, VideoEncoder
from reference_models.outputs import (
    OutputOptions,
    Taps,
    Tensor,
    ViTMAEForPreTrainingOutput,
    ViTMAEModelOutput,
    record,
    recorded,
)
from reference_models.positions import interleaved_position_embedding

# Avoids division by 0 for a patch of one color; added to the standard deviation, not the variance.
_DEVIATION_FLOOR = 1e-6


class VideoBlock(Block):
    """A block that, if configured, scales the outputs of attention and MLP by trained factors."""

    def __init__(self, config: BlockConfig, **options: Any) -> None:
        super().__init__(config, **options)
        self.layer_scale = config.layer_scale

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create all variables of the block."""
        super().build(input_shape)
        if self.layer_scale:
            initial = keras.initializers.Constant(self.layer_scale)
            shape = input_shape[-1:]
            self.gamma_1 = self.add_weight(name="gamma_1", shape=shape, initializer=initial)
            self.gamma_2 = self.add_weight(name="gamma_2", shape=shape, initializer=initial)

    def call(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Map tokens (N, T, D) to (N, T, D).

        Intermediate activations are written into ``taps`` unless it is None.
        """
        if not self.layer_scale:
            return super().call(tokens, taps)
        tokens = tokens + self.gamma_1 * self.attention(self.norm1(tokens), taps=taps)
        return tokens + self.gamma_2 * self.mlp(self.norm2(tokens), taps)


class Encoder(VideoEncoder):
    """The encoder: tubelet and position embeddings, blocks and, if requested, a final norm."""

    block_class = VideoBlock

    def call(
        self, pixel_values: Tensor, ids_keep: Tensor | None = None, taps: Taps | None = None
    ) -> Tensor:
        """Encode patches ``ids_keep`` (N, kept) of videos (N, C, T, H, W); by default all patches.

        Intermediate activations are written into ``taps`` unless it is None.

        Returns:
            Tokens (N, kept, D), after the final norm if there is one.
        """
        patches = patchify(pixel_values, self.config)  # (N, L, P)
        positions = fixed_positions(self, self.config)
        if ids_keep is not None:
            patches = take_tokens(patches, ids_keep)
            positions = take_tokens(positions, ids_keep)
        tokens = self.run_blocks(self.projection(patches) + positions, "encoder", taps)
        if self.norm is not None:
            tokens = self.norm(tokens)
            record(taps, "encoder", norm=tokens)
        return tokens


def fixed_positions(layer: Trunk, config: VideoMAEConfig) -> Tensor:
    """Return the fixed position embeddings (1, L, D), rounded to float32.

    Checkpoints do not contain these embeddings.

    Args:
        layer: the encoder or the decoder, which determines D and the dtype of the result.
        config: the configuration of the model.
    """
    table = interleaved_position_embedding(layer.width, config.num_patches).astype(np.float32)
    return ops.convert_to_tensor(table, dtype=layer.compute_dtype)


class Decoder(Trunk):
    """The decoder: blocks, norm and prediction of the removed patches."""

    block_class = VideoBlock

    def __init__(
        self, config: VideoMAEConfig, *, initializer: Initializer = None, dtype: Any
    ) -> None:
        super().__init__(config, initializer=initializer, name="decoder", dtype=dtype)
        self.embed = keras.layers.Dense(
            config.decoder_hidden_size,
            use_bias=False,
            kernel_initializer=initializer or "glorot_uniform",
            name="encoder_to_decoder",
            dtype=dtype,
        )
        self.add_blocks(config.decoder_block, config.decoder_num_hidden_layers, "decoder_layers.")
        self.norm = LayerNorm(config.decoder_norm_eps, name="norm", dtype=dtype)
        self.prediction = dense(config.patch_dim, initializer, name="head", dtype=dtype)

    def build(self) -> None:
        """Create all variables of the decoder."""
        self.mask_token = self.add_table("mask_token")
        self.embed.build((None, None, self.config.hidden_size))
        self.build_blocks()
        self.norm.build((None, None, self.width))
        self.prediction.build((None, None, self.width))

    def call(
        self, latent: Tensor, ids_keep: Tensor, ids_decode: Tensor, taps: Taps | None = None
    ) -> Tensor:
        """Predict patches (N, M, P) from the encoder's output (N, kept, D).

        Args:
            latent: (N, kept, D), the encoder's output.
            ids_keep: (N, kept), the indices of the visible patches.
            ids_decode: (N, M), the indices of the patches to predict.
            taps: a dictionary that receives intermediate activations; None to record none.
        """
        positions = fixed_positions(self, self.config)[0]
        visible = self.embed(latent) + ops.take(positions, ids_keep, axis=0)
        mask_tokens = self.mask_token + ops.take(positions, ids_decode, axis=0)  # (N, M, D)
        tokens = ops.concatenate([visible, mask_tokens], axis=1)
        tokens = self.run_blocks(tokens, "decoder", taps)
        tokens = self.norm(tokens[:, ids_keep.shape[1] :])
        record(taps, "decoder", norm=tokens)
        return self.prediction(tokens)


class MaskedVideoMAE(MaskedModel):
    """Base class of models that encode visible patches, with or without a decoder."""

    configuration_class = VideoMAEConfig
    encoder_class = Encoder

    def masked(self, pixel_values: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Select the visible patches by noise, and check the inputs.

        If `noise` is None, the mask is random, and the same at all time steps (VideoMAE, section
        3.2).

        Returns:
            ``mask``, ``ids`` and ``ids_restore``, each (N, L), as returned by `mask_in_order`.
        """
        check_pixels(pixel_values, self.config)
        if noise is None:
            time, rows, columns = self.config.grid_shape
            shape = (ops.shape(pixel_values)[0], rows * columns)
            one_time = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
            noise = ops.tile(one_time, (1, time))
        check_noise(noise, pixel_values.shape[0], self.config)
        return mask_in_order(noise, self.config.num_kept)


@keras.saving.register_keras_serializable(package="reference_models")
class VideoMAEModel(MaskedVideoMAE):
    """The encoder of a VideoMAE, without a decoder.

    It has a final norm if ``use_mean_pooling`` is false.
    """

    def encoder_options(self) -> dict[str, Any]:
        """Return the encoder's arguments other than the configuration."""
        return {"final_norm": not self.config.use_mean_pooling}

    def call(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        training: bool = False,  # noqa: ARG002 (Keras passes it to the dropout layers)
        **options: Unpack[OutputOptions],
    ) -> ViTMAEModelOutput:
        """Mask patches and encode the visible patches.

        Args:
            pixel_values: (N, C, T, H, W), of the configured size.
            noise: (N, L); the patches with the lowest values are kept, in the order of the video.
                A boolean mask, true where a patch is removed, can be passed as float. By default, a
                random number is drawn for each position and used at all time steps.
            training: whether dropout is active.
            options: additional outputs, see `OutputOptions`.

        Returns:
            ``last_hidden_state`` (N, kept, D); ``ids_restore`` (N, L), the index of each patch in
            a sequence that contains the visible and then the removed patches, both in the order of
            the video.

        Raises:
            ValueError: pixels or noise have the wrong shape.
        """
        taps = Taps.requested(**options)
        mask, ids, ids_restore = self.masked(pixel_values, noise)
        ids_keep = ids[:, : self.config.num_kept]
        latent = self.encoder(self._cast(pixel_values), ids_keep, taps=taps)
        return ViTMAEModelOutput(latent, mask, ids_restore, *recorded(taps))


@keras.saving.register_keras_serializable(package="reference_models")
class VideoMAEForPreTraining(PixelPrediction, MaskedVideoMAE):
    """A VideoMAE for pre-training: an encoder and a decoder."""

    decoder_class = Decoder

    def call(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        ids_decode: Tensor | None = None,
        training: bool = False,  # noqa: ARG002 (Keras passes it to the dropout layers)
        **options: Unpack[OutputOptions],
    ) -> ViTMAEForPreTrainingOutput:
        """Predict removed patches from visible patches; compute the loss over removed patches.

        Hidden states and attentions come from the encoder, intermediate activations from the
        encoder and the decoder. For errors see `VideoMAEModel`.

        Args:
            pixel_values: (N, C, T, H, W), as for `VideoMAEModel`.
            noise: (N, L), as for `VideoMAEModel`.
            ids_decode: (N, M), the patches to predict, in ascending order, as selected by the
                decoder masking of version 2 (section 3.2 of its paper); by default all removed
                patches.
            training: whether dropout is active.
            options: additional outputs, see `OutputOptions`.

        Returns:
            The outputs: ``logits`` (N, M, P) are the predicted patches; ``loss`` is the mean
            squared error over the predicted patches that were removed, or None if no patch is
            removed.
        """
        pixel_values = self._cast(pixel_values)
        taps = Taps.requested(**options)
        mask, ids, ids_restore = self.masked(pixel_values, noise)
        ids_keep = ids[:, : self.config.num_kept]
        if ids_decode is None:
            ids_decode = ids[:, self.config.num_kept :]
        latent = self.encoder(pixel_values, ids_keep, taps=taps)
        decoder_taps = Taps.of_decoder(**options)
        logits = self.decoder(latent, ids_keep, ids_decode, taps=decoder_taps)
        loss = None
        if self.config.num_kept < self.config.num_patches:
            loss = self.forward_loss(pixel_values, logits, mask, ids_decode=ids_decode)
        return ViTMAEForPreTrainingOutput(
            loss, logits, mask, ids_restore, *recorded(taps, decoder_taps)
        )

    def forward_loss(
        self,
        pixel_values: Tensor,
        logits: Tensor,
        mask: Tensor,
        norm_pix_loss: bool | None = None,
        ids_decode: Tensor | None = None,
    ) -> Tensor:
        """Return a scalar: the mean squared error over the predicted patches that were removed.

        Args:
            pixel_values: (N, C, T, H, W).
            logits: (N, M, P), the predicted patches.
            mask: (N, L), 1 where a patch is removed.
            norm_pix_loss: whether the target is normalized with the mean and the unbiased standard
                deviation of each channel of a patch; by default as configured.
            ids_decode: (N, M), the indices of the predicted patches; by default the indices of
                all removed patches, in ascending order.
        """
        target = self.target(pixel_values, norm_pix_loss)
        if ids_decode is None:
            ids_decode = ops.argsort(mask, axis=1)[:, mask.shape[1] - logits.shape[1] :]
        target = take_tokens(target, ids_decode)
        errors = mean(ops.square(self._cast(logits) - target), axis=-1)  # (N, M)
        counted = take_tokens(ops.expand_dims(self._cast(mask), -1), ids_decode)[..., 0]
        return ops.sum(errors * counted) / ops.sum(counted)

    def target(self, pixel_values: Tensor, norm_pix_loss: bool | None = None) -> Tensor:
        """Return the targets of the loss for all patches, (N, L, P).

        Args:
            pixel_values: (N, C, T, H, W).
            norm_pix_loss: whether the target is normalized with the mean and the unbiased standard
                deviation of each channel of a patch; by default as configured.
        """
        patches = self.pixel_patches(pixel_values)
        if self.config.norm_pix_loss if norm_pix_loss is None else norm_pix_loss:
            center, deviation = self.channel_statistics(patches)
            patches = (patches - center) / deviation
        return ops.reshape(patches, (-1, self.config.num_patches, self.config.patch_dim))

    def pixel_patches(self, pixel_values: Tensor) -> Tensor:
        """Undo the normalization of pixels and cut the videos into patches (N, L, P / C, C)."""
        center, deviation = self.pixel_statistics()
        return self._channels_apart(self.patchify(pixel_values)) * deviation + center

    def pixel_statistics(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation (C,) with which pixels were normalized."""
        dtype = "float64" if self.variable_dtype == "float64" else "float32"
        return (
            ops.convert_to_tensor(self.config.pixel_mean, dtype=dtype),
            ops.convert_to_tensor(self.config.pixel_std, dtype=dtype),
        )

    def channel_statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each channel of each patch, each (N, L, 1, C)."""
        center = mean(patches, axis=-2, keepdims=True)
        squares = ops.sum(ops.square(patches - center), axis=-2, keepdims=True)
        return center, ops.sqrt(squares / (patches.shape[-2] - 1)) + _DEVIATION_FLOOR

    def _channels_apart(self, patches: Tensor) -> Tensor:
        channels = self.config.num_channels
        return ops.reshape(
            patches, (-1, patches.shape[1], self.config.patch_dim // channels, channels)
        )

    def reconstruct(
        self, pixel_values: Tensor, logits: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return videos (N, C, T, H, W) with removed patches replaced by the predictions (N, M, P).

        The videos are normalized like ``pixel_values``. If the model predicts normalized patches,
        the mean and the standard deviation of each patch are taken from ``pixel_values``.

        Args:
            pixel_values: (N, C, T, H, W).
            logits: (N, M, P), the predictions of all removed patches.
            mask: (N, L), 1 where a patch is removed; required unless all patches are removed.
        """
        patches = self.pixel_patches(pixel_values)  # (N, L, P / C, C)
        if mask is None:
            mask = ops.ones(ops.shape(patches)[:2])
        visible = mask.shape[1] - logits.shape[1]
        # Visible patches have no prediction.
        padded = ops.pad(self._cast(logits), ((0, 0), (visible, 0), (0, 0)))
        ids_restore = ops.argsort(ops.argsort(mask, axis=1), axis=1)
        predicted = self._channels_apart(take_tokens(padded, ids_restore))
        if self.config.norm_pix_loss:
            center, deviation = self.channel_statistics(patches)
            predicted = predicted * deviation + center
        shown = ops.where(ops.reshape(mask, (-1, mask.shape[1], 1, 1)) > 0, predicted, patches)
        center, deviation = self.pixel_statistics()
        shown = (shown - center) / deviation
        return self.unpatchify(
            ops.reshape(shown, (-1, self.config.num_patches, self.config.patch_dim))
        )


@keras.saving.register_keras_serializable(package="reference_models")
class VideoMAEForVideoClassification(ClassifierModel):
    """A classifier fine-tuned from a VideoMAE: an encoder of all patches, and a linear head.

    The input of the head is the mean of all tokens, to which ``fc_norm`` is applied, or, if
    ``use_mean_pooling`` is false, the first token after the encoder's final norm. For arguments see
    ``EncoderModel``.
    """

    configuration_class = VideoMAEConfig

    encoder_class = Encoder

    def encoder_options(self) -> dict[str, Any]:
        """Return the encoder's arguments other than the configuration."""
        return {"final_norm": not self.config.use_mean_pooling}

    def add_pooling(self) -> None:
        """Add the norm for the mean of the tokens if ``use_mean_pooling`` is true."""
        if self.config.use_mean_pooling:
            eps, dtype = self.config.fc_norm_eps, self.dtype_policy
            self.fc_norm = LayerNorm(eps, name="fc_norm", dtype=dtype)

    def pool(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Return the input (N, D) of the head: the normalized mean of tokens, or the first token.

        The first token is used if ``use_mean_pooling`` is false.

        Args:
            tokens: (N, L, D), the output of the encoder.
            taps: a dictionary that receives intermediate activations; None to record none.
        """
        if self.fc_norm is None:
            return tokens[:, 0]
        average = self.fc_norm(mean(tokens, axis=1, keepdims=True))  # (N, 1, D)
        record(taps, "head", norm=average)
        return average[:, 0]
