"""MAE-ST: masked autoencoders as spatiotemporal learners (Feichtenhofer et al. 2022).

The paper is arXiv:2205.09113. The model is the image MAE applied to patches in space and time: the
encoder sees the few patches that are visible after random masking over space and time ("agnostic"
masking, section 3); the decoder gets the encoder's output and mask tokens, in the order of the
video, and predicts the pixels of some of the frames. Position embeddings are learned.

Shape comments: N videos, L patches (time step by time step, row by row), P values in a predicted
patch (frame, row, column, channel), width D; "[1 +]" is the class token, which some models do not
have.
"""

from typing import Any, Unpack

import keras
from keras import ops

from reference_models.configuration import MAESTConfig
from reference_models.keras.blocks import LayerNorm, dropout
from reference_models.keras.model import ClassifierModel, MaskedModel
from reference_models.keras.numerics import mean
from reference_models.keras.patches import (
    Patches,
    PixelPrediction,
    check_pixels,
    patchify,
    prepend_class_token,
    random_masking,
    restore_order,
    take_tokens,
)
from reference_models.keras.trunk import DecoderTrunk, Trunk, VideoEncoder
from reference_models.outputs import (
    OutputOptions,
    Taps,
    Tensor,
    ViTMAEForPreTrainingOutput,
    ViTMAEModelOutput,
    record,
    recorded,
)


class PositionedTrunk(Trunk):
    """Blocks with learned position embeddings and an optional class token."""

    prefix = ""  # the prefix of the variables' names

    def build_positions(self) -> None:
        """Create the class token and the position embeddings.

        The embeddings are one variable, or separate variables for space, time and class token.
        """
        config, (time, rows, columns) = self.config, self.config.grid_shape
        if config.cls_embed:
            self.cls_token = self.add_table(f"{self.prefix}cls_token")
        name = f"{self.prefix}pos_embed"
        if not config.sep_pos_embed:
            self.pos_embed = self.add_table(name, config.class_tokens + config.num_patches)
            return
        self.pos_embed_spatial = self.add_table(f"{name}_spatial", rows * columns)
        self.pos_embed_temporal = self.add_table(f"{name}_temporal", time)
        if config.cls_embed:
            self.pos_embed_class = self.add_table(f"{name}_class")

    def positions(self) -> Tensor:
        """Return the position embeddings (1, [1 +] L, D) of class token, if any, and patches."""
        config = self.config
        if not config.sep_pos_embed:
            return ops.convert_to_tensor(self.pos_embed)
        spatial = ops.expand_dims(self.pos_embed_spatial, 1)  # (1, 1, rows x columns, D)
        temporal = ops.expand_dims(self.pos_embed_temporal, 2)  # (1, time, 1, D)
        table = ops.reshape(temporal + spatial, (1, config.num_patches, self.width))
        if config.cls_embed:
            table = ops.concatenate([self.pos_embed_class, table], axis=1)
        return table


