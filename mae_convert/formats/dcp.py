"""PyTorch distributed checkpoints (DCP): a directory with `.metadata` and `__*_*.distcp` files.

They are written by `torch.distributed.checkpoint.save`, which trainers call mostly with FSDP. A
tensor may be stored in chunks, each of which is a small `torch.save` file embedded in a large file.

`.metadata` is a pickle of `torch.distributed.checkpoint.metadata.Metadata`, which lists the chunks
of each tensor. Nested dicts are stored flattened to dotted names; the attribute `planner_data`
contains the keys that lead to each entry.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.errors import CheckpointError
from mae_convert.files.byte_ranges import ByteFile, damaged, is_plain_name
from mae_convert.formats.archive import Archive
from mae_convert.formats.contents import Contents, reading
from mae_convert.formats.pickle_stream import PickleStream
from mae_convert.formats.pickle_types import INERT, Maker, Record
from mae_convert.formats.pickles import PickleReader
from mae_convert.formats.pth_read import (
    ARGUMENTS,
    META,
    SETTINGS,
    folder_of,
    lazy,
    read_value,
    training_arguments,
)
from mae_convert.formats.registry import DCP, METADATA
from mae_convert.formats.settings import describe, plain_mapping
from mae_convert.formats.tensor import LazyTensor, possible_shape
from mae_convert.formats.torch_types import TORCH_DTYPES, StoredTensor, TensorPlace, natural
from mae_convert.formats.wrappers import EPOCH_KEYS, epoch_in, select_model
from mae_convert.text import shown

DEEPEST = 32
DAMAGE = (KeyError, ValueError, TypeError, AttributeError, IndexError)

_METADATA_TYPES = (
    "Metadata",
    "TensorStorageMetadata",
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "TensorProperties",
    "MetadataIndex",
    "StorageMeta",
    "_MEM_FORMAT_ENCODING",
)
_RECORDS = {
    **{f"torch.distributed.checkpoint.metadata.{name}": name for name in _METADATA_TYPES},
    "torch.distributed.checkpoint.filesystem._StorageInfo": "_StorageInfo",
    # Earlier versions of PyTorch have these two types in another module.
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties": "TensorProperties",
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING": "_MEM_FORMAT_ENCODING",
}


def _make_record(kind: str, *_: object) -> Record:
    return Record(kind)


TYPES: Mapping[str, object] = {
    **INERT,
    **{
        dotted: Maker(dotted, functools.partial(_make_record, kind))
        for dotted, kind in _RECORDS.items()
    },
}


@dataclass(frozen=True)
class ByteRange:
    """A byte range of a file; the bytes in the range are a complete `torch.save` file."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Chunk:
    """A block of a tensor: its offsets in the tensor, its sizes, and where it is stored."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    byte_range: ByteRange


@dataclass(frozen=True)
class ShardedTensor(TensorPlace):
    """A tensor as `.metadata` describes it: chunks that together cover the whole tensor."""

    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Pickled:
    """A value that is not a tensor; it is read when it is needed."""

    byte_range: ByteRange

    def __str__(self) -> str:
        return "a pickled value"


def read_metadata(file: ByteFile) -> dict[str, Any]:
    """Return the `ShardedTensor` and `Pickled` entries of a checkpoint, in nested dicts as saved.

    Raises:
        CheckpointError: the file is damaged, would run code, or describes unsupported objects.
    """
    with reading(file.path, *DAMAGE):
        reader = PickleReader(file.path, _no_storage, TYPES, strict=True)
        metadata = _fields(reader.load(PickleStream.of_file(file)), "Metadata")
        return _nested(dict(_entries(file.path, metadata)), metadata.get("planner_data"))


def _no_storage(_: object) -> object:
    raise ValueError("a storage where only metadata is expected")


def _fields(value: Any, kind: str) -> dict[str, Any]:
    """Return the attributes of an unpickled object, which must be a `Record` of this kind."""
    if type(value) is not Record or value.kind != kind or not isinstance(value.state, dict):
        raise TypeError(f"not a {kind}")
    return value.state


def _entries(path: Path, metadata: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield the name and the content of every entry of the checkpoint."""
    ranges: dict[tuple, ByteRange] = {}
    for index, info in metadata["storage_data"].items():
        fields = _fields(index, "MetadataIndex")
        ranges[fields["fqn"], fields.get("offset")] = _byte_range(
            path, _fields(info, "_StorageInfo")
        )
    if len(ranges) != len(metadata["storage_data"]):
        raise ValueError("a chunk is stored twice")
    for name, entry in metadata["state_dict_metadata"].items():
        if type(entry) is Record and entry.kind == "BytesStorageMetadata":
            yield name, Pickled(ranges[name, None])
        else:
            yield name, _sharded(name, _fields(entry, "TensorStorageMetadata"), ranges)


