"""The transformer block of a ViT (Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1).

Attributes are named as facebookresearch/mae names its parameters. Layers take an optional
dictionary ``taps`` and write their intermediate activations into it. Shape comments: N images, T
tokens, H heads, width D.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor, nn

from reference_models.configuration import BlockConfig
from reference_models.outputs import Taps


def quick_gelu(x: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


class Attention(nn.Module):
    """Multi-head self-attention (ViT, appendix A), with one matrix for queries, keys and values."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.probability_dropout = config.attention_dropout
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.proj = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def project(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values, each (N, T, D)."""
        return self.qkv(tokens).chunk(3, dim=-1)

    def forward(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Apply self-attention to tokens (N, T, D).

        Intermediate activations are written into ``taps`` unless it is None.
        """
        query, key, value = self.project(tokens)
        q, k, v = (self._split_heads(part) for part in (query, key, value))
        dropout = self.probability_dropout if self.training else 0.0
        if taps is not None and taps.attentions:
            mixed, taps["probabilities"] = _explicit_attention(q, k, v, dropout)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        output = self.dropout(self.proj(mixed.transpose(1, 2).flatten(2)))  # (N, T, D)
        if taps is not None:
            taps.update(q=query, k=key, v=value, attention=output)
        return output

    def _split_heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, H, T, D / H)


def _explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, dropout: float
) -> tuple[Tensor, Tensor]:
    """Compute scaled dot-product attention explicitly; return its output and the probabilities."""
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)  # (N, H, T, T)
    probabilities = scores.softmax(dim=-1)
    return F.dropout(probabilities, dropout, training=dropout > 0) @ value, probabilities


class Mlp(nn.Module):
    """Two linear layers with an activation between them, applied to every token."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.activation = ACTIVATION_FUNCTIONS[config.act]
        self.fc2 = nn.Linear(config.hidden, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Map tokens (N, T, D) to (N, T, D).

        Intermediate activations are written into ``taps`` unless it is None.
        """
        output = self.dropout(self.fc2(self.activation(self.fc1(tokens))))
        if taps is not None:
            taps.update(mlp=output)
        return output


class Block(nn.Module):
    """Pre-norm block: attention and MLP with residual connections (ViT, equations 2 and 3)."""

    def __init__(self, config: BlockConfig, attention: type[Attention] = Attention) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.attn = attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = Mlp(config)

    def forward(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Map tokens (N, T, D) to (N, T, D).

        Intermediate activations are written into ``taps`` unless it is None.
        """
        tokens = tokens + self.attn(self.norm1(tokens), taps)
        return tokens + self.mlp(self.norm2(tokens), taps)


@torch.no_grad()
def initialize_linear_layers(model: nn.Module) -> None:
    """Initialize linear layers and patch projections: Xavier uniform weights, zero biases.

    A patch projection is treated as a linear layer (He et al. 2021, appendix A.1). Parameters on
    the meta device have no values and are skipped.
    """
    for module in model.modules():
        linear = isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d)
        if linear and not module.weight.is_meta:
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def stack_blocks(
    config: BlockConfig, depth: int, attention: type[Attention] = Attention
) -> nn.ModuleList:
    """Return ``depth`` blocks of the same configuration."""
    return nn.ModuleList(Block(config, attention) for _ in range(depth))


def run_blocks(
    blocks: Iterable[nn.Module], tokens: Tensor, name: str, taps: Taps | None = None
) -> Tensor:
    """Apply blocks to tokens (N, T, D).

    Unless ``taps`` is None, `tokens` and the activations of the blocks are recorded in it: for the
    name "encoder" as ``encoder.embedding``, ``encoder.blocks.0.q`` and so on.
    """
    if taps is None:
        for block in blocks:
            tokens = block(tokens)
        return tokens
    taps.record(name, {"embedding": tokens})
    for index, block in enumerate(blocks):
        block_taps = taps.of_block()
        tokens = block(tokens, block_taps)
        taps.record(f"{name}.blocks.{index}", {**(block_taps or {}), "output": tokens})
    return tokens
