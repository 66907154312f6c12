"""Tables that map canonical tensors to the tensors of a layout, and back.

A canonical tensor has the name and shape that this project uses; an external tensor has the name
and shape of a layout. A table is a tuple of rows, in the order in which the library or program that
uses the layout stores the tensors. In the names, ``#`` is a block's index, ``[_#]`` is an
underscore and the index, or nothing for the first block (``block``, ``block_1``, ...), and
``{a,b}`` is a list of names. A list in both columns is expanded to one row per name; if only the
canonical column has a list, the canonical tensors in the list are fused into one external tensor.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from mae_convert.errors import LayoutError, Option
from mae_convert.files.sequential import Joined, SequentialArray, split
from mae_convert.formats.tensor import LazyTensor
from mae_convert.layouts.transforms import KEY_BIAS, SAME, Schema, Shape, SplitHeads, Transform
from mae_convert.text import listed

DIGITS = "[0-9]{0,2}"
"""A pattern of the digits that may follow the first digit of a block index: at most two."""

NUMBER = re.compile(rf"(?<![0-9])(0|[1-9]{DIGITS})(?![0-9])")
MOST_NUMBERS = 16
"""How many of the numbers in a tensor name are tried as the block index, at most."""


@dataclass(frozen=True)
class Row:
    """One row of a table: canonical name(s), external name, and the transform between them."""

    canonical: str
    external: str
    transform: Transform = SAME


@dataclass(frozen=True)
class Repeat:
    """Rows that are repeated for every block; ``#`` in the prefixes is the block's index."""

    canonical: str
    external: str
    rows: tuple[Row, ...]


class Rule(NamedTuple):
    """A row after its braces are expanded and the prefix of its `Repeat` is added.

    Names may still contain ``#``, which stands for the block's index.
    """

    canonicals: tuple[str, ...]
    external: str
    transform: Transform

    def at(self, index: int) -> "Rule":
        """Return the rule for one block: ``#`` in names is replaced by the index of the block."""
        number = str(index)
        suffix = f"_{index}" if index else ""
        return Rule(
            tuple(name.replace("#", number) for name in self.canonicals),
            self.external.replace("[_#]", suffix).replace("#", number),
            self.transform,
        )

    @property
    def keeps_bytes(self) -> bool:
        """Whether the external tensor has the same bytes as one canonical tensor."""
        return self.transform.in_order and len(self.canonicals) == 1

    def bound(self, heads: int) -> "Rule":
        """Return the rule for a model with this number of attention heads."""
        if isinstance(self.transform, SplitHeads):
            return self._replace(transform=replace(self.transform, heads=heads))
        return self


class Drop(NamedTuple):
    """An external tensor that MAE does not use; it is dropped, and reported with the reason."""

    external: str
    """The name of the tensor."""

    why: str
    """The reason for dropping the tensor."""

    zeros_like: str | None = None
    """The canonical name of a tensor of the same shape, if the library class that loads the layout
    requires the dropped tensor: the dropped tensor is then written as zeros, and reported as
    created. None if the class does not require it; the tensor is then not written."""


