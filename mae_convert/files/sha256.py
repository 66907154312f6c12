"""The SHA-256 of files."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from mae_convert.files.byte_ranges import ByteFile

PIECE_BYTES = 1 << 20


def open_sha256(file: ByteFile) -> str:
    """Return the SHA-256 of the bytes of an open file.

    Raises:
        CheckpointError: it was changed since it was opened.
    """
    digest = sha256_of(file, lambda _: None)
    file.require_unchanged()
    return digest


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    return sha256_of(ByteFile(path), lambda _: None)


def sha256_of(file: ByteFile, advance: Callable[[int], None]) -> str:
    """Return the SHA-256 of an open file, and tell ``advance`` how many bytes were read."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(PIECE_BYTES))
    for start in range(0, file.size, PIECE_BYTES):
        piece = buffer[: min(PIECE_BYTES, file.size - start)]
        file.read_into(piece, start)
        digest.update(piece)
        advance(len(piece))
    return digest.hexdigest()
