"""Compute the file layout of a zip archive of uncompressed records, aligned to 64 bytes.

The format is PKWARE's APPNOTE.TXT 6.3.10; the section numbers below refer to this document.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mae_convert.formats.output_file import BytesAt, FileLayout

# A CRC-32 is a polynomial over GF(2) modulo `POLYNOMIAL`, its bits reversed: the highest bit of a
# number is the coefficient of x^0. Appending n zero bits multiplies the polynomial by x^n.
POLYNOMIAL = 0xEDB88320
ONE, X = 1 << 31, 1 << 30
ALIGNMENT = 64
LIMIT = (1 << 32) - 1
"""The largest value of a 32-bit field; it means that a ZIP64 field contains the actual value."""

MANY_RECORDS = (1 << 16) - 1
VERSION, VERSION_64 = 20, 45
UTF8 = 0x800
FIRST_OF_1980 = 0x21  # no time, so that the same tensors result in the same file
ZIP64_ID = 0x0001
PADDING_ID = 0x4246  # the id with which PyTorch marks the padding of its records

LOCAL = struct.Struct("<4s5H3I2H")  # 4.3.7
CENTRAL = struct.Struct("<4s6H3I5H2I")  # 4.3.12
END_64 = struct.Struct("<4sQ2H2I4Q")  # 4.3.14
LOCATOR_64 = struct.Struct("<4sIQI")  # 4.3.15
END = struct.Struct("<4s4H2IH")  # 4.3.16


@dataclass(frozen=True)
class Record:
    """A record of an archive: bytes, optionally followed by the bytes of a tensor."""

    name: str
    """The name of the record in the archive."""

    head: bytes
    """The bytes before the tensor's bytes; if there is no tensor, the bytes of the whole record."""

    tensor_bytes: int | None = None
    """The number of bytes of the tensor, or None if the record contains no tensor."""

    @property
    def size(self) -> int:
        """The number of bytes of the whole record."""
        return len(self.head) + (self.tensor_bytes or 0)


@dataclass(frozen=True)
class _PlacedRecord:
    """A record, the offset of its header, and the extra field that aligns its data to 64 bytes."""

    record: Record
    begins: int
    extra: bytes

    @property
    def data(self) -> int:
        return self.begins + LOCAL.size + len(self.record.name.encode()) + len(self.extra)


def zip_layout(records: Iterable[Record]) -> FileLayout:
    """Return the layout of an archive, with the tensors in the order of the records."""
    placed = list(_place(records))
    with_tensors = [item for item in placed if item.record.tensor_bytes is not None]
    directory = placed[-1].data + placed[-1].record.size if placed else 0

    def finalize(checksums: Sequence[int]) -> list[BytesAt]:
        sums = iter(checksums)
        pieces, entries = [], []
        for item in placed:
            head = item.record.head
            checksum = next(sums) if item.record.tensor_bytes is not None else zlib.crc32(head)
            pieces.append((item.begins, _local(item, checksum) + head))
            entries.append(_central(item, checksum))
        return [*pieces, (directory, _end(directory, entries))]

    empty = _end(directory, [_central(item, 0) for item in placed])
    return FileLayout(
        size=directory + len(empty),
        offsets=[item.data + len(item.record.head) for item in with_tensors],
        finalize=finalize,
        checksums=[zlib.crc32(item.record.head) for item in with_tensors],
    )


def _place(records: Iterable[Record]) -> Iterator[_PlacedRecord]:
    position = 0
    for record in records:
        sizes = struct.pack("<2H2Q", ZIP64_ID, 16, record.size, record.size)
        extra = sizes if record.size >= LIMIT else b""
        fixed = position + LOCAL.size + len(record.name.encode()) + len(extra)
        length = -fixed % ALIGNMENT
        if length < 4:  # the id and the length of the padding field take 4 bytes
            length += ALIGNMENT
        extra += struct.pack("<2H", PADDING_ID, length - 4) + bytes(length - 4)
        placed = _PlacedRecord(record, position, extra)
        yield placed
        position = placed.data + record.size


def _common(item: _PlacedRecord, checksum: int, version: int) -> tuple[int, ...]:
    """Return the fields that local and central headers share, from version to name length."""
    name = item.record.name
    size = min(item.record.size, LIMIT)
    flags = 0 if name.isascii() else UTF8
    return (version, flags, 0, 0, FIRST_OF_1980, checksum, size, size, len(name.encode()))


def _local(item: _PlacedRecord, checksum: int) -> bytes:
    version = VERSION_64 if item.record.size >= LIMIT else VERSION
    common = _common(item, checksum, version)
    return LOCAL.pack(b"PK\3\4", *common, len(item.extra)) + item.record.name.encode() + item.extra


def _central(item: _PlacedRecord, checksum: int) -> bytes:
    large = [item.record.size] * 2 if item.record.size >= LIMIT else []
    large += [item.begins] if item.begins >= LIMIT else []
    extra = struct.pack(f"<2H{len(large)}Q", ZIP64_ID, 8 * len(large), *large) if large else b""
    version = VERSION_64 if large else VERSION
    common = _common(item, checksum, version)
    begins = min(item.begins, LIMIT)
    packed = CENTRAL.pack(b"PK\1\2", version, *common, len(extra), 0, 0, 0, 0, begins)
    return packed + item.record.name.encode() + extra


def _end(directory: int, entries: Sequence[bytes]) -> bytes:
    """Return the central directory and the end records, with ZIP64 records if needed.

    Args:
        directory: the offset of the central directory in the archive.
        entries: the entries of the central directory.
    """
    whole, count = b"".join(entries), len(entries)
    size, end = len(whole), directory + len(whole)
    if max(directory, size) >= LIMIT or count >= MANY_RECORDS:
        rest = (END_64.size - 12, VERSION_64, VERSION_64, 0, 0, count, count, size, directory)
        whole += END_64.pack(b"PK\6\6", *rest) + LOCATOR_64.pack(b"PK\6\7", 0, end, 1)
    few, small, near = min(count, MANY_RECORDS), min(size, LIMIT), min(directory, LIMIT)
    return whole + END.pack(b"PK\5\6", 0, 0, few, few, small, near, 0)


def combined_crc32(parts: Iterable[tuple[int, int]]) -> int:
    """Return the CRC-32 of concatenated parts, given the CRC-32 and the length of each part."""
    whole = 0
    for checksum, count in parts:
        whole = _times(_power_of_x(8 * count), whole) ^ checksum
    return whole


def _times(a: int, b: int) -> int:
    """Return the product of two polynomials over GF(2), modulo the polynomial of the CRC-32.

    A polynomial is a 32-bit integer whose most significant bit is the coefficient of x^0.
    """
    product, bit = 0, ONE
    while bit:
        if a & bit:
            product ^= b
        b = b >> 1 ^ (POLYNOMIAL if b & 1 else 0)
        bit >>= 1
    return product


def _power_of_x(exponent: int) -> int:
    power, square = ONE, X
    while exponent:
        if exponent & 1:
            power = _times(power, square)
        square = _times(square, square)
        exponent >>= 1
    return power
