"""Errors that are caused by a lack of memory, file descriptors, processes or disk space.

This module imports only the standard library and `text`, because it must work when other imports
fail for lack of memory.
"""

import errno
import os

from mae_convert.text import format_bytes, plural

try:
    import resource
except ImportError:  # a module that does not exist on every system
    resource = None  # type: ignore[assignment]

MEMORY = (
    "there is not enough memory{0}; free some memory, or raise the memory limit (ulimit -v, or the"
    " limit of the container)"
)
FILES = "too many files are open; raise the limit (ulimit -n), which is {0}"
THREADS = "no further process or thread can be started; raise the limit (ulimit -u)"
DISK = "there is no space left on the disk{0}; free some space"
DEPTH = "the input is nested too deeply; reduce the nesting"

OF_NUMBERS = {
    errno.ENOMEM: MEMORY,
    errno.EMFILE: FILES,
    errno.ENFILE: FILES,
    errno.EAGAIN: THREADS,
    errno.ENOSPC: DISK,
    errno.EDQUOT: DISK,
}
# Messages of the dynamic linker and of libraries that raise exceptions of their own.
OF_WORDS = (
    ("failed to map segment", MEMORY),
    ("cannot allocate memory", MEMORY),
    ("unable to allocate", MEMORY),
    ("out of memory", MEMORY),
    ("too many open files", FILES),
    ("can't start new thread", THREADS),
    ("no space left on device", DISK),
)
LOADED_BY_WORDS = (ImportError, RuntimeError, SystemError, ValueError)
# Without enough memory, OpenBLAS, which NumPy loads, ends the process with status 1, which means
# "different". Importing NumPy needs 98 MB of address space with one thread and 41 MB for each
# further thread (measured); a little is added.
NEEDED, FOR_EACH_THREAD = 64 << 20, 42 << 20


def shortage(error: BaseException) -> str | None:
    """Return an error message about the exhausted resource that caused an error.

    The result is None if the error has another cause.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if message := _shortage(current):
            return message
        current = current.__cause__ or current.__context__
    return None


def _shortage(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        message = " ".join(str(error).split())
        return MEMORY.format(f" ({message[:200]})" if message else "")
    if isinstance(error, RecursionError):
        return DEPTH
    if isinstance(error, OSError) and error.errno in OF_NUMBERS:
        location = f" ({error.filename})" if error.filename and error.errno == errno.ENOSPC else ""
        return _filled(OF_NUMBERS[error.errno], location)
    if isinstance(error, LOADED_BY_WORDS):
        message = str(error).lower()
        return next((_filled(text, "") for words, text in OF_WORDS if words in message), None)
    return None


def _filled(text: str, location: str) -> str:
    return text.format(_open_files() if text == FILES else location)


def _open_files() -> str:
    return "unknown" if resource is None else str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def too_little_address_space() -> str | None:
    """Return an error message if a limit leaves too little address space for NumPy, else None."""
    if resource is None:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    needed = NEEDED + FOR_EACH_THREAD * _threads()
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return None
    return (
        f"{format_bytes(limit)} of address space is too little: NumPy needs"
        f" {format_bytes(needed)} with {plural(_threads(), 'thread')}; raise the limit (ulimit -v),"
        " or set OPENBLAS_NUM_THREADS=1"
    )


def _threads() -> int:
    """Return OpenBLAS's number of threads: from environment variables, or one per processor."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        if (number := os.environ.get(name, "")).isdecimal() and int(number) > 0:
            return int(number)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
