"""Hypotheses about weights: one tensor, q, k and v together, modules, whole blocks."""

from collections.abc import Iterator, Sequence
from itertools import permutations, product
from typing import Any, NamedTuple

from mae_convert.canonical import Shape
from mae_convert.diagnose import weight_edits
from mae_convert.diagnose.hypotheses import Hypothesis, Model, Stack, in_blocks
from mae_convert.diagnose.weight_edits import Change


class Happening(NamedTuple):
    """An edit of a tensor that is made of itself.

    Attributes:
        key: the kind of fault.
        what: in words, after the tensor's name.
        edit: its name in ``edits``.
        options: its arguments.
    """

    key: str
    what: str
    edit: str
    options: dict[str, Any]

    def of(self, name: str) -> Change:
        """Return the change of a tensor."""
        return Change(name, self.edit, (name,), self.options)


def happenings(model: Model, name: str) -> Iterator[Happening]:
    """Yield what may have happened to a tensor by itself, likeliest first."""
    shape, config = model.shapes[name], model.config
    part = name.rpartition(".blocks.")[2].partition(".")[2] if ".blocks." in name else name
    if len(shape) == 2:
        same = shape[0] == shape[1]
        what = "is transposed" if same else "is reshaped where it has to be transposed"
        yield Happening("transposed", what, "axes_reordered", {"axes": (1, 0)})
    if part.startswith(("attention.q.", "attention.k.", "attention.v.")):
        yield from _heads(model, name, axis=0)
        yield from _scales(model, name, part)
    if part == "attention.output.weight":
        yield from _heads(model, name, axis=1)
    if name == "encoder.patch_embedding.weight":
        yield from _kernel(shape)
    if name.endswith("position_embedding"):
        yield from _positions(model, shape)
    if name.startswith("decoder.prediction."):
        found = weight_edits.pixel_orders(*config.patch_hw, config.num_channels)
        yield from _taken("pixel order", "predicts patches", found, axis=0)
    yield from _values(name, shape)


def _taken(key: str, what: str, found: weight_edits.Orders, *, axis: int) -> Iterator[Happening]:
    for words, order in found.items():
        options = {"axis": axis, "order": order.tolist()}
        yield Happening(key, f"{what} {words}", "taken", options)


def _heads(model: Model, name: str, *, axis: int) -> Iterator[Happening]:
    stack = model.stack(name.partition(".")[0])
    found = weight_edits.head_orders(stack.width, stack.heads)
    yield from _taken("heads", "has its channels", found, axis=axis)


def _scales(model: Model, name: str, part: str) -> Iterator[Happening]:
    if part.startswith("attention.v."):
        return
    stack = model.stack(name.partition(".")[0])
    root = (stack.width // stack.heads) ** 0.5
    for factor, done in ((1 / root, "divided"), (root, "multiplied")):
        what = f"is {done} by the root of the head's size"
        yield Happening("scale", what, "multiplied", {"factor": factor})


def _kernel(shape: Shape) -> Iterator[Happening]:
    width, channels, rows, columns = shape
    stored = "is stored as (row, column, channel) and read as (channel, row, column)"
    read = "is stored as (channel, row, column) and read as (row, column, channel)"
    view = (width, rows, columns, channels)
    if channels > 1:
        backwards = {"axis": 1, "order": list(range(channels))[::-1]}
        what = "has its channels reversed (RGB and BGR)"
        yield Happening("patch channels", what, "taken", backwards)
        yield Happening("patch axes", stored, "axes_reordered", {"axes": (0, 2, 3, 1)})
        options = {"axes": (0, 3, 1, 2), "view": view}
        yield Happening("patch axes", read, "axes_reordered", options)
    exchanged = "has height and width of the patch exchanged"
    yield Happening("patch axes", exchanged, "axes_reordered", {"axes": (0, 1, 3, 2)})
    reshaped = "is reshaped where its axes have to be permuted"
    yield Happening("patch axes", reshaped, "axes_reordered", {"axes": (2, 3, 1, 0)})
    turned = {"axes": (0, 1, 2, 3), "flipped": (2, 3)}
    yield Happening("patch axes", "has its pixels turned by 180 degrees", "axes_reordered", turned)
    for axis, size, what in ((2, rows, "upside down"), (3, columns, "mirrored")):
        flipped = {"axis": axis, "order": list(range(size))[::-1]}
        yield Happening("patch axes", f"has its pixels {what}", "taken", flipped)


def _positions(model: Model, shape: Shape) -> Iterator[Happening]:
    grid = model.config.grid_hw
    yield from _taken("positions", "is", weight_edits.position_orders(*grid), axis=1)
    yield from _taken("positions", "is", weight_edits.sincos_orders(shape[2]), axis=2)
    for factor, what in (
        (0.0, "is zero at the class token"),
        (2.0, "is double at the class token"),
    ):
        yield Happening("positions", what, "first_row", {"factor": factor})
    fixed = "is made anew of sines and cosines"
    yield Happening("positions", fixed, "sines_and_cosines", {"grid": grid})


def _values(name: str, shape: Shape) -> Iterator[Happening]:
    yield Happening("zero", "is zero", "filled", {"value": 0.0})
    if "norm" in name and name.endswith(".weight"):
        what = "is one everywhere, as before training"
        yield Happening("one", what, "filled", {"value": 1.0})
        for amount, what in ((1.0, "has one added"), (-1.0, "has one taken off")):
            said = f"{what}, as if it were kept as the distance from one"
            yield Happening("one", said, "added", {"amount": amount})
    for dtype in ("float16", "bfloat16"):
        yield Happening("rounded", f"is rounded to {dtype}", "rounded", {"dtype": dtype})
    for factor, what in ((-1.0, "has its sign turned"), (2.0, "is doubled"), (0.5, "is halved")):
        yield Happening("multiplied", what, "multiplied", {"factor": factor})
    axis = _long_axis(shape)
    options = {"axis": axis, "order": list(range(shape[axis]))[::-1]}
    yield Happening("reversed", "is in reverse order", "taken", options)


def _long_axis(shape: Sequence[int]) -> int:
    """Return the axis along which a tensor may be reversed: rows of a matrix, width of a token."""
    return 2 if len(shape) == 3 else 0


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
    for words in weight_edits.head_orders(stack.width, stack.heads):
        for output in (False, True):

            def make(
                s: Stack, i: int, words: str = words, output: bool = output
            ) -> Sequence[Change]:
                order = weight_edits.head_orders(s.width, s.heads).get(words)
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
