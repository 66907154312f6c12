"""Open files as bytes: checked reads of byte ranges, hashes, and detection of changes.

Only regular files are opened: reading a named pipe, a terminal or another device could wait
forever, and the system's errors for directories and sockets are unclear.

Bytes are read on request and not mapped into memory: if a mapped file becomes shorter, reading the
mapping ends the process, and mappings count against the process's limit of address space. Files are
mapped only for the parameters of models (`private_mapping`).
"""

import copy
import hashlib
import io
import math
import mmap
import os
import stat
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mae_convert.errors import CheckpointError, MaeConvertError
from mae_convert.errors.shortage import shortage
from mae_convert.files.sequential import FilePosition, SequentialArray

LONGEST_FILE_NAME = 255
PIECE_BYTES = 1 << 20
KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_input(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        MaeConvertError: the file does not exist, may not be read, or is not a regular file.
    """
    if (kind := kind_of(path)) is not None:
        raise MaeConvertError(path, f" is {kind} and not a regular file", hint="name a file")
    try:
        # Without O_NONBLOCK, opening a named pipe that has just replaced the file would wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise MaeConvertError(path, " does not exist", hint="check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL character
        reason = getattr(error, "strerror", None) or error
        raise MaeConvertError(path, f" cannot be opened: {reason}") from error
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise MaeConvertError(path, " is not a regular file", hint="name a file")
    return file


def kind_of(path: Path) -> str | None:
    """Return the type of the file at a path in words; None for a regular file or a missing file."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(mode):
        return None
    return next((kind for is_kind, kind in KINDS if is_kind(mode)), "something else")


SPECIFY = "specify the file of a checkpoint, or a model directory"


class ByteFile:
    """The bytes of an open file, or of a range in it.

    While the file is open, its path may be renamed or removed.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file does not exist, may not be read, is empty, or is not a regular
            file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _open(path)
        weakref.finalize(self, os.close, self._descriptor)
        self._whole: ByteFile = self  # the file stays open while a range of it is in use
        status = os.fstat(self._descriptor)
        self._stamp = _stamp(status)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(path, " is not a regular file", hint=SPECIFY)
        if not status.st_size:
            raise CheckpointError(path, " is empty", hint="copy or download it again")
        self.start, self.size = 0, status.st_size

    def part(self, offset: int, size: int) -> "ByteFile":
        """Return a range of the bytes as a separate file.

        Raises:
            CheckpointError: the range is not entirely in the file.
        """
        self.check(offset, size)
        part = copy.copy(self)
        part.start, part.size = self.start + offset, size
        return part

    def check(self, offset: int, count: int) -> None:
        """Require that `count` bytes from `offset` on are in the file.

        Raises:
            CheckpointError: the file has fewer bytes.
        """
        if offset < 0 or count < 0 or offset + count > self.size:
            raise damaged(
                self.path,
                f"it has {self.size} bytes, but refers to bytes {offset} to {offset + count}",
            )

    def raw(self, offset: int, count: int) -> bytes:
        """Return a copy of `count` bytes from `offset` on.

        Raises:
            CheckpointError: the range is not entirely in the file.
        """
        self.check(offset, count)
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the bytes from `offset` on.

        Raises:
            CheckpointError: the range is not entirely in the file, or the file has become shorter.
        """
        self.check(offset, len(buffer))
        filled = 0
        while filled < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[filled:]], self.start + offset + filled)
            except OSError as error:
                raise CheckpointError(self.path, f" cannot be read: {error.strerror}") from error
            if count == 0:
                raise self._changed()
            filled += count

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> "FileArray":
        """Return a lazy array whose data begin at `offset`, in C order and native byte order.

        Raises:
            CheckpointError: the data are not entirely in the file.
        """
        self.check(offset, math.prod(shape) * dtype.itemsize)
        return FileArray(shape, dtype, self, offset)

    def position(self, offset: int) -> FilePosition:
        """Return where in the whole file the byte at `offset` in this range is stored."""
        return FilePosition(self._whole, self.start + offset)

    def private_mapping(self) -> mmap.mmap | None:
        """Map the whole file into memory; writing to the mapping does not change the file.

        The mapping remains valid if the path is removed or refers to another file. If the file
        itself becomes shorter, reading the mapping ends the process.

        Returns:
            The mapping; None if the file system or a memory limit does not permit it.
        """
        try:
            return mmap.mmap(self._descriptor, self._whole.size, access=mmap.ACCESS_COPY)
        except (OSError, ValueError):
            return None

    def require_unchanged(self) -> None:
        """Require that the file has not changed since it was opened.

        Raises:
            CheckpointError: the size or the modification time has changed.
        """
        if not self.is_unchanged:
            raise self._changed()

    @property
    def is_unchanged(self) -> bool:
        """Whether size and modification time are the same as when the file was opened."""
        return _stamp(os.fstat(self._descriptor)) == self._stamp

    @property
    def pinned(self) -> Path:
        """A path to the open file, for programs that open files by path.

        On systems with ``/proc`` it refers to the open file, even if the file has since been
        replaced; on other systems it is the path of the file.
        """
        pinned = Path(f"/proc/{os.getpid()}/fd/{self._descriptor}")
        return pinned if os.path.lexists(pinned) else self.path

    def _changed(self) -> CheckpointError:
        return CheckpointError(
            self.path,
            " was changed while it was being read",
            hint="wait until the file is complete, and run the command again",
        )


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _open(path: Path) -> int:
    if (kind := kind_of(path)) is not None:
        raise CheckpointError(path, f" is {kind} and not a regular file", hint=SPECIFY)
    try:
        # Without O_NONBLOCK, opening a named pipe would wait.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(path, " does not exist", hint="check the path") from None
    except PermissionError:
        raise CheckpointError(
            path, " cannot be read: permission denied", hint="change its permissions"
        ) from None
    except (OSError, ValueError) as error:  # a link to itself, or a NUL character in it
        if reason := shortage(error):
            raise CheckpointError(path, f" cannot be opened: {reason}") from error
        raise CheckpointError(path, f" cannot be opened ({error})", hint=SPECIFY) from None


