"""Hypotheses about wrong weights: of a tensor, of q, k and v together, of modules or of blocks."""

from collections.abc import Iterator, Sequence
from itertools import permutations, product
from typing import Any, NamedTuple

from mae_convert.diagnose import weight_edits
from mae_convert.diagnose.hypotheses import Hypothesis, Model, Stack, in_blocks
from mae_convert.diagnose.weight_edits import WeightEdit
from mae_convert.layouts.transforms import Shape


class SelfEdit(NamedTuple):
    """A change of a tensor that does not depend on other tensors."""

    key: str
    """The kind of fault that the change simulates, such as "transposed"."""

    description: str
    """A description that follows the tensor's name in a sentence."""

    operation: str
    """The name of the operation in ``weight_edits.OPERATIONS``."""

    options: dict[str, Any]
    """The arguments of `operation`, by name."""

    def on(self, name: str) -> WeightEdit:
        """Return the weight edit that changes a tensor in this way."""
        return WeightEdit(name, self.operation, (name,), self.options)


def self_edits(model: Model, name: str) -> Iterator[SelfEdit]:
    """Yield possible changes of a tensor that do not depend on other tensors, most likely first."""
    shape, config = model.shapes[name], model.config
    part = name.rpartition(".blocks.")[2].partition(".")[2] if ".blocks." in name else name
    if len(shape) == 2:
        same = shape[0] == shape[1]
        what = "is transposed" if same else "was reshaped instead of transposed when it was read"
        yield SelfEdit("transposed", what, "permuted", {"axes": (1, 0)})
        if not same:
            written = "was reshaped instead of transposed when it was written"
            options = {"axes": (1, 0), "view": shape[::-1]}
            yield SelfEdit("transposed", written, "permuted", options)
    if part.startswith(("attention.q.", "attention.k.", "attention.v.")):
        yield from _heads(model, name, axis=0)
        yield from _scales(model, name, part)
    if part == "attention.output.weight":
        yield from _heads(model, name, axis=1)
    if name == "encoder.patch_embedding.weight":
        yield from _kernel(shape) if len(shape) == 4 else _kernel_of_frames(shape)
    if name.endswith("position_embedding"):
        yield from _positions(model, shape)
    if name.startswith("decoder.prediction."):
        height, width = config.patch_hw
        orders = weight_edits.pixel_orders(height, width, config.num_channels)
        yield from _reorderings("pixel order", "predicts patches", orders, axis=0)
    yield from _values(name, shape)


def _reorderings(
    key: str, what: str, orders: weight_edits.Orders, *, axis: int
) -> Iterator[SelfEdit]:
    for words, order in orders.items():
        options = {"axis": axis, "order": order.tolist()}
        yield SelfEdit(key, f"{what} {words}", "reordered", options)


def _heads(model: Model, name: str, *, axis: int) -> Iterator[SelfEdit]:
    stack = model.stack(name.partition(".")[0])
    orders = weight_edits.head_orders(stack.width, stack.heads)
    yield from _reorderings("heads", "has its channels", orders, axis=axis)


