"""Heaps: storage for names, texts and links that do not fit into an object header."""

import itertools
from dataclasses import dataclass

from mae_convert.formats.hdf5_reader.cursor import Cursor
from mae_convert.formats.hdf5_reader.objects import Structure, defined

LARGEST_BLOCK = 1 << 26


def local_heap(structure: Structure, address: int) -> bytes:
    """Return the data of a local heap, which contains the names of a group (section III.D).

    Raises:
        ValueError: there is no local heap at the address.
    """
    cursor = structure.at(address, 32)
    cursor.expect(b"HEAP")
    cursor.version(0)
    cursor.take(3)
    size = cursor.address()
    cursor.take(8)
    return structure.at(cursor.address(), size).data


def global_object(structure: Structure, address: int, index: int) -> bytes:
    """Return an object in a global heap (section III.E of the specification).

    The objects are texts of attributes.

    Args:
        structure: the file.
        address: the address of a collection (a block of objects) of the heap.
        index: the number of the object in the collection.

    Raises:
        ValueError: there is no such object.
    """
    objects = structure.remembered(address, _collection)
    if index not in objects:
        raise ValueError("a missing string")
    structure.spend(len(objects[index]))
    return objects[index]


def _collection(structure: Structure, address: int) -> dict[int, bytes]:
    """Return the objects of a global heap's collection by their numbers."""
    start = structure.at(address, 16)
    start.expect(b"GCOL")
    start.version(1)
    start.take(3)
    cursor = structure.at(address, start.address())
    cursor.take(16)
    objects: dict[int, bytes] = {}
    while cursor.left >= 16:
        number = cursor.number(2)
        cursor.take(6)
        length = cursor.address()
        if number == 0:  # the free space at the end of the collection
            break
        objects[number] = cursor.take(length)
        cursor.take(min(-length % 8, cursor.left))
    return objects


@dataclass(frozen=True)
class FractalHeap:
    """A fractal heap, which contains the links or attributes of a large group (section III.G)."""

    structure: Structure
    widths: tuple[int, int]
    """The number of bytes of an offset and of a length in an object's id."""

    start: int
    """The size of the smallest direct block, in bytes."""

    limit: int
    """The size of the largest direct block, in bytes."""

    columns: int
    """The number of blocks in a row of the doubling table."""

    root: int
    """The address of the root block."""

    rows: int
    """The number of rows of the root block; 0 if the root block is a direct block."""

    def object(self, identity: bytes) -> bytes:
        """Return an object by its id.

        Raises:
            ValueError: there is no such object, or it is stored in an unsupported way.
        """
        cursor = Cursor(identity)
        if cursor.number(1) & 0xF0:
            raise ValueError("a heap object that is stored separately")
        offset, length = (cursor.number(width) for width in self.widths)
        address, within = self._block(offset)
        if within + length > self.limit:
            raise ValueError("a heap object that is larger than its block")
        return self.structure.at(address + within, length).data

    def _block(self, offset: int) -> tuple[int, int]:
        """Return the address of the direct block for a heap offset, and the offset in the block."""
        address, rows = self.root, self.rows
        if rows == 0:
            return address, offset
        for _ in range(64):
            size, index, offset = self._place(offset, rows)
            header = 4 + 1 + 8 + self.widths[0]
            child = self.structure.at(address + header + 8 * index, 8).address()
            if not defined(child):
                raise ValueError("a missing heap block")
            if size <= self.limit:
                return child, offset
            address, rows = child, self._rows_of(size)
        raise ValueError("a heap with a cycle")

    def _place(self, offset: int, rows: int) -> tuple[int, int, int]:
        """Return the size and index of the child block for an offset, and the offset in the child.

        Args:
            offset: an offset in the bytes that a parent block covers.
            rows: the number of rows of the parent block.
        """
        for row in range(rows):
            size = self.start << max(0, row - 1)
            if offset < size * self.columns:
                return size, row * self.columns + offset // size, offset % size
            offset -= size * self.columns
        raise ValueError("an offset outside the heap")

    def _rows_of(self, size: int) -> int:
        """Return the number of rows of an indirect block that covers `size` bytes."""
        total = 0
        for row in itertools.count():
            total += (self.start << max(0, row - 1)) * self.columns
            if total >= size:
                return row + 1
        raise AssertionError


def fractal_heap(structure: Structure, address: int) -> FractalHeap:
    """Read the header of a fractal heap.

    Raises:
        ValueError: there is no fractal heap at the address, or it is compressed.
    """
    cursor = structure.at(address, 142)
    cursor.expect(b"FRHP")
    cursor.version(0)
    cursor.take(2)
    packed = cursor.number(2)
    cursor.take(1)
    largest_object = cursor.number(4)
    cursor.take(12 * 8)
    columns, start, limit = cursor.number(2), cursor.address(), cursor.address()
    bits = cursor.number(2)
    cursor.take(2)
    root, rows = cursor.address(), cursor.number(2)
    if packed or not (0 < start <= limit <= LARGEST_BLOCK and columns and 0 < bits <= 64):
        raise ValueError("a heap that is compressed, or of an invalid size")
    if not defined(root) or rows > 64:
        raise ValueError("an empty heap")
    width = min((limit.bit_length() + 6) // 8, (largest_object.bit_length() + 7) // 8)
    return FractalHeap(structure, ((bits + 7) // 8, width), start, limit, columns, root, rows)
