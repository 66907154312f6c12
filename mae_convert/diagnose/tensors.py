"""Hypotheses about tensors: alone, exchanged with others, whole modules and blocks."""

from collections.abc import Iterator, Sequence

from mae_convert.diagnose.edits import Change
from mae_convert.diagnose.hypothesis import Hypothesis, Model, Stack, in_blocks
from mae_convert.diagnose.single import happenings

LEAVES = ("weight", "bias")
MODULES = (
    "norm1", "attention.q", "attention.k", "attention.v", "attention.output", "norm2", "mlp.fc1",
    "mlp.fc2",
)  # fmt: skip
BLOCK_TENSORS = tuple(f"{module}.{leaf}" for module in MODULES for leaf in LEAVES)


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
