"""Prithvi-EO, a masked autoencoder for time series of satellite images.

Version 1: Jakubik et al. 2023, arXiv:2310.18660; version 2: Szwarcman et al. 2024,
arXiv:2412.02732. The model is the image MAE applied to patches of one time step each, with fixed
position embeddings in time and space; "TL" models also embed the date of each frame and the
location (section 3 of the second paper). Shape comments: N samples, L patches (time step by time
step, row by row), P values in a patch (frame, row, column, channel), width D.
"""

from typing import Any, Unpack

import keras
from keras import ops

from reference_models.configuration import PrithviConfig
from reference_models.keras.model import MaskedModel
from reference_models.keras.numerics import sines_and_cosines, widest_float
from reference_models.keras.patches import (
    PixelPrediction,
    add_positions,
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
from reference_models.positions import sincos_frequencies, spacetime_position_embedding


class CoordinateEmbedding(keras.layers.Layer):
    """An embedding of two coordinates: their sines and cosines, multiplied by a factor.

    Each coordinate is embedded in half of the channels.
    """

    def __init__(self, config: PrithviConfig, width: int, *, name: str, dtype: Any) -> None:
        # Inputs are not cast to the compute dtype: bfloat16 has too few digits for a year.
        super().__init__(name=name, dtype=dtype, autocast=False)
        self.widths = (width // 2, width - width // 2)
        self.learned = config.coords_scale_learn

    def build(self) -> None:
        """Create the factor."""
        initial = keras.initializers.Constant(0.1 if self.learned else 1.0)
        self.scale = self.add_weight(
            name="scale", shape=(1,), initializer=initial, trainable=self.learned
        )

    def call(self, coordinates: Tensor) -> Tensor:
        """Embed coordinates (..., 2) as (..., D).

        Angles are computed in float64 if the backend supports it. The authors use float32, in which
        the product of a year and a frequency loses four digits.
        """
        coordinates = ops.cast(coordinates, widest_float())
        parts = []
        for index, width in enumerate(self.widths):
            frequencies = ops.convert_to_tensor(sincos_frequencies(width), coordinates.dtype)
            angles = coordinates[..., index : index + 1] * frequencies
            parts.append(ops.cast(sines_and_cosines(angles), self.compute_dtype))
        return ops.cast(self.scale, self.compute_dtype) * ops.concatenate(parts, axis=-1)


class PositionedTrunk(Trunk):
    """Blocks with fixed position embeddings and optional embeddings of times and locations."""

    suffix: str  # the suffix of the embeddings' names

    def add_position_layers(self) -> None:
        """Add the embeddings of times and locations that the configuration specifies."""
        self.embeds_time = self.embeds_location = None
        options = {"config": self.config, "width": self.width, "dtype": self.dtype_policy}
        if self.config.encodes_time:
            name = f"temporal_embed_{self.suffix}"
            self.embeds_time = CoordinateEmbedding(name=name, **options)
        if self.config.encodes_location:
            name = f"location_embed_{self.suffix}"
            self.embeds_location = CoordinateEmbedding(name=name, **options)

    def build_table(self, name: str) -> None:
        """Create the position embeddings (1, 1 + L, D), and the factors of the other embeddings.

        The embeddings of times and of locations, if configured, are each multiplied by a factor.

        Args:
            name: the name of the position embeddings.
        """
        time, rows, columns = self.config.grid_shape
        table = spacetime_position_embedding(self.width, (time, rows, columns))
        self.position_embeddings = add_positions(self, name, table)
        for layer in (self.embeds_time, self.embeds_location):
            if layer is not None:
                layer.build()

    def patch_positions(
        self, temporal_coords: Tensor | None, location_coords: Tensor | None
    ) -> Tensor:
        """Return the sum of position and coordinate embeddings of the patches, (1 or N, L, D).

        Args:
            temporal_coords: (N, T, 2), year and day of the year of each frame; None to embed no
                times.
            location_coords: (N, 2), latitude and longitude in degrees; None to embed no locations.
        """
        positions = self.position_embeddings[:, 1:]
        if temporal_coords is not None and self.embeds_time is not None:
            embedded = self.embeds_time(temporal_coords)  # (N, T, D)
            tokens_per_frame = positions.shape[1] // embedded.shape[1]
            positions = positions + ops.repeat(embedded, tokens_per_frame, axis=1)
        if location_coords is not None and self.embeds_location is not None:
            positions = positions + ops.expand_dims(self.embeds_location(location_coords), 1)
        return positions


class Encoder(PositionedTrunk, VideoEncoder):
    """The encoder: embedding, blocks and final norm."""

    suffix = "enc"

    def build_positions(self) -> None:
        """Create the class token and the position embeddings."""
        self.cls_token = self.add_table("cls_token")
        self.build_table("pos_embed")

    def call(
        self,
        pixel_values: Tensor,
        ids_keep: Tensor,
        temporal_coords: Tensor | None = None,
        location_coords: Tensor | None = None,
        taps: Taps | None = None,
    ) -> Tensor:
        """Encode the patches ``ids_keep`` (N, kept) of samples (N, C, T, H, W).

        Args:
            pixel_values: (N, C, T, H, W).
            ids_keep: (N, kept), the indices of the patches.
            temporal_coords: (N, T, 2), year and day of the year of each frame; None to embed no
                times.
            location_coords: (N, 2), latitude and longitude in degrees; None to embed no locations.
            taps: a dictionary that receives intermediate activations; None to record none.

        Returns:
            Tokens (N, 1 + kept, D), after the final norm.
        """
        patches = take_tokens(patchify(pixel_values, self.config), ids_keep)
        positions = self.patch_positions(temporal_coords, location_coords)
        tokens = self.projection(patches) + take_tokens(positions, ids_keep)
        tokens = prepend_class_token(self.cls_token + self.position_embeddings[:, :1], tokens)
        tokens = self.norm(self.run_blocks(tokens, "encoder", taps))
        record(taps, "encoder", norm=tokens)
        return tokens


class Decoder(PositionedTrunk, DecoderTrunk):
    """The decoder: mask tokens for the removed patches, blocks, norm and prediction."""

    suffix = "dec"

    def __init__(self, config: PrithviConfig, **options: Any) -> None:
        super().__init__(config, outputs=config.patch_dim, **options)

    def build_positions(self) -> None:
        """Create the position embeddings."""
        self.build_table("decoder_pos_embed")

    def call(
        self,
        latent: Tensor,
        ids_restore: Tensor,
        temporal_coords: Tensor | None = None,
        location_coords: Tensor | None = None,
        taps: Taps | None = None,
    ) -> Tensor:
        """Predict patches (N, L, P) from the encoder's output (N, 1 + kept, D).

        Args:
            latent: (N, 1 + kept, D), the encoder's output.
            ids_restore: (N, L), the index of each patch in the shuffled order.
            temporal_coords: (N, T, 2), year and day of the year of each frame; None to embed no
                times.
            location_coords: (N, 2), latitude and longitude in degrees; None to embed no locations.
            taps: a dictionary that receives intermediate activations; None to record none.
        """
        visible = self.embed(latent)
        restored = restore_order(visible[:, 1:], self.mask_token, ids_restore)
        restored = restored + self.patch_positions(temporal_coords, location_coords)
        cls_tokens = visible[:, :1] + self.position_embeddings[:, :1]
        tokens = ops.concatenate([cls_tokens, restored], axis=1)  # (N, 1 + L, D)
        return self.predict(tokens, 1, taps)


class MaskedPrithvi(MaskedModel):
    """Base class of models that encode visible patches, with or without a decoder."""

    configuration_class = PrithviConfig
    encoder_class = Encoder

    def encode_visible(
        self,
        pixel_values: Tensor,
        noise: Tensor | None,
        temporal_coords: Tensor | None,
        location_coords: Tensor | None,
        taps: Taps | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask samples (N, C, T, H, W) by noise (N, L) and encode the visible patches.

        Args:
            pixel_values: (N, C, T, H, W).
            noise: (N, L); None for uniform noise, or for ascending noise if all patches are kept.
            temporal_coords: (N, T, 2), year and day of the year of each frame; None to embed no
                times.
            location_coords: (N, 2), latitude and longitude in degrees; None to embed no locations.
            taps: a dictionary that receives intermediate activations; None to record none.

        Returns:
            The tokens (N, 1 + kept, D) after the final norm, ``mask`` and ``ids_restore`` (N, L).
        """
        ids_keep, mask, ids_restore = random_masking(
            pixel_values, noise, self.config, self.seed_generator
        )
        check_coordinates(pixel_values.shape[0], self.config, temporal_coords, location_coords)
        latent = self.encoder(pixel_values, ids_keep, temporal_coords, location_coords, taps=taps)
        return latent, mask, ids_restore

    def _with_time(self, pixel_values: Tensor) -> Tensor:
        """Return samples as (N, C, T, H, W); for one time step, (N, C, H, W) is accepted too."""
        single = self.config.num_frames == 1 and len(pixel_values.shape) == 4
        pixels = ops.expand_dims(pixel_values, 2) if single else pixel_values
        return self._cast(pixels)


def check_coordinates(
    videos: int | None,
    config: PrithviConfig,
    temporal_coords: Tensor | None,
    location_coords: Tensor | None,
) -> None:
    """Raise ValueError if coordinates do not fit the model.

    Args:
        videos: the number of samples, N; None if it is unknown while tracing.
        config: the configuration of the model.
        temporal_coords: (N, T, 2), year and day of the year of each frame; None if not passed.
        location_coords: (N, 2), latitude and longitude in degrees; None if not passed.

    Raises:
        ValueError: the model does not embed the passed coordinates, or their shape is wrong.
    """
    for name, value, embedded, shape in (
        ("temporal_coords", temporal_coords, config.encodes_time, (config.num_frames, 2)),
        ("location_coords", location_coords, config.encodes_location, (2,)),
    ):
        if value is None:
            continue
        if not embedded:
            raise ValueError(f"this model does not embed {name}; leave them out")
        given_shape = tuple(value.shape)
        other = None not in (videos, *given_shape[:1]) and given_shape[:1] != (videos,)
        if given_shape[1:] != shape or other:
            expected = ", ".join(map(str, (videos or "N", *shape)))
            raise ValueError(f"{name} must have shape ({expected}), not {given_shape}")


@keras.saving.register_keras_serializable(package="reference_models")
class PrithviModel(MaskedPrithvi):
    """The encoder of a Prithvi-EO model, without a decoder."""

    def call(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        temporal_coords: Tensor | None = None,
        location_coords: Tensor | None = None,
        training: bool = False,  # noqa: ARG002 (Keras passes it to the dropout layers)
        **options: Unpack[OutputOptions],
    ) -> ViTMAEModelOutput:
        """Mask patches and encode the visible patches.

        Args:
            pixel_values: (N, C, T, H, W), of the configured size; also (N, C, H, W) if the model
                takes one time step.
            noise: (N, L); the patches with the lowest values are kept, sorted by their values. The
                default noise is uniform, or ascending if all patches are kept.
            temporal_coords: (N, T, 2), year and day of the year of each frame; optional, like
                ``location_coords``.
            location_coords: (N, 2), latitude and longitude in degrees.
            training: whether dropout is active.
            options: additional outputs, see `OutputOptions`.

        Raises:
            ValueError: pixels, noise or coordinates have the wrong shape, or the model does not
                embed these coordinates.
        """
        taps = Taps.requested(**options)
        pixel_values = self._with_time(pixel_values)
        encoded = self.encode_visible(pixel_values, noise, temporal_coords, location_coords, taps)
        return ViTMAEModelOutput(*encoded, *recorded(taps))


@keras.saving.register_keras_serializable(package="reference_models")
class PrithviForPreTraining(PixelPrediction, MaskedPrithvi):
    """A Prithvi-EO model for pre-training: an encoder and a decoder."""

    decoder_class = Decoder

    def call(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        temporal_coords: Tensor | None = None,
        location_coords: Tensor | None = None,
        training: bool = False,  # noqa: ARG002 (Keras passes it to the dropout layers)
        **options: Unpack[OutputOptions],
    ) -> ViTMAEForPreTrainingOutput:
        """Predict all patches from visible patches; compute the loss over removed patches.

        For arguments and errors see `PrithviModel`. Hidden states and attentions come
        from the encoder, intermediate activations from the encoder and the decoder.
        """
        taps = Taps.requested(**options)
        pixel_values = self._with_time(pixel_values)
        coordinates = (temporal_coords, location_coords)
        latent, mask, ids_restore = self.encode_visible(pixel_values, noise, *coordinates, taps)
        decoder_taps = Taps.of_decoder(**options)
        logits = self.decoder(latent, ids_restore, *coordinates, taps=decoder_taps)
        nothing_removed = self.config.num_kept == self.config.num_patches
        loss = None if nothing_removed else self.forward_loss(pixel_values, logits, mask)
        return ViTMAEForPreTrainingOutput(
            loss, logits, mask, ids_restore, *recorded(taps, decoder_taps)
        )

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """Cut samples (N, C, T, H, W), or (N, C, H, W) of one time step, into patches (N, L, P)."""
        return super().patchify(self._with_time(pixel_values))
