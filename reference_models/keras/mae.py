"""The masked autoencoder (He et al. 2021, arXiv:2111.06377) and the classifier fine-tuned from it.

The encoder sees the patches that are visible after random masking (section 3, "MAE encoder"); a
smaller decoder gets the encoder's output and mask tokens for the removed patches, and predicts
pixels ("MAE decoder", "Reconstruction target"). Variables have the paths of the TF classes in
transformers 4. Shape comments: N images, L patches, T tokens (class token first), P values in a
patch, width D.
"""

from typing import Any, Unpack

import keras
from keras import ops

from reference_models.configuration import ViTMAEConfig
from reference_models.keras.blocks import Initializer, LayerNorm, dropout
from reference_models.keras.model import ClassifierModel, MaskedModel
from reference_models.keras.numerics import mean
from reference_models.keras.patches import (
    PatchProjection,
    PixelPrediction,
    add_positions,
    patchify,
    prepend_class_token,
    random_masking,
    restore_order,
    take_tokens,
)
from reference_models.keras.trunk import DecoderTrunk, Trunk
from reference_models.outputs import (
    OutputOptions,
    Taps,
    Tensor,
    ViTMAEForPreTrainingOutput,
    ViTMAEModelOutput,
    record,
    recorded,
)
from reference_models.positions import sincos_position_embedding


