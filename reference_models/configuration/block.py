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
    """Sizes of a transformer block; the families' configurations derive and validate them.

    Attributes:
        width: width of the tokens, D.
        heads: attention heads; divides ``width``.
        hidden: hidden width of the MLP.
        eps: added to the variance in the layer normalizations.
        act: activation of the MLP, one of ``ACTIVATIONS``.
        qkv_bias: whether the query, key and value projections have biases.
        key_bias: whether the key projection has one if the others have.
        layer_scale: initial value of a factor for each channel of the outputs of attention and MLP;
            0 where there is none.
        dropout: dropout after attention and MLP.
        attention_dropout: dropout on attention probabilities.
    """

    width: int
    heads: int
    hidden: int
    eps: float
    act: str = "gelu"
    qkv_bias: bool = True
    key_bias: bool = True
    layer_scale: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
