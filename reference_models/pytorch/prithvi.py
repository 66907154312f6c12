"""Prithvi-EO, a masked autoencoder for time series of satellite images.

Version 1: Jakubik et al. 2023, arXiv:2310.18660; version 2: Szwarcman et al. 2024,
arXiv:2412.02732. The model is the image MAE applied to patches of one time step each, with fixed
position embeddings in time and space; "TL" models also embed the date of each frame and the
location (section 3 of the second paper). Parameters are named as in version 2; in files of version
1, the names have no prefix "encoder." or "decoder.". Shape comments: N samples, L patches (time
step by time step, row by row), P values in a patch (frame, row, column, channel), width D.
"""

from typing import Unpack

import torch
from torch import Tensor, nn

from reference_models.configuration import PrithviConfig
from reference_models.outputs import (
    OutputOptions,
    Taps,
    ViTMAEForPreTrainingOutput,
    ViTMAEModelOutput,
    record,
    recorded,
)
from reference_models.positions import sincos_frequencies, spacetime_position_embedding
from reference_models.pytorch.blocks import initialize_linear_layers, run_blocks, stack_blocks
from reference_models.pytorch.patches import (
    PatchEmbedding,
    PixelPrediction,
    patchify,
    prepend_class_token,
    random_masking,
    restore_order,
    take_tokens,
)


