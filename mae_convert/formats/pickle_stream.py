"""The bytes of pickles, taken from a file as they are asked for: never more than there are."""

from collections.abc import Callable

from mae_convert.files.byte_ranges import ByteFile

LARGEST_PICKLE = 1 << 28
LONGEST_LINE = 1 << 20
STEP = 1 << 16


class PickleStream:
    """A stream with what `pickletools` needs of one.

    Args:
        raw: returns bytes by their place and number, which are all there.
        size: how many there are.
    """

    def __init__(self, raw: Callable[[int, int], bytes], size: int) -> None:
        self._raw = raw
        self._size = min(size, LARGEST_PICKLE)
        self._start = 0  # where the buffer begins
        self._buffer = b""
        self._at = 0  # how much of the buffer was given out

    @classmethod
    def of_file(cls, file: ByteFile) -> "PickleStream":
        """Return a stream of a file."""
        return cls(file.raw, file.size)

    @classmethod
    def of_bytes(cls, data: bytes) -> "PickleStream":
        """Return a stream of bytes in memory."""
        return cls(lambda offset, count: data[offset : offset + count], len(data))

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._start + self._at

    def read(self, count: int) -> bytes:
        """Return the next bytes, fewer where there are not so many."""
        if self._at + count > len(self._buffer):
            self._fill(count)
        data = self._buffer[self._at : self._at + count]
        self._at += len(data)
        return data

    def readline(self) -> bytes:
        """Return the bytes up to the next end of a line; without one where it is too far."""
        wanted = STEP
        while (end := self._buffer.find(b"\n", self._at)) < 0:
            if wanted > LONGEST_LINE or not self._fill(wanted):
                return b""
            wanted *= 2
        line = self._buffer[self._at : end + 1]
        self._at = end + 1
        return line

    def _fill(self, count: int) -> bool:
        """Have `count` bytes in the buffer, or all that are left; return whether it grew."""
        place, left = self.tell(), len(self._buffer) - self._at
        total = min(max(count, STEP), self._size - place)
        if total <= left:
            return False
        self._buffer = self._raw(place, total)
        self._start, self._at = place, 0
        return True
