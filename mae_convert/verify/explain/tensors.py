"""Hypotheses about tensors of a model: alone, exchanged with others, all q, k and v at once."""

from collections.abc import Iterator, Sequence
from itertools import permutations

from mae_convert.verify.explain import orders
from mae_convert.verify.explain.edits import Change
from mae_convert.verify.explain.hypothesis import Hypothesis, Model, Stack, in_blocks
from mae_convert.verify.explain.single import Happening, happenings

PARTS = ("q", "k", "v")
LEAVES = ("weight", "bias")
MODULES = (
    "norm1", "attention.q", "attention.k", "attention.v", "attention.output", "norm2", "mlp.fc1",
    "mlp.fc2",
)  # fmt: skip
BLOCK_TENSORS = tuple(f"{module}.{leaf}" for module in MODULES for leaf in LEAVES)
KINDS_OF_LEAVES = ((LEAVES, "weights and biases"), (("weight",), "weights"), (("bias",), "biases"))


def of_tensor(model: Model, name: str) -> Iterator[Hypothesis]:
    """Yield what may have happened to one tensor, in its block and in every other."""
    if ".blocks." in name:
        stack_name, _, rest = name.partition(".blocks.")
        number, _, part = rest.partition(".")
        stack, index = model.stack(stack_name), int(number)
        yield from _alone_in_block(model, stack, index, part)
        yield from _others_in_block(model, stack, index, part)
        yield from _neighbours(model, stack, index, part)
        return
    for happening in happenings(model, name):
        yield Hypothesis(happening.key, f"{name} {happening.what}", (happening.of(name),))
    for other, shape in model.shapes.items():
        if other != name and shape == model.shapes[name] and ".blocks." not in other:
            yield from _two(name, other)


def _two(name: str, other: str) -> Iterator[Hypothesis]:
    there, back = copy(name, other), copy(other, name)
    yield Hypothesis("exchanged", f"{name} and {other} are exchanged", (there, back))
    yield Hypothesis("exchanged", f"{name} holds {other}", (there,))


def copy(target: str, source: str) -> Change:
    """Return the change that puts one tensor in the place of another."""
    return Change(target, "same", (source,))


def _alone_in_block(model: Model, stack: Stack, index: int, part: str) -> Iterator[Hypothesis]:
    for happening in happenings(model, f"{stack.block(index)}.{part}"):

        def make(s: Stack, i: int, what: str = happening.what) -> Sequence[Change]:
            # In another stack the same has other numbers, and may not be possible.
            name = f"{s.block(i)}.{part}"
            return [h.of(name) for h in happenings(model, name) if h.what == what]

        what = f"{{block}}{part} {happening.what}"
        yield from in_blocks(model, stack, index, happening.key, what, make)


def _others_in_block(model: Model, stack: Stack, index: int, part: str) -> Iterator[Hypothesis]:
    block = stack.block(index)
    shape = model.shapes[f"{block}.{part}"]
    for other in BLOCK_TENSORS:
        if other == part or model.shapes.get(f"{block}.{other}") != shape:
            continue

        def exchange(s: Stack, i: int, other: str = other) -> Sequence[Change]:
            mine, its = f"{s.block(i)}.{part}", f"{s.block(i)}.{other}"
            return [copy(mine, its), copy(its, mine)]

        def hold(s: Stack, i: int, other: str = other) -> Sequence[Change]:
            return [copy(f"{s.block(i)}.{part}", f"{s.block(i)}.{other}")]

        both = f"{{block}}{part} and {{block}}{other} are exchanged"
        yield from in_blocks(model, stack, index, "exchanged", both, exchange)
        holds = f"{{block}}{part} holds {{block}}{other}"
        yield from in_blocks(model, stack, index, "exchanged", holds, hold)


def _neighbours(model: Model, stack: Stack, index: int, part: str) -> Iterator[Hypothesis]:
    """Yield that a tensor is that of the block before or after, or that all are shifted."""
    for step, where in ((1, "next block"), (-1, "block before")):
        name, other = (f"{stack.block(i)}.{part}" for i in (index, index + step))
        if other not in model.shapes:
            continue

        def wider(
            step: int = step, name: str = name, other: str = other, where: str = where
        ) -> Iterator[Hypothesis]:
            inner = range(max(0, -step), stack.depth - max(0, step))
            shifted = tuple(
                copy(f"{stack.block(i)}.{part}", f"{stack.block(i + step)}.{part}") for i in inner
            )
            said = f"{part} holds that of the {where} in every block of the {stack.name}"
            yield Hypothesis("neighbour", said, shifted)
            both = (copy(name, other), copy(other, name))
            yield Hypothesis("neighbour", f"{name} and {other} are exchanged", both)

        one = Hypothesis("neighbour", f"{name} holds {other}", (copy(name, other),))
        yield one.widened(wider)


