"""Reads PyTorch's two file formats without PyTorch, and without running anything in them."""

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.containers.archive import Archive
from mae_convert.containers.contents import Contents
from mae_convert.containers.mapped import MappedFile
from mae_convert.containers.messages import damaged, shown
from mae_convert.containers.pickles import PickleReader
from mae_convert.containers.pth import ReadStorage, pth_contents
from mae_convert.containers.torch_types import Storage, make_storage
from mae_convert.errors import CheckpointError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LARGEST_PICKLE = 1 << 28
PICKLE = "data.pkl"


def folder_of(archive: Archive) -> str | None:
    """Return the folder in which `torch.save` has put everything, with its slash, if it has."""
    pickles = [name for name in archive.records if name.rpartition("/")[2] == PICKLE]
    return min(pickles, key=len).removesuffix(PICKLE) if pickles else None


def read_value(archive: Archive, folder: str) -> tuple[object, ReadStorage]:
    """Return what `torch.save` wrote into a zip archive, and a way to the storages.

    Args:
        archive: the file.
        folder: the folder in it in which everything stands, with its slash.

    Raises:
        CheckpointError: it is damaged, or would run code.
    """
    storages = _ZipStorages(archive, folder)
    reader = PickleReader(archive.path, storages.of_id)
    stream = io.BytesIO(archive.raw(f"{folder}{PICKLE}", LARGEST_PICKLE))
    return reader.load(stream), storages.read


def read_pth(archive: Archive, folder: str, state_key: str | None = None) -> Contents:
    """Read the zip format of PyTorch 1.6 and later.

    Args:
        archive: the file.
        folder: the folder in it in which everything stands, with its slash.
        state_key: the key of the weights, where it is not plain.

    Raises:
        CheckpointError: it is damaged, would run code, or holds no weights that are recognised.
    """
    value, read = read_value(archive, folder)
    return pth_contents(archive.path, value, read, state_key)


def read_legacy_pth(path: Path, state_key: str | None = None) -> Contents:
    """Read the format from before PyTorch 1.6: pickles, then the storages one after another.

    Args:
        path: the file.
        state_key: the key of the weights, where it is not plain.

    Raises:
        CheckpointError: it is another program's pickle, is damaged, would run code, or holds no
            weights that are recognised.
    """
    mapped = MappedFile(path)
    storages = _LegacyStorages(mapped)
    reader = PickleReader(path, storages.of_id)
    if reader.load(mapped.stream) != LEGACY_MAGIC:
        named = ", ".join(sorted(set(reader.names))) or "plain values"
        raise CheckpointError(
            f"{path} is a Python pickle (of {named}) and not a PyTorch checkpoint; "
            "write the weights with torch.save({'model': model.state_dict()}, ...)"
        )
    _protocol_version = reader.load(mapped.stream)
    _system_information = reader.load(mapped.stream)
    value = reader.load(mapped.stream)
    storages.locate(reader.load(mapped.stream), mapped.stream.tell())
    return pth_contents(path, value, storages.read, state_key)


class _ZipStorages:
    """The storages that are records of a zip archive."""

    def __init__(self, archive: Archive, prefix: str) -> None:
        self._archive = archive
        self._prefix = prefix
        self._big_endian = _is_big_endian(archive, f"{prefix}byteorder")

    def of_id(self, identity: Any) -> Storage:
        """Return the storage of a persistent id.

        Raises:
            CheckpointError: its record is missing or has another size.
        """
        label, kind, key, _device, count = identity
        if label != "storage":
            raise ValueError("a persistent id that is not of a storage")
        storage = make_storage(kind, key, count)
        size = storage.count * _element_bytes(storage)
        if size and self._archive.size(f"{self._prefix}data/{key}") != size:
            raise damaged(self._archive.path, f"the storage {shown(key)} has not {size} bytes")
        return storage

    def read(self, storage: Storage, dtype: np.dtype) -> np.ndarray:
        """Return the elements of a storage."""
        count = storage.count * _element_bytes(storage) // dtype.itemsize
        flat = self._archive.array(f"{self._prefix}data/{storage.key}", 0, (count,), dtype)
        return _byteswapped(flat) if self._big_endian else flat


class _LegacyStorages:
    """The storages that stand behind the pickles: each its number of elements, then these."""

    def __init__(self, mapped: MappedFile) -> None:
        self._mapped = mapped
        self._wholes: dict[str, Storage] = {}
        self._places: Mapping[str, int] = {}

    def of_id(self, identity: Any) -> Storage:
        """Return the storage of a persistent id, and remember its size."""
        label, kind, key, _device, count, view = identity
        if label != "storage":
            raise ValueError("a persistent id that is not of a storage")
        whole = make_storage(kind, key, count)
        if self._wholes.setdefault(key, whole) != whole:
            raise ValueError("a storage of two sizes")
        return make_storage(kind, key, count, view)

    def locate(self, keys: Any, position: int) -> None:
        """Find where each storage begins.

        Raises:
            CheckpointError: they do not all lie in the file, or differ from what the pickle says.
        """
        if not isinstance(keys, list) or set(keys) != set(self._wholes):
            raise damaged(self._mapped.path, "it does not hold the storages that it names")
        places = {}
        for key in keys:
            (count,) = struct.unpack("<q", self._mapped.raw(position, 8))
            if count != self._wholes[key].count:
                raise damaged(self._mapped.path, f"the storage {shown(key)} has {count} elements")
            places[key] = position + 8
            position += 8 + count * _element_bytes(self._wholes[key])
        if position > self._mapped.size:
            raise damaged(self._mapped.path, f"{position - self._mapped.size} bytes are missing")
        self._places = places

    def read(self, storage: Storage, dtype: np.dtype) -> np.ndarray:
        """Return the elements of a storage."""
        start = self._places[storage.key] + storage.start * _element_bytes(storage)
        count = storage.count * _element_bytes(storage) // dtype.itemsize
        return self._mapped.array(start, (count,), dtype)


def _element_bytes(storage: Storage) -> int:
    return storage.dtype.itemsize if storage.dtype is not None else 1


def _is_big_endian(archive: Archive, name: str) -> bool:
    if name not in archive.records:  # as before PyTorch 2.1, which wrote little-endian files
        return False
    order = archive.raw(name, 16)
    if order not in (b"little", b"big"):
        raise damaged(archive.path, f"its byte order is {order!r}")
    return order == b"big"


def _byteswapped(flat: np.ndarray) -> np.ndarray:
    width = flat.dtype.itemsize // (2 if flat.dtype.kind == "c" else 1)
    return flat.view(f"u{width}").byteswap().view(flat.dtype)
