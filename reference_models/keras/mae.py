"""The masked autoencoder (He et al. 2021, arXiv:2111.06377) and the classifier fine-tuned from it.

An encoder sees the patches that a random mask leaves (section 3, "MAE encoder"); a smaller decoder
gets its output and mask tokens in place of the rest and predicts the pixels ("MAE decoder",
"Reconstruction target"). Variables have the paths of the TF classes in transformers 4. In shape
comments N is images, L patches, T tokens (class token first), D the width, P numbers in a patch.
"""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from reference_models.configuration import ViTMAEConfig
from reference_models.keras.blocks import Initializer, LayerNorm, Trunk, dense
from reference_models.keras.model import ConfiguredModel
from reference_models.keras.numerics import cross_entropy, mean
from reference_models.keras.patches import (
    PatchProjection,
    PixelPrediction,
    add_positions,
    check_noise,
    check_pixels,
    default_noise,
    mask_by_noise,
    patchify,
    restore_order,
    take_tokens,
)
from reference_models.outputs import (
    ImageClassifierOutput,
    Taps,
    Tensor,
    ViTMAEForPreTrainingOutput,
    ViTMAEModelOutput,
    recorded,
)
from reference_models.positions import sincos_position_embedding


class Embeddings(keras.layers.Layer):
    """Patch tokens and a class token, with their positions: sin-cos and fixed, or learned."""

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
        """Create tokens, positions and projection."""
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

        Patches are picked by ``ids_keep`` (N, kept) before they are projected, so that nothing is
        computed on those that are masked; without it all are taken in order.
        """
        patches = patchify(pixel_values, self.config)  # (N, L, P)
        positions = self.position_embeddings[:, 1:]
        if ids_keep is not None:
            patches = take_tokens(patches, ids_keep)
            positions = ops.take(positions[0], ids_keep, axis=0)  # (N, kept, D)
        tokens = self.projection(patches) + positions
        cls_token = self.cls_token + self.position_embeddings[:, :1]
        cls_tokens = ops.repeat(cls_token, ops.shape(tokens)[0], axis=0)
        return ops.concatenate([cls_tokens, tokens], axis=1)


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
            config, learned_positions=learned_positions, initializer=initializer, dtype=dtype
        )
        self.embedding_dropout = keras.layers.Dropout(embedding_dropout, dtype=dtype)
        self.add_blocks(config.encoder_block, config.num_hidden_layers, "layer_._", initializer)
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
        """Encode the patches ``ids_keep`` (N, kept) of images (N, C, H, W), or all in order.

        Returns:
            Tokens (N, 1 + kept, D), after the final norm where there is one.
        """
        tokens = self.embedding_dropout(self.embeddings(pixel_values, ids_keep))
        tokens = self.run_blocks(tokens, "encoder", taps)
        if self.norm is not None:
            tokens = self.norm(tokens)
            if taps is not None:
                taps.record("encoder", {"norm": tokens})
        return tokens


class MaskedModel(ConfiguredModel):
    """A model whose encoder sees only some patches.

    Args:
        config: its configuration.
        initializer: for everything that is otherwise drawn at random.
        kwargs: ``name`` and ``dtype``, as of any Keras model.
    """

    def __init__(
        self,
        config: ViTMAEConfig | Mapping[str, Any],
        *,
        initializer: Initializer = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, **kwargs)
        self.encoder = Encoder(self.config, initializer=initializer, dtype=self.dtype_policy)
        self.seed_generator = keras.random.SeedGenerator()

    def build(self) -> None:
        """Create all variables."""
        self.encoder.build()

    def encode_visible(
        self,
        pixel_values: Tensor,
        noise: Tensor | None,
        taps: Taps | None,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask images (N, C, H, W) by noise (N, L) and encode what is left.

        ``training`` is that of the surrounding call where it is not given.

        Returns:
            The tokens (N, 1 + kept, D) after the final norm, ``mask`` and ``ids_restore`` (N, L).
        """
        check_pixels(pixel_values, self.config)
        if noise is None:
            images = ops.shape(pixel_values)[0]
            noise = default_noise(images, self.config, self.seed_generator)
        check_noise(noise, pixel_values.shape[0], self.config)
        ids_keep, mask, ids_restore = mask_by_noise(noise, self.config.num_kept)
        # None would not stand for the surrounding call's: Keras takes it as False.
        given = {} if training is None else {"training": training}
        tokens = self.encoder(pixel_values, ids_keep, taps=taps, **given)
        return tokens, mask, ids_restore


