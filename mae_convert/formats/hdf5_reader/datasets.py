"""Datasets: where the values are stored, and how they are encoded.

See sections III.A.1, IV.A.2.i and IV.A.2.l of the HDF5 File Format Specification.
"""

import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mae_convert.errors import CheckpointError
from mae_convert.formats.hdf5_reader.btrees import CHUNKS, old_tree
from mae_convert.formats.hdf5_reader.cursor import Cursor, not_read
from mae_convert.formats.hdf5_reader.objects import (
    DATASPACE,
    DATATYPE,
    EXTERNAL,
    FILTERS,
    LAYOUT,
    LINK,
    LINK_INFO,
    SYMBOL_TABLE,
    Message,
    Structure,
    defined,
)
from mae_convert.formats.hdf5_reader.types import Type, read_shape, read_type
from mae_convert.text import shown

COMPACT, CONTIGUOUS, CHUNKED, VIRTUAL = 0, 1, 2, 3
GZIP, SHUFFLE, FLETCHER32 = 1, 2, 3
LARGEST_CHUNK = 1 << 28
CHECKSUM_BYTES = 4
ONCE = (DATASPACE, DATATYPE, LAYOUT, FILTERS, EXTERNAL)
OF_GROUPS = frozenset((SYMBOL_TABLE, LINK, LINK_INFO))
LEAST_ENTRY = 24
"""The minimum number of bytes of a chunk's entry in the B-tree of chunks."""


@dataclass(frozen=True)
class Dataset:
    """A dataset: its shape, its type, and a function that reads it."""

    shape: tuple[int, ...]
    type: Type
    load: Callable[[], np.ndarray]
    """Returns the array, with the dtype `type.dtype`, or as bytes (`V`) if `type.dtype` is None."""


def read_dataset(structure: Structure, name: str, messages: Sequence[Message]) -> Dataset:
    """Return the dataset that the messages of an object header describe.

    Raises:
        ValueError: the messages are corrupt.
        CheckpointError: the dataset's values are in another file, or encoded in an unsupported way.
    """
    by_kind = {message.kind: message for message in messages}
    path = structure.file.path
    kinds = [message.kind for message in messages]
    if twice := [kind for kind in ONCE if kinds.count(kind) > 1]:
        raise ValueError(f"{name} has two header messages of type {twice[0]}")
    if not OF_GROUPS.isdisjoint(kinds):
        raise ValueError(f"{name} is a dataset and a group")
    if EXTERNAL in by_kind:
        raise _in_another_file(structure, name)
    if any(
        by_kind[kind].shared for kind in (DATASPACE, DATATYPE, LAYOUT, FILTERS) if kind in by_kind
    ):
        raise not_read(path, name, "with a committed (shared) datatype")
    kind = read_type(Cursor(by_kind[DATATYPE].data))
    shape = read_shape(Cursor(by_kind[DATASPACE].data))
    if shape is None or not kind.size:
        raise not_read(path, name, "without elements")
    dtype = kind.dtype or np.dtype(f"V{kind.size}")
    cursor = Cursor(by_kind[LAYOUT].data)
    load = _loader(structure, name, cursor, shape, dtype, by_kind.get(FILTERS))
    return Dataset(shape, kind, load)


def _loader(
    structure: Structure,
    name: str,
    layout: Cursor,
    shape: tuple[int, ...],
    dtype: np.dtype,
    filters: Message | None,
) -> Callable[[], np.ndarray]:
    version = layout.version(1, 2, 3, 4)
    rank = layout.number(1) if version < 3 else 0
    kind = layout.number(1)
    layout.take(5 if version < 3 else 0)
    if kind == VIRTUAL:
        raise _in_another_file(structure, name)
    if kind == CHUNKED and version < 4:
        rank = rank or layout.number(1)
        address, chunk = layout.address(), tuple(layout.number(4) for _ in range(rank - 1))
        if layout.number(4) != dtype.itemsize:
            raise ValueError(f"the element size in the chunks of {name} does not match its type")
        packing = _filters(structure, name, filters)
        return _Chunks(structure, name, address, chunk, shape, dtype, packing)
    size = math.prod(shape) * dtype.itemsize
    if kind == COMPACT:
        layout.take(4 * rank)
        data = layout.take(layout.number(4 if version < 3 else 2))[:size]
        if len(data) != size:
            raise ValueError(f"{name} is cut short")
        return lambda: np.frombuffer(data, dtype).reshape(shape)
    if kind != CONTIGUOUS:
        raise not_read(structure.file.path, name, "with a version 4 chunk index")
    address = layout.address()
    if size and not defined(address):
        raise ValueError(f"{name} was never written")
    return structure.file.array(address if size else 0, shape, dtype)


def _in_another_file(structure: Structure, name: str) -> CheckpointError:
    return CheckpointError(
        f"{structure.file.path} stores {shown(name)} in another file, which is not read",
        hint="write a file that contains the weights themselves",
    )


