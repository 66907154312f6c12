"""Prithvi-EO, a masked autoencoder of satellite images of several times.

Version 1: Jakubik et al. 2023, arXiv:2310.18660; version 2: Szwarcman et al. 2024,
arXiv:2412.02732. It is the image MAE on patches of one time each, with fixed positions in time and
space; "TL" models embed the date of each frame and the location too (section 3 of the second
paper). In shape comments N is samples, L patches (time by time, row by row), D the width, P numbers
in a patch (frame, row, column, channel).
"""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from reference_models.configuration import PrithviConfig
from reference_models.keras.blocks import Initializer, LayerNorm, Trunk, dense
from reference_models.keras.model import ConfiguredModel
from reference_models.keras.numerics import sines_and_cosines, widest_float
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
    Taps,
    Tensor,
    ViTMAEForPreTrainingOutput,
    ViTMAEModelOutput,
    recorded,
)
from reference_models.positions import sincos_frequencies, spacetime_position_embedding

Config = PrithviConfig | Mapping[str, Any]


class CoordinateEmbedding(keras.layers.Layer):
    """Sines and cosines of two coordinates, half of the channels each, times a factor."""

    def __init__(self, config: PrithviConfig, width: int, *, name: str, dtype: Any) -> None:
        # Not cast when they come in: a year has more digits than bfloat16.
        super().__init__(name=name, dtype=dtype, autocast=False)
        self.widths = (width // 2, width - width // 2)
        self.learned = config.coords_scale_learn

    def build(self) -> None:
        """Make the factor."""
        initial = keras.initializers.Constant(0.1 if self.learned else 1.0)
        self.scale = self.add_weight(
            name="scale", shape=(1,), initializer=initial, trainable=self.learned
        )

    def call(self, coordinates: Tensor) -> Tensor:
        """Embed coordinates (..., 2) as (..., D).

        Angles are computed in float64 where the backend has it: a year times a frequency loses four
        digits in float32, as which the authors compute it.
        """
        coordinates = ops.cast(coordinates, widest_float())
        parts = []
        for index, width in enumerate(self.widths):
            frequencies = ops.convert_to_tensor(sincos_frequencies(width), coordinates.dtype)
            angles = coordinates[..., index : index + 1] * frequencies
            parts.append(ops.cast(sines_and_cosines(angles), self.compute_dtype))
        return ops.cast(self.scale, self.compute_dtype) * ops.concatenate(parts, axis=-1)


class PositionedTrunk(Trunk):
    """Blocks with fixed positions, and embeddings of times and locations where configured."""

    config: PrithviConfig

    def add_coordinates(self, suffix: str) -> None:
        """Add the embeddings that the configuration asks for."""
        self.embeds_time = self.embeds_location = None
        options = {"config": self.config, "width": self.width, "dtype": self.dtype_policy}
        if self.config.encodes_time:
            name = f"temporal_embed_{suffix}"
            self.embeds_time = CoordinateEmbedding(name=name, **options)
        if self.config.encodes_location:
            name = f"location_embed_{suffix}"
            self.embeds_location = CoordinateEmbedding(name=name, **options)

    def build_positions(self, name: str) -> None:
        """Make the positions (1, 1 + L, D) and the coordinates' factors."""
        time, rows, columns = self.config.grid_shape
        table = spacetime_position_embedding(self.width, (time, rows, columns))
        self.position_embeddings = add_positions(self, name, table)
        for layer in (self.embeds_time, self.embeds_location):
            if layer is not None:
                layer.build()

    def patch_positions(
        self, temporal_coords: Tensor | None, location_coords: Tensor | None
    ) -> Tensor:
        """Return the positions of patches with their coordinates' embeddings, (1 or N, L, D).

        Args:
            temporal_coords: (N, T, 2), year and day of the year of each frame, or None.
            location_coords: (N, 2), latitude and longitude in degrees, or None.
        """
        positions = self.position_embeddings[:, 1:]
        if temporal_coords is not None and self.embeds_time is not None:
            embedded = self.embeds_time(temporal_coords)  # (N, T, D)
            tokens_per_frame = positions.shape[1] // embedded.shape[1]
            positions = positions + ops.repeat(embedded, tokens_per_frame, axis=1)
        if location_coords is not None and self.embeds_location is not None:
            positions = positions + ops.expand_dims(self.embeds_location(location_coords), 1)
        return positions


class Encoder(PositionedTrunk):
    """Embedding, blocks and final norm."""

    def __init__(
        self, config: PrithviConfig, *, initializer: Initializer = None, dtype: Any
    ) -> None:
        super().__init__(name="encoder", dtype=dtype)
        self.config, self.initializer = config, initializer
        self.projection = PatchProjection(
            config, config.hidden_size, initializer=initializer, name="projection", dtype=dtype
        )
        self.add_blocks(config.encoder_block, config.num_hidden_layers, "layer.", initializer)
        self.add_coordinates("enc")
        self.norm = LayerNorm(config.layer_norm_eps, name="layernorm", dtype=dtype)

    def build(self) -> None:
        """Create all variables of the encoder."""
        self.cls_token = self.add_weight(
            name="cls_token",
            shape=(1, 1, self.width),
            initializer=self.initializer
            or keras.initializers.RandomNormal(stddev=self.config.initializer_range),
        )
        self.build_positions("pos_embed")
        self.projection.build()
        self.build_blocks()
        self.norm.build((None, None, self.width))

    def call(
        self,
        pixel_values: Tensor,
        ids_keep: Tensor,
        temporal_coords: Tensor | None = None,
        location_coords: Tensor | None = None,
        taps: Taps | None = None,
    ) -> Tensor:
        """Encode the patches ``ids_keep`` (N, kept) of samples (N, C, T, H, W)."""
        patches = take_tokens(patchify(pixel_values, self.config), ids_keep)
        positions = self.patch_positions(temporal_coords, location_coords)
        videos = ops.shape(patches)[0]
        if temporal_coords is None and location_coords is None:
            positions = ops.take(positions[0], ids_keep, axis=0)  # (N, kept, D)
        else:
            positions = take_tokens(positions, ids_keep)
        tokens = self.projection(patches) + positions
        cls_token = self.cls_token + self.position_embeddings[:, :1]
        tokens = ops.concatenate([ops.repeat(cls_token, videos, axis=0), tokens], axis=1)
        tokens = self.norm(self.run_blocks(tokens, "encoder", taps))
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

    configuration_class = PrithviConfig

    def __init__(self, config: Config, *, initializer: Initializer = None, **kwargs: Any) -> None:
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
        temporal_coords: Tensor | None,
        location_coords: Tensor | None,
        taps: Taps | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask samples (N, C, T, H, W) by noise (N, L) and encode what is left.

        Returns:
            The tokens (N, 1 + kept, D) after the final norm, ``mask`` and ``ids_restore`` (N, L).
        """
        check_pixels(pixel_values, self.config)
        if noise is None:
            videos = ops.shape(pixel_values)[0]
            noise = default_noise(videos, self.config, self.seed_generator)
        check_noise(noise, pixel_values.shape[0], self.config)
        check_coordinates(pixel_values.shape[0], self.config, temporal_coords, location_coords)
        ids_keep, mask, ids_restore = mask_by_noise(noise, self.config.num_kept)
        latent = self.encoder(pixel_values, ids_keep, temporal_coords, location_coords, taps=taps)
        return latent, mask, ids_restore

    def _with_time(self, pixel_values: Tensor) -> Tensor:
        """Return samples (N, C, T, H, W); those of one time may come as images (N, C, H, W)."""
        single = self.config.num_frames == 1 and len(pixel_values.shape) == 4
        pixels = ops.expand_dims(pixel_values, 2) if single else pixel_values
        return self._cast(pixels)


def check_coordinates(
    videos: int | None,
    config: PrithviConfig,
    temporal_coords: Tensor | None,
    location_coords: Tensor | None,
) -> None:
    """Raise ValueError unless coordinates have the right shapes and the model embeds them."""
    for name, value, embedded, shape in (
        ("temporal_coords", temporal_coords, config.encodes_time, (config.num_frames, 2)),
        ("location_coords", location_coords, config.encodes_location, (2,)),
    ):
        if value is None:
            continue
        if not embedded:
            raise ValueError(f"this model does not embed {name}; leave them out")
        found = tuple(value.shape)
        other = None not in (videos, *found[:1]) and found[:1] != (videos,)
        if found[1:] != shape or other:
            wanted = ", ".join(map(str, (videos or "N", *shape)))
            raise ValueError(f"{name} must have shape ({wanted}), not {found}")


@keras.saving.register_keras_serializable(package="reference_models")
class PrithviModel(MaskedModel):
    """The encoder alone."""

    def __init__(self, config: Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.build()

    def call(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        temporal_coords: Tensor | None = None,
        location_coords: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        output_taps: bool = False,
        training: bool = False,  # noqa: ARG002 (Keras hands it to the dropout layers)
    ) -> ViTMAEModelOutput:
        """Encode the patches that masking leaves.

        Args:
            pixel_values: (N, C, T, H, W), of the configured size; of one time also (N, C, H, W).
            noise: (N, L); the patches with the lowest values are kept, in ascending order. Where
                it is not given it is uniform, or ascending if all patches are kept.
            temporal_coords: (N, T, 2), year and day of the year of each frame. They and
                ``location_coords`` may be left out of a model that embeds them.
            location_coords: (N, 2), latitude and longitude in degrees.
            output_hidden_states: return the embedding output and each block's output.
            output_attentions: return each block's attention probabilities.
            output_taps: return intermediate activations by name.
            training: whether dropout is active.

        Raises:
            ValueError: pixels, noise or coordinates have the wrong shape, or the model embeds no
                such coordinates.
        """
        taps = Taps.requested(output_hidden_states, output_attentions, output_taps)
        pixel_values = self._with_time(pixel_values)
        encoded = self.encode_visible(pixel_values, noise, temporal_coords, location_coords, taps)
        return ViTMAEModelOutput(*encoded, *recorded(taps))


class Decoder(PositionedTrunk):
    """Mask tokens in place of the removed patches, blocks, norm and prediction."""

    def __init__(
        self, config: PrithviConfig, *, initializer: Initializer = None, dtype: Any
    ) -> None:
        super().__init__(name="decoder", dtype=dtype)
        self.config, self.initializer = config, initializer
        width = config.decoder_hidden_size
        self.embed = dense(width, initializer, name="decoder_embed", dtype=dtype)
        depth = config.decoder_num_hidden_layers
        self.add_blocks(config.decoder_block, depth, "decoder_layers.", initializer)
        self.add_coordinates("dec")
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
        self.build_positions("decoder_pos_embed")
        self.embed.build((None, None, self.config.hidden_size))
        self.build_blocks()
        self.norm.build((None, None, self.width))
        self.prediction.build((None, None, self.width))

    def call(
        self,
        latent: Tensor,
        ids_restore: Tensor,
        temporal_coords: Tensor | None = None,
        location_coords: Tensor | None = None,
        taps: Taps | None = None,
    ) -> Tensor:
        """Predict patches (N, L, P) from the encoder's output (N, 1 + kept, D)."""
        visible = self.embed(latent)
        restored = restore_order(visible[:, 1:], self.mask_token, ids_restore)
        restored = restored + self.patch_positions(temporal_coords, location_coords)
        cls_tokens = visible[:, :1] + self.position_embeddings[:, :1]
        tokens = ops.concatenate([cls_tokens, restored], axis=1)  # (N, 1 + L, D)
        tokens = self.norm(self.run_blocks(tokens, "decoder", taps))
        if taps is not None:
            taps.record("decoder", {"norm": tokens})
        return self.prediction(tokens[:, 1:])


@keras.saving.register_keras_serializable(package="reference_models")
class PrithviForPreTraining(PixelPrediction, MaskedModel):
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
        temporal_coords: Tensor | None = None,
        location_coords: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        output_taps: bool = False,
        training: bool = False,  # noqa: ARG002 (Keras hands it to the dropout layers)
    ) -> ViTMAEForPreTrainingOutput:
        """Predict every patch from those that masking leaves, and the loss on those it removes.

        Arguments and errors are those of `PrithviModel`. Hidden states and attentions are the
        encoder's, intermediate activations those of encoder and decoder.
        """
        taps = Taps.requested(output_hidden_states, output_attentions, output_taps)
        pixel_values = self._with_time(pixel_values)
        coordinates = (temporal_coords, location_coords)
        latent, mask, ids_restore = self.encode_visible(pixel_values, noise, *coordinates, taps)
        decoder_taps = Taps() if output_taps else None
        logits = self.decoder(latent, ids_restore, *coordinates, taps=decoder_taps)
        if taps is not None and decoder_taps is not None:
            taps.update(decoder_taps)
        nothing_removed = self.config.num_kept == self.config.num_patches
        loss = None if nothing_removed else self.forward_loss(pixel_values, logits, mask)
        return ViTMAEForPreTrainingOutput(loss, logits, mask, ids_restore, *recorded(taps))

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """Cut samples (N, C, T, H, W), or (N, C, H, W) of one time, into patches (N, L, P)."""
        return super().patchify(self._with_time(pixel_values))
