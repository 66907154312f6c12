"""Zip archives as `torch.save` and `numpy.savez` write them, opened for reading."""

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from mae_convert.errors import CheckpointError
from mae_convert.files.byte_ranges import ByteFile, Window, damaged
from mae_convert.formats.contents import loading, reading
from mae_convert.text import shown

LOCAL_HEADER = struct.Struct("<4s2xHH16xHH")
LOCAL_MAGIC = b"PK\x03\x04"
# The fields of the end record and of its ZIP64 variant: signature, numbers of disks, counts of
# entries, size and offset of the central directory. END has a last field, the length of a comment.
END = struct.Struct("<4sHHHHIIH")
END64 = struct.Struct("<4sQHHIIQQQQ")
LOCATOR64 = struct.Struct("<4sIQI")
END_MAGIC, END64_MAGIC, LOCATOR64_MAGIC = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
ELSEWHERE = (0xFFFF, 0xFFFFFFFF)
"""Field values in the end record which mean that the actual value is in the ZIP64 end record."""
ENCRYPTED, DEFLATED_OR_STORED = 1, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    KeyError,
    IndexError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


class Record(NamedTuple):
    """A file in the archive: the offset of its data, and its packed and unpacked sizes in bytes."""

    offset: int
    packed: int
    size: int
    checksum: int
    stored: bool


class Archive:
    """A zip archive (a file or a part of a file), opened for reading.

    Raises:
        CheckpointError: the central directory is missing or does not fit the file, or records
            overlap, are encrypted, or have paths outside the archive. Archives that two zip readers
            could interpret differently are refused too: names differ only in case, there are bytes
            before or after the archive, or the end records are inconsistent.
    """

    def __init__(self, file: ByteFile) -> None:
        self.path = file.path
        self.file = file
        with reading(self.path, *DAMAGE), zipfile.ZipFile(Window(file)) as archive:
            entries = archive.infolist()
            # PyTorch ignores case when it looks up a name.
            if len({entry.filename.lower() for entry in entries}) != len(entries):
                raise ValueError("two records with the same name")
            _check_end(file, len(entries))
            located = [(entry, *self._locate(entry)) for entry in entries]
            _refuse_overlaps((start, record) for _, start, record in located)
        self.records: Mapping[str, Record] = {
            entry.filename: record for entry, _, record in located
        }

    def _locate(self, entry: zipfile.ZipInfo) -> tuple[int, Record]:
        """Return the offset of a record's local header, and the record."""
        begins = entry.header_offset
        expected = _stored_name(entry)
        header = self.file.raw(begins, LOCAL_HEADER.size + len(expected))
        magic, flags, method, name_length, extra_length = LOCAL_HEADER.unpack_from(header)
        if magic != LOCAL_MAGIC or (flags | entry.flag_bits) & ENCRYPTED:
            raise ValueError(f"record {shown(entry.filename)} is corrupt or encrypted")
        name = header[LOCAL_HEADER.size :]
        twice = entry.filename != entry.orig_filename or (name_length, name) != (
            len(expected),
            expected,
        )
        if twice or method != entry.compress_type:
            raise ValueError(f"record {shown(entry.filename)} has two inconsistent headers")
        if not _is_inside(entry.filename):
            raise CheckpointError(
                self.path,
                f" has a member named {shown(entry.filename)}, which would be outside the archive",
                hint="the file may be malicious: obtain it again from its source",
            )
        if method not in DEFLATED_OR_STORED:
            raise ValueError(
                f"record {shown(entry.filename)} is compressed with an unsupported method"
            )
        stored = method == zipfile.ZIP_STORED
        if stored and entry.compress_size != entry.file_size:
            raise ValueError(f"record {shown(entry.filename)} has two different sizes")
        offset = begins + LOCAL_HEADER.size + name_length + extra_length
        if offset + entry.compress_size > self.file.size:
            raise ValueError(f"record {shown(entry.filename)} lies outside the file")
        return begins, Record(offset, entry.compress_size, entry.file_size, entry.CRC, stored)

    def size(self, name: str) -> int:
        """Return the unpacked size of a record in bytes.

        Raises:
            CheckpointError: there is no such record.
        """
        if name not in self.records:
            raise damaged(self.path, f"the record {shown(name)} is missing")
        return self.records[name].size

    def raw(self, name: str, limit: int) -> bytes:
        """Return the first bytes of the unpacked record, at most `limit`.

        Raises:
            CheckpointError: there is no such record, or it cannot be unpacked.
        """
        count = min(self.size(name), limit)
        record = self.records[name]
        if record.stored:
            return self.file.raw(record.offset, count)
        with reading(self.path, *DAMAGE):
            unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
            data = unpacker.decompress(self.file.raw(record.offset, record.packed), count)
            whole = count == record.size
            if len(data) != count or (whole and zlib.crc32(data) != record.checksum):
                raise EOFError(f"the record {shown(name)} is truncated or corrupt")
            return data

    def part(self, name: str) -> ByteFile | None:
        """Return a record as a separate file; None if it is compressed.

        Raises:
            CheckpointError: there is no such record.
        """
        size, record = self.size(name), self.records[name]
        return self.file.part(record.offset, size) if record.stored else None

    def array(
        self, name: str, offset: int, shape: tuple[int, ...], dtype: np.dtype
    ) -> Callable[[], np.ndarray]:
        """Return a function that reads an array whose values begin at an offset in a record.

        Raises:
            CheckpointError: the array is not completely inside the record.
        """
        end = offset + math.prod(shape) * dtype.itemsize
        if end > self.size(name):
            raise damaged(self.path, f"the record {shown(name)} is shorter than {end} bytes")
        record = self.records[name]
        if record.stored:
            return self.file.array(record.offset + offset, shape, dtype)
        count = math.prod(shape)
        return loading(
            self.path,
            lambda: np.frombuffer(self.raw(name, end), dtype, count, offset).reshape(shape),
            *DAMAGE,
        )


