"""Little-endian numbers, taken one after another from bytes."""

from pathlib import Path

from mae_convert.errors import CheckpointError
from mae_convert.files.messages import shown

UNDEFINED = (1 << 64) - 1
"""The address of what is nowhere in the file."""


class Cursor:
    """A place in bytes; whoever takes more than there is gets a ValueError."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    @property
    def left(self) -> int:
        """How many bytes there still are."""
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if not 0 <= count <= self.left:
            raise ValueError("a part is cut short")
        taken = self.data[self.at : self.at + count]
        self.at += count
        return taken

    def number(self, width: int) -> int:
        """Return the next bytes as a number without a sign."""
        return int.from_bytes(self.take(width), "little")

    def address(self) -> int:
        """Return the next 8 bytes as a number: an address, or a length."""
        return self.number(8)

    def expect(self, signature: bytes) -> None:
        """Take a signature; ValueError if it is another."""
        if self.take(len(signature)) != signature:
            raise ValueError(f"{signature.decode()} is missing where it should stand")

    def version(self, *known: int) -> int:
        """Take a version number; ValueError if it is not one of those that are known."""
        version = self.number(1)
        if version not in known:
            raise ValueError(f"a part of the unknown version {version}")
        return version

    def text(self) -> bytes:
        """Return the bytes before the next zero, and take the zero too."""
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise ValueError("a name without an end")
        return self.take(end + 1 - self.at)[:-1]


def not_read(path: Path, name: str, what: str) -> CheckpointError:
    """Return the error for a file that may be whole, but uses what is not read."""
    return CheckpointError(
        path,
        f" keeps {shown(name)} {what}, which is not read",
        hint="write it plainly, for instance with `h5repack -f NONE -l CONTI -L` or by h5py,"
        " where it comes from",
    )
