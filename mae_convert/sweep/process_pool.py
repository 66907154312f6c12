"""The local engine: run each job in its own process, as many jobs at a time as resources allow.

The resources are memory, cores and GPUs. If a process is killed, its job is run again without other
jobs, because the memory may not have been sufficient for all jobs.

`concurrent.futures.ProcessPoolExecutor` and loky cannot be used instead: when one of their
processes dies, every job that is queued or running fails (`BrokenProcessPool`); they start a job as
soon as a worker is free, without regard to memory; their initializer is the same for all workers,
so that a job cannot be assigned a GPU before its framework is imported; and they cannot stop a
single running job.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from mae_convert.errors import MaeConvertError
from mae_convert.errors.signals import ignore_signals, raise_signals
from mae_convert.runtime import worker as runner
from mae_convert.runtime.children import environment_of_runner
from mae_convert.runtime.fork_server import ForkServer, fork_server
from mae_convert.sweep.memory import SHARE, available_cores, available_memory, memory_needed_by
from mae_convert.sweep.plan_fields import Job
from mae_convert.sweep.result import Row, error_row
from mae_convert.sweep.run_job import run_job, thread_variables
from mae_convert.text.redaction import redact_logs

ATTEMPTS = 2
START_ATTEMPTS = 5
LONGEST_SOCKET_PATH = 103  # bytes; macOS allows 103, Linux 107
STOP_SECONDS = 10.0  # time that a terminated process has to clean up before it is killed
Work = Callable[[Job, int, ForkServer | None], Row]


@dataclass(frozen=True)
class Limits:
    """The limits for jobs that run at the same time."""

    workers: int
    """The maximum number of jobs."""

    memory: int
    """The memory for all jobs together, in bytes."""

    threads: int
    """The number of threads that the framework uses in each job."""

    gpus: tuple[str, ...] = ()
    """The numbers or UUIDs of the GPUs; each GPU is used by one job at a time."""


def limits(workers: int | None = None, threads: int | None = None) -> Limits:
    """Return the limits for this machine.

    Args:
        workers: the maximum number of jobs at the same time; by default the number of cores divided
            by `threads` or, without `threads`, the number of cores.
        threads: the number of threads of the framework in each job; by default the number of cores
            divided by the number of workers.
    """
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
class PendingJob:
    """A pending job, and the number of earlier attempts."""

    job: Job
    attempts: int = 0


@dataclass(frozen=True)
class Worker:
    """A process that runs a job, with the resources reserved for it."""

    pending: PendingJob
    process: Any
    connection: Connection
    memory: int
    gpu: str | None

    def stop(self) -> None:
        """Wait for the end of the process, to which SIGTERM was sent; then close the connection.

        A process that still runs after STOP_SECONDS is killed.
        """
        self.process.join(STOP_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


@dataclass(frozen=True)
class Task:
    """The function that each process calls to run its job, and the function's arguments."""

    work: Work
    """The function that runs the job."""

    threads: int
    """The number of threads of the framework."""

    server: ForkServer | None
    """The fork server, which has imported PyTorch and starts the child processes of verifications;
    None to start a new Python interpreter for each child process."""


def run_local(jobs: Sequence[Job], allowed: Limits, work: Work = run_job) -> Iterator[Row]:
    """Run each job in its own process, and yield the row of the job when it ends.

    If the iterator is closed early, running jobs are stopped.

    Args:
        jobs: the jobs.
        allowed: the limits.
        work: the function that each process calls with its job, the number of threads, and the
            fork server, which may be None (see `Task`).
    """
    context = _multiprocessing_context()
    queue, workers = deque(map(PendingJob, jobs)), list[Worker]()
    with _fork_server_for(jobs, allowed.threads) as server:
        task = Task(work, allowed.threads, server)
        try:
            while queue or workers:
                while queue and (resources := _resources_for(queue[0], workers, allowed)):
                    workers.append(_start(context, queue.popleft(), resources, task))
                for worker in _ended(workers):
                    workers.remove(worker)
                    result = _row_of(worker)
                    if isinstance(result, PendingJob):
                        queue.append(result)
                    else:
                        yield result
        finally:
            for worker in workers:
                worker.process.terminate()
            for worker in workers:
                worker.stop()


def _fork_server_for(
    jobs: Sequence[Job], threads: int
) -> AbstractContextManager[ForkServer | None]:
    """Return a context manager that yields a fork server of PyTorch, or None.

    A fork server is a process that has imported PyTorch, and that is forked to start the child
    processes of verifications. A server is started if at least two jobs may run PyTorch, but only
    on Linux: on macOS, system libraries do not support a fork after they are used.

    Args:
        jobs: the jobs of the sweep.
        threads: the number of threads of the framework in each child process.
    """
    if sys.platform != "linux" or sum(map(_may_run_torch, jobs)) < 2 or runner.missing(["torch"]):
        return nullcontext()
    environment = environment_of_runner("cpu") | thread_variables(threads)
    return fork_server(environment, [runner.__file__, "--serve", "torch"])


