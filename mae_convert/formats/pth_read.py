"""Read PyTorch's two file formats without PyTorch, and without running code from them."""

import math
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.errors import CheckpointError
from mae_convert.files.byte_ranges import ByteFile, damaged
from mae_convert.files.sequential import Mapped, SequentialArray
from mae_convert.formats.archive import Archive
from mae_convert.formats.contents import Contents
from mae_convert.formats.opaque_objects import Effects, would_run_code
from mae_convert.formats.pickle_stream import PickleStream
from mae_convert.formats.pickles import PickleReader
from mae_convert.formats.registry import PTH
from mae_convert.formats.settings import describe, passed_over, plain_mapping, read_config_text
from mae_convert.formats.tensor import LazyTensor
from mae_convert.formats.torch_types import Storage, StoredTensor, make_storage
from mae_convert.formats.wrappers import EPOCH_KEYS, Selection, epoch_in, select_model
from mae_convert.text import shown

SETTINGS = ("config", "conversion")
NESTED = ("config", "cfg")
"""Keys under which Lightning's hyper-parameters may contain a nested configuration."""

ARGUMENTS = ("hparams", "hyper_parameters", "args")
"""Keys under which Lightning and other training programs store the training arguments. If an
argument is stored under several of these keys, its value under the last of them is used."""

META, CONFIG_TEXTS = "meta", ("cfg", "config")
"""The key under which mmengine and mmcv store metadata, and the keys in the metadata under which
they store the configuration."""

ATTRIBUTE = "mae_convert"
"""The attribute of a plain state dict (an OrderedDict) in which its configuration is stored."""

LARGEST_OVERLAP = 1 << 24
"""The number of elements by which a tensor may exceed its storage. Only an expanded view, whose
elements share values, has more elements than its storage."""

ReadStorage = Callable[[Storage, np.dtype, int, tuple[int, ...]], Callable[[], np.ndarray]]
"""Takes a storage, a dtype, the index of the first element and a shape; returns a function that
reads the array."""


def pth_contents(
    file: ByteFile,
    value: object,
    read: ReadStorage,
    state_key: str | None = None,
    effects: Effects | None = None,
) -> Contents:
    """Return the weights and the other contents of a checkpoint's pickle.

    Args:
        file: the file.
        value: the value of the pickle.
        read: returns a function that reads from one of the file's storages.
        state_key: the key of the weights, or a dotted path of keys; None to recognise the weights.
        effects: the operations of the pickle on objects of unsupported types. They are used to
            refuse a pickle in which such an object received or could change the weights. None if
            there are no such operations.

    Raises:
        CheckpointError: the checkpoint contains no weights that are recognised, or a tensor does
            not fit its storage.
    """
    path, effects = file.path, effects or Effects()
    selection = select_model(path, value, state_key, effects)
    keys = selection.settings((*SETTINGS, *ARGUMENTS, META))
    settings = {name: plain_mapping(selection.beside[key]) for name, key in keys.items()}
    used = {keys[name] for name, value in settings.items() if value is not None}
    settings = {**_stored_settings(selection), **settings}
    progress = {name: selection.beside[key] for name, key in selection.settings(EPOCH_KEYS).items()}
    return Contents(
        kind=PTH,
        tensors={name: lazy(path, name, item, read) for name, item in selection.tensors.items()},
        files=(file,),
        config=settings.get("config"),
        conversion=settings.get("conversion"),
        training_args=training_arguments(settings),
        ignored={
            **{
                shown(name): describe(item)
                for name, item in selection.beside.items()
                if name not in used
            },
            **passed_over(value, effects),
        },
        passed_over=effects.names(),
        wrapper=selection.wrapper,
        epoch=epoch_in(plain_mapping(progress)),
    )