def _scales(model: Model, name: str, part: str) -> Iterator[SelfEdit]:
    if part.startswith("attention.v."):
        return
    stack = model.stack(name.partition(".")[0])
    root = (stack.width // stack.heads) ** 0.5
    for factor, operation in ((1 / root, "divided"), (root, "multiplied")):
        what = f"is {operation} by the square root of the head size"
        yield SelfEdit("scale", what, "multiplied", {"factor": factor})


def _kernel(shape: Shape) -> Iterator[SelfEdit]:
    width, channels, rows, columns = shape
    stored = "is stored as (row, column, channel) and read as (channel, row, column)"
    read = "is stored as (channel, row, column) and read as (row, column, channel)"
    view = (width, rows, columns, channels)
    if channels > 1:
        backwards = {"axis": 1, "order": list(range(channels))[::-1]}
        what = "has its channels reversed (RGB and BGR)"
        yield SelfEdit("patch channels", what, "reordered", backwards)
        yield SelfEdit("patch axes", stored, "permuted", {"axes": (0, 2, 3, 1)})
        options = {"axes": (0, 3, 1, 2), "view": view}
        yield SelfEdit("patch axes", read, "permuted", options)
    exchanged = "has the height and width of the patch exchanged"
    yield SelfEdit("patch axes", exchanged, "permuted", {"axes": (0, 1, 3, 2)})
    reshaped = "was reshaped instead of permuted when it was read"
    yield SelfEdit("patch axes", reshaped, "permuted", {"axes": (2, 3, 1, 0)})
    written = "was reshaped instead of permuted when it was written"
    options = {"axes": (3, 2, 0, 1), "view": (rows, columns, channels, width)}
    yield SelfEdit("patch axes", written, "permuted", options)
    turned = {"axes": (0, 1, 2, 3), "flipped": (2, 3)}
    yield SelfEdit("patch axes", "has its pixels rotated by 180 degrees", "permuted", turned)
    for axis, size, what in ((2, rows, "upside down"), (3, columns, "mirrored")):
        flipped = {"axis": axis, "order": list(range(size))[::-1]}
        yield SelfEdit("patch axes", f"has its pixels {what}", "reordered", flipped)


def _kernel_of_frames(shape: Shape) -> Iterator[SelfEdit]:
    """Yield changes of the patch embedding's kernel of a video model.

    The kernel has the axes (embedding width, channels, frames, rows, columns).
    """
    if shape[1] > 1:
        backwards = {"axis": 1, "order": list(range(shape[1]))[::-1]}
        yield SelfEdit("patch channels", "has its channels reversed", "reordered", backwards)
        stored = (
            "is stored as (frame, row, column, channel) and read as (channel, frame, row, column)"
        )
        yield SelfEdit("patch axes", stored, "permuted", {"axes": (0, 2, 3, 4, 1)})
    exchanged = "has the height and width of the patch exchanged"
    yield SelfEdit("patch axes", exchanged, "permuted", {"axes": (0, 1, 2, 4, 3)})
    reshaped = "was reshaped instead of permuted when it was read"
    yield SelfEdit("patch axes", reshaped, "permuted", {"axes": (2, 3, 4, 1, 0)})
    written = "was reshaped instead of permuted when it was written"
    options = {"axes": (4, 3, 0, 1, 2), "view": (*shape[2:], shape[1], shape[0])}
    yield SelfEdit("patch axes", written, "permuted", options)
    for axis, what in ((2, "frames in reverse order"), (3, "pixels upside down"),
                       (4, "pixels mirrored")):  # fmt: skip
        flipped = {"axis": axis, "order": list(range(shape[axis]))[::-1]}
        yield SelfEdit("patch axes", f"has its {what}", "reordered", flipped)


def _positions(model: Model, shape: Shape) -> Iterator[SelfEdit]:
    grid = model.config.grid_hw
    yield from _reorderings("positions", "is", weight_edits.position_orders(*grid), axis=1)
    yield from _reorderings("positions", "is", weight_edits.sincos_orders(shape[2]), axis=2)
    for factor, what in (
        (0.0, "is zero at the class token"),
        (2.0, "is doubled at the class token"),
    ):
        yield SelfEdit("positions", what, "class_position_multiplied", {"factor": factor})
    fixed = "is replaced by fixed sines and cosines"
    yield SelfEdit("positions", fixed, "sincos_positions", {"grid": grid})


def _values(name: str, shape: Shape) -> Iterator[SelfEdit]:
    yield SelfEdit("zero", "is zero", "filled", {"value": 0.0})
    if "norm" in name and name.endswith(".weight"):
        what = "has the value one everywhere, as before training"
        yield SelfEdit("one", what, "filled", {"value": 1.0})
        for amount, what in ((1.0, "has one added"), (-1.0, "has one subtracted")):
            text = f"{what}, as if only its difference from 1 were stored"
            yield SelfEdit("one", text, "added", {"amount": amount})
    for dtype in ("float16", "bfloat16"):
        yield SelfEdit("rounded", f"is rounded to {dtype}", "rounded", {"dtype": dtype})
    for factor, what in ((-1.0, "has its sign reversed"), (2.0, "is doubled"), (0.5, "is halved")):
        yield SelfEdit("multiplied", what, "multiplied", {"factor": factor})
    axis = _long_axis(shape)
    options = {"axis": axis, "order": list(range(shape[axis]))[::-1]}
    yield SelfEdit("reversed", "is in reverse order", "reordered", options)


def _long_axis(shape: Sequence[int]) -> int:
    """Return the axis to reverse: the last axis of a tensor (1, T, D), else the first axis."""
    return 2 if len(shape) == 3 else 0


LEAVES = ("weight", "bias")
MODULES = (
    "norm1", "attention.q", "attention.k", "attention.v", "attention.output", "norm2", "mlp.fc1",
    "mlp.fc2",
)  # fmt: skip
BLOCK_TENSORS = tuple(f"{module}.{leaf}" for module in MODULES for leaf in LEAVES)


def tensor_hypotheses(model: Model, name: str) -> Iterator[Hypothesis]:
    """Yield hypotheses about one tensor.

    If the tensor is in a block, a hypothesis has wider variants, which apply the same change to
    this tensor in every block.
    """
    if ".blocks." in name:
        stack_name, _, rest = name.partition(".blocks.")
        number, _, part = rest.partition(".")
        stack, index = model.stack(stack_name), int(number)
        yield from _alone_in_block(model, stack, index, part)
        yield from _others_in_block(model, stack, index, part)
        yield from _neighbours(model, stack, index, part)
        return
    for self_edit in self_edits(model, name):
        yield Hypothesis(self_edit.key, f"{name} {self_edit.description}", (self_edit.on(name),))
    for other, shape in model.shapes.items():
        if other != name and shape == model.shapes[name] and ".blocks." not in other:
            yield from _exchanged_pair(name, other)


def _exchanged_pair(name: str, other: str) -> Iterator[Hypothesis]:
    forward, back = copy_tensor(name, other), copy_tensor(other, name)
    yield Hypothesis("exchanged", f"{name} and {other} are exchanged", (forward, back))
    yield Hypothesis("exchanged", f"{name} has the values of {other}", (forward,))


def copy_tensor(target: str, source: str) -> WeightEdit:
    """Return the edit that replaces one tensor with another."""
    return WeightEdit(target, "copied", (source,))


def _alone_in_block(model: Model, stack: Stack, index: int, part: str) -> Iterator[Hypothesis]:
    for self_edit in self_edits(model, f"{stack.block(index)}.{part}"):

        def make(s: Stack, i: int, what: str = self_edit.description) -> Sequence[WeightEdit]:
            # In the other stack, the same change may have other arguments or not apply.
            name = f"{s.block(i)}.{part}"
            return [h.on(name) for h in self_edits(model, name) if h.description == what]

        def what(block: str, end: str = self_edit.description) -> str:
            return f"{block}{part} {end}"

        yield from in_blocks(model, stack, index, self_edit.key, what, make)


def _others_in_block(model: Model, stack: Stack, index: int, part: str) -> Iterator[Hypothesis]:
    block = stack.block(index)
    shape = model.shapes[f"{block}.{part}"]
    for other in BLOCK_TENSORS:
        if other == part or model.shapes.get(f"{block}.{other}") != shape:
            continue

        def exchange(s: Stack, i: int, other: str = other) -> Sequence[WeightEdit]:
            mine, its = f"{s.block(i)}.{part}", f"{s.block(i)}.{other}"
            return [copy_tensor(mine, its), copy_tensor(its, mine)]

        def hold(s: Stack, i: int, other: str = other) -> Sequence[WeightEdit]:
            return [copy_tensor(f"{s.block(i)}.{part}", f"{s.block(i)}.{other}")]

        def both(block: str, other: str = other) -> str:
            return f"{block}{part} and {block}{other} are exchanged"

        yield from in_blocks(model, stack, index, "exchanged", both, exchange)

        def holds(block: str, other: str = other) -> str:
            return f"{block}{part} has the values of {block}{other}"

        yield from in_blocks(model, stack, index, "exchanged", holds, hold)


def _neighbours(model: Model, stack: Stack, index: int, part: str) -> Iterator[Hypothesis]:
    """Yield the hypotheses that a tensor has the values of its counterpart in an adjacent block.

    The tensor is `part` (such as "norm1.weight") of block `index`. Each hypothesis has two wider
    variants: every block has the values of its neighbour, or the two tensors are exchanged.
    """
    for step, where in ((1, "next block"), (-1, "previous block")):
        name, other = (f"{stack.block(i)}.{part}" for i in (index, index + step))
        if other not in model.shapes:
            continue

        def wider(
            step: int = step, name: str = name, other: str = other, where: str = where
        ) -> Iterator[Hypothesis]:
            inner = range(max(0, -step), stack.depth - max(0, step))
            shifted = tuple(
                copy_tensor(f"{stack.block(i)}.{part}", f"{stack.block(i + step)}.{part}")
                for i in inner
            )
            text = f"{part} in every block of the {stack.name} has the values of the {where}"
            yield Hypothesis("neighbour", text, shifted)
            both = (copy_tensor(name, other), copy_tensor(other, name))
            yield Hypothesis("neighbour", f"{name} and {other} are exchanged", both)

        text = f"{name} has the values of {other}"
        one = Hypothesis("neighbour", text, (copy_tensor(name, other),))
        yield one.widened(wider)


def exchanged_module_hypotheses(
    model: Model, stack: Stack, index: int, first: str, second: str
) -> Iterator[Hypothesis]:
    """Yield the hypotheses that two modules of a block are exchanged."""

    def make(s: Stack, i: int) -> Sequence[WeightEdit]:
        pairs = ((first, second), (second, first))
        edits = [
            copy_tensor(f"{s.block(i)}.{one}.{leaf}", f"{s.block(i)}.{other}.{leaf}")
            for one, other in pairs
            for leaf in LEAVES
        ]
        return [edit for edit in edits if model.fits(edit)]

    def what(block: str) -> str:
        return f"{block}{first} and {block}{second} are exchanged"

    yield from in_blocks(model, stack, index, "exchanged", what, make)


def moved_block_hypotheses(model: Model, stack: Stack, index: int) -> Iterator[Hypothesis]:
    """Yield, for each other block, the hypothesis that block `index` has the tensors of that block.

    Each hypothesis has wider variants, which change all blocks: orders of the blocks, such as the
    reverse order, with which block `index` also has these tensors.
    """
    numbers = list(range(stack.depth))
    as_text = sorted(numbers, key=str)
    for other in numbers:
        if other == index:
            continue
        exchanged = [{index: other, other: index}.get(i, i) for i in numbers]
        rotated = [(i + other - index) % stack.depth for i in numbers]
        orders = {
            "sorted as text (1, 10, 11, 2)": as_text,
            "in reverse order": numbers[::-1],
            "rotated, so that they begin with another block": rotated,
            "shifted back by one, with the first block twice": [0, *numbers[:-1]],
            "shifted forward by one, with the last block twice": [*numbers[1:], numbers[-1]],
            f"exchanged: {index} and {other}": exchanged,
        }
        fitting = {words: order for words, order in orders.items() if order[index] == other}

        def wider(fitting: dict[str, list[int]] = fitting) -> Sequence[Hypothesis]:
            return [
                Hypothesis(
                    "blocks",
                    f"the blocks of the {stack.name} are {words}",
                    _copies_of_blocks(model, stack, dict(enumerate(order))),
                )
                for words, order in fitting.items()
            ]

        text = f"block {index} of the {stack.name} has the tensors of block {other}"
        edits = _copies_of_blocks(model, stack, {index: other})
        yield Hypothesis("blocks", text, edits).widened(wider)


def _copies_of_blocks(
    model: Model, stack: Stack, sources: dict[int, int]
) -> tuple[WeightEdit, ...]:
    return tuple(
        copy_tensor(f"{stack.block(i)}.{part}", f"{stack.block(j)}.{part}")
        for i, j in sources.items()
        if i != j
        for part in BLOCK_TENSORS
        if f"{stack.block(i)}.{part}" in model.shapes
    )


PARTS = ("q", "k", "v")
KINDS_OF_LEAVES = ((LEAVES, "weights and biases"), (("weight",), "weights"), (("bias",), "biases"))
# Descriptions of a fused matrix that is read in a wrong order, by operation and by whether the
# groups of the operation are rows instead of heads.
FUSED = {
    ("fused_as_groups", False): "(heads, 3, channels) instead of the order (3, heads, channels)",
    ("split_as_groups", False): "(3, heads, channels) instead of the order (heads, 3, channels)",
    ("fused_as_groups", True): "(channels, 3) instead of the order (3, channels)",
    ("split_as_groups", True): "(3, channels) instead of the order (channels, 3)",
}


def qkv_hypotheses(model: Model, stack: Stack, index: int) -> Iterator[Hypothesis]:
    """Yield hypotheses about changes that affect q, k and v of a block together."""
    yield from _in_other_order(model, stack, index)
    yield from _wrongly_fused(model, stack, index)
    yield from _same_for_all(model, stack, index)
    yield from _reordered_heads(model, stack, index)


def _in_other_order(model: Model, stack: Stack, index: int) -> Iterator[Hypothesis]:
    for order in list(permutations(PARTS))[1:]:
        for leaves, which in KINDS_OF_LEAVES:

            def make(
                s: Stack, i: int, order: tuple[str, ...] = order, leaves: Sequence[str] = leaves
            ) -> Sequence[WeightEdit]:
                attention = f"{s.block(i)}.attention"
                pairs = [(a, b) for a, b in zip(PARTS, order, strict=True) if a != b]
                return [
                    copy_tensor(f"{attention}.{a}.{leaf}", f"{attention}.{b}.{leaf}")
                    for a, b in pairs
                    for leaf in leaves
                    if f"{attention}.{a}.{leaf}" in model.shapes
                ]

            others = ", ".join(order)

            def what(block: str, which: str = which, others: str = others) -> str:
                return f"the {which} of {block}attention.q, k, v are the {which} of {others}"

            yield from in_blocks(model, stack, index, "q, k, v order", what, make)


def _wrongly_fused(model: Model, stack: Stack, index: int) -> Iterator[Hypothesis]:
    for ((operation, by_row), text), (leaves, which) in product(FUSED.items(), KINDS_OF_LEAVES):

        def make(
            s: Stack,
            i: int,
            operation: str = operation,
            by_row: bool = by_row,
            leaves: Sequence[str] = leaves,
        ) -> Sequence[WeightEdit]:
            attention = f"{s.block(i)}.attention"
            return [
                WeightEdit(
                    f"{attention}.{part}.{leaf}",
                    operation,
                    tuple(f"{attention}.{p}.{leaf}" for p in PARTS),
                    {"part": number, "groups": s.width if by_row else s.heads},
                )
                for number, part in enumerate(PARTS)
                for leaf in leaves
            ]

        def what(block: str, which: str = which, text: str = text) -> str:
            return (
                f"the {which} of {block}attention.q, k, v are read from a fused matrix in the order"
                f" {text}"
            )

        yield from in_blocks(model, stack, index, "q, k, v order", what, make)


def _same_for_all(model: Model, stack: Stack, index: int) -> Iterator[Hypothesis]:
    """Yield hypotheses that q, k and v are changed in the same way."""
    for leaf in LEAVES:
        key = f"{stack.block(index)}.attention.k.{leaf}"
        for self_edit in self_edits(model, key) if key in model.shapes else ():
            if self_edit.key == "scale":  # a factor that cancels if it is applied to both q and k
                continue

            def make(
                s: Stack, i: int, leaf: str = leaf, what: str = self_edit.description
            ) -> Sequence[WeightEdit]:
                names = [f"{s.block(i)}.attention.{part}.{leaf}" for part in PARTS]
                return [
                    h.on(n) for n in names for h in self_edits(model, n) if h.description == what
                ]

            def what(block: str, leaf: str = leaf, end: str = self_edit.description) -> str:
                return f"each {leaf} of {block}attention.q, k, v {end}"

            yield from in_blocks(model, stack, index, self_edit.key, what, make)


def _reordered_heads(model: Model, stack: Stack, index: int) -> Iterator[Hypothesis]:
    """Yield hypotheses that the attention heads of a block are in a wrong order.

    The channels of q, k and v are reordered, alone or together with the input channels of the
    output layer; see `weight_edits.head_orders`.
    """
    for words in weight_edits.head_orders(stack.width, stack.heads):
        for output in (False, True):

            def make(
                s: Stack, i: int, words: str = words, output: bool = output
            ) -> Sequence[WeightEdit]:
                order = weight_edits.head_orders(s.width, s.heads).get(words)
                if order is None:
                    return []
                block = f"{s.block(i)}.attention"
                rows = [(f"{block}.{part}.{leaf}", 0) for part in PARTS for leaf in LEAVES]
                columns = [(f"{block}.output.weight", 1)] if output else []
                return [
                    WeightEdit(name, "reordered", (name,), {"axis": axis, "order": order.tolist()})
                    for name, axis in rows + columns
                    if name in model.shapes
                ]

            all_of = "q, k, v and the output" if output else "q, k, v"

            def what(block: str, all_of: str = all_of, words: str = words) -> str:
                return f"{block}attention has the channels of {all_of} {words}"

            yield from in_blocks(model, stack, index, "heads", what, make)
