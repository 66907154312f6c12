"""The masked autoencoder (He et al. 2021, arXiv:2111.06377, section 3)."""

import torch
from torch import Tensor, nn

from reference_models.configuration import ViTMAEConfig
from reference_models.outputs import (
    Taps,
    TrunkOutput,
    ViTMAEForPreTrainingOutput,
    ViTMAEModelOutput,
    Wanted,
)
from reference_models.pytorch.encoder import Encoder, set_sincos_positions
from reference_models.pytorch.layers import Block, run_blocks
from reference_models.pytorch.patches import (
    check_noise,
    mask_by_noise,
    patch_statistics,
    patchify,
    take_tokens,
    unpatchify,
)


class MaskedEncoder(Encoder):
    """An encoder that sees only some patches, and its final norm."""

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def encode_visible(
        self, pixel_values: Tensor, noise: Tensor | None, wanted: Wanted
    ) -> ViTMAEModelOutput:
        """Mask images (N, C, H, W) by noise (N, L) and encode what is left."""
        images = pixel_values.shape[0]
        if noise is None:
            noise = self.default_noise(images, pixel_values.device)
        check_noise(noise, images, self.config)
        ids_keep, mask, ids_restore = mask_by_noise(noise, self.config.num_kept)
        trunk = self.encode(self.embed(pixel_values, ids_keep), wanted)
        latent = self.norm(trunk.tokens)
        taps = {**trunk.taps, "encoder.norm": latent} if wanted.taps else None
        return ViTMAEModelOutput(
            latent, mask, ids_restore, trunk.hidden_states, trunk.attentions, taps
        )

    def default_noise(self, images: int, device: torch.device) -> Tensor:
        """Return noise (N, L): uniform, or ascending where all patches are kept, in order."""
        patches = self.config.num_patches
        if self.config.num_kept == patches:
            return torch.arange(patches, dtype=torch.float32, device=device).expand(images, -1)
        return torch.rand(images, patches, device=device)


class ViTMAEModel(MaskedEncoder):
    """The encoder alone: what facebookresearch/mae publishes as ``mae_pretrain_vit_*``.

    ``load_state_dict(strict=True)`` takes the original's state dict.
    """

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__(config)
        self.initialize()

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        output_taps: bool = False,
    ) -> ViTMAEModelOutput:
        """Encode the patches that masking leaves.

        Args:
            pixel_values: (N, C, H, W), of the configured size and the parameters' dtype.
            noise: (N, L); the patches with the lowest values are kept, in ascending order. Where
                it is not given it is uniform, or ascending if all patches are kept.
            output_hidden_states: return the embedding output and each block's output.
            output_attentions: return each block's attention probabilities; costs the fused kernel.
            output_taps: return intermediate results by name.

        Raises:
            ValueError: pixels or noise have the wrong shape.
        """
        wanted = Wanted(output_hidden_states, output_attentions, output_taps)
        return self.encode_visible(pixel_values, noise, wanted)


class ViTMAEForPreTraining(MaskedEncoder):
    """Encoder and decoder: what facebookresearch/mae publishes as ``mae_visualize_vit_*``.

    ``load_state_dict(strict=True)`` takes the original's state dict.
    """

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__(config)
        width = config.decoder_hidden_size
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(
            torch.zeros(1, 1 + config.num_patches, width), requires_grad=False
        )
        self.decoder_embed = nn.Linear(config.hidden_size, width)
        self.decoder_blocks = nn.ModuleList(
            Block(
                config,
                width,
                config.decoder_num_attention_heads,
                config.decoder_intermediate_size,
                config.decoder_eps,
            )
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=config.decoder_eps)
        self.decoder_pred = nn.Linear(width, config.patch_dim)
        self.initialize()

    def initialize(self) -> None:
        """Set every parameter as the original does before training."""
        super().initialize()
        nn.init.normal_(self.mask_token, std=self.config.initializer_range)
        set_sincos_positions(self.decoder_pos_embed, self.config)

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        output_taps: bool = False,
    ) -> ViTMAEForPreTrainingOutput:
        """Predict every patch from those that masking leaves, and the loss on those it removes.

        Args:
            pixel_values: (N, C, H, W), of the configured size and the parameters' dtype.
            noise: (N, L); the patches with the lowest values are kept, in ascending order. Where
                it is not given it is uniform, or ascending if all patches are kept.
            output_hidden_states: return the encoder's embedding output and each block's output.
            output_attentions: return each encoder block's attention probabilities; costs the fused
                kernel.
            output_taps: return intermediate results of encoder and decoder by name.

        Raises:
            ValueError: pixels or noise have the wrong shape.
        """
        wanted = Wanted(output_hidden_states, output_attentions, output_taps)
        encoded = self.encode_visible(pixel_values, noise, wanted)
        logits, decoder_taps = self.decode(
            encoded.last_hidden_state, encoded.ids_restore, output_taps=output_taps
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

    def decode(
        self, latent: Tensor, ids_restore: Tensor, *, output_taps: bool = False
    ) -> tuple[Tensor, Taps]:
        """Predict patches (N, L, P) from the encoder's output (N, 1 + kept, D), and give the taps.

        Mask tokens take the places of the removed patches and the order of the image is restored.
        """
        wanted = Wanted(taps=output_taps)
        trunk = self._decode_tokens(self.decoder_embed(latent), ids_restore, wanted)
        normed = self.decoder_norm(trunk.tokens)
        taps = {**trunk.taps, "decoder.norm": normed} if output_taps else {}
        return self.decoder_pred(normed[:, 1:]), taps

    def _decode_tokens(self, visible: Tensor, ids_restore: Tensor, wanted: Wanted) -> TrunkOutput:
        removed = ids_restore.shape[1] + 1 - visible.shape[1]
        mask_tokens = self.mask_token.to(visible.dtype).expand(visible.shape[0], removed, -1)
        shuffled = torch.cat([visible[:, 1:], mask_tokens], dim=1)  # (N, L, D)
        restored = take_tokens(shuffled, ids_restore)
        tokens = torch.cat([visible[:, :1], restored], dim=1) + self.decoder_pos_embed
        return run_blocks(self.decoder_blocks, tokens, wanted, "decoder")

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
            mean, deviation = patch_statistics(target)
            target = (target - mean) / deviation
        errors = (logits - target).square().mean(dim=-1)  # (N, L)
        return (errors * mask).sum() / mask.sum()

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """Cut images (N, C, H, W) into patches (N, L, P)."""
        return patchify(pixel_values, self.config)

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
        patches = self.patchify(pixel_values)
        if self.config.norm_pix_loss:
            mean, deviation = patch_statistics(patches)
            logits = logits * deviation + mean
        if mask is not None:
            logits = torch.where(mask.unsqueeze(-1) > 0, logits, patches)
        return self.unpatchify(logits)
