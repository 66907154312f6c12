"""Atomic renames that Python does not offer: without replacing, or exchanging two names."""

import ctypes
import errno
import os
from pathlib import Path

NO_REPLACE, EXCHANGE = 1, 2  # flags of renameat2(2)
AT_WORKING_DIRECTORY = -100


def rename_to_new(source: Path, target: Path) -> None:
    """Rename without replacing an existing target.

    Raises:
        FileExistsError: the target exists.
    """
    try:
        renameat2(source, target, NO_REPLACE)
    except NotImplementedError:
        if not source.is_dir():
            os.link(source, target)  # which does not replace either
            source.unlink()
            return
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        source.rename(target)


def exchange(one: Path, other: Path) -> None:
    """Exchange the names of two files or directories.

    Raises:
        NotImplementedError: the operating system or this file system cannot.
    """
    renameat2(one, other, EXCHANGE)


def renameat2(source: Path, target: Path, flags: int) -> None:
    """Rename with the system call of that name.

    Raises:
        NotImplementedError: the operating system or this file system does not have it.
        OSError: the system call failed.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        raise NotImplementedError
    paths = (os.fsencode(source), os.fsencode(target))
    if function(AT_WORKING_DIRECTORY, paths[0], AT_WORKING_DIRECTORY, paths[1], flags) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        raise NotImplementedError
    raise OSError(number, os.strerror(number))
