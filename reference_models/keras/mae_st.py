"""MAE-ST: masked autoencoders as spatiotemporal learners (Feichtenhofer et al. 2022).

The paper is arXiv:2205.09113. It is the image MAE on patches of space and time: an encoder sees the
few that a random mask leaves, whatever their time ("agnostic" masking, section 3); the decoder gets
its output and mask tokens in the order of the video and predicts the pixels of some of the frames.
Positions are learned. In shape comments N is videos, L patches (time step by time step, row by
row), D the width, P numbers in a predicted patch (frame, row, column, channel); "[1 +]" is the
class token, which a model may lack.
"""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from reference_models.configuration import MAESTConfig
from reference_models.keras.blocks import Initializer, LayerNorm, Trunk, dense
from reference_models.keras.model import ConfiguredModel
from reference_models.keras.numerics import cross_entropy, mean
from reference_models.keras.patches import (
    Patches,
    PatchProjection,
    PixelPrediction,
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

Config = MAESTConfig | Mapping[str, Any]


class PositionedTrunk(Trunk):
    """Blocks with learned positions and, where the model has one, a class token before them."""

    config: MAESTConfig
    initializer: Initializer

    def add_tokens(self, prefix: str = "") -> None:
        """Make the class token, and tables of places and times and of the class, or one for all."""
        config, (time, rows, columns) = self.config, self.config.grid_shape
        if config.cls_embed:
            self.cls_token = self.add_table(f"{prefix}cls_token", 1)
        name = f"{prefix}pos_embed"
        if not config.sep_pos_embed:
            self.pos_embed = self.add_table(name, config.class_tokens + config.num_patches)
            return
        self.pos_embed_spatial = self.add_table(f"{name}_spatial", rows * columns)
        self.pos_embed_temporal = self.add_table(f"{name}_temporal", time)
        if config.cls_embed:
            self.pos_embed_class = self.add_table(f"{name}_class", 1)

    def add_table(self, name: str, length: int) -> Any:
        """Add a variable (1, length, D), normal with ``initializer_range`` at first."""
        random = keras.initializers.RandomNormal(stddev=self.config.initializer_range)
        return self.add_weight(
            name=name, shape=(1, length, self.width), initializer=self.initializer or random
        )

    def positions(self) -> Tensor:
        """Return the positions (1, [1 +] L, D) of class token and patches."""
        config = self.config
        if not config.sep_pos_embed:
            return ops.convert_to_tensor(self.pos_embed)
        spatial = ops.expand_dims(self.pos_embed_spatial, 1)  # (1, 1, rows x columns, D)
        temporal = ops.expand_dims(self.pos_embed_temporal, 2)  # (1, time, 1, D)
        table = ops.reshape(temporal + spatial, (1, config.num_patches, self.width))
        if config.cls_embed:
            table = ops.concatenate([self.pos_embed_class, table], axis=1)
        return table


class Encoder(PositionedTrunk):
    """Embedding, blocks and, where wanted, the final norm."""

    def __init__(
        self,
        config: MAESTConfig,
        *,
        final_norm: bool = True,
        initializer: Initializer = None,
        dtype: Any,
    ) -> None:
        super().__init__(name="encoder", dtype=dtype)
        self.config, self.initializer = config, initializer
        self.projection = PatchProjection(
            config, config.hidden_size, initializer=initializer, name="projection", dtype=dtype
        )
        self.add_blocks(config.encoder_block, config.num_hidden_layers, "layer.", initializer)
        self.norm = (
            LayerNorm(config.layer_norm_eps, name="layernorm", dtype=dtype) if final_norm else None
        )

    def build(self) -> None:
        """Create all variables of the encoder."""
        self.add_tokens()
        self.projection.build()
        self.build_blocks()
        if self.norm is not None:
            self.norm.build((None, None, self.width))

    def call(
        self, pixel_values: Tensor, ids_keep: Tensor | None = None, taps: Taps | None = None
    ) -> Tensor:
        """Encode the patches ``ids_keep`` (N, kept) of videos (N, C, T, H, W), or all in order.

        Returns:
            Tokens (N, kept, D), without the class token, after the final norm; where there is none,
            the blocks' output (N, [1 +] L, D).
        """
        tokens = self.run_blocks(self.embed(pixel_values, ids_keep), "encoder", taps)
        if self.norm is None:
            return tokens
        latent = self.norm(tokens)[:, self.config.class_tokens :]
        if taps is not None:
            taps.record("encoder", {"norm": latent})
        return latent

    def embed(self, pixel_values: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Return tokens (N, [1 +] kept, D) of videos (N, C, T, H, W), class token first."""
        patches = patchify(pixel_values, self.config)
        table, class_tokens = self.positions(), self.config.class_tokens
        first, positions = table[:, :class_tokens], table[:, class_tokens:]
        if ids_keep is not None:
            patches = take_tokens(patches, ids_keep)
            positions = ops.take(positions[0], ids_keep, axis=0)  # (N, kept, D)
        tokens = self.projection(patches) + positions
        if not self.config.cls_embed:
            return tokens
        cls_tokens = ops.repeat(self.cls_token + first, ops.shape(tokens)[0], axis=0)
        return ops.concatenate([cls_tokens, tokens], axis=1)


class MaskedModel(ConfiguredModel):
    """A model whose encoder sees only some patches.

    Args:
        config: its configuration.
        initializer: for everything that is otherwise drawn at random.
        kwargs: ``name`` and ``dtype``, as of any Keras model.
    """

    configuration_class = MAESTConfig

    def __init__(self, config: Config, *, initializer: Initializer = None, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.encoder = Encoder(self.config, initializer=initializer, dtype=self.dtype_policy)
        self.seed_generator = keras.random.SeedGenerator()

    def build(self) -> None:
        """Create all variables."""
        self.encoder.build()

    def encode_visible(
        self, pixel_values: Tensor, noise: Tensor | None, taps: Taps | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask videos (N, C, T, H, W) by noise (N, L) and encode what is left.

        Returns:
            The tokens (N, kept, D) after the final norm, without the class token, and ``mask`` and
            ``ids_restore`` (N, L).
        """
        check_pixels(pixel_values, self.config)
        if noise is None:
            videos = ops.shape(pixel_values)[0]
            noise = default_noise(videos, self.config, self.seed_generator)
        check_noise(noise, pixel_values.shape[0], self.config)
        ids_keep, mask, ids_restore = mask_by_noise(noise, self.config.num_kept)
        return self.encoder(pixel_values, ids_keep, taps=taps), mask, ids_restore


@keras.saving.register_keras_serializable(package="reference_models")
class MAESTModel(MaskedModel):
    """The encoder alone."""

    def __init__(self, config: Config, **kwargs: Any) -> None:
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
            pixel_values: (N, C, T, H, W), of the configured size.
            noise: (N, L); the patches with the lowest values are kept, in ascending order. Where
                it is not given it is uniform, or ascending if all patches are kept.
            output_hidden_states: return the embedding output and each block's output.
            output_attentions: return each block's attention probabilities.
            output_taps: return intermediate activations by name.
            training: whether dropout is active.

        Returns:
            ``last_hidden_state`` (N, kept, D), without the class token.

        Raises:
            ValueError: pixels or noise have the wrong shape.
        """
        taps = Taps.requested(output_hidden_states, output_attentions, output_taps)
        return ViTMAEModelOutput(
            *self.encode_visible(self._cast(pixel_values), noise, taps), *recorded(taps)
        )


class Decoder(PositionedTrunk):
    """The decoder, with a class token of its own."""

    def __init__(self, config: MAESTConfig, *, initializer: Initializer = None, dtype: Any) -> None:
        super().__init__(name="decoder", dtype=dtype)
        self.config, self.initializer = config, initializer
        width = config.decoder_hidden_size
        self.embed = dense(width, initializer, name="decoder_embed", dtype=dtype)
        depth = config.decoder_num_hidden_layers
        self.add_blocks(config.decoder_block, depth, "decoder_layers.", initializer)
        self.norm = LayerNorm(config.decoder_eps, name="decoder_norm", dtype=dtype)
        outputs = config.prediction.patch_dim
        self.prediction = dense(outputs, initializer, name="decoder_pred", dtype=dtype)

    def build(self) -> None:
        """Create all variables of the decoder."""
        self.mask_token = self.add_table("mask_token", 1)
        self.add_tokens("decoder_")
        self.embed.build((None, None, self.config.hidden_size))
        self.build_blocks()
        self.norm.build((None, None, self.width))
        self.prediction.build((None, None, self.width))

    def call(self, latent: Tensor, ids_restore: Tensor, taps: Taps | None = None) -> Tensor:
        """Predict patches (N, L, P) from the encoder's output (N, kept, D)."""
        tokens = restore_order(self.embed(latent), self.mask_token, ids_restore)
        if self.config.cls_embed:
            cls_tokens = ops.repeat(self.cls_token, ops.shape(tokens)[0], axis=0)
            tokens = ops.concatenate([cls_tokens, tokens], axis=1)
        tokens = self.norm(self.run_blocks(tokens + self.positions(), "decoder", taps))
        if taps is not None:
            taps.record("decoder", {"norm": tokens})
        return self.prediction(tokens[:, self.config.class_tokens :])


@keras.saving.register_keras_serializable(package="reference_models")
class MAESTForPreTraining(PixelPrediction, MaskedModel):
    """Encoder and decoder."""

    def __init__(self, config: Config, *, initializer: Initializer = None, **kwargs: Any) -> None:
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

        Arguments and errors are those of `MAESTModel`. Hidden states and attentions are the
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

    @property
    def predicted(self) -> Patches:
        """Shapes of the video that is predicted and of its patches."""
        return self.config.prediction

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """Cut the predicted frames of videos (N, C, T, H, W) into patches (N, L, P)."""
        check_pixels(pixel_values, self.config)
        frames = ops.convert_to_tensor(self.config.predicted_frames, dtype="int32")
        return patchify(ops.take(self._cast(pixel_values), frames, axis=2), self.predicted)


@keras.saving.register_keras_serializable(package="reference_models")
class MAESTForVideoClassification(ConfiguredModel):
    """The encoder on whole videos, and a linear head: a fine-tuned MAE-ST.

    The head reads the mean of all tokens but the first after ``norm``: the class token is left out
    and, as in the original, the first patch of a model that has no class token.
    """

    configuration_class = MAESTConfig

    def __init__(self, config: Config, *, initializer: Initializer = None, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        known, dtype = self.config, self.dtype_policy
        self.encoder = Encoder(known, final_norm=False, initializer=initializer, dtype=dtype)
        self.fc_norm = LayerNorm(known.layer_norm_eps, name="norm", dtype=dtype)
        self.dropout = keras.layers.Dropout(known.classifier_dropout, dtype=dtype)
        self.classifier = dense(known.num_labels, initializer, name="classifier", dtype=dtype)
        self.build()

    def build(self) -> None:
        """Create all variables."""
        self.encoder.build()
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
        """Classify videos (N, C, T, H, W); further arguments are those of `MAESTModel`.

        Labels are (N,) integers, or (N, K) probabilities as label smoothing and mixup give.

        Raises:
            ValueError: pixels have the wrong shape.
        """
        check_pixels(pixel_values, self.config)
        taps = Taps.requested(output_hidden_states, output_attentions, output_taps)
        tokens = self.encoder(self._cast(pixel_values), taps=taps)
        average = self.fc_norm(mean(tokens[:, 1:], axis=1, keepdims=True))  # (N, 1, D)
        if taps is not None:
            taps.record("head", {"norm": average})
        logits = self.classifier(self.dropout(average[:, 0]))
        loss = None if labels is None else cross_entropy(logits, labels)
        return ImageClassifierOutput(loss, logits, *recorded(taps))
