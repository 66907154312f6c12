"""Object headers: the messages that describe a group or a dataset.

See sections II and IV.A of the HDF5 File Format Specification.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from mae_convert.files.byte_ranges import ByteFile
from mae_convert.formats.hdf5_reader.cursor import UNDEFINED, Cursor

SIGNATURE = b"\x89HDF\r\n\x1a\n"

DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL = 0x01, 0x02, 0x03, 0x06, 0x07
LAYOUT, FILTERS, ATTRIBUTE, CONTINUATION, SYMBOL_TABLE = 0x08, 0x0B, 0x0C, 0x10, 0x11
ATTRIBUTE_INFO = 0x15

SHARED = 0x02
LARGEST_STRUCTURE = 1 << 26
COST_OF_A_READ = 1 << 9

T = TypeVar("T")


@dataclass(frozen=True)
class Message:
    """A message of an object header; a shared message has a reference to its content as `data`."""

    kind: int
    data: bytes
    shared: bool


class Structure:
    """An HDF5 file, accessed by addresses.

    In a short file, parts that contain each other, or are referenced many times, can describe
    structures of unlimited size. Therefore the number of bytes that are read is limited.
    """

    def __init__(self, file: ByteFile) -> None:
        self.file = file
        self._left = LARGEST_STRUCTURE
        self._remembered: dict[tuple[int, Callable], Any] = {}

    def spend(self, count: int) -> None:
        """Count `count` bytes as read; raise ValueError if the total exceeds the limit."""
        self._left -= count
        if self._left < 0:
            raise ValueError("more structures than the file of any model has")

    def at(self, address: int, count: int) -> Cursor:
        """Return the `count` bytes at an address.

        Raises:
            CheckpointError: the file is too short.
            ValueError: the total number of bytes that were read exceeds the limit.
        """
        self.spend(count + COST_OF_A_READ)
        return Cursor(self.file.raw(address, count))

    def upto(self, address: int, count: int) -> Cursor:
        """Return the `count` bytes at an address, or fewer if the file ends earlier."""
        return self.at(address, max(0, min(count, self.file.size - address)))

    def remembered(self, address: int, read: "Callable[[Structure, int], T]") -> "T":
        """Return the result of `read` for an address; it is computed only once for each address."""
        if (address, read) not in self._remembered:
            self._remembered[address, read] = read(self, address)
        return self._remembered[address, read]

    def messages(self, address: int) -> tuple[Message, ...]:
        """Return the messages of the object header at an address.

        Raises:
            ValueError: there is no object header at the address, or its parts form a cycle.
        """
        return self.remembered(address, _messages)


def root_address(structure: Structure) -> int:
    """Return the address of the root group's object header (section II.A).

    Raises:
        ValueError: the superblock has an unsupported type.
    """
    cursor = structure.upto(0, 128)
    cursor.expect(SIGNATURE)
    version = cursor.version(0, 1, 2, 3)
    if version < 2:
        cursor.take(4)
    if cursor.take(2) != b"\x08\x08":
        raise ValueError("addresses that are not 8 bytes long")
    cursor.take({0: 9, 1: 13}.get(version, 1))
    if cursor.address() != 0:
        raise ValueError("a file whose superblock is not at its beginning")
    cursor.take(24 + 8 if version < 2 else 16)
    return cursor.address()


def _messages(structure: Structure, address: int) -> tuple[Message, ...]:
    start = structure.upto(address, 64)
    modern = start.data[:4] == b"OHDR"
    return tuple((_modern if modern else _classic)(structure, address, start))


def _classic(structure: Structure, address: int, start: Cursor) -> Iterator[Message]:
    """Yield the messages of a version 1 header and of its continuation blocks."""
    start.version(1)
    start.take(1)
    count = start.number(2)
    start.take(4)
    ranges = [(address + 16, start.number(4))]
    for cursor in _ranges(structure, ranges):
        while cursor.left >= 8 and count > 0:
            kind, size, flags = cursor.number(2), cursor.number(2), cursor.number(1)
            cursor.take(3)
            data, count = cursor.take(size), count - 1
            if kind == CONTINUATION:
                ranges.append(_continuation(data))
            yield Message(kind, data, bool(flags & SHARED))


def _modern(structure: Structure, address: int, start: Cursor) -> Iterator[Message]:
    """Yield the messages of a version 2 header, whose blocks end with checksums."""
    start.expect(b"OHDR")
    start.version(2)
    flags = start.number(1)
    start.take(16 * bool(flags & 0x20) + 4 * bool(flags & 0x10))
    size = start.number(1 << (flags & 3))
    ranges = [(address + start.at, size)]
    for number, cursor in enumerate(_ranges(structure, ranges)):
        end = 0
        if number:
            cursor.expect(b"OCHK")
            end = 4
        order = 2 * bool(flags & 0x04)
        while cursor.left - end >= 4 + order:
            kind, size, of_message = cursor.number(1), cursor.number(2), cursor.number(1)
            cursor.take(order)
            data = cursor.take(size)
            if kind == CONTINUATION:
                ranges.append(_continuation(data))
            yield Message(kind, data, bool(of_message & SHARED))


def _ranges(structure: Structure, ranges: list[tuple[int, int]]) -> Iterator[Cursor]:
    """Yield a cursor for each range of bytes; the caller may append ranges while it iterates.

    Args:
        structure: the file.
        ranges: the address and the number of bytes of each range.
    """
    for address, size in ranges:  # a cycle ends at the limit on bytes that are read
        yield structure.at(address, size)


def _continuation(data: bytes) -> tuple[int, int]:
    cursor = Cursor(data)
    return cursor.address(), cursor.address()


def defined(address: int) -> bool:
    """Return whether an address is defined, that is, not the largest 64-bit number."""
    return address != UNDEFINED