class CoordinateEmbedding(nn.Module):
    """An embedding of two coordinates: their sines and cosines, multiplied by a factor.

    Each coordinate is embedded in half of the channels.
    """

    def __init__(self, config: PrithviConfig, width: int) -> None:
        super().__init__()
        self.widths = (width // 2, width - width // 2)
        learned = config.coords_scale_learn
        self.scale = nn.Parameter(torch.full((1,), 0.1 if learned else 1.0), requires_grad=learned)

    def forward(self, coordinates: Tensor) -> Tensor:
        """Embed coordinates (..., 2) as (..., D).

        Angles are computed in float64 if the device supports it. The authors use float32, in which
        the product of a year and a frequency loses four digits.
        """
        exact = torch.float32 if coordinates.device.type == "mps" else torch.float64
        parts = []
        for coordinate, width in zip(coordinates.to(exact).unbind(-1), self.widths, strict=True):
            frequencies = torch.from_numpy(sincos_frequencies(width)).to(coordinate)
            angles = coordinate.unsqueeze(-1) * frequencies
            parts += [angles.sin(), angles.cos()]
        return self.scale * torch.cat(parts, dim=-1).to(self.scale.dtype)


class Coordinates(nn.Module):
    """Base class of encoder and decoder, with optional embeddings of times and locations."""

    config: PrithviConfig

    def add_coordinates(self, suffix: str, width: int) -> None:
        """Add the embeddings of times and locations that the configuration specifies.

        Args:
            suffix: "enc" or "dec", the suffix of the embeddings' names.
            width: the width of the embeddings, D.
        """
        self.suffix = suffix
        if self.config.encodes_time:
            self.add_module(f"temporal_embed_{suffix}", CoordinateEmbedding(self.config, width))
        if self.config.encodes_location:
            self.add_module(f"location_embed_{suffix}", CoordinateEmbedding(self.config, width))

    def add_to(
        self, positions: Tensor, temporal_coords: Tensor | None, location_coords: Tensor | None
    ) -> Tensor:
        """Return the sum of position and coordinate embeddings of the patches, (1 or N, L, D).

        Args:
            positions: (1, L, D), the position embeddings of the patches.
            temporal_coords: (N, T, 2), year and day of the year of each frame; None to embed no
                times.
            location_coords: (N, 2), latitude and longitude in degrees; None to embed no locations.
        """
        if temporal_coords is not None:
            embedded = self.get_submodule(f"temporal_embed_{self.suffix}")(temporal_coords)
            tokens_per_frame = positions.shape[1] // embedded.shape[1]
            positions = positions + embedded.repeat_interleave(tokens_per_frame, dim=1)
        if location_coords is not None:
            embedded = self.get_submodule(f"location_embed_{self.suffix}")(location_coords)
            positions = positions + embedded.unsqueeze(1)
        return positions


def check_coordinates(
    videos: int,
    config: PrithviConfig,
    temporal_coords: Tensor | None,
    location_coords: Tensor | None,
) -> None:
    """Raise ValueError if coordinates do not fit the model.

    Args:
        videos: the number of samples, N.
        config: the configuration of the model.
        temporal_coords: (N, T, 2), year and day of the year of each frame; None if not passed.
        location_coords: (N, 2), latitude and longitude in degrees; None if not passed.

    Raises:
        ValueError: the model does not embed the passed coordinates, or their shape is wrong.
    """
    for name, value, embedded, shape in (
        ("temporal_coords", temporal_coords, config.encodes_time, (videos, config.num_frames, 2)),
        ("location_coords", location_coords, config.encodes_location, (videos, 2)),
    ):
        if value is None:
            continue
        if not embedded:
            raise ValueError(f"this model does not embed {name}; leave them out")
        if tuple(value.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, not {tuple(value.shape)}")


class Encoder(Coordinates):
    """The encoder: embedding, blocks and final norm."""

    def __init__(self, config: PrithviConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = fixed_positions(config, width)
        self.patch_embed = PatchEmbedding(config, width)
        self.add_coordinates("enc", width)
        self.blocks = stack_blocks(config.encoder_block, config.num_hidden_layers)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def embed(
        self,
        pixel_values: Tensor,
        ids_keep: Tensor,
        temporal_coords: Tensor | None = None,
        location_coords: Tensor | None = None,
    ) -> Tensor:
        """Return the class token and the tokens of the patches ``ids_keep``, (N, 1 + kept, D).

        Args:
            pixel_values: (N, C, T, H, W).
            ids_keep: (N, kept), the indices of the patches.
            temporal_coords: (N, T, 2), year and day of the year of each frame; None to embed no
                times.
            location_coords: (N, 2), latitude and longitude in degrees; None to embed no locations.
        """
        patches = take_tokens(patchify(pixel_values, self.config), ids_keep)
        positions = self.add_to(self.pos_embed[:, 1:], temporal_coords, location_coords)
        tokens = self.patch_embed(patches) + take_tokens(positions, ids_keep)
        cls_token = self.cls_token + self.pos_embed[:, :1]
        return prepend_class_token(cls_token, tokens)

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
        check_coordinates(len(pixel_values), self.config, temporal_coords, location_coords)
        ids_keep, mask, ids_restore = random_masking(pixel_values, noise, self.config)
        tokens = self.embed(pixel_values, ids_keep, temporal_coords, location_coords)
        latent = self.norm(run_blocks(self.blocks, tokens, "encoder", taps))
        record(taps, "encoder", norm=latent)
        return latent, mask, ids_restore

    def initialize(self) -> None:
        """Initialize linear layers (Xavier uniform) and the class token (normal distribution)."""
        initialize_linear_layers(self)
        nn.init.normal_(self.cls_token, std=self.config.initializer_range)


def fixed_positions(config: PrithviConfig, width: int) -> nn.Parameter:
    """Return the position embeddings (1, 1 + L, width) as a parameter that is not trained."""
    time, rows, columns = config.grid_shape
    table = spacetime_position_embedding(width, (time, rows, columns))
    return nn.Parameter(torch.from_numpy(table).float(), requires_grad=False)


def with_time(pixel_values: Tensor, config: PrithviConfig) -> Tensor:
    """Return samples as (N, C, T, H, W); for one time step, (N, C, H, W) is accepted too."""
    single = config.num_frames == 1 and pixel_values.ndim == 4
    return pixel_values.unsqueeze(2) if single else pixel_values


class PrithviModel(Encoder):
    """The encoder of a Prithvi-EO model, without a decoder."""

    def __init__(self, config: PrithviConfig) -> None:
        super().__init__(config)
        self.initialize()

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        *,
        temporal_coords: Tensor | None = None,
        location_coords: Tensor | None = None,
        **options: Unpack[OutputOptions],
    ) -> ViTMAEModelOutput:
        """Mask patches and encode the visible patches.

        Args:
            pixel_values: (N, C, T, H, W), of the configured size and the parameters' dtype; also
                (N, C, H, W) if the model takes one time step.
            noise: (N, L); the patches with the lowest values are kept, sorted by their values. The
                default noise is uniform, or ascending if all patches are kept.
            temporal_coords: (N, T, 2), year and day of the year of each frame; optional, like
                ``location_coords``.
            location_coords: (N, 2), latitude and longitude in degrees.
            options: additional outputs, see `OutputOptions`.

        Raises:
            ValueError: pixels, noise or coordinates have the wrong shape, or the model does not
                embed these coordinates.
        """
        taps = Taps.requested(**options)
        pixel_values = with_time(pixel_values, self.config)
        latent, mask, ids_restore = self.encode_visible(
            pixel_values, noise, temporal_coords, location_coords, taps
        )
        return ViTMAEModelOutput(latent, mask, ids_restore, *recorded(taps))


class Decoder(Coordinates):
    """The decoder: mask tokens for the removed patches, blocks, norm and prediction."""

    def __init__(self, config: PrithviConfig) -> None:
        super().__init__()
        self.config = config
        width = config.decoder_hidden_size
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = fixed_positions(config, width)
        self.decoder_embed = nn.Linear(config.hidden_size, width)
        self.add_coordinates("dec", width)
        self.decoder_blocks = stack_blocks(config.decoder_block, config.decoder_num_hidden_layers)
        self.decoder_norm = nn.LayerNorm(width, eps=config.decoder_eps)
        self.decoder_pred = nn.Linear(width, config.patch_dim)

    def forward(
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
        visible = self.decoder_embed(latent)
        restored = restore_order(visible[:, 1:], self.mask_token, ids_restore)
        first, positions = self.decoder_pos_embed[:, :1], self.decoder_pos_embed[:, 1:]
        restored = restored + self.add_to(positions, temporal_coords, location_coords)
        tokens = torch.cat([visible[:, :1] + first, restored], dim=1)  # (N, 1 + L, D)
        tokens = self.decoder_norm(run_blocks(self.decoder_blocks, tokens, "decoder", taps))
        record(taps, "decoder", norm=tokens)
        return self.decoder_pred(tokens[:, 1:])


class PrithviForPreTraining(PixelPrediction, nn.Module):
    """A Prithvi-EO model for pre-training: an encoder and a decoder.

    ``load_state_dict(strict=True)`` accepts the state dict of a Prithvi-EO-2.0 model.
    """

    def __init__(self, config: PrithviConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        initialize_linear_layers(self)
        self.encoder.initialize()
        nn.init.normal_(self.decoder.mask_token, std=config.initializer_range)

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        *,
        temporal_coords: Tensor | None = None,
        location_coords: Tensor | None = None,
        **options: Unpack[OutputOptions],
    ) -> ViTMAEForPreTrainingOutput:
        """Predict all patches from visible patches; compute the loss over removed patches.

        For arguments and errors see `PrithviModel`. Hidden states and attentions come
        from the encoder, intermediate activations from the encoder and the decoder.
        """
        taps = Taps.requested(**options)
        pixel_values = with_time(pixel_values, self.config)
        latent, mask, ids_restore = self.encoder.encode_visible(
            pixel_values, noise, temporal_coords, location_coords, taps
        )
        decoder_taps = Taps.of_decoder(**options)
        logits = self.decoder(latent, ids_restore, temporal_coords, location_coords, decoder_taps)
        nothing_removed = self.config.num_kept == self.config.num_patches
        loss = None if nothing_removed else self.forward_loss(pixel_values, logits, mask)
        return ViTMAEForPreTrainingOutput(
            loss, logits, mask, ids_restore, *recorded(taps, decoder_taps)
        )

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """Cut samples (N, C, T, H, W), or (N, C, H, W) of one time step, into patches (N, L, P)."""
        return super().patchify(with_time(pixel_values, self.config))
