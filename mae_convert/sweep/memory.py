"""Estimate the memory that jobs need, measure what they use, and determine what is available."""

import math
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mae_convert.errors import MaeConvertError

if TYPE_CHECKING:
    from mae_convert.sweep.plan_fields import Job

MB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
INTERVAL = 0.05  # seconds between measurements
CONVERT_BYTES = 300 * MB
VERIFY_BYTES = 1500 * MB
VERIFY_FACTOR = 7  # times the model in float32; for a ViT-B, 4.4 GB in total
SHARE = 0.9  # of the available memory


class PeakMemory:
    """Context manager that measures the peak memory of this process and its descendants.

    Args:
        others: a function that returns the IDs of other processes that work for this process.

    Attributes:
        peak: the peak memory of all these processes together, in bytes; None if the operating
            system does not report it.
    """

    def __init__(self, others: Callable[[], Iterable[int]] = tuple) -> None:
        self._others = others
        self.peak: int | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._measure_until_end, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._measure()
        if self.peak is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _measure_until_end(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._measure()

    def _measure(self) -> None:
        used = memory_of(os.getpid())
        if used:
            used += sum(map(memory_of, self._others()))
            self.peak = max(self.peak or 0, used)


def memory_of(process: int) -> int:
    """Return the memory of a process and its descendants in bytes; 0 if it is unknown.

    Only descendants that were started by the main thread of their parent are included. The
    directories of other threads in /proc are not read, because Linux takes up to 50 ms to remove
    such a directory at the end of its thread if the directory has been read.
    """
    used = 0
    try:
        used = int(Path(f"/proc/{process}/statm").read_bytes().split()[1]) * PAGE
        children = Path(f"/proc/{process}/task/{process}/children").read_bytes().split()
        used += sum(memory_of(int(child)) for child in children)
    except (OSError, ValueError, IndexError):
        pass  # the process has ended, or the operating system is not Linux
    return used


def memory_needed_by(job: "Job") -> int:
    """Return an estimate of the memory of a job in bytes.

    A conversion holds only some tensors in memory at a time; a verification holds the whole model
    in both frameworks, in float32 and in float64. A job whose source cannot be opened only reports
    the error, which needs little memory.
    """
    if not job.verifies:
        return CONVERT_BYTES
    return VERIFY_BYTES + VERIFY_FACTOR * model_bytes(job)


def model_bytes(job: "Job") -> int:
    """Return an estimate of the size of a job's model in float32, in bytes.

    For remote storage, the estimate is the size of the files; for a model on the Hub or an official
    checkpoint, the size of a ViT-L. It is 0 if the source cannot be opened.
    """
    from mae_convert.families.checkpoint_options import flags_of
    from mae_convert.families.official_models import OfficialFile
    from mae_convert.sources import HubReference, open_source, parse_source, storage

    try:
        if storage.is_remote(job.source):
            return storage.size_of(job.source)
        source = parse_source(job.source)
        if isinstance(source, HubReference | OfficialFile):
            return UNKNOWN_BYTES
        flags, key = flags_of(job.settings), job.settings.get("state_key")
        checkpoint = open_source(source, flags, state_key=key, incomplete=True)
    except (MaeConvertError, OSError):
        return 0
    return sum(4 * math.prod(tensor.shape) for tensor in checkpoint.tensors.values())


# Assumed for models whose size is unknown before their download: the size of a ViT-L.
UNKNOWN_BYTES = 1300 * MB


def available_memory() -> int:
    """Return the memory that is available on this machine or in this container, in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, ValueError, StopIteration):
        return 8 << 30
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{n}").read_text().strip() for n in ("max", "current"))
        inactive = next(
            int(line.split()[1])
            for line in (group / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
        return min(free, int(limit) - int(used) + inactive)
    except (OSError, ValueError, StopIteration):
        return free


def available_cores() -> int:
    """Return the number of processors available on this machine or in this container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores or 1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores or 1