def training_arguments(settings: Mapping[str, dict | None]) -> dict[str, Any] | None:
    """Return the training arguments in a checkpoint by name; None if there are none.

    Training programs store arguments in several places, which are merged in one mapping:

    - the items of the mappings under the keys `ARGUMENTS`,
    - the items of mappings inside these mappings, under the keys `NESTED`,
    - mmengine's metadata as the item "meta"; a configuration stored there as text is converted to a
      mapping.

    Args:
        settings: the mappings under the keys `ARGUMENTS` and `META`, as JSON values; None for a key
            whose value is not a mapping of settings.
    """
    given = [part for name in ARGUMENTS if (part := settings.get(name)) is not None]
    nested = [
        inner for part in given for name in NESTED if isinstance(inner := part.get(name), dict)
    ]
    arguments = [*nested, *given]
    meta = settings.get(META)
    if meta is not None:
        texts = {name: meta[name] for name in CONFIG_TEXTS if isinstance(meta.get(name), str)}
        read = {name: read_config_text(text) for name, text in texts.items()}
        arguments.append({META: {**meta, **{k: v for k, v in read.items() if v is not None}}})
    return (
        {name: value for part in arguments for name, value in part.items()} if arguments else None
    )


def _stored_settings(selection: Selection) -> dict[str, dict | None]:
    """Return the settings "config" and "conversion" in the attribute `ATTRIBUTE` of a state dict.

    The result is empty if the state dict has no such attribute. A setting is None if it is not
    stored, or is not a mapping of settings.
    """
    stored = selection.attributes.get(ATTRIBUTE)
    if not isinstance(stored, Mapping):
        return {}
    return {name: plain_mapping(stored.get(name)) for name in ("config", "conversion")}


def lazy(path: Path, name: str, tensor: StoredTensor, read: ReadStorage) -> LazyTensor:
    """Return a tensor that is read from its storage on demand.

    Raises:
        CheckpointError: the tensor exceeds its storage.
    """
    storage, itemsize = tensor.storage, tensor.dtype.itemsize
    if storage.dtype not in (None, tensor.dtype):
        raise _outside(path, name)
    held = storage.count if storage.dtype is not None else storage.count // itemsize
    count = math.prod(tensor.shape)
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((extent - 1) * stride for extent, stride in steps)
    if (count and last >= held) or count > held + LARGEST_OVERLAP:
        raise _outside(path, name)

    return LazyTensor(name, tensor.shape, tensor.dtype, _loader(tensor, last, read))


def _loader(tensor: StoredTensor, last: int, read: ReadStorage) -> Callable[[], np.ndarray]:
    """Return a function that reads a tensor from its storage.

    `last` is the index of the tensor's last element in the storage.
    """
    shape, dtype, first = tensor.shape, tensor.dtype, tensor.offset
    if 0 in shape:
        return lambda: np.empty(shape, dtype)
    if tensor.strides == _contiguous_strides(shape):
        return read(tensor.storage, dtype, first, shape)
    read_range = read(tensor.storage, dtype, first, (last - first + 1,))
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    return lambda: np.lib.stride_tricks.as_strided(read_range(), shape, strides, writeable=False)


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _outside(path: Path, name: str) -> CheckpointError:
    return damaged(path, f"the tensor {shown(name)} does not fit its storage")


LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LARGEST_UNPACKED_PICKLE = 1 << 24
PICKLE = "data.pkl"
VERSIONS = ("version", ".data/version")
VERSION = re.compile(rb"\s*(?:[1-9]|10)\s*")
"""Versions of the format that `torch.load` accepts: up to 10."""

STORAGES = "data/"
MEMBERS = (PICKLE, *VERSIONS, "byteorder", ".data/serialization_id", ".format_version",
           ".storage_alignment", "", ".data/", STORAGES)  # fmt: skip
"""Members besides storages that a checkpoint may have; the last three are entries for folders,
which some programs write and `torch.save` does not."""

TORCHSCRIPT = ("constants.pkl", "code/")
"""Members that only a TorchScript archive has. PyTorch before 2.6 runs the code in the
archive even with `weights_only=True`."""