@dataclass(frozen=True, eq=False)
class FileArray(SequentialArray):
    """An array that is stored in a file in C order."""

    file: ByteFile
    offset: int

    def elements(self, start: int, stop: int) -> np.ndarray:
        """Return the elements from `start` to `stop` (exclusive), in a read-only array."""
        array = np.empty(stop - start, self.dtype)
        if array.size:
            data = array.view(np.uint8).data
            self.file.read_into(data, self.offset + start * self.dtype.itemsize)
        array.flags.writeable = False
        return array

    def fill(self, memory: np.ndarray, start: int) -> None:
        """Fill a flat contiguous array of the same dtype with the elements from `start` on."""
        if memory.size:
            offset = self.offset + start * self.dtype.itemsize
            self.file.read_into(memory.view(np.uint8).data, offset)

    def stored_at(self, start: int, stop: int) -> FilePosition | None:
        """Return the position in the file of the elements from `start` to `stop`; never None."""
        del stop  # the elements are contiguous
        return self.file.position(self.offset + start * self.dtype.itemsize)


class Window(io.RawIOBase):
    """A file's bytes as a stream for a parser.

    A read never allocates more memory than the file has bytes, however many bytes are requested.
    """

    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position and return it; raise OSError if it would be negative."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}
        if base[whence] + offset < 0:
            raise OSError("a position before the beginning of the file")
        self._position = base[whence] + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Return at most `size` bytes, or all remaining bytes if `size` is negative or None."""
        left = max(0, self._file.size - self._position)
        count = left if size is None or size < 0 else min(size, left)
        data = self._file.raw(self._position, count) if count else b""
        self._position += count
        return data

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into a buffer; return their number."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def open_sha256(file: ByteFile) -> str:
    """Return the SHA-256 of the bytes of an open file.

    Raises:
        CheckpointError: the file was changed after it was opened.
    """
    digest = hex_digest(file, hashlib.sha256())
    file.require_unchanged()
    return digest


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    return hex_digest(ByteFile(path), hashlib.sha256())


def hex_digest(file: ByteFile, digest: Any, advance: Callable[[int], None] | None = None) -> str:
    """Return the digest of an open file in hexadecimal digits.

    Args:
        file: the file.
        digest: a new hash object of `hashlib`.
        advance: reports progress: it is called with the number of bytes of each piece that was
            read. None if no progress is reported.
    """
    buffer = memoryview(bytearray(PIECE_BYTES))
    for start in range(0, file.size, PIECE_BYTES):
        piece = buffer[: min(PIECE_BYTES, file.size - start)]
        file.read_into(piece, start)
        digest.update(piece)
        if advance is not None:
            advance(len(piece))
    return digest.hexdigest()


def damaged(path: Path, what: str) -> CheckpointError:
    """Return the error for a corrupt file; `what` is a phrase that states what is wrong with it."""
    return CheckpointError(
        path, f" is truncated or corrupt ({what})", hint="copy or download it again"
    )


def refuse_nul(name: object) -> None:
    """Refuse a name that contains a NUL character, which no operating system allows.

    Raises:
        MaeConvertError: the name contains a NUL character.
    """
    if "\0" in str(name):
        raise MaeConvertError(
            f"{name} contains a NUL character, which is not allowed in names", hint="leave it out"
        )


def is_plain_name(name: object) -> bool:
    """Return whether a name is only a file name: it contains no separator and is not ".."."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        return False
    return len(name.encode("utf-8", "surrogatepass")) <= LONGEST_FILE_NAME
