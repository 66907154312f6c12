"""Hidden directories beside a target, in which an output is made before it gets its name.

The name is random and the directory is the user's alone, so that nobody can foresee it and put
something there. The run that uses it holds a lock on it: a directory without one was left by a run
that was killed, and the next run removes it.
"""

import fcntl
import os
import re
import secrets
import shutil
import signal
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

NAME = re.compile(r"\.mae-convert-[0-9a-f]{16}")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def staging_beside(target: Path) -> Iterator[Path]:
    """Make a directory beside a target and remove it, with whatever is in it, at the end.

    Raises:
        OSError: it cannot be made.
    """
    sweep(target.parent)
    with undisturbed():
        folder, lock = _make(target.parent)
    try:
        yield folder
    finally:
        with undisturbed():
            remove(folder)
            os.close(lock)


class Signals:
    """What was caught while it was put off: Ctrl-C, or a polite request to end."""

    def __init__(self) -> None:
        self._caught: list[tuple[int, FrameType | None]] = []

    def __bool__(self) -> bool:
        return bool(self._caught)

    def catch(self, number: int, frame: FrameType | None) -> None:
        """Note a signal for later."""
        self._caught.append((number, frame))

    def forget(self) -> None:
        """Let what was caught have come too late."""
        self._caught.clear()

    def deliver(self, handlers: Mapping[int, Any]) -> None:
        """Do what would have been done when the first was caught."""
        for number, frame in self._caught[:1]:
            handler = handlers[number]
            if callable(handler):
                handler(number, frame)
            elif handler == signal.SIG_DFL:
                signal.raise_signal(number)


@contextmanager
def undisturbed() -> Iterator[Signals]:
    """Put off Ctrl-C and a polite request to end until the body is done."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals  # the main thread alone is disturbed
        return
    before: dict[int, Any] = {
        number: signal.signal(number, signals.catch)
        for number in SIGNALS
        if signal.getsignal(number) is not None
    }
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signals.deliver(before)


def sweep(directory: Path) -> list[Path]:
    """Remove what killed runs of this user have left in a directory; return what it was."""
    swept = []
    with suppress(OSError):
        for path in sorted(directory.iterdir()):
            if NAME.fullmatch(path.name) and _is_ours(path):
                lock = _lock(path, or_none=True)
                if lock is not None:  # it is held until the directory is gone
                    remove(path)
                    os.close(lock)
                    swept.append(path)
    return swept


def remove(path: Path) -> None:
    """Remove a file or a directory, as far as the system lets us; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _make(directory: Path) -> tuple[Path, int]:
    """Return a new directory of our own, and the lock on it."""
    while True:
        folder = directory / f".mae-convert-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        lock = _lock(folder)
        if lock is not None:
            return folder, lock
        # Another run has taken it for a stray, in the moment before it was locked.


def _lock(folder: Path, *, or_none: bool = False) -> int | None:
    """Return a descriptor that holds the lock on a directory; None if another has it.

    A file system that has no locks gives one that holds none, or None with `or_none`: then strays
    are not removed, and nothing else is lost.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(folder, flags)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = True
    except BlockingIOError:
        held = False
    except OSError:
        held = not or_none
    with suppress(OSError):  # it may have been removed before it was locked
        if held and os.path.samestat(os.fstat(descriptor), folder.lstat()):
            return descriptor
    os.close(descriptor)
    return None


def _is_ours(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