@dataclass(frozen=True)
class Table:
    """A bijection between external and canonical names, for the tasks that it supports.

    Raises:
        LayoutError: a row is malformed, or a name is in two rows.
    """

    name: str
    tasks: tuple[str, ...]
    rows: tuple[Row | Repeat, ...]
    drops: tuple[Drop, ...] = ()
    groups: tuple[tuple[Rule, ...], ...] = field(init=False, repr=False, compare=False)
    _by_template: Mapping[str, Rule] = field(init=False, repr=False, compare=False)
    _by_pattern: tuple[Rule, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        groups = tuple(tuple(_rules(row)) for row in self.rows)
        rules = list(itertools.chain.from_iterable(groups))
        _refuse_duplicates(self.name, (name for rule in rules for name in rule.canonicals))
        _refuse_duplicates(self.name, (rule.external for rule in rules))
        # Most names are looked up in a set, so that tables that do not match are rejected quickly.
        patterns = tuple(rule for rule in rules if set(rule.external) & set("[*"))
        templates = {rule.external: rule for rule in rules if rule not in patterns}
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "_by_template", templates)
        object.__setattr__(self, "_by_pattern", patterns)

    def expand(self, names: Iterable[str]) -> list[Rule]:
        """Return the rules for a set of canonical names, in the external layout's order.

        Raises:
            LayoutError: the table has no rule for a name, or `names` contains only some of the
                canonical names of a rule.
        """
        required = set(names)
        depth = 1 + max(
            (int(n) for name in required for n in re.findall(r"\.(\d+)\.", name)), default=0
        )
        rules: list[Rule] = []
        for group in self.groups:
            repeated = any("#" in rule.external for rule in group)
            for index in range(depth if repeated else 1):
                rules += [
                    rule for rule in (r.at(index) for r in group) if required & set(rule.canonicals)
                ]
        covered = {name for rule in rules for name in rule.canonicals}
        if missing := sorted(required - covered):
            raise LayoutError(f"{self.name} cannot store {listed(missing)}")
        if partial := sorted(covered - required):
            raise LayoutError(f"{self.name} needs {listed(partial)} too")
        return rules

    def holds(self, names: Iterable[str]) -> bool:
        """Return whether a model with exactly these canonical names can be stored by the table."""
        try:
            self.expand(names)
        except LayoutError:
            return False
        return True

    def rule_for(self, external: str) -> Rule | None:
        """Return the rule that maps an external name, or None if no rule does.

        In a rule for all blocks, ``#`` is replaced by the index of the block.
        """
        rule, index = self._matching(external)
        if rule is None:
            return None
        rule = rule if index is None else rule.at(index)
        return rule if rule.external == external else rule._replace(external=external)

    def _matching(self, external: str) -> tuple[Rule | None, int | None]:
        """Return the rule whose template matches an external name, and the index of the block.

        The rule is None if no template matches; the index is None if the template has no ``#``.
        """
        for template, index in _templates(external):
            if rule := self._by_template.get(template):
                return rule, index
        depth = external.count("/")
        for rule in self._by_pattern:
            if rule.external.count("/") != depth:
                continue
            if match := _regex(rule.external).fullmatch(external):
                return rule, int(match[1] or 0) if match.groups() else None
        return None, None

    @property
    def has_key_bias(self) -> bool:
        """Whether the blocks of the layout have a key bias."""
        rules = itertools.chain.from_iterable(self.groups)
        return any(KEY_BIAS.search(name) for rule in rules for name in rule.canonicals)

    def anchor(self, canonical: str) -> tuple[str, ...]:
        """Return the external names of a canonical tensor that does not belong to a block."""
        rules = itertools.chain.from_iterable(self.groups)
        return tuple(rule.external for rule in rules if canonical in rule.canonicals)

    @staticmethod
    def before(name: str, anchors: Iterable[str]) -> Iterator[str]:
        """Yield the part of `name` before each external name in `anchors` with which `name` ends.

        An external name is skipped if the part before it is not empty and does not end with a dot.
        An external name with ``*`` must match all of `name`; the part before it is then empty.
        """
        for anchor in anchors:
            if name.endswith(anchor) and name.removesuffix(anchor)[-1:] in ("", "."):
                yield name.removesuffix(anchor)
            elif "*" in anchor and _regex(anchor).fullmatch(name):
                yield ""

    def has_external(self, external: str) -> bool:
        """Return whether an external name is in a row, or is the name of a dropped tensor."""
        return self._matching(external)[0] is not None or self.drop_for(external) is not None

    def drop_for(self, external: str) -> Drop | None:
        """Return the table's `Drop` entry for a tensor that MAE does not use, or None."""
        return next((d for d in self.drops if _regex(d.external).fullmatch(external)), None)


def _rules(row: Row | Repeat) -> Iterator[Rule]:
    if isinstance(row, Repeat):
        if row.canonical.count("#") != 1 or row.external.count("#") != 1:
            raise LayoutError(f"a repeated row needs one # in each column: {row.canonical!r}")
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
        # "{q,k,v}.{weight,bias}" with "qkv.{weight,bias}": the last braces are expanded together.
        step = len(externals)
        for index, external in enumerate(externals):
            yield Rule(tuple(canonicals[index::step]), external, row.transform)
    else:
        raise LayoutError(f"{row.canonical!r} and {row.external!r} do not correspond")


