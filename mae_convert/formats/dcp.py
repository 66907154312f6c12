"""PyTorch distributed checkpoints (DCP): a directory with `.metadata` and `__*_*.distcp` files.

`torch.distributed.checkpoint.save` writes them, and so do trainers that use it, above all with
FSDP. A tensor may be stored in chunks, each of which is a small `torch.save` file embedded in a
large file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.errors import CheckpointError
from mae_convert.files.byte_ranges import ByteFile
from mae_convert.files.messages import damaged, shown
from mae_convert.formats.archive import Archive
from mae_convert.formats.contents import Contents
from mae_convert.formats.dcp_metadata import (
    ByteRange,
    Chunk,
    Pickled,
    ShardedTensor,
    check_tiling,
    read_metadata,
)
from mae_convert.formats.plain_values import describe, plain_mapping
from mae_convert.formats.pth import ARGUMENTS, META, SETTINGS, lazy, training_arguments
from mae_convert.formats.pth_read import folder_of, read_value
from mae_convert.formats.registry import DCP, METADATA
from mae_convert.formats.tensor import LazyTensor
from mae_convert.formats.torch_types import StoredTensor
from mae_convert.formats.wrappers import EPOCH_KEYS, epoch_in, select_model


def read_dcp(directory: Path, state_key: str | None = None) -> Contents:
    """Read a distributed checkpoint; the chunks of a tensor are assembled when it is read.

    Args:
        directory: the directory that contains `.metadata`.
        state_key: the key of the weights, if they cannot be recognised.

    Raises:
        CheckpointError: it is damaged or incomplete, would run code, or contains no weights that
            are recognised.
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
        """Return the value in a byte range, and a function that reads its storages."""
        archive = Archive(self.check(byte_range))
        folder = folder_of(archive)
        if folder is None:
            raise damaged(archive.path, "a chunk was not written by torch.save")
        return read_value(archive, folder, strict=True)[:2]

    def tensor(self, name: str, chunk: Chunk, dtype: np.dtype) -> np.ndarray:
        """Return the values of a chunk.

        Raises:
            CheckpointError: they do not match `.metadata`.
        """
        value, read = self.value(chunk.byte_range)
        path = self._directory / chunk.byte_range.file
        fits = isinstance(value, StoredTensor) and value.shape == chunk.sizes
        if not fits or value.dtype != dtype:
            raise damaged(path, f"its {shown(name)} differs from that in {METADATA}")
        return lazy(path, name, value, read).load()

    def settings(self, value: object) -> dict[str, Any] | None:
        """Return settings as plain data; None if there are none or they would run code."""
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
