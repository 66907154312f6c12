"""Outputs that appear whole or not at all.

An output is made under a hidden name beside its target and takes its name by one rename, so that a
run that is killed leaves the old output or the new one, and at worst a hidden file beside it.
"""

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mae_convert.errors import OutputError

NO_REPLACE, EXCHANGE = 1, 2  # flags of renameat2(2)
AT_WORKING_DIRECTORY = -100

REASONS = {
    errno.ENOSPC: "there is no space left; free some or write elsewhere",
    errno.EDQUOT: "the disk quota is used up; free some space or write elsewhere",
    errno.EFBIG: "the file would be larger than is allowed here; write elsewhere",
    errno.EACCES: "permission is denied; write elsewhere or change the permissions",
    errno.EPERM: "permission is denied; write elsewhere or change the permissions",
    errno.EROFS: "the file system is read-only; write elsewhere",
    errno.ENOENT: "its directory does not exist; make it first",
    errno.ENOTDIR: "its directory is a file; write elsewhere",
    errno.ENAMETOOLONG: "its name is too long; choose a shorter one",
}


@contextmanager
def replacing_file(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give the path at which to write a file; at the end it is flushed and takes its name.

    Raises:
        OutputError: the target exists and may not be replaced, or the system refuses to write.
    """
    if target.is_dir():
        raise OutputError(f"{target} is a directory and not a file; name a file in it")
    with _made_beside(target, overwrite) as temporary:
        yield temporary
        flush(temporary)
        if overwrite:
            temporary.replace(target)
        else:
            _rename_to_new(temporary, target)


@contextmanager
def replacing_directory(
    target: Path, *, overwrite: bool = False, may_replace: Callable[[Path], None]
) -> Iterator[Path]:
    """Give an empty directory to write in; at the end it is flushed and takes its name.

    Args:
        target: where the directory is to stand.
        overwrite: an existing directory is exchanged for the new one, and then removed.
        may_replace: raises OutputError for a directory that must not be removed.

    Raises:
        OutputError: the target exists and may not be replaced, or the system refuses to write.
    """
    if os.path.lexists(target) and (target.is_symlink() or not target.is_dir()):
        raise OutputError(f"{target} is not a directory; remove it or choose another name")
    if overwrite and target.exists():
        may_replace(target)
    with _made_beside(target, overwrite) as temporary:
        temporary.mkdir()
        yield temporary
        for path in temporary.iterdir():
            flush(path)
        flush(temporary)
        if overwrite and target.exists():
            may_replace(target)  # again: it may have changed while this was written
            _exchange(temporary, target)
        else:
            _rename_to_new(temporary, target)


def flush(path: Path) -> None:
    """Wait until a file or the entries of a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _made_beside(target: Path, overwrite: bool) -> Iterator[Path]:
    """Give a new name beside the target; whatever stands there at the end is removed.

    After an exchange of directories that is the old one.
    """
    if os.path.lexists(target) and not overwrite:
        raise _exists(target)
    temporary = target.parent / f".mae-convert-{secrets.token_hex(8)}"
    try:
        yield temporary
        flush(target.parent)
    except OSError as error:
        raise _refusal(target, error) from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _rename_to_new(source: Path, target: Path) -> None:
    """Rename without replacing: what another process has put there meanwhile stays."""
    try:
        _renameat2(source, target, NO_REPLACE)
    except NotImplementedError:
        if os.path.lexists(target):
            raise _exists(target) from None
        source.rename(target)
    except FileExistsError:
        raise _exists(target) from None


def _exchange(source: Path, target: Path) -> None:
    try:
        _renameat2(source, target, EXCHANGE)
    except NotImplementedError:
        raise OutputError(
            f"{target} cannot be replaced in one step on this system; "
            "remove it first or choose another name"
        ) from None


def _renameat2(source: Path, target: Path, flags: int) -> None:
    """Call renameat2(2), which Python does not offer.

    Raises:
        NotImplementedError: the system or this file system does not have it.
        OSError: the system refuses.
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


def _exists(target: Path) -> OutputError:
    return OutputError(f"{target} exists already; choose another name or pass --overwrite")


def _refusal(target: Path, error: OSError) -> OutputError:
    reason = REASONS.get(error.errno or 0, f"the system says: {error.strerror or error}")
    return OutputError(f"{target} cannot be written: {reason}")
