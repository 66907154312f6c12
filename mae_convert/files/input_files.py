"""Input files that a user specifies: opened only if they are regular files.

Reading a named pipe, a terminal or another device could wait forever, and a directory or a socket
gives an unclear error.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from mae_convert.errors import MaeConvertError

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
        # Otherwise opening a pipe that has replaced it would wait.
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
    """Return the type of a path that is not a regular file; None also if it does not exist."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(mode):
        return None
    return next((kind for is_kind, kind in KINDS if is_kind(mode)), "something else")
