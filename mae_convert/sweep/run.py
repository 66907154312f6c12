"""A sweep: what of it is done already, what is to be done, and doing it."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from mae_convert.files.atomic import already_exists
from mae_convert.sources import storage
from mae_convert.sweep.freshness import is_unchanged
from mae_convert.sweep.job import Job
from mae_convert.sweep.plan_file import PlanError
from mae_convert.sweep.result import Row
from mae_convert.sweep.results import Results

Engine = Callable[[Sequence[Job]], Iterator[Row]]
Tell = Callable[[Row], None]


@dataclass(frozen=True)
class Agenda:
    """What is to be done of a plan, in its order.

    Attributes:
        jobs: all jobs of the plan.
        done: rows of those that are done, with source and target unchanged.
        todo: the jobs to run.
        left: the jobs that are not asked for now.
    """

    jobs: tuple[Job, ...]
    done: tuple[Row, ...]
    todo: tuple[Job, ...]
    left: tuple[Job, ...] = ()


def agenda(jobs: Sequence[Job], rows: Mapping[str, Row], *, only_failed: bool = False) -> Agenda:
    """Return what is to be done: what is new, what failed, and what has changed since.

    Args:
        jobs: of the plan.
        rows: of earlier runs, by key.
        only_failed: leave what has not been run yet, or has changed.
    """
    done, todo, left = list[Row](), list[Job](), list[Job]()
    for job in jobs:
        row = rows.get(job.key)
        failed = row is not None and not row.is_good
        if row is not None and not failed and is_unchanged(row, job):
            done.append(row)
        elif only_failed and not failed:
            left.append(job)
        else:
            todo.append(job)
    return Agenda(tuple(jobs), tuple(done), tuple(todo), tuple(left))


def refuse_targets(todo: Sequence[Job], begun: Container[str]) -> None:
    """Refuse, before any work, to replace what this sweep did not make.

    Args:
        todo: the jobs to run.
        begun: targets of the jobs that were begun earlier.

    Raises:
        PlanError: a target is there, and no job of these results has written it.
    """
    for job in todo:
        is_ours = job.identity()["target"] in begun
        if job.converts and job.target and not is_ours and storage.exists(job.target):
            error = already_exists(job.target, " and was not written by this sweep")
            raise PlanError(f"{job.where}, target: ", error, option="target")


def run_sweep(
    todo: Sequence[Job], results: Results, engine: Engine, *, fail_fast: bool, tell: Tell
) -> list[Row]:
    """Run jobs, write each row as its job ends, and return the rows.

    Args:
        todo: what to run.
        results: where the rows go.
        engine: what runs jobs.
        fail_fast: stop at the first row that is not good; what runs then is ended.
        tell: is given each row once it is written.
    """
    rows = []
    with closing(engine(todo)) as ended:  # type: ignore[type-var]
        results.begin(todo)
        for row in ended:
            results.write(row)
            rows.append(row)
            tell(row)
            if fail_fast and not row.is_good:
                break
    return rows
