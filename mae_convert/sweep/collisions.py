"""Refuse jobs that conflict with each other, before any work."""

from collections.abc import Iterator, Sequence

from mae_convert.sources.reference import PROTOCOL
from mae_convert.sweep.job import Job
from mae_convert.sweep.plan_file import PlanError


def refuse_collisions(jobs: Sequence[Job]) -> None:
    """Refuse duplicate jobs, jobs with the same target, and targets inside another job's source.

    Raises:
        PlanError: two jobs conflict; the message names line and field.
    """
    seen: dict[str, Job] = {}
    for job in jobs:
        for place in _places(job):
            if (other := seen.setdefault(place, job)) is not job:
                raise _same_place(place, job, other)
    _refuse_nesting(jobs)


def _places(job: Job) -> Iterator[str]:
    """Yield the key of a job and its target."""
    yield job.key
    if job.converts and job.target:
        yield job.target
    if name := job.settings.get("publish"):
        yield f"{PROTOCOL}{name}@{job.settings.get('branch', 'main')}"


def _same_place(place: str, job: Job, other: Job) -> PlanError:
    if place == job.key:
        return PlanError(f"{job.where}, source: this job is a duplicate of another ({other.where})")
    apart = [n for n in job.settings if job.settings[n] != other.settings.get(n)]
    hint = "{parent}, {stem}" if job.source != other.source else f"{{{apart[0]}}}"
    return PlanError(
        f"{job.where}, target: two jobs write {place}", hint=f"put {hint} into the target's name"
    )


def _refuse_nesting(jobs: Sequence[Job]) -> None:
    """Refuse a target that equals, contains or is inside a source or another target."""
    sources = {job.source: job for job in jobs}
    targets = {job.target: job for job in jobs if job.converts and job.target}
    for job in targets.values():
        assert job.target
        for inner, outer in [(job.target, name) for name in (job.target, *_above(job.target))]:
            if outer in sources:
                raise _refused(job, f"{inner} is, or is inside, {outer}, which is a source")
            if outer != inner and outer in targets:
                raise _refused(job, f"{inner} is inside {outer}, which is also a target")
    for job in jobs:
        for outer in _above(job.source):
            if outer in targets:
                raise _refused(targets[outer], f"{outer} contains {job.source}, which is a source")


def _refused(job: Job, sentence: str) -> PlanError:
    return PlanError(f"{job.where}, target: {sentence}", hint="choose another name")


def _above(place: str) -> Iterator[str]:
    """Yield the parent directories of a path, from the inside out."""
    while (place := place.rpartition("/")[0].rstrip("/")) and not place.endswith(":"):
        yield place
