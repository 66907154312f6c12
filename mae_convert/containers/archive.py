"""Zip archives whose records can be mapped: what `torch.save` and `numpy.savez` write."""

import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from mae_convert.containers.contents import reading
from mae_convert.containers.mapped import MappedFile, Window
from mae_convert.containers.messages import damaged, shown
from mae_convert.errors import CheckpointError

ALIGNMENT = 64
LOCAL_HEADER = struct.Struct("<4s22xHH")
LOCAL_MAGIC = b"PK\x03\x04"
ZIP64_EXTRA_BYTES = 20
PADDING_ID = 0x4246  # the id with which PyTorch marks the padding of its records

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
    """One file in the archive: where its bytes lie, and how many they are unpacked."""

    offset: int
    size: int
    stored: bool


class Archive:
    """A zip archive opened for reading: a file, or a part of one.

    Raises:
        CheckpointError: the directory at its end is missing or does not fit the file.
    """

    def __init__(self, mapped: MappedFile) -> None:
        self.path = mapped.path
        self.mapped = mapped
        with reading(self.path, *DAMAGE), zipfile.ZipFile(Window(mapped)) as archive:
            entries = archive.infolist()
            if len({entry.filename for entry in entries}) != len(entries):
                raise ValueError("two records of one name")
            self.records: Mapping[str, Record] = {
                entry.filename: self._locate(entry) for entry in entries
            }

    def _locate(self, entry: zipfile.ZipInfo) -> Record:
        header = self.mapped.raw(entry.header_offset, LOCAL_HEADER.size)
        magic, name_length, extra_length = LOCAL_HEADER.unpack(header)
        if magic != LOCAL_MAGIC or entry.flag_bits & 1:
            raise ValueError(f"record {entry.filename} is damaged or encrypted")
        offset = entry.header_offset + LOCAL_HEADER.size + name_length + extra_length
        stored = entry.compress_type == zipfile.ZIP_STORED
        if stored and (entry.compress_size != entry.file_size):
            raise ValueError(f"record {entry.filename} has two sizes")
        if offset + entry.compress_size > self.mapped.size:
            raise ValueError(f"record {entry.filename} lies outside the file")
        return Record(offset, entry.file_size, stored)

    def size(self, name: str) -> int:
        """Return the unpacked size of a record in bytes.

        Raises:
            CheckpointError: there is no such record.
        """
        if name not in self.records:
            raise damaged(self.path, f"the record {shown(name)} is missing")
        return self.records[name].size

    def part(self, name: str) -> MappedFile:
        """Return a record that is stored uncompressed as a file of its own.

        Raises:
            CheckpointError: there is no such record, or it is compressed.
        """
        size = self.size(name)
        if not self.records[name].stored:
            raise CheckpointError(
                f"{self.path} has {shown(name)} compressed, as its own program does not write it;"
                " unpack the archive and pack it again with `zip -0`"
            )
        return self.mapped.part(self.records[name].offset, size)

    def raw(self, name: str, limit: int) -> bytes:
        """Return the first bytes of a record, at most `limit`.

        Raises:
            CheckpointError: there is no such record, or it cannot be unpacked.
        """
        count = min(self.size(name), limit)
        record = self.records[name]
        if record.stored:
            return self.mapped.raw(record.offset, count)
        with reading(self.path, *DAMAGE), zipfile.ZipFile(Window(self.mapped)) as archive:
            with archive.open(name) as stream:
                data = stream.read(count)
            if len(data) != count:
                raise EOFError(f"record {name} is cut short")
            return data

    def array(self, name: str, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return an array that begins `offset` bytes into a record: a view where it is stored.

        Raises:
            CheckpointError: it is not all in the record.
        """
        end = offset + math.prod(shape) * dtype.itemsize
        if end > self.size(name):
            raise damaged(self.path, f"the record {shown(name)} is shorter than {end} bytes")
        record = self.records[name]
        if record.stored:
            return self.mapped.array(record.offset + offset, shape, dtype)
        return np.frombuffer(self.raw(name, end), dtype, offset=offset).reshape(shape)


class ArchiveWriter:
    """Writes a zip archive of uncompressed records, the bytes of each at a multiple of 64."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("xb+")
        self._archive = zipfile.ZipFile(self._stream, "w", zipfile.ZIP_STORED)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stream:
            if kind is None:
                self._archive.close()
            else:  # what is half written is removed anyhow: the first error is the one to tell
                with suppress(OSError, ValueError):
                    self._archive.close()

    def add(self, name: str, size: int, pieces: Iterable[bytes | memoryview]) -> None:
        """Add a record of `size` bytes that come in pieces."""
        entry = zipfile.ZipInfo(name)
        entry.file_size = size
        # Python's own threshold: it leaves room for data that grow while they are packed.
        large = size * 1.05 > zipfile.ZIP64_LIMIT
        entry.extra = _padding(self._stream.tell(), name, large)
        with self._archive.open(entry, "w", force_zip64=large) as record:
            for piece in pieces:
                record.write(piece)


def _padding(position: int, name: str, large: bool) -> bytes:
    """Return an extra field so long that the record's data begin at a multiple of 64."""
    fixed = position + LOCAL_HEADER.size + len(name.encode()) + ZIP64_EXTRA_BYTES * large
    length = -fixed % ALIGNMENT
    if length < 4:  # the field's own head
        length += ALIGNMENT
    return struct.pack("<HH", PADDING_ID, length - 4) + bytes(length - 4)
