"""Hypotheses about the cause of a difference: statements, and changes of a model that test them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.diagnose.weight_edits import WeightEdit
from mae_convert.layouts.transforms import Schema

Variant = tuple[str, str, Any]  # kind, pattern of module paths, value: see ``block_variants``


@dataclass(frozen=True)
class Hypothesis:
    """A possible cause of the difference between the results of two checkpoints, A and B."""

    key: str
    """The kind of the fault, for statistics in tests."""

    statement: str
    """The end of the sentence "A computes B's results if ..."."""

    edits: tuple[WeightEdit, ...] = ()
    """Changes of canonical tensors, which are applied together."""

    variants: tuple[Variant, ...] = ()
    """Variants of the computation, which are applied together."""

    widen: Callable[[], tuple["Hypothesis", ...]] = field(default=tuple, compare=False, repr=False)
    """A function that returns the same hypothesis for larger sets of modules or tensors, the
    largest set first."""

    def widened(self, wider: Callable[[], Iterable["Hypothesis"]]) -> "Hypothesis":
        """Return a copy of the hypothesis that has the function `wider` as its field `widen`."""
        return replace(self, widen=lambda: tuple(wider()))

    @property
    def changed_tensors(self) -> tuple[str, ...]:
        """The canonical names of the tensors that the hypothesis changes."""
        return tuple(dict.fromkeys(edit.target for edit in self.edits))

    def plain(self) -> dict[str, Any]:
        """Return the hypothesis as a dictionary, for a request to the child process."""
        return {
            "edits": [asdict(edit) for edit in self.edits],
            "variants": [list(variant) for variant in self.variants],
        }


@dataclass(frozen=True)
class Stack:
    """The properties of the transformer blocks of the encoder or the decoder."""

    name: str
    depth: int
    width: int
    heads: int

    def block(self, index: int) -> str:
        """Return the canonical prefix of a block's tensors, without a dot at its end."""
        return f"{self.name}.blocks.{index}"


@dataclass(frozen=True)
class Model:
    """The properties of a model on which hypotheses depend."""

    config: Any
    task: str
    shapes: Schema

    def stacks(self) -> list[Stack]:
        """Return the blocks of the encoder and, for a pre-training model, of the decoder."""
        c = self.config
        stacks = [Stack("encoder", c.num_hidden_layers, c.hidden_size, c.num_attention_heads)]
        if self.task == "pretrain":
            stacks.append(
                Stack(
                    "decoder",
                    c.decoder_num_hidden_layers,
                    c.decoder_hidden_size,
                    c.decoder_num_attention_heads,
                )
            )
        return stacks

    def stack(self, name: str) -> Stack:
        """Return the blocks of "encoder" or "decoder"."""
        return next(stack for stack in self.stacks() if stack.name == name)

    def fits(self, edit: WeightEdit) -> bool:
        """Return whether the model has all tensors that an edit reads or changes."""
        return all(name in self.shapes for name in (edit.target, *edit.sources))


def model_of(checkpoint: Checkpoint) -> Model:
    """Return those properties of a checkpoint's model that hypotheses depend on."""
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    return Model(checkpoint.configuration.model, checkpoint.task, shapes)


MakeEdits = Callable[[Stack, int], Sequence[WeightEdit]]
Statement = Callable[[str], str]
"""A function from the prefix of a block's tensor names to the statement about this block.

The prefix is, for example, "encoder.blocks.0."; it is "" in a statement about all blocks.
"""


def in_blocks(
    model: Model, stack: Stack, index: int, key: str, statement: Statement, make: MakeEdits
) -> Iterator[Hypothesis]:
    """Yield a hypothesis about tensors of one block.

    `Hypothesis.widen` returns the hypotheses with the same fault in all blocks of `stack`, and in
    all blocks of the model.

    Args:
        model: the properties of the model.
        stack: the blocks of the encoder or the decoder.
        index: the index of the block.
        key: the kind of fault.
        statement: a function from the prefix of a block's tensor names to the statement of the
            hypothesis; see `Statement`.
        make: a function that returns the edits in a block. If a tensor of an edit is missing in
            this block, nothing is yielded; in other blocks, the edit is ignored.
    """

    def edits(stacks: Sequence[Stack]) -> tuple[WeightEdit, ...]:
        blocks = ((s, i) for s in stacks for i in range(s.depth))
        return tuple(e for s, i in blocks for e in make(s, i) if model.fits(e))

    edits_in_block = make(stack, index)
    narrow = tuple(edit for edit in edits_in_block if model.fits(edit))
    if not narrow or len(narrow) < len(edits_in_block):
        return

    def wider() -> Sequence[Hypothesis]:
        text = statement("")
        wider_results = [
            Hypothesis(key, f"{text} in every block", edits(model.stacks())),
            Hypothesis(key, f"{text} in every block of the {stack.name}", edits([stack])),
        ]
        larger = {len(h.edits): h for h in reversed(wider_results) if len(h.edits) > len(narrow)}
        return [larger[size] for size in sorted(larger, reverse=True)]

    yield Hypothesis(key, statement(f"{stack.block(index)}."), narrow).widened(wider)
