"""Worker threads.

Threads of one Python process can read, hash, compare and write large blocks of memory in parallel,
because these operations release the global interpreter lock.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Self, TypeVar

from mae_convert.files.progress import Advance, Progress

MOST_WORKERS = 4
"""Maximum number of threads; each may hold a whole array and a copy of a part of it in memory."""

REUSED_BYTES = 30 << 20
"""The size in bytes of the block that `reuse_freed_memory` frees.

glibc raises its threshold only if the freed block has at most 32 MiB.
"""

S = TypeVar("S")
T = TypeVar("T")


class _StoppedError(Exception):
    """Another thread has failed, or the user has interrupted the work."""


class WorkerThreads:
    """Worker threads for independent tasks; the first error stops all of them."""

    def __init__(self, progress: Progress) -> None:
        reuse_freed_memory()
        self._progress = progress
        self._stop = threading.Event()
        # One thread more than processors, because some threads wait for the disk.
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
        """Submit a task and return its future.

        Args:
            work: the task; its argument is a function that takes the number of bytes that the task
                has processed since it last called the function.
        """
        return self._pool.submit(work, self._advance)

    def finish(self, *futures: "Future[Any]") -> list[Any]:
        """Wait for tasks and return their results.

        Raises:
            Exception: the first error that a task raised.
        """
        finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        errors = [future.exception() for future in futures if future in finished]
        raised = [error for error in errors if error and not isinstance(error, _StoppedError)]
        if raised:
            raise raised[0]
        return [future.result() for future in futures]

    def _advance(self, count: int) -> None:
        if self._stop.is_set():
            raise _StoppedError
        self._progress.advance(count)


def overlapped(work: Callable[[S], T], items: Iterable[S], threads: int = 1) -> Iterator[T]:
    """Yield `work(item)` for each item, in order; threads compute the results in advance.

    The calling thread iterates over `items`. At most ``threads + 1`` results are in memory.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="mae-convert") as pool:
        running: deque[Future[T]] = deque()
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) > threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def reuse_freed_memory() -> None:
    """Make the allocator keep freed blocks for reuse.

    glibc returns blocks larger than a threshold to the system at once, and allocating them again
    costs a page fault for every 4 kB. When a block is freed, glibc raises the threshold to the size
    of the block (mallopt(3), M_MMAP_THRESHOLD), so a large block is allocated and freed here. Other
    allocators are not affected.
    """
    import numpy as np

    np.empty(REUSED_BYTES, np.uint8)