def _stored_name(entry: zipfile.ZipInfo) -> bytes:
    """Return a record's name as the bytes that the record's local header must contain."""
    utf8 = 0x800
    return entry.orig_filename.encode("utf-8" if entry.flag_bits & utf8 else "cp437")


def _is_inside(name: str) -> bool:
    """Return whether a name stays inside the directory that the archive would be unpacked to."""
    parts = re.split(r"[/\\]", name)
    return parts[0] != "" and ".." not in parts and not re.match(r"[A-Za-z]:\\", name)


def _refuse_overlaps(located: Iterable[tuple[int, Record]]) -> None:
    """Require that the first record is at the start of the file and that no records overlap."""
    position = 0
    for number, (begins, record) in enumerate(sorted(located, key=lambda item: item[0])):
        if number == 0 and begins:
            raise ValueError("there are bytes before the archive")
        if begins < position:
            raise ValueError("two records overlap")
        position = record.offset + record.packed


def _check_end(file: ByteFile, count: int) -> None:
    """Require that the end records agree, and that the central directory is directly before them.

    Otherwise, Python's zipfile and PyTorch's reader might use two different directories.

    Args:
        file: the archive.
        count: the number of entries that were read.
    """
    end_offset = file.size - END.size
    magic, disk, first_disk, here, entries, size, offset, comment = END.unpack(
        file.raw(end_offset, END.size)
    )
    if magic != END_MAGIC or comment or disk or first_disk:
        raise ValueError("it has a comment, or other bytes follow it")
    if end_offset >= LOCATOR64.size and file.raw(end_offset - LOCATOR64.size, 4) == LOCATOR64_MAGIC:
        short = (here, entries, size, offset)
        _, locator_disk, end64, disks = LOCATOR64.unpack(
            file.raw(end_offset - LOCATOR64.size, LOCATOR64.size)
        )
        end_offset -= LOCATOR64.size + END64.size
        magic, length, _, _, disk, first_disk, *long = END64.unpack(
            file.raw(end_offset, END64.size)
        )
        if (magic, length, end64) != (END64_MAGIC, END64.size - 12, end_offset):
            raise ValueError("its end records are inconsistent")
        if any((locator_disk, disks > 1, disk, first_disk)) or not all(
            a == b or a in ELSEWHERE for a, b in zip(short, long, strict=True)
        ):
            raise ValueError("its end records are inconsistent")
        here, entries, size, offset = long
    if (here, entries) != (count, count) or offset + size != end_offset:
        raise ValueError("its central directory is not where the end record says")
