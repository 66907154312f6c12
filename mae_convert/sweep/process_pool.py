"""The local engine: each job in its own process, as many as memory and cores allow.

If a process is killed, its job is run again without other jobs: memory may have run out.

`concurrent.futures.ProcessPoolExecutor` and loky do not do this: when one of their processes dies,
the pool is broken and every job that is queued or running fails (`BrokenProcessPool`); they start a
job as soon as a worker is free, without regard to memory; and their initializer is the same for all
workers, so that a job cannot be assigned a GPU before its framework is imported. A single running
job cannot be stopped.
"""

import multiprocessing
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from mae_convert.errors import MaeConvertError
from mae_convert.process.signals import ignore_signals, raise_signals
from mae_convert.sweep.memory import SHARE, available_cores, available_memory, needed_by
from mae_convert.sweep.plan_fields import Job
from mae_convert.sweep.result import Row, error_row
from mae_convert.sweep.run_job import run_job
from mae_convert.text.redaction import redact_logs

ATTEMPTS = 2
START_ATTEMPTS = 5
LONGEST_SOCKET_PATH = 103  # bytes; macOS allows 103, Linux 107
STOP_SECONDS = 10.0  # that a process has to clean up
Work = Callable[[Job, int], Row]


@dataclass(frozen=True)
class Limits:
    """Limits on the jobs that run at the same time."""

    workers: int
    """The number of jobs."""

    memory: int
    """Bytes."""

    threads: int
    """The number of threads of each framework."""

    gpus: tuple[str, ...] = ()
    """Numbers of the GPUs, each for one job at a time."""


def limits(workers: int | None = None, threads: int | None = None) -> Limits:
    """Return the limits of this machine, by default with one worker per core."""
    cores = available_cores()
    workers = workers or max(1, cores // (threads or 1))
    threads = threads or max(1, cores // workers)
    return Limits(workers, int(available_memory() * SHARE), threads, _gpus())


def _gpus() -> tuple[str, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name for name in visible.split(",") if name)
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return tuple(map(str, range(count)))


@dataclass(frozen=True)
class Waiting:
    """A pending job, and the number of earlier attempts."""

    job: Job
    attempts: int = 0


@dataclass(frozen=True)
class Worker:
    """A process that runs a job, with the resources reserved for it."""

    waiting: Waiting
    process: Any
    connection: Connection
    memory: int
    gpu: str | None

    def stop(self) -> None:
        """Wait for a terminated process, and for the frameworks that it runs."""
        self.process.join(STOP_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


def run_local(jobs: Sequence[Job], allowed: Limits, work: Work = run_job) -> Iterator[Row]:
    """Run jobs and yield their rows as they end; if it is closed early, running jobs are stopped.

    Args:
        jobs: the jobs.
        allowed: the limits.
        work: the function that a process calls with its job and the number of threads.
    """
    context = _multiprocessing_context()
    queue, working = deque(map(Waiting, jobs)), list[Worker]()
    try:
        while queue or working:
            while queue and (share := _share_for(queue[0], working, allowed)):
                working.append(_start(context, queue.popleft(), share, (work, allowed.threads)))
            for worker in _ended(working):
                working.remove(worker)
                ended = _row_of(worker)
                if isinstance(ended, Waiting):
                    queue.append(ended)
                else:
                    yield ended
    finally:
        for worker in working:
            worker.process.terminate()
        for worker in working:
            worker.stop()


def _multiprocessing_context() -> Any:
    """Return the start method of worker processes: a fork server if possible, else new processes.

    A fork server has a Unix socket under the directory for temporary files. The system limits the
    length of its path, and batch systems set long ones in ``TMPDIR``.
    """
    socket = Path(tempfile.gettempdir()) / "pymp-12345678" / "listener-12345678"
    available = "forkserver" in multiprocessing.get_all_start_methods()
    if not available or len(os.fsencode(socket)) > LONGEST_SOCKET_PATH:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mae_convert.sweep.preload"])
    return context


def _share_for(
    waiting: Waiting, working: Sequence[Worker], allowed: Limits
) -> tuple[int, str | None] | None:
    """Return the memory and the GPU for a job, or None while it must wait.

    A job runs alone if there is no memory for another one, or if its process was killed before.
    """
    gpu = None
    if waiting.job.needs_gpu and allowed.gpus:
        gpu = next((g for g in allowed.gpus if g not in {w.gpu for w in working}), None)
        if gpu is None:
            return None
    if len(working) >= allowed.workers:
        return None
    needed = allowed.memory if waiting.attempts else needed_by(waiting.job)
    if working and sum(w.memory for w in working) + needed > allowed.memory:
        return None
    return needed, gpu


def _start(
    context: Any, waiting: Waiting, share: tuple[int, str | None], work: tuple[Work, int]
) -> Worker:
    memory, gpu = share
    for attempt in range(START_ATTEMPTS):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(waiting.job, work, gpu, theirs))
        try:
            process.start()
            break
        except (EOFError, ConnectionError):  # the fork server was killed; it is started again
            if attempt == START_ATTEMPTS - 1:
                raise
            time.sleep(2**attempt / 4)
        finally:
            theirs.close()
    return Worker(replace(waiting, attempts=waiting.attempts + 1), process, ours, memory, gpu)


def _ended(working: Sequence[Worker]) -> list[Worker]:
    """Wait until a worker has sent its row or has ended."""
    ready = wait([worker.connection for worker in working])
    return [worker for worker in working if worker.connection in ready]


def _row_of(worker: Worker) -> Row | Waiting:
    """Return the row of a worker that has ended, or its job if it will be run again."""
    waiting = worker.waiting
    try:
        row: Row = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        if waiting.attempts < ATTEMPTS:
            return waiting
        return died(waiting.job, waiting.attempts, _how(worker.process.exitcode))
    worker.process.join()
    worker.connection.close()
    return replace(row, attempts=waiting.attempts)


def died(job: Job, attempts: int, how: str) -> Row:
    """Return the row of a job whose process was killed each time."""
    sentence = f"its process died {attempts} times, {how}; is there enough memory?"
    return replace(error_row(job.identity(), {}, MaeConvertError(sentence)), attempts=attempts)


def _how(status: int | None) -> str:
    if status is not None and status < 0:
        return f"by signal {-status} ({signal.Signals(-status).name})"
    return f"with status {status}"


def _work(job: Job, work: tuple[Work, int], gpu: str | None, connection: Connection) -> None:
    """Run one job in a separate process, and send its row."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the parent handles the signal
    raise_signals()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    redact_logs()
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    function, threads = work
    row = function(job, threads)
    ignore_signals()
    connection.send(row)


def _end_with(connection: Connection) -> None:
    """End this process when its parent has ended; the pipe itself carries no data."""
    with suppress(EOFError, OSError):
        connection.recv()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(128 + signal.SIGTERM)