def braces(pattern: str) -> list[str]:
    """Return the names that a pattern with ``{a,b}`` expands to, in order."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [piece.split(",") if index % 2 else [piece] for index, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


@lru_cache(maxsize=1 << 15)  # many tables look up the same names
def _templates(external: str) -> tuple[tuple[str, int | None], ...]:
    """Return the names of rows that may match an external name, each with the block index.

    The first item is the unchanged name, with the index None; it is omitted if the name contains
    ``#``. Then there is one item for each of the first `MOST_NUMBERS` numbers in the name: the name
    with ``#`` instead of the number, and the number as the block index.
    """
    numbers = itertools.islice(NUMBER.finditer(external), MOST_NUMBERS)
    indexed = tuple((f"{external[: n.start()]}#{external[n.end() :]}", int(n[0])) for n in numbers)
    return indexed if "#" in external else ((external, None), *indexed)


@cache
def _regex(external: str) -> re.Pattern[str]:
    """Return the regular expression for an external name in a row.

    ``#`` matches a block index. ``[_#]`` matches an underscore and a block index, or, for the first
    block, nothing. ``*`` matches one component of a path.
    """
    quoted = re.escape(external).replace(r"\[_\#\]", f"(?:_([1-9]{DIGITS}))?")
    quoted = quoted.replace(r"\*", "[^/]+").replace(r"\#", f"(0|[1-9]{DIGITS})", 1)
    return re.compile(quoted)


def _refuse_duplicates(table: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise LayoutError(f"{table}: {name} is in two rows")
        seen.add(name)


def external_shapes(rules: Iterable[Rule], schema: Schema) -> dict[str, Shape]:
    """Return the name and shape of each external tensor, in the order of the rules.

    Args:
        rules: the rules of all canonical tensors.
        schema: the name and shape of each canonical tensor.
    """
    return {
        rule.external: rule.transform.write_shape([schema[name] for name in rule.canonicals])
        for rule in rules
    }


def read_tensors(tensors: Mapping[str, LazyTensor], rules: Iterable[Rule]) -> dict[str, LazyTensor]:
    """Return the canonical tensors, by name, that the external tensors contain.

    Args:
        tensors: the external tensors by name.
        rules: the mapping rules, each of which states the canonical tensors that one external
            tensor contains.
    """
    return {
        canonical.name: canonical
        for rule in rules
        for canonical in _read(rule, tensors[rule.external])
    }


def _read(rule: Rule, tensor: LazyTensor) -> Iterator[LazyTensor]:
    shapes = rule.transform.read_shapes(tensor.shape)
    if rule.transform.in_order and isinstance(tensor.load, SequentialArray):
        parts = split(tensor.load, shapes)
        for name, shape, part in zip(rule.canonicals, shapes, parts, strict=True):
            yield LazyTensor(name, shape, tensor.dtype, part)
        return
    for index, (name, shape) in enumerate(zip(rule.canonicals, shapes, strict=True)):

        def load(index: int = index) -> np.ndarray:
            return rule.transform.read(tensor.load())[index]

        yield LazyTensor(name, shape, tensor.dtype, load)


def write_tensors(tensors: Mapping[str, LazyTensor], rules: Iterable[Rule]) -> list[LazyTensor]:
    """Return the external tensors, in the order of the rules.

    Args:
        tensors: the canonical tensors by name.
        rules: the rules of the canonical tensors.

    Raises:
        LayoutError: tensors to be fused have different dtypes.
    """
    return [_write(rule, [tensors[name] for name in rule.canonicals]) for rule in rules]


def _write(rule: Rule, parts: Sequence[LazyTensor]) -> LazyTensor:
    dtypes = {part.dtype for part in parts}
    if len(dtypes) > 1:
        names = sorted(map(str, dtypes))
        raise LayoutError(
            f"{rule.external} fuses tensors of different dtypes ({listed(names)})",
            hint=("pass ", Option("dtype"), " to convert them to the same dtype"),
        )

    def load() -> np.ndarray:
        return rule.transform.write([part.load() for part in parts])

    shape = rule.transform.write_shape([part.shape for part in parts])
    arrays = [part.load for part in parts if isinstance(part.load, SequentialArray)]
    if rule.transform.in_order and len(arrays) == len(parts):
        return LazyTensor(
            rule.external, shape, parts[0].dtype, Joined(shape, parts[0].dtype, arrays)
        )
    return LazyTensor(rule.external, shape, parts[0].dtype, load)