@keras.saving.register_keras_serializable(package="reference_models")
class TFViTMAEModel(MaskedModel):
    """The encoder alone; its variables have the paths of ``transformers.TFViTMAEModel``."""

    def __init__(self, config: ViTMAEConfig | Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.build()

    def call(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        output_taps: bool = False,
        training: bool = False,  # noqa: ARG002 (Keras hands it to the dropout layers)
    ) -> ViTMAEModelOutput:
        """Encode the patches that masking leaves.

        Args:
            pixel_values: (N, C, H, W), of the configured size.
            noise: (N, L); the patches with the lowest values are kept, in ascending order. Where
                it is not given it is uniform, or ascending if all patches are kept.
            output_hidden_states: return the embedding output and each block's output.
            output_attentions: return each block's attention probabilities.
            output_taps: return intermediate activations by name.
            training: whether dropout is active.

        Raises:
            ValueError: pixels or noise have the wrong shape.
        """
        taps = Taps.requested(output_hidden_states, output_attentions, output_taps)
        return ViTMAEModelOutput(
            *self.encode_visible(self._cast(pixel_values), noise, taps), *recorded(taps)
        )


class Decoder(Trunk):
    """The decoder (MAE, section 3): mask tokens take the places of the removed patches."""

    def __init__(
        self, config: ViTMAEConfig, *, initializer: Initializer = None, dtype: Any
    ) -> None:
        super().__init__(name="decoder", dtype=dtype)
        self.config, self.initializer = config, initializer
        width = config.decoder_hidden_size
        self.embed = dense(width, initializer, name="decoder_embed", dtype=dtype)
        self.add_blocks(
            config.decoder_block, config.decoder_num_hidden_layers, "decoder_layers.", initializer
        )
        self.norm = LayerNorm(config.decoder_eps, name="decoder_norm", dtype=dtype)
        self.prediction = dense(config.patch_dim, initializer, name="decoder_pred", dtype=dtype)

    def build(self) -> None:
        """Create all variables of the decoder."""
        self.mask_token = self.add_weight(
            name="mask_token",
            shape=(1, 1, self.width),
            initializer=self.initializer
            or keras.initializers.RandomNormal(stddev=self.config.initializer_range),
        )
        table = sincos_position_embedding(self.width, self.config.grid_hw)
        self.position_embeddings = add_positions(self, "decoder_pos_embed", table)
        self.embed.build((None, None, self.config.hidden_size))
        self.build_blocks()
        self.norm.build((None, None, self.width))
        self.prediction.build((None, None, self.width))

    def call(self, latent: Tensor, ids_restore: Tensor, taps: Taps | None = None) -> Tensor:
        """Predict patches (N, L, P) from the encoder's output (N, 1 + kept, D)."""
        visible = self.embed(latent)
        restored = restore_order(visible[:, 1:], self.mask_token, ids_restore)
        tokens = ops.concatenate([visible[:, :1], restored], axis=1) + self.position_embeddings
        tokens = self.norm(self.run_blocks(tokens, "decoder", taps))
        if taps is not None:
            taps.record("decoder", {"norm": tokens})
        return self.prediction(tokens[:, 1:])


@keras.saving.register_keras_serializable(package="reference_models")
class TFViTMAEForPreTraining(PixelPrediction, MaskedModel):
    """Encoder and decoder; variables have the paths of ``transformers.TFViTMAEForPreTraining``."""

    def __init__(
        self,
        config: ViTMAEConfig | Mapping[str, Any],
        *,
        initializer: Initializer = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, initializer=initializer, **kwargs)
        self.decoder = Decoder(self.config, initializer=initializer, dtype=self.dtype_policy)
        self.build()

    def build(self) -> None:
        """Create all variables."""
        super().build()
        self.decoder.build()

    def call(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        output_taps: bool = False,
        training: bool = False,  # noqa: ARG002 (Keras hands it to the dropout layers)
    ) -> ViTMAEForPreTrainingOutput:
        """Predict every patch from those that masking leaves, and the loss on those it removes.

        Arguments and errors are those of `TFViTMAEModel`. Hidden states and attentions are the
        encoder's, intermediate activations those of encoder and decoder.
        """
        pixel_values = self._cast(pixel_values)
        taps = Taps.requested(output_hidden_states, output_attentions, output_taps)
        latent, mask, ids_restore = self.encode_visible(pixel_values, noise, taps)
        decoder_taps = Taps() if output_taps else None
        logits = self.decoder(latent, ids_restore, taps=decoder_taps)
        if taps is not None and decoder_taps is not None:
            taps.update(decoder_taps)
        nothing_removed = self.config.num_kept == self.config.num_patches
        loss = None if nothing_removed else self.forward_loss(pixel_values, logits, mask)
        return ViTMAEForPreTrainingOutput(loss, logits, mask, ids_restore, *recorded(taps))


@keras.saving.register_keras_serializable(package="reference_models")
class TFViTForImageClassification(ConfiguredModel):
    """A ViT with a head; variables have the paths of ``transformers.TFViTForImageClassification``.

    With ``global_pool="token"`` the head reads the class token after the encoder's final norm. With
    ``"avg"``, which transformers has not, it reads the mean of the patch tokens after ``fc_norm``,
    and the encoder has no final norm; with ``fc_norm=False`` besides, as in timm, it reads the mean
    of the patch tokens after the encoder's final norm. Arguments are those of ``TFViTMAEModel``.
    """

    def __init__(
        self,
        config: ViTMAEConfig | Mapping[str, Any],
        *,
        initializer: Initializer = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, **kwargs)
        pooled, dtype = self.config.normalises_mean, self.dtype_policy
        self.encoder = Encoder(
            self.config,
            learned_positions=True,
            embedding_dropout=self.config.hidden_dropout_prob,
            final_norm=not pooled,
            initializer=initializer,
            dtype=dtype,
        )
        self.fc_norm = (
            LayerNorm(self.config.layer_norm_eps, name="fc_norm", dtype=dtype) if pooled else None
        )
        self.classifier = dense(self.config.num_labels, initializer, name="classifier", dtype=dtype)
        self.build()

    def build(self) -> None:
        """Create all variables."""
        self.encoder.build()
        if self.fc_norm is not None:
            self.fc_norm.build((None, None, self.config.hidden_size))
        self.classifier.build((None, self.config.hidden_size))

    def call(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        output_taps: bool = False,
        training: bool = False,  # noqa: ARG002 (Keras hands it to the dropout layers)
    ) -> ImageClassifierOutput:
        """Classify images (N, C, H, W); further arguments are those of `TFViTMAEModel`.

        Labels are (N,) integers, or (N, K) probabilities as label smoothing and mixup give.

        Raises:
            ValueError: pixels have the wrong shape.
        """
        check_pixels(pixel_values, self.config)
        taps = Taps.requested(output_hidden_states, output_attentions, output_taps)
        tokens = self.encoder(self._cast(pixel_values), taps=taps)
        logits = self.classifier(self.pool(tokens, taps))
        loss = None if labels is None else cross_entropy(logits, labels)
        return ImageClassifierOutput(loss, logits, *recorded(taps))

    def pool(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Return what the classifier reads, (N, D), of tokens (N, 1 + L, D)."""
        if self.config.global_pool == "token":
            return tokens[:, 0]
        average = mean(tokens[:, 1:], axis=1, keepdims=True)  # (N, 1, D)
        if self.fc_norm is not None:
            average = self.fc_norm(average)
            if taps is not None:
                taps.record("head", {"norm": average})
        return average[:, 0]