def folder_of(archive: Archive) -> str | None:
    """Return the folder in the archive to which `torch.save` wrote, with a slash at the end.

    `torch.load` uses the folder of the first member, and does not distinguish upper and lower case
    when it looks up a member by name. To ensure that this project and `torch.load` read the same
    data, there must be a single folder, which contains only members that `torch.save` writes.

    Returns:
        The folder, or None if no member is a pickle of `torch.save`.

    Raises:
        CheckpointError: the archive is a TorchScript program, or has members that no checkpoint
            has.
    """
    names = list(archive.records)
    if not any(name.lower().rpartition("/")[2] == PICKLE for name in names):
        return None
    folder = names[0].partition("/")[0] + "/"
    inside = [name.removeprefix(folder) for name in names]
    for name, member in zip(names, inside, strict=True):
        if any(f"/{member.lower()}".find(f"/{part}") >= 0 for part in TORCHSCRIPT):
            raise CheckpointError(
                archive.path,
                " is a TorchScript program and not weights",
                hint="write the weights with torch.save({'model': model.state_dict()}, ...)",
            )
        is_member = member in MEMBERS or (member.startswith(STORAGES) and member.count("/") == 1)
        if not name.startswith(folder) or not is_member:
            raise CheckpointError(
                archive.path,
                f" has a member {shown(name)}, which torch.save does not write, and which PyTorch "
                "may confuse with another member",
                hint="write the weights again with torch.save({'model': model.state_dict()}, ...)",
            )
    if PICKLE not in inside:
        raise damaged(archive.path, f"it has no {PICKLE}")
    return folder


def read_value(
    archive: Archive, folder: str, *, strict: bool = False
) -> tuple[object, ReadStorage, Effects]:
    """Read the value that `torch.save` wrote into a zip archive.

    Args:
        archive: the file.
        folder: the folder in the archive that contains all members, with a slash at the end.
        strict: refuse any object of an unsupported type, even if no weight needs it.

    Returns:
        The value; a function that reads arrays from the storages of its tensors; and the operations
        of the pickle on objects of unsupported types.

    Raises:
        CheckpointError: the archive is damaged, or loading it would run code.
    """
    versions = [name for name in VERSIONS if f"{folder}{name}" in archive.records]
    if not versions:
        raise damaged(archive.path, "its format version is missing")
    if not all(VERSION.fullmatch(archive.raw(f"{folder}{name}", 16)) for name in versions):
        raise damaged(archive.path, "its format version is unknown")
    storages = _ZipStorages(archive, folder)
    reader = PickleReader(archive.path, storages.of_id, strict=strict)
    stored = archive.part(f"{folder}{PICKLE}")
    if stored is None:  # torch.save does not compress the record, but another program may
        stream = PickleStream.of_bytes(archive.raw(f"{folder}{PICKLE}", LARGEST_UNPACKED_PICKLE))
    else:
        stream = PickleStream.of_file(stored)
    return reader.load(stream), storages.read, reader.effects


def read_pth(archive: Archive, state_key: str | None = None) -> Contents:
    """Read the zip format of PyTorch 1.6 and later.

    Args:
        archive: the file.
        state_key: the key of the weights, if they cannot be recognised.

    Raises:
        CheckpointError: the file is damaged, would run code, is a TorchScript program, or contains
            no weights that are recognised.
    """
    folder = folder_of(archive)
    assert folder is not None  # the format was recognised by its folder
    value, read, effects = read_value(archive, folder)
    return pth_contents(archive.file, value, read, state_key, effects)


def read_legacy_pth(file: ByteFile, state_key: str | None = None) -> Contents:
    """Read the format of PyTorch before 1.6: pickles, followed by the storages.

    Args:
        file: the file.
        state_key: the key of the weights, if they cannot be recognised.

    Raises:
        CheckpointError: the file was not written by PyTorch, is damaged, would run code, or
            contains no weights that are recognised.
    """
    storages = _LegacyStorages(file)
    reader = PickleReader(file.path, storages.of_id)
    framing = PickleReader(file.path, storages.of_id, strict=True)
    stream = PickleStream.of_file(file)
    if framing.load(stream) != LEGACY_MAGIC:
        named = ", ".join(map(shown, sorted(set(framing.names)))) or "plain values"
        raise CheckpointError(
            file.path,
            f" is a Python pickle (of {named}) and not a PyTorch checkpoint",
            hint="write the weights with torch.save({'model': model.state_dict()}, ...)",
        )
    _protocol_version = framing.load(stream)
    _system_information = framing.load(stream)
    value = reader.load(stream)
    if reader.effects.storages:  # a storage of unknown size: the next offset is unknown
        raise would_run_code(file.path, reader.effects.storages[0])
    storages.locate(framing.load(stream), stream.tell())
    return pth_contents(file, value, storages.read, state_key, reader.effects)


