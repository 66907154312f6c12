"""Hypotheses about q, k and v of a block at once: their order, their heads, how they are fused."""

from collections.abc import Iterator, Sequence
from itertools import permutations, product

from mae_convert.diagnose import orders
from mae_convert.diagnose.edits import Change
from mae_convert.diagnose.hypothesis import Hypothesis, Model, Stack, in_blocks
from mae_convert.diagnose.single import happenings
from mae_convert.diagnose.tensors import LEAVES, copy

PARTS = ("q", "k", "v")
KINDS_OF_LEAVES = ((LEAVES, "weights and biases"), (("weight",), "weights"), (("bias",), "biases"))
# Where a fused matrix is taken in another layout: by which edit, by heads or by rows, in words.
FUSED = {
    ("fused_otherwise", False): "(heads, 3, channels) out of a matrix that is (3, heads, channels)",
    ("split_otherwise", False): "(3, heads, channels) out of a matrix that is (heads, 3, channels)",
    ("fused_otherwise", True): "(channels, 3) out of a matrix that is (3, channels)",
    ("split_otherwise", True): "(3, channels) out of a matrix that is (channels, 3)",
}


def of_parts(model: Model, stack: Stack, index: int) -> Iterator[Hypothesis]:
    """Yield what may have happened to q, k and v of a block at once."""
    yield from _in_other_order(model, stack, index)
    yield from _fused_otherwise(model, stack, index)
    yield from _same_for_all(model, stack, index)
    yield from _heads_moved(model, stack, index)


def _in_other_order(model: Model, stack: Stack, index: int) -> Iterator[Hypothesis]:
    for order in list(permutations(PARTS))[1:]:
        for leaves, which in KINDS_OF_LEAVES:

            def make(
                s: Stack, i: int, order: tuple[str, ...] = order, leaves: Sequence[str] = leaves
            ) -> Sequence[Change]:
                attention = f"{s.block(i)}.attention"
                pairs = [(a, b) for a, b in zip(PARTS, order, strict=True) if a != b]
                return [
                    copy(f"{attention}.{a}.{leaf}", f"{attention}.{b}.{leaf}")
                    for a, b in pairs
                    for leaf in leaves
                    if f"{attention}.{a}.{leaf}" in model.shapes
                ]

            said = ", ".join(order)
            what = f"the {which} of {{block}}attention.q, k, v are those of {said}"
            yield from in_blocks(model, stack, index, "q, k, v order", what, make)


def _fused_otherwise(model: Model, stack: Stack, index: int) -> Iterator[Hypothesis]:
    for ((edit, by_row), said), (leaves, which) in product(FUSED.items(), KINDS_OF_LEAVES):

        def make(
            s: Stack,
            i: int,
            edit: str = edit,
            by_row: bool = by_row,
            leaves: Sequence[str] = leaves,
        ) -> Sequence[Change]:
            attention = f"{s.block(i)}.attention"
            return [
                Change(
                    f"{attention}.{part}.{leaf}",
                    edit,
                    tuple(f"{attention}.{p}.{leaf}" for p in PARTS),
                    {"part": number, "groups": s.width if by_row else s.heads},
                )
                for number, part in enumerate(PARTS)
                for leaf in leaves
            ]

        what = f"the {which} of {{block}}attention.q, k, v are taken as {said}"
        yield from in_blocks(model, stack, index, "q, k, v order", what, make)


def _same_for_all(model: Model, stack: Stack, index: int) -> Iterator[Hypothesis]:
    """Yield that the same happened to all three: transposed, without biases."""
    for leaf in LEAVES:
        key = f"{stack.block(index)}.attention.k.{leaf}"
        for happening in happenings(model, key) if key in model.shapes else ():
            if happening.key == "scale":  # it would undo itself
                continue

            def make(
                s: Stack, i: int, leaf: str = leaf, what: str = happening.what
            ) -> Sequence[Change]:
                names = [f"{s.block(i)}.attention.{part}.{leaf}" for part in PARTS]
                return [h.of(n) for n in names for h in happenings(model, n) if h.what == what]

            what = f"each {leaf} of {{block}}attention.q, k, v {happening.what}"
            yield from in_blocks(model, stack, index, happening.key, what, make)


def _heads_moved(model: Model, stack: Stack, index: int) -> Iterator[Hypothesis]:
    """Yield that heads have another order everywhere, or in everything but the output."""
    for words in orders.of_heads(stack.width, stack.heads):
        for output in (False, True):

            def make(
                s: Stack, i: int, words: str = words, output: bool = output
            ) -> Sequence[Change]:
                order = orders.of_heads(s.width, s.heads).get(words)
                if order is None:
                    return []
                block = f"{s.block(i)}.attention"
                rows = [(f"{block}.{part}.{leaf}", 0) for part in PARTS for leaf in LEAVES]
                columns = [(f"{block}.output.weight", 1)] if output else []
                return [
                    Change(name, "taken", (name,), {"axis": axis, "order": order.tolist()})
                    for name, axis in rows + columns
                    if name in model.shapes
                ]

            all_of = "q, k, v and the output" if output else "q, k, v"
            what = f"{{block}}attention has the channels of {all_of} {words}"
            yield from in_blocks(model, stack, index, "heads", what, make)
