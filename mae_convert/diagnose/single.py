"""What may have happened to one tensor by itself, on the way from one file to another."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mae_convert.canonical import Shape
from mae_convert.diagnose import orders
from mae_convert.diagnose.edits import Change
from mae_convert.diagnose.hypothesis import Model


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
        found = orders.of_pixels(*config.patch_hw, config.num_channels)
        yield from _taken("pixel order", "predicts patches", found, axis=0)
    yield from _values(name, shape)


def _taken(key: str, what: str, found: orders.Orders, *, axis: int) -> Iterator[Happening]:
    for words, order in found.items():
        options = {"axis": axis, "order": order.tolist()}
        yield Happening(key, f"{what} {words}", "taken", options)


def _heads(model: Model, name: str, *, axis: int) -> Iterator[Happening]:
    stack = model.stack(name.partition(".")[0])
    found = orders.of_heads(stack.width, stack.heads)
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
    yield from _taken("positions", "is", orders.of_places(*grid), axis=1)
    yield from _taken("positions", "is", orders.of_sines(shape[2]), axis=2)
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
