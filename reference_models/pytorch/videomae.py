"""VideoMAE (Tong et al. 2022, arXiv:2203.12602; version 2: Wang et al. 2023, arXiv:2303.16727).

A masked autoencoder for videos. Patches are tubelets of a few frames; an encoder without a class
token sees the visible patches, in the order of the video (section 3.3). The decoder gets the
encoder's output followed by mask tokens, all with their positions, and predicts the pixels of the
patches that the mask tokens represent. Parameters are named as in the authors' code.

Shape comments: N videos, L patches (time step by time step, row by row), P values in a patch
(frame, row, column, channel), width D.
"""

from typing import Unpack

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor, nn

from reference_models.configuration import BlockConfig, VideoMAEConfig
from reference_models.outputs import (
    ImageClassifierOutput,
    OutputOptions,
    Taps,
    ViTMAEForPreTrainingOutput,
    ViTMAEModelOutput,
    record,
    recorded,
)
from reference_models.positions import interleaved_position_embedding
from reference_models.pytorch.blocks import (
    Attention,
    Block,
    initialize_linear_layers,
    run_blocks,
)
from reference_models.pytorch.patches import (
    PatchEmbedding,
    PixelPrediction,
    check_noise,
    mask_in_order,
    patchify,
    take_tokens,
)

# Avoids division by 0 for a patch of one color; added to the standard deviation, not the variance.
_DEVIATION_FLOOR = 1e-6


class VideoAttention(Attention):
    """Attention with biases for queries and values only: softmax would cancel a bias of keys."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.width)) if config.qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(config.width)) if config.qkv_bias else None

    def project(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values, each (N, T, D)."""
        if self.q_bias is None or self.v_bias is None:
            return self.qkv(tokens).chunk(3, dim=-1)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        return F.linear(tokens, self.qkv.weight, bias).chunk(3, dim=-1)


class VideoBlock(Block):
    """A block that, if configured, scales the outputs of attention and MLP by trained factors."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config, VideoAttention)
        if config.layer_scale:
            self.gamma_1 = nn.Parameter(torch.full((config.width,), config.layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((config.width,), config.layer_scale))
            self.scales = True
        else:
            self.scales = False

    def forward(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Map tokens (N, T, D) to (N, T, D).

        Intermediate activations are written into ``taps`` unless it is None.
        """
        if not self.scales:
            return super().forward(tokens, taps)
        tokens = tokens + self.gamma_1 * self.attn(self.norm1(tokens), taps)
        return tokens + self.gamma_2 * self.mlp(self.norm2(tokens), taps)


class Encoder(nn.Module):
    """The encoder: tubelet and position embeddings, blocks and, if requested, a final norm."""

    positions: Tensor

    def __init__(self, config: VideoMAEConfig, *, final_norm: bool) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config, config.hidden_size)
        self.register_buffer("positions", fixed_positions(config, config.hidden_size), False)
        self.blocks = nn.ModuleList(
            VideoBlock(config.encoder_block) for _ in range(config.num_hidden_layers)
        )
        if final_norm:
            self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def encode(
        self, pixel_values: Tensor, ids_keep: Tensor | None = None, taps: Taps | None = None
    ) -> Tensor:
        """Encode patches ``ids_keep`` (N, kept) of videos (N, C, T, H, W); by default all patches.

        Intermediate activations are written into ``taps`` unless it is None.

        Returns:
            Tokens (N, kept, D), after the final norm if there is one.
        """
        patches, positions = patchify(pixel_values, self.config), self.positions  # (N, L, P)
        if ids_keep is not None:
            patches, positions = take_tokens(patches, ids_keep), take_tokens(positions, ids_keep)
        tokens = self.patch_embed(patches) + positions
        tokens = run_blocks(self.blocks, tokens, "encoder", taps)
        if hasattr(self, "norm"):
            tokens = self.norm(tokens)
            record(taps, "encoder", norm=tokens)
        return tokens


def fixed_positions(config: VideoMAEConfig, width: int) -> Tensor:
    """Return the fixed position embeddings (1, L, D), rounded to float32.

    Checkpoints do not contain these embeddings.
    """
    return torch.from_numpy(interleaved_position_embedding(width, config.num_patches)).float()


