"""The transformer block of a ViT (Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1).

Attributes are named as facebookresearch/mae names its parameters. In shape comments N is images,
T tokens, H heads, D the width.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor, nn

from reference_models.configuration import ViTMAEConfig
from reference_models.outputs import Taps, TrunkOutput, Wanted


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


class LayerResult(NamedTuple):
    """What a layer returns: its output and, where wanted, what happened on the way."""

    output: Tensor
    probabilities: Tensor | None
    taps: Taps


class Attention(nn.Module):
    """Multi-head self-attention (ViT, appendix A), query, key and value from one matrix."""

    def __init__(self, config: ViTMAEConfig, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.probability_dropout = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens: Tensor, wanted: Wanted) -> LayerResult:
        """Mix tokens (N, T, D); probabilities (N, H, T, T) only where wanted."""
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)  # each (N, T, D)
        q, k, v = (self._split_heads(part) for part in (query, key, value))
        dropout = self.probability_dropout if self.training else 0.0
        probabilities = None
        if wanted.attentions:
            mixed, probabilities = _explicit_attention(q, k, v, dropout)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        output = self.dropout(self.proj(mixed.transpose(1, 2).flatten(2)))  # (N, T, D)
        taps = {"q": query, "k": key, "v": value, "attention": output} if wanted.taps else {}
        return LayerResult(output, probabilities, taps)

    def _split_heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, H, T, D / H)


def _explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, dropout: float
) -> tuple[Tensor, Tensor]:
    """Do what scaled_dot_product_attention does, and return the probabilities too."""
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)  # (N, H, T, T)
    probabilities = scores.softmax(dim=-1)
    return F.dropout(probabilities, dropout, training=dropout > 0) @ value, probabilities


class Mlp(nn.Module):
    """Two linear layers with an activation between them, applied to every token."""

    def __init__(self, config: ViTMAEConfig, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T, D) to (N, T, D)."""
        return self.dropout(self.fc2(self.activation(self.fc1(tokens))))


class Block(nn.Module):
    """Attention and MLP, each normalised before and added to its input (ViT, equations 2 and 3)."""

    def __init__(
        self, config: ViTMAEConfig, width: int, heads: int, hidden: int, eps: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(config, width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(config, width, hidden)

    def forward(self, tokens: Tensor, wanted: Wanted) -> LayerResult:
        """Map tokens (N, T, D) to (N, T, D)."""
        attention = self.attn(self.norm1(tokens), wanted)
        tokens = tokens + attention.output
        mlp = self.mlp(self.norm2(tokens))
        tokens = tokens + mlp
        taps = {**attention.taps, "mlp": mlp, "output": tokens} if wanted.taps else {}
        return LayerResult(tokens, attention.probabilities, taps)


def run_blocks(
    blocks: Iterable[nn.Module], tokens: Tensor, wanted: Wanted, name: str
) -> TrunkOutput:
    """Send tokens (N, T, D) through blocks; taps are named ``name.blocks.0.q`` and so on."""
    hidden_states = [tokens] if wanted.hidden_states else []
    attentions: list[Tensor | None] = []
    taps = {f"{name}.embedding": tokens} if wanted.taps else {}
    for index, block in enumerate(blocks):
        tokens, probabilities, seen = block(tokens, wanted)
        if wanted.hidden_states:
            hidden_states.append(tokens)
        if wanted.attentions:
            attentions.append(probabilities)
        taps |= {f"{name}.blocks.{index}.{part}": value for part, value in seen.items()}
    return TrunkOutput(
        tokens,
        tuple(hidden_states) if wanted.hidden_states else None,
        tuple(attentions) if wanted.attentions else None,
        taps,
    )
