"""Recognise the format of a file by its first bytes, and read it."""

import re
from pathlib import Path

from mae_convert.errors import CheckpointError
from mae_convert.files.byte_ranges import ByteFile
from mae_convert.formats.archive import Archive
from mae_convert.formats.contents import Contents
from mae_convert.formats.registry import FORMATS, INDEX_SUFFIX, METADATA, SPECIFY, ZIP, Signature
from mae_convert.formats.shards import read_sharded

HEAD_BYTES = 512
LOOKALIKES = (
    (re.compile(rb"version https://git-lfs"),
     "a git-lfs pointer and not the file itself; download the file with `git lfs pull`"),
    (re.compile(rb"\s*(<!doctype html|<html|<\?xml|<error)", re.IGNORECASE),
     "a web page and not a checkpoint; download the file again from its direct URL"),
    (re.compile(rb"\s*[{\[]\s*[\"{\[]"), f"a JSON file and not weights; {SPECIFY}"),
    (re.compile(rb"\x1f\x8b"), "compressed with gzip; unpack it with gunzip"),
    (re.compile(rb"BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf"), "a compressed file; unpack it"),
    (re.compile(rb"(?s).{257}ustar"), "a tar archive; unpack it and specify the checkpoint in it"),
)  # fmt: skip


def read_contents(path: Path, state_key: str | None = None) -> Contents:
    """Read a file of any format; tensors are not loaded.

    Args:
        path: the file.
        state_key: the key of the weights in a PyTorch checkpoint, if they cannot be recognised.

    Raises:
        CheckpointError: the file does not exist, is not a checkpoint, is damaged, or contains a
            pickle that would run code.
    """
    if path.name.endswith(INDEX_SUFFIX) and path.is_file():
        return read_sharded(path, read_file)
    if path.name == METADATA and path.is_file():
        from mae_convert.formats.dcp import read_dcp

        return read_dcp(path.parent, state_key)
    return read_file(path, state_key)


def read_file(path: Path, state_key: str | None = None) -> Contents:
    """Read a file that contains its tensors itself, which an index does not.

    Args:
        path: the file.
        state_key: the key of the weights in a PyTorch checkpoint, if they cannot be recognised.

    Raises:
        CheckpointError: as `read_contents`.
    """
    file = ByteFile(path)
    head = file.raw(0, min(HEAD_BYTES, file.size))
    archive = Archive(file) if ZIP.match(head) else None
    for form in FORMATS.values():
        for signature in form.signatures:
            if signature.begins.match(head) and _is_archived(signature, archive):
                keys = (state_key,) if form.has_keys else ()
                contents: Contents = signature.read(archive or file, *keys)
                return contents
    for pattern, what in LOOKALIKES:
        if pattern.match(head):
            raise CheckpointError(path, f" is {what}")
    raise CheckpointError(path, f" is not a checkpoint: it begins with {head[:8]!r}", hint=SPECIFY)


def _is_archived(signature: Signature, archive: Archive | None) -> bool:
    """Return whether a signature fits the members of an archive, or a file without an archive."""
    if archive is None or signature.members is None:
        return archive is None and signature.members is None
    return signature.members(archive.path.name, archive.records.keys())
