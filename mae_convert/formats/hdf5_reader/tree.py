"""The groups and datasets of a file, by their names.

See sections III.B, III.C and IV.A.2.g of the HDF5 File Format Specification.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mae_convert.errors import CheckpointError
from mae_convert.files.byte_ranges import ByteFile
from mae_convert.formats.hdf5_reader.btrees import GROUP, new_tree, old_tree
from mae_convert.formats.hdf5_reader.cursor import Cursor
from mae_convert.formats.hdf5_reader.datasets import Dataset, read_dataset
from mae_convert.formats.hdf5_reader.heaps import fractal_heap, local_heap
from mae_convert.formats.hdf5_reader.objects import (
    ATTRIBUTE,
    ATTRIBUTE_INFO,
    DATATYPE,
    LAYOUT,
    LINK,
    LINK_INFO,
    SYMBOL_TABLE,
    Message,
    Structure,
    defined,
    root_address,
)
from mae_convert.formats.hdf5_reader.types import Attribute, read_attribute
from mae_convert.text import shown

DEEPEST = 32
COST_OF_A_NAME = 1 << 12
SOFT_CACHE = 2
HARD = 0
BY_NAME, BY_ORDER = 0, 1
LINK_TREES, ATTRIBUTE_TREES = (5, 6), (8, 9)


@dataclass(frozen=True)
class Tree:
    """The datasets and attributes of a file; their paths have no leading slash."""

    structure: Structure
    datasets: dict[str, Dataset] = field(default_factory=dict)
    """The datasets by path, in the order of the file, depth first."""

    attributes: dict[str, Mapping[str, Attribute]] = field(default_factory=dict)
    """Maps the path of a group or dataset (empty for the root group) to its attributes by name."""

    def text(self, path: str, name: str) -> str | None:
        """Return the value of an attribute; None if it is missing or is not a single text."""
        attribute = self.attributes[path].get(name)
        return None if attribute is None else attribute.text(self.structure)

    def texts(self, path: str, name: str) -> list[str]:
        """Return the elements of an attribute; an empty list if it is missing or is not text."""
        attribute = self.attributes[path].get(name)
        return (attribute.texts(self.structure) if attribute else None) or []


@dataclass(frozen=True)
class _Link:
    name: str
    address: int
    order: int


def read_tree(file: ByteFile) -> Tree:
    """Read the structure of a file; the values of datasets are not read.

    Raises:
        ValueError, KeyError, UnicodeError: the file is corrupt.
        CheckpointError: the file is truncated, or refers to another file.
    """
    tree = Tree(Structure(file))
    _enter(tree, "", root_address(tree.structure), set(), 0)
    return tree


def _enter(tree: Tree, path: str, address: int, groups: set[int], depth: int) -> None:
    messages = tree.structure.messages(address)
    kinds = {message.kind for message in messages}
    tree.structure.spend(COST_OF_A_NAME + sum(len(message.data) for message in messages))
    attributes = list(_attributes(tree.structure, messages))
    tree.attributes[path] = {attribute.name: attribute for attribute in attributes}
    if len(tree.attributes[path]) != len(attributes):
        raise ValueError(f"an attribute of {path or 'the root'} is defined twice")
    if LAYOUT in kinds and path:
        tree.datasets[path] = read_dataset(tree.structure, path, messages)
        return
    if DATATYPE in kinds:  # a named (committed) datatype
        return
    if address in groups or depth > DEEPEST:  # a short file whose paths have no end
        raise ValueError(f"the group {path} has two names")
    groups.add(address)
    for link in _links(tree.structure, path, messages):
        _enter(tree, f"{path}/{link.name}".lstrip("/"), link.address, groups, depth + 1)


def _links(structure: Structure, path: str, messages: tuple[Message, ...]) -> list[_Link]:
    """Return the links of a group, in creation order if the file records it, else by name."""
    links: list[_Link] = []
    if sum(message.kind in (SYMBOL_TABLE, LINK_INFO) for message in messages) > 1:
        raise ValueError(f"the group {path} has two lists of members")
    for message in messages:
        if message.kind == SYMBOL_TABLE:
            links += _symbols(structure, path, Cursor(message.data))
        elif message.kind == LINK:
            links.append(_link(structure, path, message.data))
        elif message.kind == LINK_INFO:
            dense = _dense(structure, Cursor(message.data), LINK_TREES, order_width=8)
            links += [_link(structure, path, data) for data in dense]
    if len({link.name for link in links}) != len(links):
        raise ValueError(f"a name occurs twice in the group {path}")
    return sorted(links, key=lambda link: (link.order, link.name.encode()))


def _symbols(structure: Structure, path: str, message: Cursor) -> Iterator[_Link]:
    """Yield the links of a group in the older format, in which a symbol table lists the links.

    Args:
        structure: the file.
        path: the path of the group, for messages.
        message: the header message, which contains the addresses of the B-tree and of the heap
            with the names.
    """
    tree, names = message.address(), message.address()
    heap = local_heap(structure, names)
    for _, address in old_tree(structure, tree, GROUP, key_width=8):
        node = structure.at(address, 8)
        node.expect(b"SNOD")
        node.version(1)
        node.take(1)
        count = node.number(2)
        entries = structure.at(address + 8, 40 * count)
        for _ in range(count):
            at, header, cached = entries.address(), entries.address(), entries.number(4)
            entries.take(20)
            name = Cursor(heap, min(at, len(heap))).text()
            yield _checked(structure, path, name, header, 0, cached != SOFT_CACHE)


def _link(structure: Structure, path: str, data: bytes) -> _Link:
    """Return the link that a link message describes (newer format of groups)."""
    cursor = Cursor(data)
    cursor.version(1)
    flags = cursor.number(1)
    kind = cursor.number(1) if flags & 8 else HARD
    order = cursor.number(8) if flags & 4 else 0
    cursor.take(1 if flags & 16 else 0)
    name = cursor.take(cursor.number(1 << (flags & 3)))
    address = cursor.address() if kind == HARD else 0
    return _checked(structure, path, name, address, order, kind == HARD)


def _checked(
    structure: Structure, path: str, name: bytes, address: int, order: int, hard: bool
) -> _Link:
    text = name.decode()
    if not hard:
        raise CheckpointError(
            f"{structure.file.path} contains {shown(f'{path}/{text}'.lstrip('/'))} as an external "
            "or soft link, which is not followed",
            hint="write a file that contains the weights themselves",
        )
    if not text or text == "." or "/" in text or "\0" in text:
        raise ValueError("an invalid name")
    return _Link(text, address, order)


def _attributes(structure: Structure, messages: tuple[Message, ...]) -> Iterator[Attribute]:
    for message in messages:
        if message.kind == ATTRIBUTE and not message.shared:
            yield read_attribute(message.data)
        elif message.kind == ATTRIBUTE_INFO:
            for data in _dense(structure, Cursor(message.data), ATTRIBUTE_TREES, order_width=2):
                yield read_attribute(data)


def _dense(
    structure: Structure, info: Cursor, kinds: tuple[int, int], order_width: int
) -> Iterator[bytes]:
    """Yield the messages that a large group or object stores in a heap, indexed by a B-tree.

    Args:
        structure: the file.
        info: the message that contains the addresses of the heap and of the B-tree.
        kinds: the types of the B-trees that are sorted by name and by creation order; only the
            B-tree that is sorted by name is read.
        order_width: the size in bytes of the largest creation order in `info`.
    """
    info.version(0)
    flags = info.number(1)
    info.take(order_width if flags & 1 else 0)
    heap_address, tree = info.address(), info.address()
    if not defined(heap_address):
        return
    heap = fractal_heap(structure, heap_address)
    # A record of links has a hash before the id of its object, a record of attributes after it.
    before = 4 if kinds == LINK_TREES else 0
    for record in new_tree(structure, tree, kinds[:1]):
        yield heap.object(record[before:])
