"""Faults in mapping tables: mistakes in a row that a maintainer might make."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mae_convert.errors import LayoutError
from mae_convert.layouts.table import Repeat, Row, Table, braces
from mae_convert.layouts.transforms import Fuse, Permute, Same, SplitHeads, WithoutBatch

Rows = tuple[Row | Repeat, ...]


@dataclass(frozen=True)
class TableFault:
    """A table with one row that is wrong."""

    name: str
    table: Table


@dataclass(frozen=True)
class FuseByHead(Fuse):
    """Joins q, k and v as (heads, 3, channels), as some programs do."""

    heads: int = 1

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        apart = np.stack([a.reshape(self.heads, -1, *a.shape[1:]) for a in arrays], axis=1)
        return apart.reshape(-1, *arrays[0].shape[1:])

    def read(self, array: np.ndarray) -> list[np.ndarray]:
        apart = array.reshape(self.heads, self.parts, -1, *array.shape[1:])
        return [
            np.ascontiguousarray(apart[:, part]).reshape(-1, *array.shape[1:])
            for part in range(self.parts)
        ]


@dataclass(frozen=True)
class Reshape(Permute):
    """Reshapes an array whose axes have to be permuted."""

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return arrays[0].reshape(self.write_shape([arrays[0].shape]))

    def read(self, array: np.ndarray) -> list[np.ndarray]:
        return [array.reshape(self.read_shapes(array.shape)[0])]


@dataclass(frozen=True)
class HeadsInsideOut(SplitHeads):
    """Splits the channels as (channels, heads) instead of (heads, channels)."""

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return super().write([self._reordered(arrays[0], undo=False)])

    def read(self, array: np.ndarray) -> list[np.ndarray]:
        return [self._reordered(super().read(array)[0], undo=True)]

    def _reordered(self, array: np.ndarray, *, undo: bool) -> np.ndarray:
        array = array.T if self.kind == "output" else array
        sizes = (-1, self.heads) if undo else (self.heads, -1)
        turned = array.reshape(*sizes, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
        return turned.T if self.kind == "output" else turned


def table_faults(table: Table) -> Iterator[TableFault]:
    """Yield the table with each single fault in one row."""
    for location, row in _rows(table.rows):
        for what, rows in _faulty(row):
            yield from _built(table, f"{row.external or row.canonical}: {what}", location, rows)
    for location, (first, second) in _pairs(table.rows):
        one, other = (
            replace(first, canonical=second.canonical),
            replace(second, canonical=first.canonical),
        )
        name = f"{first.external} and {second.external} exchanged"
        yield from _built(table, name, location, (one, other))


RowPosition = tuple[int, int | None, int]  # row or group, row in it, how many


def _rows(rows: Rows) -> Iterator[tuple[RowPosition, Row]]:
    for index, row in enumerate(rows):
        if isinstance(row, Repeat):
            for inner, part in enumerate(row.rows):
                yield (index, inner, 1), part
        else:
            yield (index, None, 1), row


def _pairs(rows: Rows) -> Iterator[tuple[RowPosition, tuple[Row, Row]]]:
    """Yield consecutive rows that have the same transform."""
    for (location, first), (after, second) in zip(_rows(rows), list(_rows(rows))[1:], strict=False):
        together = (location[0] == after[0]) == (location[1] is not None)
        alike = len(braces(first.canonical)) == len(braces(second.canonical))
        if together and alike and first.transform == second.transform:
            yield (*location[:2], 2), (first, second)


def _built(table: Table, name: str, location: RowPosition, rows: Rows) -> Iterator[TableFault]:
    index, inner, count = location
    if inner is None:
        changed = (*table.rows[:index], *rows, *table.rows[index + count :])
    else:
        group = table.rows[index]
        parts = (*group.rows[:inner], *rows, *group.rows[inner + count :])
        changed = (*table.rows[:index], replace(group, rows=parts), *table.rows[index + 1 :])
    try:
        yield TableFault(f"{table.name} ({'/'.join(table.tasks)}) {name}",
                         Table(table.name, table.tasks, changed, table.drops))  # fmt: skip
    except LayoutError:  # the table itself refuses it
        return


def _faulty(row: Row) -> Iterator[tuple[str, Rows]]:
    transform = row.transform
    if isinstance(transform, Permute):
        yield "not permuted", (replace(row, transform=Same()),)
        yield "reshaped", (replace(row, transform=Reshape(transform.axes)),)
        if len(transform.axes) == 4:
            other = tuple(transform.axes[i] for i in (1, 0, 2, 3))
            yield "height and width exchanged", (replace(row, transform=Permute(other)),)
        if len(transform.axes) == 5:
            for places, what in (
                ((0, 2, 1, 3, 4), "height and width"),
                ((1, 0, 2, 3, 4), "time and height"),
            ):
                other = tuple(transform.axes[i] for i in places)
                yield f"{what} exchanged", (replace(row, transform=Permute(other)),)
    if isinstance(transform, Fuse):
        for heads, what in ((3, "by encoder heads"), (2, "by decoder heads")):
            yield f"fused {what}", (replace(row, transform=FuseByHead(transform.parts, heads)),)
    if isinstance(transform, SplitHeads):
        yield (
            "heads inside out",
            (replace(row, transform=HeadsInsideOut(transform.kind, transform.heads)),),
        )
    if isinstance(transform, Same):
        yield from _transposed(row)
    yield from _renamed(row)
    assert isinstance(transform, Permute | Fuse | SplitHeads | Same | WithoutBatch)


def _transposed(row: Row) -> Iterator[tuple[str, Rows]]:
    """Yield the row with its weights transposed, and its biases unchanged."""
    if row.canonical.endswith(".weight"):
        yield "transposed", (replace(row, transform=Permute((1, 0))),)
    elif row.canonical.endswith(".{weight,bias}") and row.external.endswith(".{weight,bias}"):
        weight, bias = (
            replace(
                row,
                canonical=row.canonical.removesuffix("{weight,bias}") + leaf,
                external=row.external.removesuffix("{weight,bias}") + leaf,
            )
            for leaf in ("weight", "bias")
        )
        yield "transposed", (replace(weight, transform=Permute((1, 0))), bias)


def _renamed(row: Row) -> Iterator[tuple[str, Rows]]:
    """Yield the row with the names in its canonical braces in another order."""
    orders = {
        "{q,k,v}": ("{k,q,v}", "{q,v,k}", "{v,k,q}", "{k,v,q}"),
        "{q,k,v,output}": ("{k,q,v,output}", "{q,k,output,v}", "{output,k,v,q}"),
        "{fc1,fc2}": ("{fc2,fc1}",),
        "{weight,bias}": ("{bias,weight}",),
    }
    for names, others in orders.items():
        if names in row.canonical:
            for other in others:
                canonical = row.canonical.replace(names, other)
                yield f"{names} named {other}", (replace(row, canonical=canonical),)
