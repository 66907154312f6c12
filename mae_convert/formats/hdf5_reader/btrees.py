"""B-trees: version 1 indexes groups and chunks, and version 2 indexes links and attributes."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mae_convert.formats.hdf5_reader.cursor import Cursor
from mae_convert.formats.hdf5_reader.objects import Structure

DEEPEST = 16
GROUP, CHUNKS = 0, 1


Order = Callable[[bytes], tuple[int, ...]]
Bounds = tuple[tuple[int, ...], tuple[int, ...]]


def old_tree(
    structure: Structure, address: int, kind: int, key_width: int, order: Order | None = None
) -> Iterator[tuple[bytes, int]]:
    """Yield the key and the address of each entry of a version 1 tree, in order (section III.A.1).

    Args:
        structure: the file.
        address: the address of the root.
        kind: the number of the tree's type in the HDF5 format.
        key_width: the number of bytes of a key.
        order: returns the sort key of a key; None if the order of the keys is not checked. A tree
            whose keys are not sorted is refused, because the HDF5 library would not find all keys
            in it and would read other data.

    Raises:
        ValueError: there is no tree of this type at the address, it contains a cycle, or its keys
            are not sorted.
    """

    def visit(
        address: int, depth: int, level: int | None, bounds: Bounds | None
    ) -> Iterator[tuple[bytes, int]]:
        head = structure.at(address, 24)
        head.expect(b"TREE")
        if head.number(1) != kind:
            raise ValueError("a B-tree of an unexpected type")
        signature, count = head.number(1), head.number(2)
        if level is not None and signature != level:
            raise ValueError("a B-tree node of an unexpected level")
        if depth > DEEPEST:
            raise ValueError("a B-tree with a cycle")
        node = structure.at(address + 24, (key_width + 8) * count + key_width)
        keys, children = [node.take(key_width)], []
        for _ in range(count):
            children.append(node.address())
            keys.append(node.take(key_width))
        ordered = [order(key) for key in keys] if order else []
        if any(a >= b for a, b in itertools.pairwise(ordered)) or (
            bounds and ordered and not bounds[0] <= ordered[0] <= ordered[-1] <= bounds[1]
        ):
            raise ValueError("a B-tree that is not sorted")
        for number, child in enumerate(children):
            if signature:
                between = (ordered[number], ordered[number + 1]) if order else None
                yield from visit(child, depth + 1, signature - 1, between)
            else:
                yield keys[number], child

    return visit(address, 0, None, None)


def new_tree(structure: Structure, address: int, kinds: tuple[int, ...]) -> Iterator[bytes]:
    """Yield the records of a tree of version 2, in order (section III.A.2).

    Raises:
        ValueError: there is no tree of one of the types `kinds` at the address, or the tree
            contains a cycle.
    """
    head = structure.at(address, 38)
    head.expect(b"BTHD")
    head.version(0)
    if head.number(1) not in kinds:
        raise ValueError("a B-tree of an unexpected type")
    node_size, record_size, depth = head.number(4), head.number(2), head.number(2)
    head.take(2)
    root, count = head.address(), head.number(2)
    if not (record_size and 64 <= node_size <= 1 << 20 and depth <= DEEPEST):
        raise ValueError("a B-tree of an invalid shape")
    widths = _pointer_widths(node_size, record_size, depth)
    return _records(_NewTree(structure, record_size, widths), root, count, depth)


@dataclass(frozen=True)
class _NewTree:
    structure: Structure
    record_size: int
    widths: list[tuple[int, int]]


def _pointer_widths(node_size: int, record_size: int, depth: int) -> list[tuple[int, int]]:
    """Return, for each level, the sizes in bytes of the two counts that a node stores for a child.

    The first count is the number of records in the child. The second is the number of records in
    the child and all nodes below the child. The sizes depend on how many records fit into a node.
    """
    most = (node_size - 10) // record_size
    width, total, widths = _width(most), most, [(0, 0)]
    total_width = 0
    for _ in range(depth):
        widths.append((width, total_width))
        pointer = 8 + width + total_width
        most = (node_size - 10 - pointer) // (record_size + pointer)
        total = (most + 1) * total + most
        total_width = _width(total)
    return widths


def _width(number: int) -> int:
    return (max(number, 1).bit_length() + 7) // 8


def _records(tree: _NewTree, address: int, count: int, height: int) -> Iterator[bytes]:
    if count == 0:
        return
    pointer = 8 + sum(tree.widths[height]) if height else 0
    size = 6 + count * tree.record_size + (count + 1) * pointer
    node = tree.structure.at(address, size)
    node.expect(b"BTIN" if height else b"BTLF")
    node.version(0)
    node.take(1)
    records = [node.take(tree.record_size) for _ in range(count)]
    if not height:
        yield from records
        return
    yield from _below(tree, node, height)
    for record in records:
        yield record
        yield from _below(tree, node, height)


def _below(tree: _NewTree, node: Cursor, height: int) -> Iterator[bytes]:
    """Read a node's reference to its next child, and yield the records in and below this child.

    Args:
        tree: the tree.
        node: the node, at the position of the reference.
        height: the height of the node above the leaves, at least 1.
    """
    address, count = node.address(), node.number(tree.widths[height][0])
    node.take(tree.widths[height][1])
    yield from _records(tree, address, count, height - 1)
