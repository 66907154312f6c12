"""The algebra of mapping tables: rows that carry both directions, expanded and checked.

A table is a tuple of rows in the external layout's own order. ``#`` stands for a block's index,
``[_#]`` for one that the first block lacks (``block``, ``block_1``, ...), and
``{a,b}`` for one of several names: in both columns it makes one row per name, in the canonical
column alone it makes a row that joins several canonical tensors into one external tensor.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Protocol

import numpy as np

from mae_convert.canonical import Schema, Shape
from mae_convert.containers.messages import shown
from mae_convert.containers.slicing import Joined, Rows, Sliceable, Turned
from mae_convert.containers.tensor import LazyTensor
from mae_convert.errors import LayoutError

NUMBER = re.compile(r"[0-9]+")
ANY = "*"


class Transform(Protocol):
    """An invertible map from canonical arrays to one external array."""

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return the external array made of canonical ones."""

    def read(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the canonical arrays that an external one holds."""

    def write_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the external shape for canonical shapes."""

    def read_shapes(self, shape: Shape) -> list[Shape]:
        """Return the canonical shapes for an external shape; LayoutError if it cannot be."""

    def write_parts(self, parts: Sequence[Sliceable], shape: Shape) -> Sliceable | None:
        """Return a way to parts of the external array, or None if it can only be made whole."""

    def read_parts(self, whole: Sliceable, shapes: Sequence[Shape]) -> list[Sliceable] | None:
        """Return ways to parts of the canonical arrays, or None if they can only be had whole."""


class _Whole:
    """What a transform that needs its arrays whole says of parts."""

    def write_parts(self, parts: Sequence[Sliceable], shape: Shape) -> Sliceable | None:  # noqa: ARG002
        """Return None."""
        return None

    def read_parts(self, whole: Sliceable, shapes: Sequence[Shape]) -> list[Sliceable] | None:  # noqa: ARG002
        """Return None."""
        return None


@dataclass(frozen=True)
class Same:
    """The external tensor is the canonical one."""

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return the one array."""
        return arrays[0]

    def read(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the one array."""
        return [array]

    def write_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the one shape."""
        return shapes[0]

    def read_shapes(self, shape: Shape) -> list[Shape]:
        """Return the one shape."""
        return [shape]

    def write_parts(self, parts: Sequence[Sliceable], shape: Shape) -> Sliceable:  # noqa: ARG002
        """Return the one way."""
        return parts[0]

    def read_parts(self, whole: Sliceable, shapes: Sequence[Shape]) -> list[Sliceable]:  # noqa: ARG002
        """Return the one way."""
        return [whole]

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True)
class Permute:
    """Reorder the axes: external axis ``i`` is canonical axis ``axes[i]``."""

    axes: tuple[int, ...]

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return the transposed view."""
        return arrays[0].transpose(self.axes)

    def read(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the view transposed back."""
        return [array.transpose(self._inverse())]

    def write_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the canonical shape with its axes reordered."""
        return tuple(shapes[0][axis] for axis in self.axes)

    def read_shapes(self, shape: Shape) -> list[Shape]:
        """Return the external shape with its axes put back."""
        if len(shape) != len(self.axes):
            raise LayoutError(f"{len(self.axes)} dimensions are needed, not shape {shape}")
        return [tuple(shape[axis] for axis in self._inverse())]

    def write_parts(self, parts: Sequence[Sliceable], shape: Shape) -> Sliceable | None:
        """Return rows as columns and the other way round, for a matrix."""
        return Turned(shape, parts[0].dtype, parts[0]) if self.axes == (1, 0) else None

    def read_parts(self, whole: Sliceable, shapes: Sequence[Shape]) -> list[Sliceable] | None:
        """Return rows as columns and the other way round, for a matrix."""
        return [Turned(shapes[0], whole.dtype, whole)] if self.axes == (1, 0) else None

    def _inverse(self) -> tuple[int, ...]:
        return tuple(self.axes.index(axis) for axis in range(len(self.axes)))

    def __str__(self) -> str:
        return "transpose" if self.axes == (1, 0) else f"permute{self.axes}"


@dataclass(frozen=True)
class Fuse:
    """Join ``parts`` canonical tensors of equal shape along the first axis."""

    parts: int

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return the parts, one after the other."""
        return np.concatenate(arrays)

    def read(self, array: np.ndarray) -> list[np.ndarray]:
        """Return equal views, in order."""
        size = array.shape[0] // self.parts
        return [array[index * size : (index + 1) * size] for index in range(self.parts)]

    def write_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the shape of the joined tensor."""
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def read_shapes(self, shape: Shape) -> list[Shape]:
        """Return the shapes of the parts."""
        if not shape or shape[0] % self.parts:
            raise LayoutError(f"shape {shape} cannot be split into {self.parts} equal parts")
        return [(shape[0] // self.parts, *shape[1:])] * self.parts

    def write_parts(self, parts: Sequence[Sliceable], shape: Shape) -> Sliceable:
        """Return the parts, one after the other."""
        return Joined(shape, parts[0].dtype, parts)

    def read_parts(self, whole: Sliceable, shapes: Sequence[Shape]) -> list[Sliceable]:
        """Return equal stretches of rows, in order."""
        starts = (index * shape[0] for index, shape in enumerate(shapes))
        return [
            Rows(shape, whole.dtype, whole, start)
            for shape, start in zip(shapes, starts, strict=True)
        ]

    def __str__(self) -> str:
        return f"fuse {self.parts}"


@dataclass(frozen=True)
class SplitHeads(_Whole):
    """Attention heads as an axis of their own, as Keras's multi-head attention keeps them.

    Attributes:
        kind: "kernel" for a projection (heads * d, width) kept as (width, heads, d), "bias" for
            (heads * d,) kept as (heads, d), "output" for (width, heads * d) kept as
            (heads, d, width).
        heads: number of heads; 0 until the table is bound to a model.
    """

    kind: str
    heads: int = 0

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return the array with its heads apart."""
        turned = arrays[0] if self.kind == "bias" else arrays[0].T
        return turned.reshape(self.write_shape([arrays[0].shape]))

    def read(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the array with its heads joined."""
        (shape,) = self.read_shapes(array.shape)
        return [array.reshape(shape) if self.kind == "bias" else array.reshape(shape[::-1]).T]

    def write_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the shape with the heads apart; LayoutError if they do not divide it."""
        joined = shapes[0][-1] if self.kind == "output" else shapes[0][0]
        if not self.heads or joined % self.heads:
            raise LayoutError(f"{self.heads} heads do not divide a width of {joined}")
        apart = (self.heads, joined // self.heads)
        return {
            "kernel": (*shapes[0][1:], *apart),
            "bias": apart,
            "output": (*apart, *shapes[0][:-1]),
        }[self.kind]

    def read_shapes(self, shape: Shape) -> list[Shape]:
        """Return the shape with the heads joined."""
        rank = 2 if self.kind == "bias" else 3
        if len(shape) != rank:
            raise LayoutError(f"{rank} dimensions are needed, not shape {shape}")
        if self.kind == "bias":
            return [(shape[0] * shape[1],)]
        if self.kind == "kernel":
            return [(shape[1] * shape[2], shape[0])]
        return [(shape[2], shape[0] * shape[1])]

    def heads_in(self, shape: Shape) -> int:
        """Return the number of heads that an external shape tells."""
        return shape[1] if self.kind == "kernel" else shape[0]

    def __str__(self) -> str:
        return f"heads apart ({self.kind})"


@dataclass(frozen=True)
class WithoutBatch(_Whole):
    """The external tensor lacks the canonical one's first axis, which is 1."""

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return the array without its first axis."""
        return arrays[0][0]

    def read(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the array with an axis of one before the others."""
        return [array[None]]

    def write_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the shape without its first axis."""
        return shapes[0][1:]

    def read_shapes(self, shape: Shape) -> list[Shape]:
        """Return the shape with an axis of one before the others."""
        return [(1, *shape)]

    def __str__(self) -> str:
        return "without the first axis"


SAME = Same()
TRANSPOSE = Permute((1, 0))


@dataclass(frozen=True)
class Row:
    """One line of a table: canonical name(s), external name, and the transform between them."""

    canonical: str
    external: str
    transform: Transform = SAME


@dataclass(frozen=True)
class Repeat:
    """Rows that stand once for every block; ``#`` in the prefixes is the block's index."""

    canonical: str
    external: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Rule:
    """A row with its braces resolved and its prefix joined; ``#`` may still stand in it."""

    canonicals: tuple[str, ...]
    external: str
    transform: Transform

    def at(self, index: int) -> "Rule":
        """Return the rule for one block."""
        number = str(index)
        suffix = f"_{index}" if index else ""
        return replace(
            self,
            canonicals=tuple(name.replace("#", number) for name in self.canonicals),
            external=self.external.replace("[_#]", suffix).replace("#", number),
        )

    def bound(self, heads: int) -> "Rule":
        """Return the rule for a model with this number of attention heads."""
        if isinstance(self.transform, SplitHeads):
            return replace(self, transform=replace(self.transform, heads=heads))
        return self


@dataclass(frozen=True)
class Drop:
    """An external tensor that MAE does not use: read as nothing, and reported with the reason.

    Attributes:
        external: its name.
        why: the reason.
        zeros_like: a canonical tensor of the same shape, where the layout's own class insists on
            the tensor: it is then written as zeros, and reported as created.
    """

    external: str
    why: str
    zeros_like: str | None = None


@dataclass(frozen=True)
class Table:
    """A bijection between external and canonical names, for the tasks that it can hold.

    Raises:
        LayoutError: when built, if a row is malformed or a name stands in two rows.
    """

    name: str
    tasks: tuple[str, ...]
    rows: tuple[Row | Repeat, ...]
    drops: tuple[Drop, ...] = ()
    groups: tuple[tuple[Rule, ...], ...] = field(init=False, repr=False, compare=False)
    _by_skeleton: Mapping[str, Sequence[Rule]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        groups = tuple(tuple(_rules(row)) for row in self.rows)
        rules = list(itertools.chain.from_iterable(groups))
        _refuse_duplicates(self.name, (name for rule in rules for name in rule.canonicals))
        _refuse_duplicates(self.name, (rule.external for rule in rules))
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "_by_skeleton", _by_skeleton(rules))

    def expand(self, names: Iterable[str]) -> list[Rule]:
        """Return the rules for a set of canonical names, in the external layout's order.

        Raises:
            LayoutError: the table has no row for a name, or only some of a row's names are there.
        """
        wanted = set(names)
        depth = 1 + max(
            (int(n) for name in wanted for n in re.findall(r"\.(\d+)\.", name)), default=0
        )
        rules: list[Rule] = []
        for group in self.groups:
            repeated = any("#" in rule.external for rule in group)
            for index in range(depth if repeated else 1):
                rules += [
                    rule for rule in (r.at(index) for r in group) if wanted & set(rule.canonicals)
                ]
        covered = {name for rule in rules for name in rule.canonicals}
        if missing := sorted(wanted - covered):
            raise LayoutError(f"{self.name} has no place for {listed(missing)}")
        if partial := sorted(covered - wanted):
            raise LayoutError(f"{self.name} needs {listed(partial)} too")
        return rules

    def rule_for(self, external: str) -> Rule | None:
        """Return the rule for an external name, with block index and name filled in."""
        likely = self._by_skeleton.get(_skeleton(external), ())
        for rule in (*likely, *self._by_skeleton.get(ANY, ())):
            if match := _regex(rule.external).fullmatch(external):
                found = rule.at(int(match[1] or 0)) if match.groups() else rule
                return replace(found, external=external)
        return None

    def drop_for(self, external: str) -> Drop | None:
        """Return the Drop that names an external tensor as unused."""
        return next((d for d in self.drops if _regex(d.external).fullmatch(external)), None)


def _rules(row: Row | Repeat) -> Iterator[Rule]:
    if isinstance(row, Repeat):
        if row.canonical.count("#") != 1 or row.external.count("#") != 1:
            raise LayoutError(f"a repeated row needs one # on each side: {row.canonical!r}")
        for inner in row.rows:
            for rule in _rules(inner):
                yield Rule(
                    tuple(row.canonical + name for name in rule.canonicals),
                    row.external + rule.external,
                    rule.transform,
                )
        return
    canonicals, externals = braces(row.canonical), braces(row.external)
    if len(externals) == len(canonicals):
        for canonical, external in zip(canonicals, externals, strict=True):
            yield Rule((canonical,), external, row.transform)
    elif len(canonicals) % len(externals) == 0:
        # "{q,k,v}.{weight,bias}" against "qkv.{weight,bias}": the last braces run in step.
        step = len(externals)
        for index, external in enumerate(externals):
            yield Rule(tuple(canonicals[index::step]), external, row.transform)
    else:
        raise LayoutError(f"{row.canonical!r} and {row.external!r} do not pair up")


def braces(pattern: str) -> list[str]:
    """Return the names that a pattern with ``{a,b}`` stands for, in order."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [piece.split(",") if index % 2 else [piece] for index, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


@cache
def _regex(external: str) -> re.Pattern[str]:
    """Return the pattern of an external name.

    ``#`` is an index, ``[_#]`` one that the first block lacks, ``*`` one path component. An index
    of more than four digits is none: no model has so many blocks.
    """
    quoted = re.escape(external).replace(r"\[_\#\]", "(?:_([1-9][0-9]{0,3}))?")
    quoted = quoted.replace(r"\*", "[^/]+").replace(r"\#", "(0|[1-9][0-9]{0,3})", 1)
    return re.compile(quoted)


def _by_skeleton(rules: Iterable[Rule]) -> dict[str, list[Rule]]:
    """Return rules by what a name must be without its numbers; those of any name under `ANY`.

    So of the hundreds of rules only one or two are tried on a name.
    """
    found: dict[str, list[Rule]] = {}
    for rule in rules:
        if "*" in rule.external:
            found.setdefault(ANY, []).append(rule)
            continue
        for spelling in {rule.external.replace("[_#]", index) for index in ("_#", "")}:
            found.setdefault(_skeleton(spelling), []).append(rule)
    return found


@lru_cache(maxsize=1 << 14)
def _skeleton(name: str) -> str:
    return NUMBER.sub("#", name)


def _refuse_duplicates(table: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise LayoutError(f"{table}: {name} stands in two rows")
        seen.add(name)


def listed(names: Sequence[str], limit: int = 4) -> str:
    """Return names for a sentence, cut after a few."""
    first = ", ".join(map(shown, names[:limit]))
    return first if len(names) <= limit else f"{first} and {len(names) - limit} more"


def external_shapes(rules: Iterable[Rule], schema: Schema) -> dict[str, Shape]:
    """Return name and shape of every external tensor, in order, for canonical shapes."""
    return {
        rule.external: rule.transform.write_shape([schema[name] for name in rule.canonicals])
        for rule in rules
    }


def read_tensors(tensors: Mapping[str, LazyTensor], rules: Iterable[Rule]) -> dict[str, LazyTensor]:
    """Return lazy canonical tensors for the external ones that the rules name."""
    return {
        canonical.name: canonical
        for rule in rules
        for canonical in _read(rule, tensors[rule.external])
    }


def _read(rule: Rule, tensor: LazyTensor) -> Iterator[LazyTensor]:
    shapes = rule.transform.read_shapes(tensor.shape)
    parts = (
        rule.transform.read_parts(tensor.load, shapes)
        if isinstance(tensor.load, Sliceable)
        else None
    )
    for index, (name, shape) in enumerate(zip(rule.canonicals, shapes, strict=True)):

        def load(index: int = index) -> np.ndarray:
            return rule.transform.read(tensor.load())[index]

        yield LazyTensor(name, shape, tensor.dtype, parts[index] if parts else load)


def write_tensors(tensors: Mapping[str, LazyTensor], rules: Iterable[Rule]) -> list[LazyTensor]:
    """Return lazy external tensors, in the order of the rules.

    Raises:
        LayoutError: tensors that are to be joined have different dtypes.
    """
    return [_write(rule, [tensors[name] for name in rule.canonicals]) for rule in rules]


def _write(rule: Rule, parts: Sequence[LazyTensor]) -> LazyTensor:
    dtypes = sorted({str(part.dtype) for part in parts})
    if len(dtypes) > 1:
        raise LayoutError(
            f"{rule.external} joins tensors of different dtypes ({listed(dtypes)})"
            "; pass --dtype to make them one"
        )

    def load() -> np.ndarray:
        return rule.transform.write([part.load() for part in parts])

    shape = rule.transform.write_shape([part.shape for part in parts])
    ways = [part.load for part in parts if isinstance(part.load, Sliceable)]
    in_parts = rule.transform.write_parts(ways, shape) if len(ways) == len(parts) else None
    return LazyTensor(rule.external, shape, parts[0].dtype, in_parts or load)
