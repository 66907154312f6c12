"""The outputs and intermediate activations of the models, the same in every framework.

Outputs are named tuples, which compilers such as `torch.compile` and `jax.jit` support. Outputs
that were not requested are ``None``. Shapes: N images, L patches, T tokens (class token first),
width D, K labels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict, Unpack

Tensor = Any  # torch.Tensor or a tensor of the running Keras backend
Tensors = tuple[Tensor, ...]


class OutputOptions(TypedDict, total=False):
    """Keyword arguments that request additional outputs of a model; false by default."""

    output_hidden_states: bool
    """Return the embedding output and each block's output in the encoder."""

    output_attentions: bool
    """Return the attention probabilities of each encoder block; no fused kernel is used then."""

    output_taps: bool
    """Return intermediate activations of the encoder and the decoder by name."""


class Taps(dict[str, Tensor]):
    """Intermediate activations by name ("taps"), which layers write into while a model runs.

    A layer that gets None instead of a dictionary writes nothing. `run_blocks` passes each block a
    new dictionary and records the block's activations under names like "encoder.blocks.0.q".

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
    def requested(
        cls,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        output_taps: bool = False,
    ) -> "Taps | None":
        """Return an empty `Taps` for the requested activations; None if nothing is requested."""
        if not (output_hidden_states or output_attentions or output_taps):
            return None
        return cls(
            hidden_states=output_hidden_states,
            attentions=output_attentions,
            activations=output_taps,
        )

    @classmethod
    def of_decoder(cls, **options: Unpack[OutputOptions]) -> "Taps | None":
        """Return an empty `Taps` for a decoder's activations; None if they are not requested."""
        return cls.requested(output_taps=options.get("output_taps", False))

    def of_block(self) -> "Taps | None":
        """Return an empty `Taps` for a block's activations; None if they are not requested."""
        return Taps.requested(False, self.attentions, self.activations)

    def record(self, prefix: str, activations: Mapping[str, Tensor]) -> None:
        """Record the requested activations of a layer under the names ``prefix.name``."""
        for name, value in activations.items():
            if self._is_requested(name):
                self[f"{prefix}.{name}"] = value

    def _is_requested(self, name: str) -> bool:
        if name == "probabilities":
            return self.attentions
        return self.activations or (self.hidden_states and name in HIDDEN_STATES)


HIDDEN_STATES = ("embedding", "output")


def record(taps: Taps | None, prefix: str, **activations: Tensor) -> None:
    """Record the requested activations of a layer under the names ``prefix.name``.

    If ``taps`` is None, nothing is recorded. See `Taps.record`.
    """
    if taps is not None:
        taps.record(prefix, activations)


def recorded(
    taps: Taps | None, of_decoder: Taps | None = None
) -> tuple[Tensors | None, Tensors | None, dict[str, Tensor] | None]:
    """Return the encoder's hidden states and attentions, and all recorded activations.

    Each of the three is None if it was not requested.
    """
    if taps is None:
        return None, None, None
    by_kind: dict[str, list[Tensor]] = {"states": [], "probabilities": []}
    for name, value in taps.items():
        activation = name.rpartition(".")[2]
        kind = "states" if activation in HIDDEN_STATES else activation
        if kind in by_kind:
            by_kind[kind].append(value)
    activations = {n: v for n, v in taps.items() if not n.endswith(".probabilities")}
    return (
        tuple(by_kind["states"]) if taps.hidden_states else None,
        tuple(by_kind["probabilities"]) if taps.attentions else None,
        {**activations, **(of_decoder or {})} if taps.activations else None,
    )


class ViTMAEModelOutput(NamedTuple):
    """The outputs of the encoder."""

    last_hidden_state: Tensor
    """(N, 1 + kept, D), after the final norm."""

    mask: Tensor
    """(N, L), 0 where a patch is kept and 1 where it is removed."""

    ids_restore: Tensor
    """(N, L), the index of each patch in the shuffled order."""

    hidden_states: Tensors | None = None
    """Embedding output and each block's output, each (N, 1 + kept, D); None if not requested."""

    attentions: Tensors | None = None
    """Attention probabilities of each block, each (N, heads, 1 + kept, 1 + kept); None if not
    requested."""

    taps: dict[str, Tensor] | None = None
    """Intermediate activations by name; None if not requested."""


class ViTMAEForPreTrainingOutput(NamedTuple):
    """The outputs of the pre-training model; hidden states and attentions come from the encoder."""

    loss: Tensor | None
    """Scalar, the mean squared error over removed patches; None if no patch is removed."""

    logits: Tensor
    """(N, L, patch height x patch width x channels), the predicted patches."""

    mask: Tensor
    """(N, L), 0 where a patch is kept and 1 where it is removed."""

    ids_restore: Tensor
    """(N, L), the index of each patch in the shuffled order."""

    hidden_states: Tensors | None = None
    """Embedding output and each block's output, each (N, 1 + kept, D); None if not requested."""

    attentions: Tensors | None = None
    """Attention probabilities of each block, each (N, heads, 1 + kept, 1 + kept); None if not
    requested."""

    taps: dict[str, Tensor] | None = None
    """Intermediate activations of encoder and decoder by name; None if not requested."""


class ImageClassifierOutput(NamedTuple):
    """The outputs of the classifier."""

    loss: Tensor | None
    """Scalar cross-entropy; None without labels."""

    logits: Tensor
    """(N, K), a value for each class."""

    hidden_states: Tensors | None = None
    """Embedding output and each block's output, each (N, 1 + L, D); None if not requested."""

    attentions: Tensors | None = None
    """Attention probabilities of each block, each (N, heads, 1 + L, 1 + L); None if not
    requested."""

    taps: dict[str, Tensor] | None = None
    """Intermediate activations by name; None if not requested."""
