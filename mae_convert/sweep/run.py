"""Select the jobs of a sweep that are still to be run, and run them."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from mae_convert.files.atomic import already_exists
from mae_convert.sources import storage
from mae_convert.sweep.freshness import is_unchanged
from mae_convert.sweep.plan_fields import Job
from mae_convert.sweep.plan_file import PlanError
from mae_convert.sweep.result import Row
from mae_convert.sweep.results import Results

Engine = Callable[[Sequence[Job]], Iterator[Row]]
OnRow = Callable[[Row], None]


@dataclass(frozen=True)
class SelectedJobs:
    """The completed, pending and skipped jobs of a plan, each in the order of the plan."""

    jobs: tuple[Job, ...]
    """All jobs."""

    done: tuple[Row, ...]
    """Rows of the jobs that succeeded and whose source and target are unchanged since."""

    pending: tuple[Job, ...]
    """The jobs to run."""

    skipped: tuple[Job, ...] = ()
    """The jobs that were never run; they are left out, because only failed jobs are requested."""


def select_jobs(
    jobs: Sequence[Job], rows: Mapping[str, Row], *, only_failed: bool = False
) -> SelectedJobs:
    """Select the jobs to run: new jobs, failed jobs, and jobs whose files have changed.

    Args:
        jobs: the jobs of the plan.
        rows: the rows of earlier runs, by the key of the job.
        only_failed: whether to skip new jobs and jobs whose files have changed.
    """
    finished, pending, skipped = list[Row](), list[Job](), list[Job]()
    for job in jobs:
        row = rows.get(job.key)
        failed = row is not None and not row.is_good
        if row is not None and not failed and is_unchanged(row, job):
            finished.append(row)
        elif only_failed and not failed:
            skipped.append(job)
        else:
            pending.append(job)
    return SelectedJobs(tuple(jobs), tuple(finished), tuple(pending), tuple(skipped))


def refuse_targets(pending: Sequence[Job], begun: Container[str]) -> None:
    """Refuse to replace files that this sweep did not write, before any job runs.

    Args:
        pending: the jobs to run.
        begun: the targets of jobs that were started by earlier runs of this sweep.

    Raises:
        PlanError: a target exists, and no job of this sweep has written it.
    """
    for job in pending:
        is_ours = job.identity()["target"] in begun
        if job.converts and job.target and not is_ours and storage.exists(job.target):
            error = already_exists(job.target, " and was not written by this sweep")
            raise PlanError(f"{job.where}, target: ", error, option="target")


def run_sweep(
    pending: Sequence[Job], results: Results, engine: Engine, *, fail_fast: bool, on_row: OnRow
) -> list[Row]:
    """Run jobs, write each row as its job ends, and return the rows.

    Args:
        pending: the jobs to run.
        results: the file that the rows are written to.
        engine: runs the jobs and yields a row for each.
        fail_fast: after the first job that fails, stop the running jobs and start no further jobs.
        on_row: called with each row after it is written.

    Raises:
        OutputError: the results file cannot be written.
    """
    rows = []
    with closing(engine(pending)) as rows_of_jobs:  # type: ignore[type-var]
        results.begin(pending)
        for row in rows_of_jobs:
            results.write(row)
            rows.append(row)
            on_row(row)
            if fail_fast and not row.is_good:
                break
    return rows