def _byte_range(path: Path, info: Mapping[str, Any]) -> ByteRange:
    file, offset, length = info["relative_path"], info["offset"], info["length"]
    if not is_plain_name(file) or not natural(offset) or not natural(length):
        raise ValueError("an invalid offset")
    if info.get("transform_descriptors"):
        raise CheckpointError(
            f"{path.parent} was written with an extension of the format "
            f"({shown(info['transform_descriptors'])})",
            hint="write it without the extension, in the program that created it",
        )
    return ByteRange(file, offset, length)


def _sharded(
    name: str, entry: Mapping[str, Any], ranges: Mapping[tuple, ByteRange]
) -> ShardedTensor:
    properties = entry["properties"]
    if type(properties) is not Record or properties.kind != "TensorProperties":
        raise TypeError("a tensor without properties")
    dtype = TORCH_DTYPES[str(properties.state[0]).removeprefix("torch.")]
    chunks = []
    for record in entry["chunks"]:
        fields = _fields(record, "ChunkStorageMetadata")
        offsets, sizes = fields["offsets"], fields["sizes"]
        chunks.append(Chunk(offsets, sizes, ranges[name, offsets]))
    for shape in (entry["size"], *(s for chunk in chunks for s in (chunk.offsets, chunk.sizes))):
        if not possible_shape(shape) or len(shape) != len(entry["size"]):
            raise ValueError(f"{name} has an invalid shape")
    return ShardedTensor(entry["size"], dtype, tuple(chunks))


def _nested(entries: Mapping[str, object], paths: Any) -> dict[str, Any]:
    """Return the entries in nested dicts, as they were before their names were flattened.

    `paths` has the keys of each entry; an entry without keys stays at the top level.
    """
    whole: dict[str, Any] = {}
    for name, item in entries.items():
        *parents, last = map(str, (paths or {}).get(name) or (name,))
        if len(parents) > DEEPEST:
            raise ValueError(f"{name} is nested too deeply")
        mapping = whole
        for parent in parents:
            mapping = mapping.setdefault(parent, {})
            if not isinstance(mapping, dict):
                raise ValueError(f"{name} is nested in a value that is not a dict")
        if mapping.setdefault(last, item) is not item:
            raise ValueError(f"two entries at {name}")
    return whole


def check_tiling(path: Path, name: str, tensor: ShardedTensor) -> None:
    """Require that the chunks are inside the tensor, do not overlap, and cover all of it.

    Raises:
        CheckpointError: the chunks do not meet these conditions.
    """
    shape = (len(tensor.chunks), len(tensor.shape))
    begins = np.array([chunk.offsets for chunk in tensor.chunks], np.int64).reshape(shape)
    ends = begins + np.array([chunk.sizes for chunk in tensor.chunks], np.int64).reshape(shape)
    covered = sum(math.prod(chunk.sizes) for chunk in tensor.chunks)
    if covered != math.prod(tensor.shape) or (ends > np.array(tensor.shape)).any():
        raise damaged(path, f"the chunks of {shown(name)} do not cover the whole tensor")
    for index in range(len(tensor.chunks) - 1):
        apart = (ends[index] <= begins[index + 1 :]) | (ends[index + 1 :] <= begins[index])
        if covered and not apart.any(axis=1).all():
            raise damaged(path, f"the chunks of {shown(name)} overlap")