def _may_run_torch(job: Job) -> bool:
    frameworks = {job.settings.get(f"framework_{side}") for side in "ab"}
    return job.verifies and not frameworks.isdisjoint({None, "torch"})


def _multiprocessing_context() -> Any:
    """Return a multiprocessing context: "forkserver" if possible, else "spawn".

    A fork server listens on a Unix socket in the directory for temporary files. The operating
    system limits the length of the socket's path, and ``TMPDIR`` of batch systems may be too long.
    """
    socket = Path(tempfile.gettempdir()) / "pymp-12345678" / "listener-12345678"
    available = "forkserver" in multiprocessing.get_all_start_methods()
    if not available or len(os.fsencode(socket)) > LONGEST_SOCKET_PATH:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mae_convert.sweep.preload"])
    return context


def _resources_for(
    pending: PendingJob, workers: Sequence[Worker], allowed: Limits
) -> tuple[int, str | None] | None:
    """Return the memory in bytes and the GPU to reserve for a job, or None if the job must wait.

    The GPU is None if the job needs no GPU or if there are no GPUs.

    A job runs alone if it needs too much memory to run beside other jobs, or if its process was
    killed in an earlier attempt.
    """
    gpu = None
    if pending.job.needs_gpu and allowed.gpus:
        gpu = next((g for g in allowed.gpus if g not in {w.gpu for w in workers}), None)
        if gpu is None:
            return None
    if len(workers) >= allowed.workers:
        return None
    needed = allowed.memory if pending.attempts else memory_needed_by(pending.job)
    if workers and sum(w.memory for w in workers) + needed > allowed.memory:
        return None
    return needed, gpu


def _start(
    context: Any, pending: PendingJob, resources: tuple[int, str | None], task: Task
) -> Worker:
    memory, gpu = resources
    server = task.server
    if server is not None and not (_may_run_torch(pending.job) and server.is_ready()):
        task = replace(task, server=None)
    for attempt in range(START_ATTEMPTS):
        parent_end, child_end = context.Pipe()
        process = context.Process(target=_work, args=(pending.job, task, gpu, child_end))
        try:
            process.start()
            break
        except (EOFError, ConnectionError):  # the fork server was killed; it is started again
            if attempt == START_ATTEMPTS - 1:
                raise
            time.sleep(2**attempt / 4)
        finally:
            child_end.close()
    attempt_counted = replace(pending, attempts=pending.attempts + 1)
    return Worker(attempt_counted, process, parent_end, memory, gpu)


def _ended(workers: Sequence[Worker]) -> list[Worker]:
    """Wait until at least one worker has sent a row or has ended, and return all such workers.

    The row contains the result of the worker's job.
    """
    ready = wait([worker.connection for worker in workers])
    return [worker for worker in workers if worker.connection in ready]


def _row_of(worker: Worker) -> Row | PendingJob:
    """Return the row of a worker that has ended, or its job if it will be run again."""
    pending = worker.pending
    try:
        row: Row = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        if pending.attempts < ATTEMPTS:
            return pending
        return row_of_killed(pending.job, pending.attempts, _exit_reason(worker.process.exitcode))
    worker.process.join()
    worker.connection.close()
    return replace(row, attempts=pending.attempts)


def row_of_killed(job: Job, attempts: int, how: str) -> Row:
    """Return the row of a job whose process ended without a result in every attempt.

    Args:
        job: the job.
        attempts: the number of attempts.
        how: how the process ended, such as "by signal 9 (SIGKILL)".
    """
    sentence = f"its process died {attempts} times, {how}; is there enough memory?"
    return replace(error_row(job.identity(), {}, MaeConvertError(sentence)), attempts=attempts)


def _exit_reason(status: int | None) -> str:
    if status is not None and status < 0:
        return f"by signal {-status} ({signal.Signals(-status).name})"
    return f"with status {status}"


def _work(job: Job, task: Task, gpu: str | None, connection: Connection) -> None:
    """Run one job in this process and send its row (the result) to the parent process.

    Args:
        job: the job.
        task: the function that runs a job, and its arguments.
        gpu: the number or UUID of the only GPU that the job may use; None to leave the environment
            variable CUDA_VISIBLE_DEVICES unchanged.
        connection: a pipe to the parent process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the parent handles the signal
    raise_signals()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    redact_logs()
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    row = task.work(job, task.threads, task.server)
    ignore_signals()
    connection.send(row)


def _end_with_parent(connection: Connection) -> None:
    """End this process when its parent has ended.

    The parent never sends data through the pipe, so reading from it ends only when the parent ends.
    """
    with suppress(EOFError, OSError):
        connection.recv()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(128 + signal.SIGTERM)