def of_modules(
    model: Model, stack: Stack, index: int, first: str, second: str
) -> Iterator[Hypothesis]:
    """Yield that two modules of a block, their weights and biases, are exchanged."""

    def make(s: Stack, i: int) -> Sequence[Change]:
        pairs = ((first, second), (second, first))
        changes = [
            copy(f"{s.block(i)}.{one}.{leaf}", f"{s.block(i)}.{other}.{leaf}")
            for one, other in pairs
            for leaf in LEAVES
        ]
        return [change for change in changes if model.fits(change)]

    what = f"{{block}}{first} and {{block}}{second} are exchanged"
    yield from in_blocks(model, stack, index, "exchanged", what, make)


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
    layouts = {
        "fused_otherwise": "taken as (heads, 3, channels) out of a matrix that is (3, heads, ...)",
        "split_otherwise": "taken as (3, heads, channels) out of a matrix that is (heads, 3, ...)",
    }
    for edit, said in layouts.items():
        for by_row in (False, True):
            for leaves, which in KINDS_OF_LEAVES:

                def make(
                    s: Stack,
                    i: int,
                    edit: str = edit,
                    by_row: bool = by_row,
                    leaves: Sequence[str] = leaves,
                ) -> Sequence[Change]:
                    return [
                        Change(
                            f"{s.block(i)}.attention.{part}.{leaf}",
                            edit,
                            tuple(f"{s.block(i)}.attention.{p}.{leaf}" for p in PARTS),
                            {"part": number, "groups": s.width if by_row else s.heads},
                        )
                        for number, part in enumerate(PARTS)
                        for leaf in leaves
                    ]

                words = (
                    said.replace("heads", "channels").replace(
                        "channels, 3, channels", "channels, 3"
                    )
                    if by_row
                    else said
                )
                what = f"the {which} of {{block}}attention.q, k, v are {words}"
                yield from in_blocks(model, stack, index, "q, k, v order", what, make)


def _same_for_all(model: Model, stack: Stack, index: int) -> Iterator[Hypothesis]:
    """Yield that the same happened to all three: transposed, without biases."""
    by_leaf: dict[str, list[Happening]] = {
        leaf: list(happenings(model, f"{stack.block(index)}.attention.k.{leaf}"))
        for leaf in LEAVES
        if f"{stack.block(index)}.attention.k.{leaf}" in model.shapes
    }
    for leaf, found in by_leaf.items():
        for happening in found:

            def make(
                s: Stack, i: int, leaf: str = leaf, what: str = happening.what
            ) -> Sequence[Change]:
                names = [f"{s.block(i)}.attention.{part}.{leaf}" for part in PARTS]
                return [h.of(n) for n in names for h in happenings(model, n) if h.what == what]

            if happening.key == "scale":
                continue
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


def of_blocks(model: Model, stack: Stack, index: int) -> Iterator[Hypothesis]:
    """Yield that a block holds all tensors of another: exchanged, or in another order."""
    numbers = list(range(stack.depth))
    as_text = sorted(numbers, key=str)
    for other in numbers:
        if other == index:
            continue
        exchanged = [{index: other, other: index}.get(i, i) for i in numbers]
        turned = [(i + other - index) % stack.depth for i in numbers]
        ways = {
            "sorted as text (1, 10, 11, 2)": as_text,
            "in reverse order": numbers[::-1],
            "in another order, the first one not the first": turned,
            "one later, the first one twice": [0, *numbers[:-1]],
            "one earlier, the last one twice": [*numbers[1:], numbers[-1]],
            f"exchanged: {index} and {other}": exchanged,
        }
        fitting = {words: order for words, order in ways.items() if order[index] == other}

        def wider(fitting: dict[str, list[int]] = fitting) -> Sequence[Hypothesis]:
            return [
                Hypothesis(
                    "blocks",
                    f"the blocks of the {stack.name} are {words}",
                    _moved_blocks(model, stack, dict(enumerate(order))),
                )
                for words, order in fitting.items()
            ]

        said = f"block {index} of the {stack.name} holds block {other}"
        changes = _moved_blocks(model, stack, {index: other})
        yield Hypothesis("blocks", said, changes).widened(wider)


def _moved_blocks(model: Model, stack: Stack, sources: dict[int, int]) -> tuple[Change, ...]:
    return tuple(
        copy(f"{stack.block(i)}.{part}", f"{stack.block(j)}.{part}")
        for i, j in sources.items()
        if i != j
        for part in BLOCK_TENSORS
        if f"{stack.block(i)}.{part}" in model.shapes
    )
