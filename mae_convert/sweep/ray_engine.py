"""The cluster engine: Ray schedules the jobs, and repeats a job if its node or process fails."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import replace
from typing import Any

from mae_convert.errors import MaeConvertError, MissingRequirementError, Option
from mae_convert.sweep.memory import memory_needed_by
from mae_convert.sweep.plan_fields import Job
from mae_convert.sweep.process_pool import row_of_killed
from mae_convert.sweep.result import Row, error_row
from mae_convert.sweep.run_job import run_job

RETRIES = 3  # of a job whose process or node was lost
SLACK = 2  # number of tasks for each core that are submitted to Ray at a time


def run_on_ray(jobs: Sequence[Job], address: str | None, threads: int | None) -> Iterator[Row]:
    """Run jobs on a Ray cluster and yield the row of each job when it ends.

    The function connects to the cluster before it returns the iterator. If the iterator is closed
    early, running jobs are stopped.

    Args:
        jobs: the jobs.
        address: the address of the cluster; None for the address in the environment variable
            RAY_ADDRESS or, if it is not set, for a cluster that runs on this machine.
        threads: the number of threads of the framework in each job, which is also the number of
            cores that the job requests; None for 1.

    Raises:
        MissingRequirementError: Ray is not installed, or there is no cluster.
    """
    return _rows(_connected(address), jobs, threads or 1)


def _rows(ray: Any, jobs: Sequence[Job], threads: int) -> Iterator[Row]:
    try:
        # Each job has its own process, as in the local engine, so that its memory is freed.
        task = ray.remote(max_calls=1, max_retries=RETRIES)(run_job)
        waiting, running = iter(jobs), dict[Any, Job]()
        try:
            while True:
                free = _task_limit(ray, threads) - len(running)
                for job in itertools.islice(waiting, max(free, 0)):
                    running[_submit(ray, task, job, threads)] = job
                if not running:
                    return
                (ended,), _ = ray.wait(list(running), num_returns=1)
                yield _row_of(ray, ended, running.pop(ended))
        finally:
            for unfinished in running:
                ray.cancel(unfinished, force=True)
    finally:
        ray.shutdown()


def _connected(address: str | None) -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingRequirementError(
            "the engine `ray` requires the package Ray",
            hint="pip install 'mae-convert[ray]', on every node",
        ) from error
    try:
        # Ray adds its working directory to the import path of its workers; the directory of
        # checkpoints may contain files with the names of modules.
        with chdir("/"):
            ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())[:200]
        raise MissingRequirementError(
            f"there is no Ray cluster at {address or 'the default address'} ({message})",
            hint=("start a cluster with `ray start --head`, or specify its ", Option("address")),
        ) from error
    return ray


def _task_limit(ray: Any, threads: int) -> int:
    """Return how many tasks of `threads` threads Ray gets at a time, to keep every core busy."""
    cores = ray.cluster_resources().get("CPU", 1.0)
    return max(8, int(SLACK * cores / threads))


def _submit(ray: Any, task: Any, job: Job, threads: int) -> Any:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = max((node.get("memory", 0) for node in nodes), default=0)
    return task.options(
        name=job.source,
        num_cpus=threads,
        num_gpus=1 if job.needs_gpu else 0,
        # A job that fits on no node would wait forever; alone on the largest node it may succeed.
        memory=int(min(memory_needed_by(job), largest)) or None,
    ).remote(job, threads)


def _row_of(ray: Any, ended: Any, job: Job) -> Row:
    try:
        row: Row = ray.get(ended)
    except ray.exceptions.RayError as error:
        exceptions = ray.exceptions
        if isinstance(
            error,
            exceptions.WorkerCrashedError | exceptions.NodeDiedError | exceptions.OutOfMemoryError,
        ):
            return row_of_killed(job, RETRIES + 1, "according to Ray")
        sentence = f"Ray could not run this job: {' '.join(str(error).split())[:400]}"
        return replace(error_row(job.identity(), {}, MaeConvertError(sentence)), attempts=0)
    return row