class Embeddings(keras.layers.Layer):
    """Patch tokens and a class token, with fixed sine-cosine or learned position embeddings."""

    def __init__(
        self, config: ViTMAEConfig, *, learned_positions: bool, initializer: Initializer, dtype: Any
    ) -> None:
        super().__init__(name="embeddings", dtype=dtype)
        self.config, self.learned_positions = config, learned_positions
        self.initializer = initializer
        self.projection = PatchProjection(
            config, config.hidden_size, initializer=initializer, name="projection", dtype=dtype
        )

    def build(self) -> None:
        """Create the class token, the position embeddings and the projection."""
        config, width = self.config, self.config.hidden_size
        random = self.initializer or keras.initializers.RandomNormal(
            stddev=config.initializer_range
        )
        self.cls_token = self.add_weight(name="cls_token", shape=(1, 1, width), initializer=random)
        learned = random.clone() if self.learned_positions else None
        table = sincos_position_embedding(width, config.grid_hw)
        self.position_embeddings = add_positions(self, "position_embeddings", table, learned)
        with keras.name_scope("patch_embeddings"):
            self.projection.build()

    def call(self, pixel_values: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Return tokens (N, 1 + kept, D) of images (N, C, H, W), class token first.

        Patches are selected by ``ids_keep`` (N, kept) before the projection, so that nothing is
        computed for masked patches; if ``ids_keep`` is None, all patches are used in order.
        """
        patches = patchify(pixel_values, self.config)  # (N, L, P)
        positions = self.position_embeddings[:, 1:]
        if ids_keep is not None:
            patches = take_tokens(patches, ids_keep)
            positions = take_tokens(positions, ids_keep)
        tokens = self.projection(patches) + positions
        cls_token = self.cls_token + self.position_embeddings[:, :1]
        return prepend_class_token(cls_token, tokens)


class Encoder(Trunk):
    """A ViT without its head: embeddings, blocks and, if requested, the final norm."""

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
        super().__init__(config, initializer=initializer, name="vit", dtype=dtype)
        self.embeddings = Embeddings(
            config, learned_positions=learned_positions, initializer=initializer, dtype=dtype
        )
        self.embedding_dropout = dropout(embedding_dropout, dtype=dtype)
        self.add_blocks(config.encoder_block, config.num_hidden_layers, "layer_._")
        self.norm = (
            LayerNorm(config.layer_norm_eps, name="layernorm", dtype=dtype) if final_norm else None
        )

    def build(self) -> None:
        """Create all variables of the encoder."""
        self.embeddings.build()
        with keras.name_scope("encoder"):
            self.build_blocks()
        if self.norm is not None:
            self.norm.build((None, None, self.width))

    def call(
        self, pixel_values: Tensor, ids_keep: Tensor | None = None, taps: Taps | None = None
    ) -> Tensor:
        """Encode the patches ``ids_keep`` (N, kept) of images (N, C, H, W); by default all patches.

        Intermediate activations are written into ``taps`` unless it is None.

        Returns:
            Tokens (N, 1 + kept, D), after the final norm if there is one.
        """
        tokens = self.embedding_dropout(self.embeddings(pixel_values, ids_keep))
        tokens = self.run_blocks(tokens, "encoder", taps)
        if self.norm is not None:
            tokens = self.norm(tokens)
            record(taps, "encoder", norm=tokens)
        return tokens


class Decoder(DecoderTrunk):
    """The decoder (MAE, section 3): mask tokens replace the removed patches."""

    def __init__(self, config: ViTMAEConfig, **options: Any) -> None:
        super().__init__(config, outputs=config.patch_dim, **options)

    def build_positions(self) -> None:
        """Create the fixed position embeddings."""
        table = sincos_position_embedding(self.width, self.config.grid_hw)
        self.position_embeddings = add_positions(self, "decoder_pos_embed", table)

    def call(self, latent: Tensor, ids_restore: Tensor, taps: Taps | None = None) -> Tensor:
        """Predict patches (N, L, P) from the encoder's output (N, 1 + kept, D).

        Args:
            latent: (N, 1 + kept, D), the encoder's output.
            ids_restore: (N, L), the index of each patch in the shuffled order.
            taps: a dictionary that receives intermediate activations; None to record none.
        """
        visible = self.embed(latent)
        restored = restore_order(visible[:, 1:], self.mask_token, ids_restore)
        tokens = ops.concatenate([visible[:, :1], restored], axis=1) + self.position_embeddings
        return self.predict(tokens, 1, taps)


class MaskedViT(MaskedModel):
    """Base class of models that encode visible patches, with or without a decoder."""

    encoder_class = Encoder

    def encode_visible(
        self,
        pixel_values: Tensor,
        noise: Tensor | None,
        taps: Taps | None,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask images (N, C, H, W) by noise (N, L) and encode the visible patches.

        Args:
            pixel_values: (N, C, H, W).
            noise: (N, L); None for uniform noise, or for ascending noise if all patches are kept.
            taps: a dictionary that receives intermediate activations; None to record none.
            training: whether dropout is active; None for the value that was passed to the model.

        Returns:
            The tokens (N, 1 + kept, D) after the final norm, ``mask`` and ``ids_restore`` (N, L).
        """
        ids_keep, mask, ids_restore = random_masking(
            pixel_values, noise, self.config, self.seed_generator
        )
        # Keras treats training=None as False instead of the value of the surrounding call.
        keywords = {} if training is None else {"training": training}
        tokens = self.encoder(pixel_values, ids_keep, taps=taps, **keywords)
        return tokens, mask, ids_restore


@keras.saving.register_keras_serializable(package="reference_models")
class TFViTMAEModel(MaskedViT):
    """The encoder of an MAE; its variables have the paths of ``transformers.TFViTMAEModel``."""

    def call(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        training: bool = False,  # noqa: ARG002 (Keras passes it to the dropout layers)
        **options: Unpack[OutputOptions],
    ) -> ViTMAEModelOutput:
        """Mask patches and encode the visible patches.

        Args:
            pixel_values: (N, C, H, W), of the configured size.
            noise: (N, L); the patches with the lowest noise are kept, in ascending order of their
                noise. By default, the noise is random (uniform); if all patches are kept, it is
                ascending, so that the order of the patches does not change.
            training: whether dropout is active.
            options: additional outputs, see `OutputOptions`.

        Raises:
            ValueError: pixels or noise have the wrong shape.
        """
        taps = Taps.requested(**options)
        return ViTMAEModelOutput(
            *self.encode_visible(self._cast(pixel_values), noise, taps), *recorded(taps)
        )


@keras.saving.register_keras_serializable(package="reference_models")
class TFViTMAEForPreTraining(PixelPrediction, MaskedViT):
    """A pre-training MAE with the variable paths of ``transformers.TFViTMAEForPreTraining``."""

    decoder_class = Decoder

    def call(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        training: bool = False,  # noqa: ARG002 (Keras passes it to the dropout layers)
        **options: Unpack[OutputOptions],
    ) -> ViTMAEForPreTrainingOutput:
        """Predict all patches from visible patches; compute the loss over removed patches.

        For arguments and errors see `TFViTMAEModel`. Hidden states and attentions come
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


@keras.saving.register_keras_serializable(package="reference_models")
class TFViTForImageClassification(ClassifierModel):
    """A ViT with a head; variables have the paths of ``transformers.TFViTForImageClassification``.

    With ``global_pool="token"`` the input of the head is the class token after the encoder's final
    norm. With ``"avg"``, which transformers does not have, it is the mean of the patch tokens, to
    which ``fc_norm`` is applied, and the encoder has no final norm. With ``"avg"`` and
    ``fc_norm=False``, as in timm, it is the mean of the patch tokens after the encoder's final
    norm. For arguments see ``EncoderModel``.
    """

    encoder_class = Encoder

    def encoder_options(self) -> dict[str, Any]:
        """Return the encoder's arguments other than the configuration."""
        return {
            "learned_positions": True,
            "embedding_dropout": self.config.hidden_dropout_prob,
            "final_norm": not self.config.normalizes_mean,
        }

    def add_pooling(self) -> None:
        """Add the norm that is applied to the mean of the patch tokens, if configured."""
        if self.config.normalizes_mean:
            eps, dtype = self.config.layer_norm_eps, self.dtype_policy
            self.fc_norm = LayerNorm(eps, name="fc_norm", dtype=dtype)

    def pool(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Return the input (N, D) of the head: the class token or the mean of the patch tokens.

        Args:
            tokens: (N, 1 + L, D), the output of the encoder. If the model has the norm ``fc_norm``,
                it is applied to the mean here.
            taps: a dictionary that receives intermediate activations; None to record none.
        """
        if self.config.global_pool == "token":
            return tokens[:, 0]
        average = mean(tokens[:, 1:], axis=1, keepdims=True)  # (N, 1, D)
        if self.fc_norm is not None:
            average = self.fc_norm(average)
            record(taps, "head", norm=average)
        return average[:, 0]
