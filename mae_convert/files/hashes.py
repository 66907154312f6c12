"""The SHA-256 of files, and the CRC-32 of concatenated bytes, computed from those of the parts.

A CRC-32 is a polynomial over GF(2) modulo `POLYNOMIAL`, its bits reversed: the highest bit of a
number is the coefficient of x^0. To append n zero bits is to multiply it by x^n.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from mae_convert.files.byte_ranges import ByteFile

PIECE_BYTES = 1 << 20
POLYNOMIAL = 0xEDB88320
ONE, X = 1 << 31, 1 << 30


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
    """Return the SHA-256 of an open file; ``advance`` is called with the number of bytes read."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(PIECE_BYTES))
    for start in range(0, file.size, PIECE_BYTES):
        piece = buffer[: min(PIECE_BYTES, file.size - start)]
        file.read_into(piece, start)
        digest.update(piece)
        advance(len(piece))
    return digest.hexdigest()


def combined_crc32(parts: Iterable[tuple[int, int]]) -> int:
    """Return the CRC-32 of concatenated parts, each given as its own CRC-32 and its length."""
    whole = 0
    for checksum, count in parts:
        whole = _times(_power_of_x(8 * count), whole) ^ checksum
    return whole


def _times(a: int, b: int) -> int:
    """Return the product of two polynomials."""
    product, bit = 0, ONE
    while bit:
        if a & bit:
            product ^= b
        b = b >> 1 ^ (POLYNOMIAL if b & 1 else 0)
        bit >>= 1
    return product


def _power_of_x(exponent: int) -> int:
    power, square = ONE, X
    while exponent:
        if exponent & 1:
            power = _times(power, square)
        square = _times(square, square)
        exponent >>= 1
    return power