def masked(
    pixel_values: Tensor, noise: Tensor | None, config: VideoMAEConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``mask``, ``ids`` and ``ids_restore`` of `mask_in_order` for videos; all are (N, L).

    Without noise, random tubes are removed: the same positions at all time steps (section 3.2).
    """
    videos, (time, rows, columns) = pixel_values.shape[0], config.grid_shape
    if noise is None:
        one_time = torch.rand(videos, rows * columns, device=pixel_values.device)
        noise = one_time.repeat(1, time)
    check_noise(noise, videos, config)
    return mask_in_order(noise, config.num_kept)


class VideoMAEModel(Encoder):
    """The encoder of a VideoMAE, without a decoder.

    It has a final norm if ``use_mean_pooling`` is false.
    """

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__(config, final_norm=not config.use_mean_pooling)
        initialize_linear_layers(self)

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        **options: Unpack[OutputOptions],
    ) -> ViTMAEModelOutput:
        """Mask patches and encode the visible patches.

        Args:
            pixel_values: (N, C, T, H, W), of the configured size and the parameters' dtype.
            noise: (N, L); the patches with the lowest values are kept, in the order of the video.
                A boolean mask, true where a patch is removed, can be passed as float. The default
                noise is uniform over the positions of a time step and the same at all time steps.
            options: additional outputs, see `OutputOptions`.

        Returns:
            ``last_hidden_state`` (N, kept, D); ``ids_restore`` (N, L), the index of each patch in
            a sequence that contains the visible and then the removed patches, both in the order of
            the video.

        Raises:
            ValueError: pixels or noise have the wrong shape.
        """
        taps = Taps.requested(**options)
        mask, ids, ids_restore = masked(pixel_values, noise, self.config)
        latent = self.encode(pixel_values, ids[:, : self.config.num_kept], taps)
        return ViTMAEModelOutput(latent, mask, ids_restore, *recorded(taps))


class Decoder(nn.Module):
    """The decoder: blocks, norm and prediction."""

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            VideoBlock(config.decoder_block) for _ in range(config.decoder_num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.decoder_hidden_size, eps=config.decoder_norm_eps)
        self.head = nn.Linear(config.decoder_hidden_size, config.patch_dim)

    def forward(self, tokens: Tensor, predicted: int, taps: Taps | None = None) -> Tensor:
        """Decode tokens (N, T, D); return patches (N, predicted, P) for the last tokens.

        Intermediate activations are written into ``taps`` unless it is None.
        """
        tokens = run_blocks(self.blocks, tokens, "decoder", taps)
        tokens = self.norm(tokens[:, tokens.shape[1] - predicted :])
        record(taps, "decoder", norm=tokens)
        return self.head(tokens)


class VideoMAEForPreTraining(PixelPrediction, nn.Module):
    """A VideoMAE for pre-training: an encoder and a decoder.

    ``load_state_dict(strict=True)`` accepts the authors' state dict.
    """

    decoder_positions: Tensor

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.decoder_hidden_size
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = Encoder(config, final_norm=True)
        self.decoder = Decoder(config)
        self.encoder_to_decoder = nn.Linear(config.hidden_size, width, bias=False)
        self.register_buffer("decoder_positions", fixed_positions(config, width), False)
        initialize_linear_layers(self)
        nn.init.normal_(self.mask_token, std=config.initializer_range)

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        *,
        ids_decode: Tensor | None = None,
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
            options: additional outputs, see `OutputOptions`.

        Returns:
            The outputs: ``logits`` (N, M, P) are the predicted patches; ``loss`` is the mean
            squared error over the predicted patches that were removed, or None if no patch is
            removed.
        """
        taps = Taps.requested(**options)
        mask, ids, ids_restore = masked(pixel_values, noise, self.config)
        ids_keep = ids[:, : self.config.num_kept]
        if ids_decode is None:
            ids_decode = ids[:, self.config.num_kept :]
        latent = self.encoder.encode(pixel_values, ids_keep, taps)
        decoder_taps = Taps.of_decoder(**options)
        logits = self.decode(latent, ids_keep, ids_decode, decoder_taps)
        loss = None
        if self.config.num_kept < self.config.num_patches:
            loss = self.forward_loss(pixel_values, logits, mask, ids_decode=ids_decode)
        return ViTMAEForPreTrainingOutput(
            loss, logits, mask, ids_restore, *recorded(taps, decoder_taps)
        )

    def decode(
        self, latent: Tensor, ids_keep: Tensor, ids_decode: Tensor, taps: Taps | None = None
    ) -> Tensor:
        """Predict patches (N, M, P) from the encoder's output (N, kept, D).

        Args:
            latent: (N, kept, D), the encoder's output.
            ids_keep: (N, kept), the indices of the visible patches.
            ids_decode: (N, M), the indices of the patches to predict.
            taps: a dictionary that receives intermediate activations; None to record none.
        """
        positions = self.decoder_positions
        visible = self.encoder_to_decoder(latent) + take_tokens(positions, ids_keep)
        mask_tokens = self.mask_token.to(visible.dtype) + take_tokens(positions, ids_decode)
        tokens = torch.cat([visible, mask_tokens], dim=1)
        return self.decoder(tokens, ids_decode.shape[1], taps)

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
            removed = logits.shape[1]
            ids_decode = mask.argsort(dim=1, stable=True)[:, mask.shape[1] - removed :]
        errors = (logits - take_tokens(target, ids_decode)).square().mean(dim=-1)  # (N, M)
        counted = mask.gather(1, ids_decode)
        return (errors * counted).sum() / counted.sum()

    def target(self, pixel_values: Tensor, norm_pix_loss: bool | None = None) -> Tensor:
        """Return the targets of the loss for all patches, (N, L, P).

        Args:
            pixel_values: (N, C, T, H, W).
            norm_pix_loss: whether the target is normalized with the mean and the unbiased standard
                deviation of each channel of a patch; by default as configured.
        """
        patches = self.pixel_patches(pixel_values)
        if self.config.norm_pix_loss if norm_pix_loss is None else norm_pix_loss:
            mean, deviation = self.channel_statistics(patches)
            patches = (patches - mean) / deviation
        return patches.flatten(2)

    def pixel_patches(self, pixel_values: Tensor) -> Tensor:
        """Undo the normalization of pixels and cut the videos into patches (N, L, P / C, C)."""
        mean, deviation = self.pixel_statistics(pixel_values)
        patches = self.patchify(pixel_values).unflatten(2, (-1, self.config.num_channels))
        return patches * deviation + mean

    def pixel_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation (C,) with which pixels were normalized.

        Args:
            like: a tensor with the dtype and the device of the result.
        """
        return (
            torch.tensor(self.config.pixel_mean, dtype=like.dtype, device=like.device),
            torch.tensor(self.config.pixel_std, dtype=like.dtype, device=like.device),
        )

    def channel_statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each channel of each patch, each (N, L, 1, C)."""
        variance, mean = torch.var_mean(patches, dim=-2, keepdim=True)
        return mean, variance.sqrt() + _DEVIATION_FLOOR

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
            mask = torch.ones(patches.shape[:2], device=patches.device)
        visible = mask.shape[1] - logits.shape[1]
        padded = F.pad(logits, (0, 0, visible, 0))  # visible patches have no prediction
        ids_restore = mask.argsort(dim=1, stable=True).argsort(dim=1)
        predicted = take_tokens(padded, ids_restore).unflatten(2, (-1, self.config.num_channels))
        if self.config.norm_pix_loss:
            mean, deviation = self.channel_statistics(patches)
            predicted = predicted * deviation + mean
        shown = torch.where(mask[..., None, None] > 0, predicted, patches)
        mean, deviation = self.pixel_statistics(pixel_values)
        return self.unpatchify(((shown - mean) / deviation).flatten(2))


class VideoMAEForVideoClassification(Encoder):
    """A classifier fine-tuned from a VideoMAE: an encoder of all patches, and a linear head.

    The input of the head is the mean of all tokens, to which ``fc_norm`` is applied, or, if
    ``use_mean_pooling`` is false, the first token after ``norm``.
    ``load_state_dict(strict=True)`` accepts the authors' state dict.
    """

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__(config, final_norm=not config.use_mean_pooling)
        if config.use_mean_pooling:
            self.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.fc_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        initialize_linear_layers(self)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        **options: Unpack[OutputOptions],
    ) -> ImageClassifierOutput:
        """Classify videos, and compute the loss if ``labels`` is not None.

        Args:
            pixel_values: (N, C, T, H, W), of the configured size and the parameters' dtype.
            labels: (N,) integers, or (N, K) probabilities, as created by label smoothing and
                mixup. None: no loss is computed.
            options: additional outputs, see `OutputOptions`.

        Raises:
            ValueError: pixels have the wrong shape.
        """
        taps = Taps.requested(**options)
        tokens = self.encode(pixel_values, taps=taps)
        logits = self.head(self.pool(tokens, taps))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss, logits, *recorded(taps))

    def pool(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Return the input (N, D) of the head: the normalized mean of tokens, or the first token.

        The first token is used if ``use_mean_pooling`` is false.

        Args:
            tokens: (N, L, D), the output of the encoder.
            taps: a dictionary that receives intermediate activations; None to record none.
        """
        if not self.config.use_mean_pooling:
            return tokens[:, 0]
        mean = self.fc_norm(tokens.mean(dim=1, keepdim=True))  # (N, 1, D)
        record(taps, "head", norm=mean)
        return mean[:, 0]
