"""Tells by its first bytes what a file is, and reads it."""

import re
from pathlib import Path

from mae_convert.errors import CheckpointError
from mae_convert.files.byte_ranges import NAMED, ByteFile
from mae_convert.formats.archive import Archive
from mae_convert.formats.contents import Contents
from mae_convert.formats.dcp import read_dcp
from mae_convert.formats.dcp_metadata import METADATA
from mae_convert.formats.npz import read_npz
from mae_convert.formats.pth_read import folder_of, read_legacy_pth, read_pth
from mae_convert.formats.safetensors_file import read_safetensors
from mae_convert.formats.shards import INDEX_SUFFIX, read_sharded

HEAD_BYTES = 512
PICKLE = re.compile(rb"\x80[\x00-\x05]|[(\]}]{0,2}c[A-Za-z_][\w.]*\n[A-Za-z_]\w*\n")
OF_KERAS = ("metadata.json", "model.weights.h5", "model.weights.npz")

LOOKALIKES = (
    (re.compile(rb"version https://git-lfs"), "a git-lfs pointer and not the file itself; "
     "fetch the file with `git lfs pull`"),
    (re.compile(rb"\s*(<!doctype html|<html|<\?xml|<error)", re.IGNORECASE), "a web page and not "
     "a checkpoint; download the file again by its direct address"),
    (re.compile(rb"\s*[{\[]\s*[\"{\[]"), f"a JSON file and not weights; {NAMED}"),
    (re.compile(rb"\x1f\x8b"), "compressed with gzip; unpack it with gunzip"),
    (re.compile(rb"BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf"), "a compressed file; unpack it"),
    (re.compile(rb"(?s).{257}ustar"), "a tar archive; unpack it and name the checkpoint in it"),
)  # fmt: skip


def read_contents(path: Path, state_key: str | None = None) -> Contents:
    """Read a file of whatever container; tensors stay on the disk.

    Args:
        path: the file.
        state_key: the key of the weights in a PyTorch checkpoint, where it is not plain.

    Raises:
        CheckpointError: there is no such file, it is not a checkpoint, it is damaged, or its
            pickle would run code.
    """
    if path.name.endswith(INDEX_SUFFIX) and path.is_file():
        return read_sharded(path, read_file)
    if path.name == METADATA and path.is_file():
        return read_dcp(path.parent, state_key)
    return read_file(path, state_key)


def read_file(path: Path, state_key: str | None = None) -> Contents:
    """Read a file that holds its tensors itself.

    Args:
        path: the file.
        state_key: the key of the weights in a PyTorch checkpoint, where it is not plain.

    Raises:
        CheckpointError: as `read_contents`.
    """
    file = ByteFile(path)
    head = file.raw(0, min(HEAD_BYTES, file.size))
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _read_zip(file, state_key)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        # Imported here, so that what needs no HDF5 does not wait for it.
        from mae_convert.formats.hdf5 import read_hdf5

        return read_hdf5(file)
    if head[8:9] == b"{" and head[4:8] == bytes(4):
        return read_safetensors(file)
    for pattern, what in LOOKALIKES:
        if pattern.match(head):
            raise CheckpointError(path, f" is {what}")
    if PICKLE.match(head):
        return read_legacy_pth(file, state_key)
    raise CheckpointError(path, f" is not a checkpoint: it begins with {head[:8]!r}", hint=NAMED)


def _read_zip(file: ByteFile, state_key: str | None) -> Contents:
    archive = Archive(file)
    folder = folder_of(archive)
    if folder is None and _is_of_keras(archive):
        from mae_convert.formats.keras_archive import read_keras_archive

        return read_keras_archive(archive)
    if folder is None:
        return read_npz(archive)
    return read_pth(archive, folder, state_key)


def _is_of_keras(archive: Archive) -> bool:
    """Tell whether a zip archive is meant as a Keras model, even where a member is missing."""
    return archive.path.suffix == ".keras" or not archive.records.keys().isdisjoint(OF_KERAS)