class _ZipStorages:
    """Storages that are records of a zip archive."""

    def __init__(self, archive: Archive, prefix: str) -> None:
        self._archive = archive
        self._prefix = prefix
        self._wholes: dict[str, Storage] = {}
        self._big_endian = _is_big_endian(archive, f"{prefix}byteorder")

    def of_id(self, identity: Any) -> Storage:
        """Return the storage of a persistent id.

        Raises:
            CheckpointError: the record of the storage is missing or has a wrong size.
            ValueError: the id is invalid, or contradicts an earlier id of the storage.
        """
        label, kind, key, _device, count = identity
        if label != "storage":
            raise ValueError("a persistent id that does not refer to a storage")
        storage = make_storage(kind, key, count)
        # PyTorch uses the type of the first reference to a storage.
        if self._wholes.setdefault(key, storage) != storage:
            raise ValueError("a storage with inconsistent types or sizes")
        size = storage.count * _element_bytes(storage)
        if size and self._archive.size(f"{self._prefix}data/{key}") != size:
            raise damaged(
                self._archive.path, f"the storage {shown(key)} does not have {size} bytes"
            )
        return storage

    def read(
        self, storage: Storage, dtype: np.dtype, first: int, shape: tuple[int, ...]
    ) -> Callable[[], np.ndarray]:
        """Return a function that reads an array from a storage, beginning with element `first`."""
        name = f"{self._prefix}data/{storage.key}"
        load = self._archive.array(name, first * dtype.itemsize, shape, dtype)
        if not self._big_endian:
            return load
        if isinstance(load, SequentialArray):
            return Mapped(shape, dtype, load, _byteswapped)
        return lambda: _byteswapped(load())


class _LegacyStorages:
    """The storages after the pickles; each consists of its number of elements and the elements."""

    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self._wholes: dict[str, Storage] = {}
        self._offsets: Mapping[str, int] = {}

    def of_id(self, identity: Any) -> Storage:
        """Return the storage that a persistent id describes, and record its number of elements.

        Raises:
            ValueError: the id is invalid, or contradicts an earlier id of the storage.
        """
        label, kind, key, _device, count, view = identity
        if label != "storage":
            raise ValueError("a persistent id that does not refer to a storage")
        whole = make_storage(kind, key, count)
        if self._wholes.setdefault(key, whole) != whole:
            raise ValueError("a storage with inconsistent sizes")
        return make_storage(kind, key, count, view)

    def locate(self, keys: Any, position: int) -> None:
        """Determine the offset of each storage in the file.

        Args:
            keys: the keys of the storages, in the order of the file.
            position: the offset of the first storage in the file.

        Raises:
            CheckpointError: storages are missing or incomplete, or contradict the pickle.
        """
        named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not named or sorted(keys) != sorted(self._wholes):
            raise damaged(self._file.path, "it does not contain the storages that it refers to")
        offsets = {}
        for key in keys:
            (count,) = struct.unpack("<q", self._file.raw(position, 8))
            if count != self._wholes[key].count:
                raise damaged(
                    self._file.path,
                    f"the storage {shown(key)} has {count} elements, but the pickle specifies "
                    f"{self._wholes[key].count}",
                )
            offsets[key] = position + 8
            position += 8 + count * _element_bytes(self._wholes[key])
        if position > self._file.size:
            raise damaged(self._file.path, f"{position - self._file.size} bytes are missing")
        self._offsets = offsets

    def read(
        self, storage: Storage, dtype: np.dtype, first: int, shape: tuple[int, ...]
    ) -> Callable[[], np.ndarray]:
        """Return a function that reads an array from a storage, beginning with element `first`."""
        start = self._offsets[storage.key] + storage.start * _element_bytes(storage)
        return self._file.array(start + first * dtype.itemsize, shape, dtype)


def _element_bytes(storage: Storage) -> int:
    return storage.dtype.itemsize if storage.dtype is not None else 1


def _is_big_endian(archive: Archive, name: str) -> bool:
    if name not in archive.records:  # written by PyTorch before 2.1, always little-endian
        return False
    order = archive.raw(name, 16)
    if order not in (b"little", b"big"):
        raise damaged(archive.path, f"its byte order is {order!r}")
    return order == b"big"


def _byteswapped(flat: np.ndarray) -> np.ndarray:
    width = flat.dtype.itemsize // (2 if flat.dtype.kind == "c" else 1)
    return flat.view(f"u{width}").byteswap().view(flat.dtype)
