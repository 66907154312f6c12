"""The encoder that all three models share: patches in, tokens out."""

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor, nn

from reference_models.configuration import ViTMAEConfig
from reference_models.outputs import TrunkOutput, Wanted
from reference_models.positions import sincos_position_embedding
from reference_models.pytorch.layers import Block, run_blocks
from reference_models.pytorch.patches import patchify, take_tokens


class PatchEmbedding(nn.Module):
    """The linear projection of patches (ViT, equation 1), its weight stored as a convolution's."""

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_hw, stride=config.patch_hw
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Project patches (N, L, P) to tokens (N, L, D).

        The convolution does not overlap, so it is one matrix product over patches; written like
        this it can be given only those patches that are kept.
        """
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (D, P), in the patches' order
        return F.linear(patches, weight, self.proj.bias)


class Encoder(nn.Module):
    """A ViT without its end: embedding and blocks, for a model to inherit from.

    Parameters are named and ordered as facebookresearch/mae has them: what a model adds comes
    before or after, never between. Position embeddings are sin-cos and fixed unless
    ``learned_positions``.
    """

    def __init__(self, config: ViTMAEConfig, *, learned_positions: bool = False) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(
            torch.zeros(1, 1 + config.num_patches, width), requires_grad=learned_positions
        )
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(
            Block(
                config,
                width,
                config.num_attention_heads,
                config.intermediate_size,
                config.layer_norm_eps,
            )
            for _ in range(config.num_hidden_layers)
        )

    def embed(self, pixel_values: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Return class token and patch tokens with their positions, (N, 1 + kept, D).

        Patches are picked by ``ids_keep`` (N, kept) before they are projected, so that nothing is
        computed on those that are masked; without it all are taken in order.
        """
        patches = patchify(pixel_values, self.config)
        positions = self.pos_embed[:, 1:]
        if ids_keep is not None:
            patches = take_tokens(patches, ids_keep)
            positions = take_tokens(positions, ids_keep)
        tokens = self.patch_embed(patches) + positions
        cls_token = self.cls_token + self.pos_embed[:, :1]
        return torch.cat([cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)

    def encode(self, tokens: Tensor, wanted: Wanted) -> TrunkOutput:
        """Send tokens (N, T, D) through the blocks."""
        return run_blocks(self.blocks, tokens, wanted, "encoder")

    @torch.no_grad()
    def initialize(self) -> None:
        """Set every parameter as the original does before training.

        Linear layers are Xavier uniform (He et al. 2021, appendix A.1), the patch projection as the
        linear layer it is; biases are zero; tokens are normal with ``initializer_range``.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=self.config.initializer_range)
        if self.pos_embed.requires_grad:
            nn.init.normal_(self.pos_embed, std=self.config.initializer_range)
        else:
            set_sincos_positions(self.pos_embed, self.config)


@torch.no_grad()
def set_sincos_positions(positions: Tensor, config: ViTMAEConfig) -> None:
    """Fill position embeddings (1, 1 + L, D) with their sines and cosines."""
    table = sincos_position_embedding(positions.shape[-1], config.grid_hw)
    positions.copy_(torch.from_numpy(table))
