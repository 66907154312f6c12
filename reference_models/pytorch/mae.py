"""The masked autoencoder (He et al. 2021, arXiv:2111.06377) and the classifier fine-tuned from it.

The encoder sees the patches that are visible after random masking (section 3, "MAE encoder"); a
smaller decoder gets the encoder's output and mask tokens for the removed patches, and predicts
pixels ("MAE decoder", "Reconstruction target"). Parameters are named and ordered as in
facebookresearch/mae, so that ``load_state_dict(strict=True)`` accepts its state dicts. Shape
comments: N images, L patches, T tokens (class token first), P values in a patch, width D.
"""

from typing import Unpack

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor, nn

from reference_models.configuration import ViTMAEConfig
from reference_models.outputs import (
    ImageClassifierOutput,
    OutputOptions,
    Taps,
    ViTMAEForPreTrainingOutput,
    ViTMAEModelOutput,
    record,
    recorded,
)
from reference_models.positions import sincos_position_embedding
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


class Encoder(nn.Module):
    """Base class of the models: embedding and blocks of a ViT, without final norm and head.

    Position embeddings are fixed sines and cosines unless ``learned_positions`` is true.
    """

    def __init__(self, config: ViTMAEConfig, *, learned_positions: bool = False) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(
            torch.zeros(1, 1 + config.num_patches, width), requires_grad=learned_positions
        )
        self.patch_embed = PatchEmbedding(config, width)
        self.blocks = stack_blocks(config.encoder_block, config.num_hidden_layers)

    def embed(self, pixel_values: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Return tokens (N, 1 + kept, D) of images (N, C, H, W), class token first.

        Patches are selected by ``ids_keep`` (N, kept) before the projection, so that nothing is
        computed for masked patches; if ``ids_keep`` is None, all patches are used in order.
        """
        patches = patchify(pixel_values, self.config)  # (N, L, P)
        positions = self.pos_embed[:, 1:]
        if ids_keep is not None:
            patches = take_tokens(patches, ids_keep)
            positions = take_tokens(positions, ids_keep)
        tokens = self.patch_embed(patches) + positions
        cls_token = self.cls_token + self.pos_embed[:, :1]
        return prepend_class_token(cls_token, tokens)

    def encode(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Apply the blocks to tokens (N, T, D).

        Intermediate activations are written into ``taps`` unless it is None.
        """
        return run_blocks(self.blocks, tokens, "encoder", taps)

    @torch.no_grad()
    def initialize(self) -> None:
        """Initialize every parameter as facebookresearch/mae does.

        The weights of linear layers and of the patch projection are Xavier uniform (He et al. 2021,
        appendix A.1) and biases are zero. The class token and learned position embeddings are
        drawn from a normal distribution with the standard deviation ``initializer_range``.
        """
        initialize_linear_layers(self)
        nn.init.normal_(self.cls_token, std=self.config.initializer_range)
        if self.pos_embed.requires_grad:
            nn.init.normal_(self.pos_embed, std=self.config.initializer_range)
        else:
            set_sincos_positions(self.pos_embed, self.config)


class MaskedEncoder(Encoder):
    """An encoder of visible patches with a final norm; base class of the encoder models."""

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def encode_visible(
        self, pixel_values: Tensor, noise: Tensor | None, taps: Taps | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask images (N, C, H, W) by noise (N, L) and encode the visible patches.

        Args:
            pixel_values: (N, C, H, W).
            noise: (N, L); None for uniform noise, or for ascending noise if all patches are kept.
            taps: a dictionary that receives intermediate activations; None to record none.

        Returns:
            A tuple: the output of the final norm, (N, 1 + kept, D); ``mask``, (N, L);
            ``ids_restore``, (N, L).
        """
        ids_keep, mask, ids_restore = random_masking(pixel_values, noise, self.config)
        latent = self.norm(self.encode(self.embed(pixel_values, ids_keep), taps))
        record(taps, "encoder", norm=latent)
        return latent, mask, ids_restore


class ViTMAEModel(MaskedEncoder):
    """The encoder of an MAE, published by facebookresearch/mae as ``mae_pretrain_vit_*``."""

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__(config)
        self.initialize()

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        **options: Unpack[OutputOptions],
    ) -> ViTMAEModelOutput:
        """Mask patches and encode the visible patches.

        Args:
            pixel_values: (N, C, H, W), of the configured size and the parameters' dtype.
            noise: (N, L); the patches with the lowest values are kept, sorted by their values. The
                default noise is uniform, or ascending if all patches are kept.
            options: additional outputs, see `OutputOptions`.

        Raises:
            ValueError: pixels or noise have the wrong shape.
        """
        taps = Taps.requested(**options)
        latent, mask, ids_restore = self.encode_visible(pixel_values, noise, taps)
        return ViTMAEModelOutput(latent, mask, ids_restore, *recorded(taps))


class ViTMAEForPreTraining(PixelPrediction, MaskedEncoder):
    """An MAE for pre-training, published by facebookresearch/mae as ``mae_visualize_vit_*``."""

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__(config)
        width = config.decoder_hidden_size
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(
            torch.zeros(1, 1 + config.num_patches, width), requires_grad=False
        )
        self.decoder_embed = nn.Linear(config.hidden_size, width)
        self.decoder_blocks = stack_blocks(config.decoder_block, config.decoder_num_hidden_layers)
        self.decoder_norm = nn.LayerNorm(width, eps=config.decoder_eps)
        self.decoder_pred = nn.Linear(width, config.patch_dim)
        self.initialize()

    def initialize(self) -> None:
        """Initialize every parameter as facebookresearch/mae does."""
        super().initialize()
        nn.init.normal_(self.mask_token, std=self.config.initializer_range)
        set_sincos_positions(self.decoder_pos_embed, self.config)

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        **options: Unpack[OutputOptions],
    ) -> ViTMAEForPreTrainingOutput:
        """Predict all patches from visible patches; compute the loss over removed patches.

        For arguments and errors see `ViTMAEModel`. Hidden states and attentions come
        from the encoder, intermediate activations from the encoder and the decoder.
        """
        taps = Taps.requested(**options)
        latent, mask, ids_restore = self.encode_visible(pixel_values, noise, taps)
        decoder_taps = Taps.of_decoder(**options)
        logits = self.decode(latent, ids_restore, decoder_taps)
        nothing_removed = self.config.num_kept == self.config.num_patches
        loss = None if nothing_removed else self.forward_loss(pixel_values, logits, mask)
        return ViTMAEForPreTrainingOutput(
            loss, logits, mask, ids_restore, *recorded(taps, decoder_taps)
        )

    def decode(self, latent: Tensor, ids_restore: Tensor, taps: Taps | None = None) -> Tensor:
        """Predict patches (N, L, P) from the encoder's output (N, 1 + kept, D).

        Args:
            latent: (N, 1 + kept, D), the encoder's output.
            ids_restore: (N, L), the index of each patch in the shuffled order.
            taps: a dictionary that receives intermediate activations; None to record none.
        """
        tokens = self.decoder_tokens(latent, ids_restore)
        tokens = run_blocks(self.decoder_blocks, tokens, "decoder", taps)
        tokens = self.decoder_norm(tokens)
        record(taps, "decoder", norm=tokens)
        return self.decoder_pred(tokens[:, 1:])

    def decoder_tokens(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """Return the decoder's input (N, 1 + L, D).

        The input consists of the class token, and of the encoded patches and mask tokens in the
        order of the image. Position embeddings are added to all of them.
        """
        visible = self.decoder_embed(latent)
        restored = restore_order(visible[:, 1:], self.mask_token, ids_restore)
        return torch.cat([visible[:, :1], restored], dim=1) + self.decoder_pos_embed


class ViTForImageClassification(Encoder):
    """A ViT with a classifier head, published by facebookresearch/mae as ``mae_finetuned_vit_*``.

    With ``global_pool="token"`` the input of the head is the class token after ``norm``. With
    ``"avg"`` it is the mean of the patch tokens, to which ``fc_norm`` is applied, and there is no
    ``norm``. With ``"avg"`` and ``fc_norm=False``, as in timm, it is the mean of the patch tokens
    after ``norm``.
    """

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__(config, learned_positions=True)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.normalizes_mean:
            self.fc_norm = norm
        else:
            self.norm = norm
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.initialize()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        **options: Unpack[OutputOptions],
    ) -> ImageClassifierOutput:
        """Classify images, and compute the loss if ``labels`` is not None.

        Args:
            pixel_values: (N, C, H, W), of the configured size and the parameters' dtype.
            labels: (N,) integers, or (N, K) probabilities, as created by label smoothing and
                mixup. None: no loss is computed.
            options: additional outputs, see `OutputOptions`.

        Raises:
            ValueError: pixels have the wrong shape.
        """
        taps = Taps.requested(**options)
        tokens = self.encode(self.dropout(self.embed(pixel_values)), taps)
        logits = self.head(self.pool(tokens, taps))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss, logits, *recorded(taps))

    def pool(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Return the input (N, D) of the head: the class token or the mean of the patch tokens.

        Args:
            tokens: (N, 1 + L, D), the output of the last block; it is normalized here.
            taps: a dictionary that receives the normalized activation; None to record none.
        """
        if self.config.normalizes_mean:
            mean = self.fc_norm(tokens[:, 1:].mean(dim=1, keepdim=True))  # (N, 1, D)
            record(taps, "head", norm=mean)
            return mean[:, 0]
        tokens = self.norm(tokens)
        record(taps, "encoder", norm=tokens)
        return tokens[:, 1:].mean(dim=1) if self.config.global_pool == "avg" else tokens[:, 0]


@torch.no_grad()
def set_sincos_positions(positions: Tensor, config: ViTMAEConfig) -> None:
    """Fill position embeddings (1, 1 + L, D) with the fixed sines and cosines of the positions.

    A parameter on the meta device has no values and is left as it is.
    """
    if positions.is_meta:
        return
    table = sincos_position_embedding(positions.shape[-1], config.grid_hw)
    positions.copy_(torch.from_numpy(table))
