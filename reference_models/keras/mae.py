"""The masked autoencoder (He et al. 2021, arXiv:2111.06377, section 3)."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from reference_models.configuration import ViTMAEConfig
from reference_models.keras.encoder import Encoder, add_positions
from reference_models.keras.layers import Initializer, LayerNorm, Trunk, dense
from reference_models.keras.model import ConfiguredModel
from reference_models.keras.numerics import mean
from reference_models.keras.patches import (
    check_noise,
    check_pixels,
    mask_by_noise,
    patch_statistics,
    patchify,
    take_tokens,
    unpatchify,
)
from reference_models.outputs import (
    Taps,
    Tensor,
    ViTMAEForPreTrainingOutput,
    ViTMAEModelOutput,
    Wanted,
)


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

    def default_noise(self, images: Any) -> Tensor:
        """Return noise (N, L): uniform, or ascending where all patches are kept, in order."""
        patches = self.config.num_patches
        if self.config.num_kept == patches:
            ascending = ops.arange(patches, dtype="float32")
            return ops.broadcast_to(ascending, (images, patches))
        return keras.random.uniform((images, patches), dtype="float32", seed=self.seed_generator)

    def encode_visible(
        self, pixel_values: Tensor, noise: Tensor | None, wanted: Wanted
    ) -> ViTMAEModelOutput:
        """Mask images (N, C, H, W) by noise (N, L) and encode what is left."""
        check_pixels(pixel_values, self.config)
        if noise is None:
            noise = self.default_noise(ops.shape(pixel_values)[0])
        check_noise(noise, pixel_values.shape[0], self.config)
        ids_keep, mask, ids_restore = mask_by_noise(noise, self.config.num_kept)
        trunk = self.encoder(pixel_values, ids_keep=ids_keep, wanted=wanted)
        return ViTMAEModelOutput(
            trunk.tokens,
            mask,
            ids_restore,
            trunk.hidden_states,
            trunk.attentions,
            trunk.taps if wanted.taps else None,
        )


@keras.saving.register_keras_serializable(package="reference_models")
class TFViTMAEModel(MaskedModel):
    """The encoder alone; its variables have the paths of ``transformers.TFViTMAEModel``."""

    def __init__(self, config: ViTMAEConfig | Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.build()

    def build(self) -> None:
        """Make all variables."""
        self.encoder.build()

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
            output_taps: return intermediate results by name.
            training: whether dropout is active.

        Raises:
            ValueError: pixels or noise have the wrong shape.
        """
        wanted = Wanted(output_hidden_states, output_attentions, output_taps)
        pixel_values = self._cast(pixel_values)
        return self.encode_visible(pixel_values, noise, wanted)


class Decoder(Trunk):
    """The decoder (MAE, section 3): mask tokens take the places of the removed patches."""

    def __init__(
        self, config: ViTMAEConfig, *, initializer: Initializer = None, dtype: Any
    ) -> None:
        super().__init__(name="decoder", dtype=dtype)
        self.config = config
        self.initializer = initializer
        self.embed = dense(
            config.decoder_hidden_size, initializer, name="decoder_embed", dtype=dtype
        )
        sizes = (
            config.decoder_hidden_size,
            config.decoder_num_attention_heads,
            config.decoder_intermediate_size,
            config.decoder_eps,
        )
        self.add_blocks(
            config, sizes, config.decoder_num_hidden_layers, "decoder_layers.", initializer
        )
        self.norm = LayerNorm(config.decoder_eps, name="decoder_norm", dtype=dtype)
        self.prediction = dense(config.patch_dim, initializer, name="decoder_pred", dtype=dtype)

    def build(self) -> None:
        """Make all variables of the decoder."""
        self.mask_token = self.add_weight(
            name="mask_token",
            shape=(1, 1, self.width),
            initializer=self.initializer
            or keras.initializers.RandomNormal(stddev=self.config.initializer_range),
        )
        self.position_embeddings = add_positions(self, "decoder_pos_embed", self.width, self.config)
        self.embed.build((None, None, self.config.hidden_size))
        self.build_blocks()
        self.norm.build((None, None, self.width))
        self.prediction.build((None, None, self.width))

    def call(self, latent: Tensor, ids_restore: Tensor, wanted: Wanted) -> tuple[Tensor, Taps]:
        """Predict patches (N, L, P) from the encoder's output (N, 1 + kept, D); give the taps."""
        visible = self.embed(latent)
        removed = ids_restore.shape[1] + 1 - visible.shape[1]
        mask_tokens = ops.tile(self.mask_token, (ops.shape(visible)[0], removed, 1))
        shuffled = ops.concatenate([visible[:, 1:], mask_tokens], axis=1)  # (N, L, D)
        restored = take_tokens(shuffled, ids_restore)
        tokens = ops.concatenate([visible[:, :1], restored], axis=1) + self.position_embeddings
        trunk = self.run_blocks(tokens, wanted, "decoder")
        normed = self.norm(trunk.tokens)
        taps = {**trunk.taps, "decoder.norm": normed} if wanted.taps else {}
        return self.prediction(normed[:, 1:]), taps


