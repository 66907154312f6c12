"""Atomic outputs: each appears completely or not at all.

An output is written in a hidden directory beside its target and then renamed. A process that is
killed leaves the old output or the new output, and possibly the hidden directory, which the next
run removes. If two processes write the same target, the first to finish succeeds, and the other
process raises an error.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mae_convert.errors import Option, OutputError
from mae_convert.errors.signals import undisturbed
from mae_convert.files.byte_ranges import refuse_nul
from mae_convert.files.staging import staging_beside
from mae_convert.text import listing

NO_REPLACE, EXCHANGE = 1, 2  # flags of renameat2(2)
AT_WORKING_DIRECTORY = -100

NEW = "new"

REASONS = {
    errno.ENOSPC: "there is no space left on the device; free some space or write elsewhere",
    errno.EDQUOT: "the disk quota is used up; free some space or write elsewhere",
    errno.EFBIG: "the file would exceed the allowed file size; write elsewhere",
    errno.EACCES: "permission is denied; write elsewhere or change the permissions",
    errno.EPERM: "permission is denied; write elsewhere or change the permissions",
    errno.EROFS: "the file system is read-only; write elsewhere",
    errno.ENOENT: "its directory does not exist; create it first",
    errno.ENOTDIR: "a part of its path is a file and not a directory; write elsewhere",
    errno.ENAMETOOLONG: "its name is too long; choose a shorter one",
    errno.EMFILE: "too many files are open; allow more (`ulimit -n 4096`), or write larger shards",
    errno.EIO: "the disk reports an error; write elsewhere, and check the disk",
}

Identity = tuple[int, int, int]


@dataclass(frozen=True)
class Destination:
    """The target of an output, and whether an existing target may be replaced."""

    target: Path
    """The path of the output."""

    is_directory: bool = False
    """Whether the output is a directory."""

    overwrite: bool = False
    """Whether an existing target may be replaced."""

    may_replace: Callable[[Path], None] = lambda _: None
    """A function that raises OutputError for an existing directory that must not be replaced."""

    def check(self) -> None:
        """Refuse a target that may not be replaced, before any work is done.

        Raises:
            OutputError: the parent directory does not exist; or the target exists and may not be
                replaced, or is a file instead of a directory or a directory instead of a file.
        """
        target = self.target
        refuse_nul(target)
        with os_errors_explained(target):
            if not target.parent.is_dir():
                number = errno.ENOTDIR if target.parent.exists() else errno.ENOENT
                raise OSError(number, os.strerror(number))
            self._check_name(target)

    def _check_name(self, target: Path) -> None:
        if target.name in ("", ".."):
            raise OutputError(
                target,
                " is a directory that cannot be replaced",
                hint="specify a directory inside it",
            )
        if not self.is_directory and target.is_dir():
            raise OutputError(target, " is a directory and not a file", hint="specify a file in it")
        exists = os.path.lexists(target)
        if self.is_directory and exists and (target.is_symlink() or not target.is_dir()):
            raise OutputError(
                target, " is not a directory", hint="remove it or choose another name"
            )
        if exists and not self.overwrite:
            raise already_exists(target)
        if exists and self.is_directory:
            self.may_replace(target)


class Staged:
    """An output that is written at `path` and renamed to its target by `commit`."""

    def __init__(self, target: Destination, folder: Path) -> None:
        self.destination = target
        self.path = folder / NEW
        self._old = _identity(target.target)
        self._undo: Callable[[], None] | None = None

    def commit(self) -> None:
        """Rename the output to its target.

        Raises:
            OutputError: another process has written the target in the meantime.
            OSError: the output cannot be renamed.
        """
        target = self.destination.target
        if self._old is not None and self.destination.is_directory and target.is_dir():
            self.destination.may_replace(target)  # checked again: the directory may have changed
        if _identity(target) != self._old:
            error = _written_meanwhile if self.destination.overwrite else already_exists
            raise error(target)
        if self._old is None:
            self._create()
        else:
            self._replace(self._old)

    def undo(self) -> None:
        """Restore the state before `commit`, if `commit` was called."""
        if self._undo is not None:
            self._undo()
            self._undo = None

    def _create(self) -> None:
        try:
            rename_to_new(self.path, self.destination.target)
        except FileExistsError:
            error = _written_meanwhile if self.destination.overwrite else already_exists
            raise error(self.destination.target) from None
        self._undo = lambda: rename_to_new(self.destination.target, self.path)

    def _replace(self, old: Identity) -> None:
        target = self.destination.target
        try:
            exchange(self.path, target)
        except NotImplementedError:
            if self.destination.is_directory:
                raise OutputError(
                    target,
                    " cannot be replaced in one step on this system",
                    hint="remove it first or choose another name",
                ) from None
            self.path.replace(target)
            return
        identity = _identity(self.path)
        is_other = identity is None or identity[:2] != old[:2]
        if is_other:  # written by another process since the check
            exchange(self.path, target)
            raise _written_meanwhile(target)
        self._undo = lambda: exchange(self.path, target)


@contextmanager
def staged(
    *destinations: Destination, on_commit: Callable[[], None] = lambda: None
) -> Iterator[list[Staged]]:
    """Yield temporary outputs; at the end all are renamed to their targets, or none is.

    The block of the ``with`` statement must flush the files that it writes.

    Args:
        destinations: the targets.
        on_commit: called after all outputs have been renamed, before any deferred signal is
            handled.

    Raises:
        OutputError: a target may not be replaced, another process has written a target in the
            meantime, the operating system refuses to write, or a signal interrupts the call.
    """
    for target in destinations:
        target.check()
    with ExitStack() as stack:
        with undisturbed():  # otherwise an output could be created that nothing removes
            outputs = [stack.enter_context(_one(target)) for target in destinations]
        yield outputs
        with undisturbed() as signals:
            try:
                _commit(outputs)
                undone = bool(signals)
            except BaseException:
                _undo(outputs)
                raise
            if undone:
                _undo(outputs)
            stack.close()
            if not undone:  # a signal that arrived while the old outputs were removed has no effect
                signals.forget()
                on_commit()
        if undone:
            raise OutputError("the conversion was interrupted", hint="run it again")


def _commit(outputs: Iterable[Staged]) -> None:
    for output in outputs:
        with os_errors_explained(output.destination.target):
            output.commit()
    for output in outputs:
        with os_errors_explained(output.destination.target):
            flush(output.destination.target.parent)


def _undo(outputs: Sequence[Staged]) -> None:
    for output in reversed(outputs):
        output.undo()


def check_target(target: Path, *, overwrite: bool = False, suffixes: Collection[str] = ()) -> None:
    """Refuse a file that `replacing_file` could not write, before any work is done.

    Args:
        target: the path of the file.
        overwrite: whether an existing file may be replaced.
        suffixes: the suffixes that the name may have, in lower case; empty if any is allowed.

    Raises:
        OutputError: the suffix is not allowed, the target exists or is a directory, or its parent
            does not exist.
    """
    if suffixes and target.suffix.lower() not in suffixes:
        raise OutputError(
            target,
            f" cannot be written: its name must end in {listing(suffixes)}",
            hint="rename it",
        )
    Destination(target, overwrite=overwrite).check()


def write_file(target: Path, content: bytes | str, *, overwrite: bool = False) -> None:
    """Write bytes, or text in UTF-8, to a file atomically.

    Raises:
        OutputError: see `staged`.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with replacing_file(target, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing_file(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path for one file, which is flushed and renamed to the target at the end.

    Raises:
        OutputError: see `staged`.
    """
    with staged(Destination(target, overwrite=overwrite)) as (output,):
        yield output.path
        flush(output.path)


@contextmanager
def staging_for(target: Path) -> Iterator[Path]:
    """Create a temporary directory beside an output, and remove it with its content at the end.

    Raises:
        OutputError: the directory of the output does not exist or is not writable.
    """
    with ExitStack() as stack:
        with os_errors_explained(target):
            folder = stack.enter_context(staging_beside(target))
        yield folder


@contextmanager
def _one(target: Destination) -> Iterator[Staged]:
    with os_errors_explained(target.target), staging_beside(target.target) as folder:
        yield Staged(target, folder)


def flush(path: Path) -> None:
    """Flush a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def os_errors_explained(target: Path) -> Iterator[None]:
    """Convert an `OSError` that the block raises to an `OutputError` that names the target.

    Raises:
        OutputError: the block raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = REASONS.get(error.errno or 0, f"the system reports: {error.strerror or error}")
        raise OutputError(target, f" cannot be written: {reason}") from error


def _identity(path: Path) -> Identity | None:
    """Return the device, inode and modification time of a file; None if it does not exist.

    Links are not followed.
    """
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def already_exists(target: Path | str, detail: str = "") -> OutputError:
    """Return the error for an existing target that may not be replaced."""
    return OutputError(
        f"{target} already exists{detail}",
        hint=("choose another name or pass ", Option("overwrite", True)),
        path=target,
    )


def _written_meanwhile(target: Path) -> OutputError:
    return OutputError(
        target,
        " was written by another program in the meantime, so mae-convert did not replace it",
        hint="check it, and run the command again to replace it",
    )


def rename_to_new(source: Path, target: Path) -> None:
    """Rename without replacing an existing target.

    Raises:
        FileExistsError: the target exists.
    """
    try:
        renameat2(source, target, NO_REPLACE)
    except NotImplementedError:
        if not source.is_dir():
            os.link(source, target)  # os.link does not replace a target either
            source.unlink()
            return
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        source.rename(target)


def exchange(first: Path, second: Path) -> None:
    """Exchange the names of two files or directories.

    Raises:
        NotImplementedError: the operating system or this file system cannot exchange names.
    """
    renameat2(first, second, EXCHANGE)


def renameat2(source: Path, target: Path, flags: int) -> None:
    """Rename a file or directory with the Linux system call ``renameat2``.

    Raises:
        NotImplementedError: the operating system or this file system does not support the call.
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
