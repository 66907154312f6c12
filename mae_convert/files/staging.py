"""Hidden temporary directories, beside a target or in the system's temporary directory.

The name is random and the directory is accessible to the user only, so no other user can predict
the name or place files in the directory. The process that uses a directory holds a lock on it: a
directory without a lock was left by a process that was killed, and the next run removes it.
"""

import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mae_convert import UNSUPPORTED
from mae_convert.errors.signals import undisturbed

try:
    import fcntl
except ImportError as error:
    raise ImportError(UNSUPPORTED) from error

NAME = re.compile(r"\.mae-convert-[0-9a-f]{16}")


@contextmanager
def staging_beside(target: Path) -> Iterator[Path]:
    """Create a directory beside a target, and remove it with its content at the end.

    Raises:
        OSError: the directory cannot be created.
    """
    with _staging_in(target.parent) as folder:
        yield folder


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Create a directory for temporary files, and remove it when the context ends.

    If the process is killed, the directory remains, and the next run of mae-convert removes it.
    A directory that is created with `tempfile` would remain.

    Raises:
        OSError: the directory cannot be created.
    """
    with _staging_in(Path(tempfile.gettempdir())) as folder:
        yield folder


@contextmanager
def _staging_in(directory: Path) -> Iterator[Path]:
    sweep(directory)
    created: list[tuple[Path, int]] = []
    try:
        with undisturbed():  # a deferred signal is raised at the end of this block
            created.append(_make(directory))
        yield created[0][0]
    finally:
        with undisturbed():
            for folder, lock in created:
                remove(folder)
                os.close(lock)


def sweep(directory: Path) -> list[Path]:
    """Remove directories that killed processes of this user have left; return their paths."""
    swept: list[Path] = []
    with suppress(OSError), os.scandir(directory) as entries:
        names = sorted(entry.name for entry in entries if NAME.fullmatch(entry.name))
        swept = [directory / name for name in names if _removed(directory / name)]
    return swept


def _removed(path: Path) -> bool:
    """Remove a temporary directory if no process uses it; return whether it was removed."""
    lock = _lock(path, or_none=True) if _is_ours(path) else None
    if lock is None:
        return False
    remove(path)
    os.close(lock)  # the lock is held until the directory is removed
    return True


def remove(path: Path) -> None:
    """Remove a file or a directory, as far as permitted; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _make(directory: Path) -> tuple[Path, int]:
    """Create a subdirectory that only this user can access, and lock it.

    Returns:
        The path of the subdirectory, and the file descriptor that holds the lock.
    """
    while True:
        folder = directory / f".mae-convert-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        lock = _lock(folder)
        if lock is not None:
            return folder, lock
        # Another process removed the new directory as unused before it was locked; create another.


def _lock(folder: Path, *, or_none: bool = False) -> int | None:
    """Return a descriptor that holds the lock on a directory; None if another process locked it.

    On a file system without locks, the returned descriptor holds no lock; with `or_none`, None is
    returned instead, so that a directory that may be in use is not removed.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(folder, flags)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_locked = True
    except BlockingIOError:
        is_locked = False
    except OSError:
        is_locked = not or_none
    with suppress(OSError):  # another process may have removed the directory before it was locked
        if is_locked and os.path.samestat(os.fstat(descriptor), folder.lstat()):
            return descriptor
    os.close(descriptor)
    return None


def _is_ours(path: Path) -> bool:
    with suppress(OSError):  # the process that created it may just have removed it
        status = path.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return False
