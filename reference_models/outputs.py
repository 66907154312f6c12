"""What the models return, and the intermediate activations; the same in every framework.

Outputs are named tuples, which every compiler and tree utility understands. What was not asked for
is ``None``. Shapes: N images, L patches, T tokens (class token first), D width, K labels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

Tensor = Any  # torch.Tensor or a tensor of the running Keras backend
Tensors = tuple[Tensor, ...]


class Taps(dict[str, Tensor]):
    """Intermediate activations by name ("taps"), which layers write into while a model runs.

    A layer that is given None instead writes nothing. `run_blocks` passes each block a dictionary
    of its own and records what the block wrote under names like "encoder.blocks.0.q".

    Args:
        hidden_states: record the input of the first block and each block's output.
        attentions: record attention probabilities ("probabilities"), each (N, heads, T, T). They
            are computed explicitly and not by a fused kernel.
        activations: record all other activations, each (N, T, D).
    """

    def __init__(
        self,
        *,
        hidden_states: bool = False,
        attentions: bool = False,
        activations: bool = True,
    ) -> None:
        super().__init__()
        self.hidden_states = hidden_states
        self.attentions = attentions
        self.activations = activations

    @classmethod
    def requested(cls, hidden_states: bool, attentions: bool, activations: bool) -> "Taps | None":
        """Return a dictionary for the requested activations, or None if nothing is requested."""
        if not (hidden_states or attentions or activations):
            return None
        return cls(hidden_states=hidden_states, attentions=attentions, activations=activations)

    def of_block(self) -> "Taps | None":
        """Return a dictionary for the activations inside a block, or None if none is requested."""
        return Taps.requested(False, self.attentions, self.activations)

    def record(self, place: str, activations: Mapping[str, Tensor]) -> None:
        """Record a layer's activations under their names, as far as requested."""
        for name, value in activations.items():
            if self._wants(name):
                self[f"{place}.{name}"] = value

    def _wants(self, name: str) -> bool:
        if name == "probabilities":
            return self.attentions
        return self.activations or (self.hidden_states and name in HIDDEN_STATES)


HIDDEN_STATES = ("embedding", "output")


def recorded(taps: Taps | None) -> tuple[Tensors | None, Tensors | None, dict[str, Tensor] | None]:
    """Return hidden states and attentions of the encoder, and all activations, if requested."""
    if taps is None:
        return None, None, None
    by_part: dict[str, list[Tensor]] = {"states": [], "probabilities": []}
    for name, value in taps.items():
        part = name.rpartition(".")[2]
        kind = "states" if part in HIDDEN_STATES else part
        if name.startswith("encoder.") and kind in by_part:
            by_part[kind].append(value)
    return (
        tuple(by_part["states"]) if taps.hidden_states else None,
        tuple(by_part["probabilities"]) if taps.attentions else None,
        {n: v for n, v in taps.items() if not n.endswith(".probabilities")}
        if taps.activations
        else None,
    )


class ViTMAEModelOutput(NamedTuple):
    """What the encoder returns.

    Attributes:
        last_hidden_state: (N, 1 + kept, D), after the final norm.
        mask: (N, L), 0 where a patch is kept and 1 where it is removed.
        ids_restore: (N, L), the place of each patch in the shuffled order.
        hidden_states: embedding output and each block's output, each (N, 1 + kept, D).
        attentions: probabilities of each block, each (N, heads, 1 + kept, 1 + kept).
        taps: intermediate activations by name.
    """

    last_hidden_state: Tensor
    mask: Tensor
    ids_restore: Tensor
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    taps: dict[str, Tensor] | None = None


class ViTMAEForPreTrainingOutput(NamedTuple):
    """What the pre-training model returns; hidden states and attentions are the encoder's.

    Attributes:
        loss: scalar, the mean squared error over removed patches; None if none is removed.
        logits: (N, L, patch height x patch width x channels), the predicted patches.
        mask: (N, L), 0 where a patch is kept and 1 where it is removed.
        ids_restore: (N, L), the place of each patch in the shuffled order.
        hidden_states: embedding output and each block's output, each (N, 1 + kept, D).
        attentions: probabilities of each block, each (N, heads, 1 + kept, 1 + kept).
        taps: intermediate activations of encoder and decoder by name.
    """

    loss: Tensor | None
    logits: Tensor
    mask: Tensor
    ids_restore: Tensor
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    taps: dict[str, Tensor] | None = None


class ImageClassifierOutput(NamedTuple):
    """What the classifier returns.

    Attributes:
        loss: scalar cross-entropy; None without labels.
        logits: (N, K).
        hidden_states: embedding output and each block's output, each (N, 1 + L, D).
        attentions: probabilities of each block, each (N, heads, 1 + L, 1 + L).
        taps: intermediate activations by name.
    """

    loss: Tensor | None
    logits: Tensor
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    taps: dict[str, Tensor] | None = None
