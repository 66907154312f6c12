"""What may have happened to a model, in words and as something that can be tried."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mae_convert.canonical import Schema
from mae_convert.checkpoint import Checkpoint
from mae_convert.diagnose.weight_edits import Change
from reference_models.configuration import ViTMAEConfig

Alternative = tuple[str, str, Any]  # kind, pattern of places, value: see ``alternatives``


@dataclass(frozen=True)
class Hypothesis:
    """Something that may have happened to A, so that it became B.

    Attributes:
        key: the kind of fault, by which hypotheses are counted.
        statement: completes the sentence "B is what A becomes when ...".
        changes: canonical tensors that are made of others, all at once.
        arithmetic: what is computed otherwise.
        widen: returns the same in more places, from the widest on, without itself.
    """

    key: str
    statement: str
    changes: tuple[Change, ...] = ()
    arithmetic: tuple[Alternative, ...] = ()
    widen: Callable[[], tuple["Hypothesis", ...]] = field(default=tuple, compare=False, repr=False)

    def widened(self, wider: Callable[[], Iterable["Hypothesis"]]) -> "Hypothesis":
        """Return the hypothesis with those about more places."""
        return replace(self, widen=lambda: tuple(wider()))

    @property
    def guilty(self) -> tuple[str, ...]:
        """The canonical tensors that it changes."""
        return tuple(dict.fromkeys(change.target for change in self.changes))

    def plain(self) -> dict[str, Any]:
        """Return what a child process needs to try it."""
        return {
            "changes": [asdict(change) for change in self.changes],
            "arithmetic": [list(alternative) for alternative in self.arithmetic],
        }


@dataclass(frozen=True)
class Stack:
    """The blocks of encoder or decoder."""

    name: str
    depth: int
    width: int
    heads: int

    def block(self, index: int) -> str:
        """Return the canonical prefix of a block's tensors."""
        return f"{self.name}.blocks.{index}"


@dataclass(frozen=True)
class Model:
    """What hypotheses about a model depend on."""

    config: ViTMAEConfig
    task: str
    shapes: Schema

    def stacks(self) -> list[Stack]:
        """Return the encoder's blocks and, where there is one, the decoder's."""
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

    def fits(self, change: Change) -> bool:
        """Return whether the tensors of a change exist."""
        return all(name in self.shapes for name in (change.target, *change.sources))


def model_of(checkpoint: Checkpoint) -> Model:
    """Return what hypotheses about a checkpoint depend on."""
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    return Model(checkpoint.configuration.model, checkpoint.task, shapes)


Make = Callable[[Stack, int], Sequence[Change]]


def in_blocks(
    model: Model, stack: Stack, index: int, key: str, what: str, make: Make
) -> Iterator[Hypothesis]:
    """Yield a hypothesis about the tensors of one block, and of all blocks as the wider ones.

    Args:
        model: the model.
        stack: encoder or decoder.
        index: the block.
        key: the kind of fault.
        what: the statement, with ``{block}`` before each name of a tensor.
        make: the changes in a block; those whose tensors do not exist are left out.
    """

    def changes(stacks: Sequence[Stack]) -> tuple[Change, ...]:
        blocks = ((s, i) for s in stacks for i in range(s.depth))
        return tuple(c for s, i in blocks for c in make(s, i) if model.fits(c))

    made = make(stack, index)
    narrow = tuple(change for change in made if model.fits(change))
    if not narrow or len(narrow) < len(made):
        return

    def wider() -> Sequence[Hypothesis]:
        said = what.format(block="")
        found = [
            Hypothesis(key, f"{said} in every block", changes(model.stacks())),
            Hypothesis(key, f"{said} in every block of the {stack.name}", changes([stack])),
        ]
        larger = {len(h.changes): h for h in reversed(found) if len(h.changes) > len(narrow)}
        return [larger[size] for size in sorted(larger, reverse=True)]

    yield Hypothesis(key, what.format(block=f"{stack.block(index)}."), narrow).widened(wider)
