"""Zip archives as `torch.save` and `numpy.savez` write them, opened for reading."""

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from mae_convert.containers.bytefile import ByteFile, Window
from mae_convert.containers.contents import loading, reading
from mae_convert.containers.messages import damaged, shown
from mae_convert.errors import CheckpointError

LOCAL_HEADER = struct.Struct("<4s2xHH16xHH")
LOCAL_MAGIC = b"PK\x03\x04"
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


@dataclass(frozen=True)
class Record:
    """One file in the archive: where its bytes lie, how many they are, and how many unpacked."""

    offset: int
    packed: int
    size: int
    checksum: int
    stored: bool


class Archive:
    """A zip archive opened for reading: a file, or a part of one.

    Raises:
        CheckpointError: the directory at its end is missing or does not fit the file, or no
            program that writes weights makes such an archive: records that overlap, are
            encrypted, or have names that reach out of it.
    """

    def __init__(self, file: ByteFile) -> None:
        self.path = file.path
        self.file = file
        with reading(self.path, *DAMAGE), zipfile.ZipFile(Window(file)) as archive:
            entries = archive.infolist()
            if len({entry.filename for entry in entries}) != len(entries):
                raise ValueError("two records of one name")
            located = [(entry, *self._locate(entry)) for entry in entries]
            _refuse_overlaps((start, record) for _, start, record in located)
        self.records: Mapping[str, Record] = {
            entry.filename: record for entry, _, record in located
        }

    def _locate(self, entry: zipfile.ZipInfo) -> tuple[int, Record]:
        """Return where a record's own header begins, and the record."""
        begins = entry.header_offset
        header = self.file.raw(begins, LOCAL_HEADER.size)
        magic, flags, method, name_length, extra_length = LOCAL_HEADER.unpack(header)
        name = self.file.raw(begins + LOCAL_HEADER.size, name_length)
        if magic != LOCAL_MAGIC or (flags | entry.flag_bits) & ENCRYPTED:
            raise ValueError(f"record {shown(entry.filename)} is damaged or encrypted")
        if name != _stored_name(entry) or method != entry.compress_type:
            raise ValueError(f"record {shown(entry.filename)} is described in two ways")
        if not _is_inside(entry.filename):
            raise CheckpointError(
                f"{self.path} has a member named {shown(entry.filename)}, which reaches out of the"
                " archive; no program writes such a file: get it again from where it comes from"
            )
        if method not in DEFLATED_OR_STORED:
            raise ValueError(f"record {shown(entry.filename)} is of no kind that is read")
        stored = method == zipfile.ZIP_STORED
        if stored and entry.compress_size != entry.file_size:
            raise ValueError(f"record {shown(entry.filename)} has two sizes")
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
        """Return the first bytes of a record, at most `limit`.

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
                raise EOFError(f"the record {shown(name)} is cut short or damaged")
            return data

    def part(self, name: str) -> ByteFile | None:
        """Return a record as a file of its own; None if it is packed.

        Raises:
            CheckpointError: there is no such record.
        """
        size, record = self.size(name), self.records[name]
        return self.file.part(record.offset, size) if record.stored else None

    def array(
        self, name: str, offset: int, shape: tuple[int, ...], dtype: np.dtype
    ) -> Callable[[], np.ndarray]:
        """Return a way to an array that begins `offset` bytes into a record.

        Raises:
            CheckpointError: it is not all in the record.
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
    """Return a record's name as its own header has to spell it."""
    utf8 = 0x800
    return entry.orig_filename.encode("utf-8" if entry.flag_bits & utf8 else "cp437")


def _is_inside(name: str) -> bool:
    """Tell whether a name stays in the folder in which the archive would be unpacked."""
    parts = re.split(r"[/\\]", name)
    return parts[0] != "" and ".." not in parts and not re.match(r"[A-Za-z]:\\", name)


def _refuse_overlaps(located: Iterable[tuple[int, Record]]) -> None:
    position = 0
    for begins, record in sorted(located, key=lambda item: item[0]):
        if begins < position:
            raise ValueError("two records overlap")
        position = record.offset + record.packed
