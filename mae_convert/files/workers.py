"""A few threads that share work, and how far they are.

Reading, hashing, comparing and writing large pieces of memory run beside each other in one Python
process, because each lets the interpreter go meanwhile.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Self, TypeVar

from mae_convert.files.allocation import keep_what_is_freed

MOST_WORKERS = 4
"""Each may hold one array whole, which is transposed, and a block of it."""

T = TypeVar("T")
Advance = Callable[[int], None]


class Progress:
    """Is told how far long work is; this one keeps it to itself."""

    def begin(self, total: int) -> None:
        """Learn how many bytes there are to be worked on."""

    def advance(self, count: int) -> None:
        """Learn that `count` bytes more are done; called from any thread."""


class _StoppedError(Exception):
    """Another thread has failed, or the user has interrupted the work."""


class Crew:
    """Threads for independent pieces of work; what ends one with an error ends them all."""

    def __init__(self, progress: Progress) -> None:
        keep_what_is_freed()
        self._progress = progress
        self._stop = threading.Event()
        # One more than there are processors: some wait for the disk.
        workers = min(MOST_WORKERS, (os.cpu_count() or 1) + 1)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="mae-convert")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def start(self, work: Callable[[Advance], T]) -> "Future[T]":
        """Begin a piece of work, which calls what it is given with the bytes that it has done."""
        return self._pool.submit(work, self._advance)

    def finish(self, *futures: "Future[Any]") -> list[Any]:
        """Wait for pieces of work and return what they return.

        Raises:
            the first error that one of them raised.
        """
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        errors = [future.exception() for future in futures if future in done]
        told = [error for error in errors if error and not isinstance(error, _StoppedError)]
        if told:
            raise told[0]
        return [future.result() for future in futures]

    def _advance(self, count: int) -> None:
        if self._stop.is_set():
            raise _StoppedError
        self._progress.advance(count)