class Encoder(PositionedTrunk, VideoEncoder):
    """The encoder: embedding, blocks and, if requested, the final norm."""

    def call(
        self, pixel_values: Tensor, ids_keep: Tensor | None = None, taps: Taps | None = None
    ) -> Tensor:
        """Encode patches ``ids_keep`` (N, kept) of videos (N, C, T, H, W); by default all patches.

        Intermediate activations are written into ``taps`` unless it is None.

        Returns:
            If there is a final norm, its output without the class token, (N, kept, D). Otherwise
            the output of the blocks, (N, [1 +] kept, D), with the class token if the model has one.
        """
        tokens = self.run_blocks(self.embed(pixel_values, ids_keep), "encoder", taps)
        if self.norm is None:
            return tokens
        latent = self.norm(tokens)[:, self.config.class_tokens :]
        record(taps, "encoder", norm=latent)
        return latent

    def embed(self, pixel_values: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Return tokens (N, [1 +] kept, D) of videos (N, C, T, H, W), class token first.

        Patches are selected by ``ids_keep`` (N, kept) before the projection; if ``ids_keep`` is
        None, all patches are used in order. There is no class token if ``cls_embed`` is false.
        """
        patches = patchify(pixel_values, self.config)
        table, class_tokens = self.positions(), self.config.class_tokens
        first, positions = table[:, :class_tokens], table[:, class_tokens:]
        if ids_keep is not None:
            patches = take_tokens(patches, ids_keep)
            positions = take_tokens(positions, ids_keep)
        tokens = self.projection(patches) + positions
        if not self.config.cls_embed:
            return tokens
        return prepend_class_token(self.cls_token + first, tokens)


class Decoder(PositionedTrunk, DecoderTrunk):
    """The decoder, with its own class token."""

    prefix = "decoder_"

    def __init__(self, config: MAESTConfig, **options: Any) -> None:
        super().__init__(config, outputs=config.prediction.patch_dim, **options)

    def call(self, latent: Tensor, ids_restore: Tensor, taps: Taps | None = None) -> Tensor:
        """Predict patches (N, L, P) from the encoder's output (N, kept, D).

        Args:
            latent: (N, kept, D), the encoder's output.
            ids_restore: (N, L), the index of each patch in the shuffled order.
            taps: a dictionary that receives intermediate activations; None to record none.
        """
        tokens = restore_order(self.embed(latent), self.mask_token, ids_restore)
        if self.config.cls_embed:
            tokens = prepend_class_token(self.cls_token, tokens)
        return self.predict(tokens + self.positions(), self.config.class_tokens, taps)


class MaskedMAEST(MaskedModel):
    """Base class of models that encode visible patches, with or without a decoder."""

    configuration_class = MAESTConfig
    encoder_class = Encoder

    def encode_visible(
        self, pixel_values: Tensor, noise: Tensor | None, taps: Taps | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask videos (N, C, T, H, W) by noise (N, L) and encode the visible patches.

        Args:
            pixel_values: (N, C, T, H, W).
            noise: (N, L); None for uniform noise, or for ascending noise if all patches are kept.
            taps: a dictionary that receives intermediate activations; None to record none.

        Returns:
            A tuple: the output of the final norm without the class token, (N, kept, D);
            ``mask``, (N, L); ``ids_restore``, (N, L).
        """
        ids_keep, mask, ids_restore = random_masking(
            pixel_values, noise, self.config, self.seed_generator
        )
        return self.encoder(pixel_values, ids_keep, taps=taps), mask, ids_restore


@keras.saving.register_keras_serializable(package="reference_models")
class MAESTModel(MaskedMAEST):
    """The encoder of an MAE-ST, without a decoder."""

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
            noise: (N, L); the patches with the lowest values are kept, sorted by their values. The
                default noise is uniform, or ascending if all patches are kept.
            training: whether dropout is active.
            options: additional outputs, see `OutputOptions`.

        Returns:
            ``last_hidden_state`` (N, kept, D), without the class token.

        Raises:
            ValueError: pixels or noise have the wrong shape.
        """
        taps = Taps.requested(**options)
        return ViTMAEModelOutput(
            *self.encode_visible(self._cast(pixel_values), noise, taps), *recorded(taps)
        )


@keras.saving.register_keras_serializable(package="reference_models")
class MAESTForPreTraining(PixelPrediction, MaskedMAEST):
    """An MAE-ST for pre-training: an encoder and a decoder."""

    decoder_class = Decoder

    def call(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        training: bool = False,  # noqa: ARG002 (Keras passes it to the dropout layers)
        **options: Unpack[OutputOptions],
    ) -> ViTMAEForPreTrainingOutput:
        """Predict all patches from visible patches; compute the loss over removed patches.

        For arguments and errors see `MAESTModel`. Hidden states and attentions come
        from the encoder, intermediate activations from the encoder and the decoder.
        """
        pixel_values = self._cast(pixel_values)
        taps = Taps.requested(**options)
        latent, mask, ids_restore = self.encode_visible(pixel_values, noise, taps)
        decoder_taps = Taps.of_decoder(**options)
        logits = self.decoder(latent, ids_restore, taps=decoder_taps)
        nothing_removed = self.config.num_kept == self.config.num_patches
        loss = None if nothing_removed else self.forward_loss(pixel_values, logits, mask)
        return ViTMAEForPreTrainingOutput(
            loss, logits, mask, ids_restore, *recorded(taps, decoder_taps)
        )

    @property
    def predicted(self) -> Patches:
        """The shapes of the predicted video and of its patches."""
        return self.config.prediction

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """Return the patches (N, L, P) of the frames that the decoder has to predict.

        Args:
            pixel_values: videos (N, C, T, H, W) with all frames of the encoder's input.
        """
        check_pixels(pixel_values, self.config)
        frames = ops.convert_to_tensor(self.config.predicted_frames, dtype="int32")
        return patchify(ops.take(self._cast(pixel_values), frames, axis=2), self.predicted)


@keras.saving.register_keras_serializable(package="reference_models")
class MAESTForVideoClassification(ClassifierModel):
    """A classifier fine-tuned from an MAE-ST: an encoder of all patches, and a linear head.

    The input of the head is the mean of all tokens except the first, to which ``norm`` is applied.
    The first token is the class token; in a model without a class token it is the first patch,
    which the authors' code excludes too.
    """

    configuration_class = MAESTConfig

    encoder_class = Encoder

    def encoder_options(self) -> dict[str, Any]:
        """Return the encoder's arguments other than the configuration."""
        return {"final_norm": False}

    def add_pooling(self) -> None:
        """Add the norm and the dropout that are applied to the mean of the tokens."""
        dtype = self.dtype_policy
        self.fc_norm = LayerNorm(self.config.layer_norm_eps, name="norm", dtype=dtype)
        self.dropout = dropout(self.config.classifier_dropout, dtype=dtype)

    def pool(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Return the input (N, D) of the head: the mean of all tokens but the first, normalized.

        Args:
            tokens: (N, [1 +] L, D), the output of the encoder, which has no final norm.
            taps: a dictionary that receives intermediate activations; None to record none.
        """
        average = self.fc_norm(mean(tokens[:, 1:], axis=1, keepdims=True))  # (N, 1, D)
        record(taps, "head", norm=average)
        return self.dropout(average[:, 0])