def _filters(structure: Structure, name: str, message: Message | None) -> list[tuple[int, int]]:
    """Return the identifier and the first parameter of each filter that encodes the chunks.

    The parameter of a filter without parameters is 0.

    Args:
        structure: the file.
        name: the name of the dataset, for messages.
        message: the message of the filters; None if the dataset has no filters.

    Raises:
        CheckpointError: a filter is not supported.
    """
    if message is None:
        return []
    cursor = Cursor(message.data)
    version, count = cursor.version(1, 2), cursor.number(1)
    cursor.take(6 if version == 1 else 0)
    packing = []
    for _ in range(count):
        number = cursor.number(2)
        length = cursor.number(2) if version == 1 or number >= 256 else 0
        cursor.take(2)
        parameters = cursor.number(2)
        cursor.take(length)
        values = [cursor.number(4) for _ in range(parameters)]
        cursor.take(4 if version == 1 and parameters % 2 else 0)
        packing.append((number, values[0] if values else 0))
        if number not in (GZIP, SHUFFLE, FLETCHER32):
            raise not_read(structure.file.path, name, f"compressed with the filter {number}")
    return packing


@dataclass(frozen=True)
class _Chunks:
    """An array in chunks, each encoded separately."""

    structure: Structure
    name: str
    address: int
    chunk: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    packing: list[tuple[int, int]]

    def __post_init__(self) -> None:
        size = math.prod(self.chunk) * self.dtype.itemsize
        if len(self.chunk) != len(self.shape) or not 0 < size <= LARGEST_CHUNK:
            raise ValueError(f"{self.name} has invalid chunks")
        if math.prod(self.shape) and not defined(self.address):
            raise ValueError(f"{self.name} was never written")

    def __call__(self) -> np.ndarray:
        """Return the array.

        Raises:
            ValueError: chunks are missing, or cannot be decoded.
        """
        array = np.empty(self.shape, self.dtype)
        if not array.size:
            return array
        corners = self._corners()
        # A separate count: reading values does not count as reading structures.
        structure = Structure(self.structure.file)
        width = 8 + 8 * (len(self.shape) + 1)
        for key, address in old_tree(structure, self.address, CHUNKS, width, self._place):
            cursor = Cursor(key)
            stored, skipped = cursor.number(4), cursor.number(4)
            corner = tuple(cursor.address() for _ in self.shape)
            if corner not in corners or cursor.address():
                raise ValueError(
                    f"{self.name} has a duplicate chunk, or a chunk outside the dataset"
                )
            corners.remove(corner)
            inside = tuple(
                slice(at, min(at + step, extent))
                for at, step, extent in zip(corner, self.chunk, self.shape, strict=True)
            )
            part = array[inside]
            part[...] = self._unpacked(address, stored, skipped)[
                tuple(slice(0, extent) for extent in part.shape)
            ]
        if corners:
            raise ValueError(f"{self.name} lacks {len(corners)} chunks")
        return array

    def _place(self, key: bytes) -> tuple[int, ...]:
        """Return the index of a chunk along each axis, given the key of the chunk in the B-tree.

        A key contains an offset for each axis, and then an offset in bytes inside an element. The
        latter is always 0 in a valid file and is returned as the last index.
        """
        cursor = Cursor(key, 8)
        return tuple(cursor.address() // step for step in (*self.chunk, self.dtype.itemsize))

    def _corners(self) -> set[tuple[int, ...]]:
        """Return the index of the first element of each chunk.

        Raises:
            ValueError: the file is too small for this number of chunks.
        """
        sides = [range(0, n, step) for n, step in zip(self.shape, self.chunk, strict=True)]
        if math.prod(map(len, sides)) * LEAST_ENTRY > self.structure.file.size:
            raise ValueError(f"{self.name} lacks most of its chunks")
        return set(itertools.product(*sides))

    def _unpacked(self, address: int, stored: int, skipped: int) -> np.ndarray:
        data = self.structure.file.raw(address, stored)
        size = math.prod(self.chunk) * self.dtype.itemsize
        for number, (kind, parameter) in reversed(list(enumerate(self.packing))):
            if skipped >> number & 1:
                continue
            if kind == FLETCHER32:
                data, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
                if fletcher32(data).to_bytes(4, "little") != checksum:
                    raise ValueError(f"a chunk of {self.name} has a wrong checksum")
            elif kind == GZIP:
                data = zlib.decompressobj().decompress(data, size + CHECKSUM_BYTES)
            elif parameter > 1:
                data = _unshuffled(data, parameter)
        if len(data) != size:
            raise ValueError(f"a chunk of {self.name} does not have {size} bytes")
        return np.frombuffer(data, self.dtype).reshape(self.chunk)


def fletcher32(data: bytes) -> int:
    """Return HDF5's checksum of a chunk: two sums, modulo 65535, of big-endian 16-bit words.

    The second sum is in the upper 16 bits of the result, and the first sum in the lower 16 bits.
    After each word, the current value of the first sum is added to the second sum. Because the
    format adds with end-around carry, a sum that is a multiple of 65535 is stored as 65535, unless
    all words are 0.
    """
    words = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2").astype(np.uint64)
    if not words.any():
        return 0
    modulus = np.uint64(0xFFFF)
    weights = np.arange(len(words), 0, -1, dtype=np.uint64) % modulus
    first, second = int(words.sum() % modulus), int((words * weights % modulus).sum() % modulus)
    return (second or 0xFFFF) << 16 | (first or 0xFFFF)


def _unshuffled(data: bytes, width: int) -> bytes:
    """Undo the shuffle filter.

    The filter stores the first bytes of all elements, then their second bytes, and so on.
    """
    whole = len(data) // width * width
    planes = np.frombuffer(data[:whole], np.uint8).reshape(width, -1)
    return planes.T.tobytes() + data[whole:]
