"""The bytes of a pickle, read from a file on demand and never beyond its end."""

import io
from collections.abc import Callable

from mae_convert.files.byte_ranges import ByteFile

LARGEST_PICKLE = 1 << 28
LONGEST_LINE = 1 << 20
STEP = 1 << 16
READ_AT_ONCE = LONGEST_LINE
"""Pickles up to this size in bytes are read into memory as a whole: `pickletools` reads from the
stream for every opcode, and `io.BytesIO` is faster than `PickleStream`."""


class PickleStream:
    """A stream with the methods that `pickletools` needs.

    Args:
        raw: takes an offset and a number of bytes, and returns the bytes; it is called only for
            bytes that exist.
        size: the number of bytes of the pickle.
    """

    def __init__(self, raw: Callable[[int, int], bytes], size: int) -> None:
        self._raw = raw
        self._size = min(size, LARGEST_PICKLE)
        self._start = 0  # the position of the buffer's first byte
        self._buffer = b""
        self._at = 0  # the number of bytes of the buffer that were read

    @classmethod
    def of_file(cls, file: ByteFile) -> "PickleStream | io.BytesIO":
        """Return a stream of a file; it is a BytesIO for up to READ_AT_ONCE bytes."""
        if file.size <= READ_AT_ONCE:
            return io.BytesIO(file.raw(0, file.size))
        return cls(file.raw, file.size)

    @classmethod
    def of_bytes(cls, data: bytes) -> "PickleStream | io.BytesIO":
        """Return a stream of bytes in memory; it is a BytesIO for up to READ_AT_ONCE bytes."""
        if len(data) <= READ_AT_ONCE:
            return io.BytesIO(data)
        return cls(lambda offset, count: data[offset : offset + count], len(data))

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._start + self._at

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, or fewer at the end of the pickle."""
        if self._at + count > len(self._buffer):
            self._fill(count)
        data = self._buffer[self._at : self._at + count]
        self._at += len(data)
        return data

    def readline(self) -> bytes:
        """Return the bytes up to and including the next line end; empty if there is no line end."""
        limit = STEP
        while (end := self._buffer.find(b"\n", self._at)) < 0:
            if limit > LONGEST_LINE or not self._fill(limit):
                return b""
            limit *= 2
        line = self._buffer[self._at : end + 1]
        self._at = end + 1
        return line

    def _fill(self, count: int) -> bool:
        """Read `count` or all remaining bytes into the buffer; return whether the buffer grew."""
        begin, left = self.tell(), len(self._buffer) - self._at
        total = min(max(count, STEP), self._size - begin)
        if total <= left:
            return False
        self._buffer = self._raw(begin, total)
        self._start, self._at = begin, 0
        return True