@keras.saving.register_keras_serializable(package="reference_models")
class TFViTMAEForPreTraining(MaskedModel):
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
        """Make all variables."""
        self.encoder.build()
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

        Args:
            pixel_values: (N, C, H, W), of the configured size.
            noise: (N, L); the patches with the lowest values are kept, in ascending order. Where
                it is not given it is uniform, or ascending if all patches are kept.
            output_hidden_states: return the encoder's embedding output and each block's output.
            output_attentions: return each encoder block's attention probabilities.
            output_taps: return intermediate results of encoder and decoder by name.
            training: whether dropout is active.

        Raises:
            ValueError: pixels or noise have the wrong shape.
        """
        wanted = Wanted(output_hidden_states, output_attentions, output_taps)
        pixel_values = self._cast(pixel_values)
        encoded = self.encode_visible(pixel_values, noise, wanted)
        logits, decoder_taps = self.decoder(
            encoded.last_hidden_state,
            encoded.ids_restore,
            wanted=Wanted(taps=output_taps),
        )
        nothing_removed = self.config.num_kept == self.config.num_patches
        return ViTMAEForPreTrainingOutput(
            loss=None if nothing_removed else self.forward_loss(pixel_values, logits, encoded.mask),
            logits=logits,
            mask=encoded.mask,
            ids_restore=encoded.ids_restore,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            taps={**encoded.taps, **decoder_taps} if encoded.taps is not None else None,
        )

    def forward_loss(
        self,
        pixel_values: Tensor,
        logits: Tensor,
        mask: Tensor,
        norm_pix_loss: bool | None = None,
    ) -> Tensor:
        """Return the mean squared error over the removed patches, a scalar (MAE, section 3).

        Args:
            pixel_values: (N, C, H, W).
            logits: (N, L, P), the predicted patches.
            mask: (N, L), 1 where a patch is removed; at least one must be.
            norm_pix_loss: whether each patch is normalised by its own mean and unbiased variance
                before it is compared; as configured where it is not given.
        """
        target = self.patchify(pixel_values)
        if self.config.norm_pix_loss if norm_pix_loss is None else norm_pix_loss:
            center, deviation = patch_statistics(target)
            target = (target - center) / deviation
        errors = mean(ops.square(self._cast(logits) - target), axis=-1)  # (N, L)
        removed = self._cast(mask)
        return ops.sum(errors * removed) / ops.sum(removed)

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """Cut images (N, C, H, W) into patches (N, L, P)."""
        return patchify(self._cast(pixel_values), self.config)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Put patches (N, L, P) together to images (N, C, H, W)."""
        return unpatchify(patches, self.config)

    def reconstruct(
        self, pixel_values: Tensor, logits: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return predicted patches as images (N, C, H, W).

        A model that predicts normalised pixels needs the mean and deviation of each patch; they are
        taken from ``pixel_values``. With ``mask`` (N, L) only the removed patches are predicted
        ones; the others show the image itself.
        """
        patches, logits = self.patchify(pixel_values), self._cast(logits)
        if self.config.norm_pix_loss:
            center, deviation = patch_statistics(patches)
            logits = logits * deviation + center
        if mask is not None:
            logits = ops.where(ops.expand_dims(mask, -1) > 0, logits, patches)
        return self.unpatchify(logits)
