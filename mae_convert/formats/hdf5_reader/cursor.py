"""Read little-endian numbers from bytes, one after another."""

from pathlib import Path

from mae_convert.errors import CheckpointError
from mae_convert.text import shown

UNDEFINED = (1 << 64) - 1
"""The address of data that does not exist."""


class Cursor:
    """A reading position in bytes; reading beyond the end raises ValueError."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    @property
    def left(self) -> int:
        """Number of remaining bytes."""
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes; raise ValueError if fewer bytes remain."""
        if not 0 <= count <= self.left:
            raise ValueError("a structure is truncated")
        taken = self.data[self.at : self.at + count]
        self.at += count
        return taken

    def number(self, width: int) -> int:
        """Return the next `width` bytes as an unsigned number."""
        return int.from_bytes(self.take(width), "little")

    def address(self) -> int:
        """Return the next 8 bytes as a number: an address, or a length."""
        return self.number(8)

    def expect(self, signature: bytes) -> None:
        """Read a signature; raise ValueError if it is not `signature`."""
        if self.take(len(signature)) != signature:
            raise ValueError(f"{signature.decode()} is missing at its expected address")

    def version(self, *known: int) -> int:
        """Read a version number; raise ValueError if it is not one of the `known` versions."""
        version = self.number(1)
        if version not in known:
            raise ValueError(f"a structure with the unknown version number {version}")
        return version

    def text(self) -> bytes:
        """Return the bytes before the next zero byte, and skip the zero byte.

        Raises:
            ValueError: there is no zero byte.
        """
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise ValueError("an unterminated name")
        return self.take(end + 1 - self.at)[:-1]


def not_read(path: Path, name: str, what: str) -> CheckpointError:
    """Return the error for a file that may be valid but uses an unsupported feature.

    Args:
        path: the path of the file.
        name: the name of the dataset that uses the feature.
        what: the feature, as the end of the phrase "stores NAME ...".
    """
    return CheckpointError(
        path,
        f" stores {shown(name)} {what}, which is not supported",
        hint=(
            "write it uncompressed and contiguous, for example with `h5repack -f NONE -l CONTI -L` "
            "or with h5py"
        ),
    )