def read_dcp(directory: Path, state_key: str | None = None) -> Contents:
    """Read a distributed checkpoint; the chunks of a tensor are assembled when it is read.

    Args:
        directory: the directory that contains `.metadata`.
        state_key: the key of the weights, if they cannot be recognised.

    Raises:
        CheckpointError: the checkpoint is damaged or incomplete, would run code, or contains no
            weights that are recognised.
    """
    path = directory / METADATA
    metadata = ByteFile(path)
    selection = select_model(directory, read_metadata(metadata), state_key)
    files = _Files(directory)
    for name, tensor in selection.tensors.items():
        check_tiling(path, name, tensor)
        for chunk in tensor.chunks:
            files.check(chunk.byte_range)
    keys = selection.settings((*SETTINGS, *ARGUMENTS, META))
    settings = {name: files.settings(selection.beside[key]) for name, key in keys.items()}
    used = {keys[name] for name, value in settings.items() if value is not None}
    progress = {name: selection.beside[key] for name, key in selection.settings(EPOCH_KEYS).items()}
    epoch = epoch_in(files.settings(progress))
    return Contents(
        kind=DCP,
        tensors={name: _join(files, name, item) for name, item in selection.tensors.items()},
        files=(metadata, *(files.used[name] for name in sorted(files.used))),
        config=settings.get("config"),
        conversion=settings.get("conversion"),
        training_args=training_arguments(settings),
        ignored={
            shown(name): str(item) if isinstance(item, Pickled) else describe(item)
            for name, item in selection.beside.items()
            if name not in used
        },
        wrapper=selection.wrapper,
        epoch=epoch,
    )


class _Files:
    """The files of a checkpoint, each opened when it is first needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.used: dict[str, ByteFile] = {}

    def check(self, byte_range: ByteRange) -> ByteFile:
        """Return a byte range as a file.

        Raises:
            CheckpointError: the file is missing or too short.
        """
        if byte_range.file not in self.used:
            path = self._directory / byte_range.file
            if not path.is_file():
                raise CheckpointError(
                    f"{self._directory} lacks the file {shown(byte_range.file)}",
                    hint="copy the whole directory",
                )
            self.used[byte_range.file] = ByteFile(path)
        return self.used[byte_range.file].part(byte_range.offset, byte_range.length)

    def value(self, byte_range: ByteRange) -> tuple[Any, Any]:
        """Return the value in a byte range, and a function that reads its tensors' storages."""
        archive = Archive(self.check(byte_range))
        folder = folder_of(archive)
        if folder is None:
            raise damaged(archive.path, "a chunk was not written by torch.save")
        return read_value(archive, folder, strict=True)[:2]

    def tensor(self, name: str, chunk: Chunk, dtype: np.dtype) -> np.ndarray:
        """Return the values of a chunk of the tensor `name`.

        Raises:
            CheckpointError: the shape or the dtype of the chunk does not match `.metadata`.
        """
        value, read = self.value(chunk.byte_range)
        path = self._directory / chunk.byte_range.file
        fits = isinstance(value, StoredTensor) and value.shape == chunk.sizes
        if not fits or value.dtype != dtype:
            raise damaged(path, f"the dtype or shape of {shown(name)} contradicts {METADATA}")
        return lazy(path, name, value, read).load()

    def settings(self, value: object) -> dict[str, Any] | None:
        """Return a mapping of settings as plain data.

        Returns:
            The settings; None if the value is not a mapping, or if reading it would run code.
        """
        try:
            return plain_mapping(self._resolved(value))
        except CheckpointError:
            return None

    def _resolved(self, value: object) -> object:
        if isinstance(value, dict):
            return {name: self._resolved(item) for name, item in value.items()}
        return self.value(value.byte_range)[0] if isinstance(value, Pickled) else value


def _join(files: _Files, name: str, tensor: ShardedTensor) -> LazyTensor:
    def load() -> np.ndarray:
        if _is_whole(tensor.chunks, tensor.shape):
            return files.tensor(name, tensor.chunks[0], tensor.dtype)
        array = np.empty(tensor.shape, tensor.dtype)
        for chunk in tensor.chunks:
            block = tuple(
                slice(begin, begin + size)
                for begin, size in zip(chunk.offsets, chunk.sizes, strict=True)
            )
            array[block] = files.tensor(name, chunk, tensor.dtype)
        return array

    return LazyTensor(name, tensor.shape, tensor.dtype, load)


def _is_whole(chunks: Sequence[Chunk], shape: tuple[int, ...]) -> bool:
    return len(chunks) == 1 and chunks[0].sizes == shape
