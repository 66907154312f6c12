"""What the models return, and what can be asked for beside it; the same in every framework.

All are named tuples, which every compiler and tree utility understands. What was not asked for is
``None``. Shapes: N images, L patches, T tokens (class token first), D width, K labels.
"""

from typing import Any, NamedTuple

Tensor = Any  # torch.Tensor or a tensor of the running Keras backend
Tensors = tuple[Tensor, ...]
Taps = dict[str, Tensor]


class Wanted(NamedTuple):
    """What a caller wants to see beside the result; nothing is kept that is not wanted."""

    hidden_states: bool = False
    attentions: bool = False
    taps: bool = False


class TrunkOutput(NamedTuple):
    """What a stack of transformer blocks returns; the final norm is not in it.

    Attributes:
        tokens: (N, T, D), the last block's output.
        hidden_states: the stack's input and the output of each block, each (N, T, D).
        attentions: probabilities of each block, each (N, heads, T, T).
        taps: intermediate results by name, each (N, T, D); empty unless wanted.
    """

    tokens: Tensor
    hidden_states: Tensors | None
    attentions: Tensors | None
    taps: Taps


class ViTMAEModelOutput(NamedTuple):
    """What the encoder returns.

    Attributes:
        last_hidden_state: (N, 1 + kept, D), after the final norm.
        mask: (N, L), 0 where a patch is kept and 1 where it is removed.
        ids_restore: (N, L), the place of each patch in the shuffled order.
        hidden_states: embedding output and each block's output, each (N, 1 + kept, D).
        attentions: probabilities of each block, each (N, heads, 1 + kept, 1 + kept).
        taps: intermediate results by name.
    """

    last_hidden_state: Tensor
    mask: Tensor
    ids_restore: Tensor
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    taps: Taps | None = None


class ViTMAEForPreTrainingOutput(NamedTuple):
    """What the pre-training model returns; hidden states and attentions are the encoder's.

    Attributes:
        loss: scalar, the mean squared error over removed patches; None if none is removed.
        logits: (N, L, patch height x patch width x channels), the predicted patches.
        mask: (N, L), 0 where a patch is kept and 1 where it is removed.
        ids_restore: (N, L), the place of each patch in the shuffled order.
        hidden_states: embedding output and each block's output, each (N, 1 + kept, D).
        attentions: probabilities of each block, each (N, heads, 1 + kept, 1 + kept).
        taps: intermediate results of encoder and decoder by name.
    """

    loss: Tensor | None
    logits: Tensor
    mask: Tensor
    ids_restore: Tensor
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    taps: Taps | None = None


class ImageClassifierOutput(NamedTuple):
    """What the classifier returns.

    Attributes:
        loss: scalar cross-entropy; None without labels.
        logits: (N, K).
        hidden_states: embedding output and each block's output, each (N, 1 + L, D).
        attentions: probabilities of each block, each (N, heads, 1 + L, 1 + L).
        taps: intermediate results by name.
    """

    loss: Tensor | None
    logits: Tensor
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    taps: Taps | None = None
