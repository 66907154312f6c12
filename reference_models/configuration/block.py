"""The sizes of a transformer block, which all families have in common."""

from dataclasses import dataclass

ACTIVATIONS = (
    "gelu",  # exact, by the error function: the original's
    "gelu_new",  # the tanh approximation, under the two names it goes by
    "gelu_pytorch_tanh",
    "quick_gelu",  # x * sigmoid(1.702 x)
    "relu",
    "silu",  # x * sigmoid(x), under the two names it goes by
    "swish",
)


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Sizes of a transformer block; the families' configurations derive and validate them."""

    width: int
    """Width of the tokens, D."""

    heads: int
    """Attention heads; divides ``width``."""

    hidden: int
    """Hidden width of the MLP."""

    eps: float
    """Added to the variance in the layer normalizations."""

    act: str = "gelu"
    """Activation of the MLP, one of ``ACTIVATIONS``."""

    qkv_bias: bool = True
    """Whether the query, key and value projections have biases."""

    key_bias: bool = True
    """Whether the key projection has one if the others have."""

    layer_scale: float = 0.0
    """Initial value of a factor for each channel of the outputs of attention and MLP; 0 if there
    is none."""

    dropout: float = 0.0
    """Dropout after attention and MLP."""

    attention_dropout: float = 0.0
    """Dropout on attention probabilities."""
