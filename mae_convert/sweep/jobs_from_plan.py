"""Create jobs from a plan; errors and conflicts of jobs are reported before any job is run."""

import itertools
import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from mae_convert.convert.target import container_kind, is_directory
from mae_convert.errors import MaeConvertError, MissingRequirementError, Option, as_field
from mae_convert.families import layouts_named
from mae_convert.formats.registry import SUFFIX_FORMATS
from mae_convert.runtime.foreign import names_code, with_absolute_path
from mae_convert.sources import storage
from mae_convert.sources.patterns import absolute, sources_named
from mae_convert.sources.reference import PROTOCOL, parse_source
from mae_convert.sweep.plan_fields import (
    INTERPRETERS,
    LISTS,
    LOCAL,
    PUBLISH,
    RUNNERS,
    VERIFY,
    Job,
    parse,
)
from mae_convert.sweep.plan_file import (
    COMMAND_LINE,
    Entry,
    FieldValue,
    PlanError,
    is_plan,
    read_entries,
)

MOST_JOBS = 100_000  # maximum for one plan, in which a list creates a job for each value
Settings = dict[str, Any]


def read_plan(
    arguments: Sequence[str],
    specified: Mapping[str, Sequence[str]],
    *,
    allow_code: bool = False,
) -> list[Job]:
    """Return the jobs of a plan, or of checkpoints and patterns on the command line.

    Args:
        arguments: one plan, or any number of checkpoints and patterns.
        specified: the values of fields on the command line, which replace the plan's values.
        allow_code: whether the plan may specify external code and Python interpreters. The
            command line may always specify them.

    Raises:
        PlanError: the plan is invalid; the message states the file, the line and the field.
        MissingRequirementError: the package for the protocol of a URL is not installed.
    """
    plans = [text for text in arguments if is_plan(text)]
    if plans and len(arguments) > 1:
        raise PlanError(f"{plans[0]} is a plan", hint="pass either one plan or checkpoints")
    folder = Path(plans[0]).parent if plans else Path()
    fields = {n: FieldValue(tuple(v), COMMAND_LINE, len(v) > 1) for n, v in specified.items()}
    sources = FieldValue(tuple(arguments), COMMAND_LINE, is_list=True)
    entries = read_entries(Path(plans[0])) if plans else [Entry(COMMAND_LINE, {"source": sources})]
    all_jobs = (
        job
        for entry in entries
        for job in _jobs(Entry(entry.where, {**entry.fields, **fields}), folder)
    )
    if not allow_code:
        _refuse_code(entries)
    jobs = list(itertools.islice(all_jobs, MOST_JOBS + 1))
    if len(jobs) > MOST_JOBS:
        raise _too_many(jobs[-1].where)
    refuse_collisions(jobs)
    return jobs


def _refuse_code(entries: Sequence[Entry]) -> None:
    """Refuse external code and Python interpreters in a plan.

    Raises:
        PlanError: the plan specifies external code or an interpreter.
    """
    for name, field in (item for entry in entries for item in entry.fields.items()):
        for value in field.values if field.where != COMMAND_LINE else ():
            if what := _program(name, str(value)):
                raise PlanError(
                    f"{field.where}, {name}: {value} is {what}, which is run only with your "
                    "permission",
                    hint=("if you trust the code, pass ", Option("allow_code", True)),
                )


def _program(name: str, value: str) -> str:
    """Return the kind of program that the value of a field specifies, as a phrase for messages.

    The result is "" if the value specifies neither external code nor a Python interpreter.
    """
    if name in RUNNERS and names_code(value):
        return "external code"
    if value and (name in INTERPRETERS or (name in RUNNERS and "=" in value)):
        return "a Python interpreter"
    return ""


def _too_many(where: str) -> PlanError:
    return PlanError(
        f"{where}: this creates more than {MOST_JOBS} jobs",
        hint="use lists for fewer fields, or write several plans",
    )


def _jobs(entry: Entry, folder: Path) -> Iterator[Job]:
    """Yield the jobs of an entry: each source with each combination of list values.

    Args:
        entry: an entry of the plan, with the defaults of the plan.
        folder: the directory to which relative paths are relative: the directory of the plan or,
            without a plan, the current directory.

    Raises:
        PlanError: a field is invalid, the source is missing, or there are too many jobs.
    """
    fixed, varied = _values(entry, folder)
    patterns = varied.pop("source", None) or (fixed.pop("source", None),)
    if None in patterns:
        raise PlanError(
            f"{entry.where}, source: every job needs a source", hint="write a path or a pattern"
        )
    where = entry.fields["source"].where
    sources = [s for pattern in patterns for s in _sources(str(pattern), where, folder)]
    if len(sources) * math.prod(map(len, varied.values())) > MOST_JOBS:
        raise _too_many(entry.where)
    for source in dict.fromkeys(sources):
        for values in itertools.product(*varied.values()):
            settings = {**fixed, **dict(zip(varied, values, strict=True))}
            yield _job(source, {k: v for k, v in settings.items() if v is not None}, entry, folder)


def _values(entry: Entry, folder: Path) -> tuple[Settings, dict[str, tuple[Any, ...]]]:
    """Return the fields that are equal in all jobs of an entry, and the fields that vary.

    A field varies if the plan contains a list of values, of which each job uses one value.

    Args:
        entry: the entry of the plan.
        folder: the folder to which relative paths in the values refer.
    """
    fixed: Settings = {}
    varied: dict[str, tuple[Any, ...]] = {}
    for name, field in entry.fields.items():
        values = tuple(_parsed(name, value, field.where) for value in field.values)
        if name in LOCAL:
            values = tuple(_local_file(name, value, field.where, folder) for value in values)
        if name in RUNNERS:
            values = tuple(
                with_absolute_path(value, folder) if value else value for value in values
            )
        if name in LISTS:
            fixed[name] = [value for value in values if value is not None] or None
        elif field.is_list:
            varied[name] = values
        else:
            fixed[name] = values[0]
    return fixed, varied


def _parsed(name: str, value: Any, where: str) -> Any:
    try:
        return parse(name, value)
    except MaeConvertError as error:
        raise PlanError(f"{where}, {name}: {error.render(as_field)}") from error


def _local_file(name: str, value: str | None, where: str, folder: Path) -> str | None:
    if value is None:
        return None
    path = folder / value
    if not path.exists():
        raise PlanError(f"{where}, {name}: ", path, " does not exist")
    return absolute(path)


def _sources(text: str, where: str, folder: Path) -> list[str]:
    try:
        return sources_named(text, folder)
    except MaeConvertError as error:
        if error.exit_status != 2:
            raise
        raise PlanError(f"{where}, source: {error.render(as_field)}") from error


def _job(source: str, settings: Settings, entry: Entry, folder: Path) -> Job:
    """Return a job with the placeholders of its target replaced.

    Args:
        source: the path, URL or name of the source.
        settings: the values of the other fields.
        entry: the entry of the plan that specifies the job.
        folder: the directory to which relative paths are relative: the directory of the plan or,
            without a plan, the current directory.

    Raises:
        PlanError: fields contradict each other, or a placeholder is not defined.
    """

    def refuse(field: str, sentence: object) -> PlanError:
        if field == "publish" and field not in entry.fields:
            field = "target"  # hf://OWNER/NAME
        value = entry.fields.get(field)
        words = sentence.render(as_field) if isinstance(sentence, MaeConvertError) else sentence
        return PlanError(f"{value.where if value else entry.where}, {field}: {words}", option=field)

    placeholders = {**settings, **_names_of(source)}
    target = settings.pop("target", None)
    try:
        field = "target"
        target = None if target is None else _resolved(_filled(target, placeholders), folder)
        field = "publish"
        if target and target.startswith(PROTOCOL):
            settings["publish"], target = target.removeprefix(PROTOCOL), None
        if "publish" in settings:
            settings["publish"] = _filled(settings["publish"], placeholders)
            _check_repository(settings["publish"])
        settings = _completed(_without_unused_defaults(settings, entry))
    except MaeConvertError as error:
        raise refuse(field, error) from error
    if contradiction := _contradiction(target, settings):
        raise refuse(*contradiction)
    return Job(source, target, settings, entry.where)


def _check_repository(name: str) -> None:
    """Refuse an invalid repository name.

    Raises:
        MaeConvertError: the name is not of the form OWNER/NAME.
    """
    repository = parse_source(f"{PROTOCOL}{name}")
    if getattr(repository, "repo_id", None) != name:
        raise MaeConvertError(
            f"{name} is not of the form OWNER/NAME", hint="specify the branch in the field `branch`"
        )


def _without_unused_defaults(settings: Settings, entry: Entry) -> Settings:
    """Return the settings, except values of the plan's ``defaults`` that do not affect the job."""
    publishes = "publish" in settings
    without_effect = set() if publishes else set(PUBLISH)
    if not settings.get("verify") and not (publishes and not settings.get("unverified")):
        without_effect |= set(VERIFY)
    return {
        name: value
        for name, value in settings.items()
        if name not in without_effect or not entry.fields[name].is_default
    }


def _completed(settings: Settings) -> Settings:
    """Return the settings; if they publish a model, verification and a certificate are added."""
    if "publish" in settings and not settings.get("unverified"):
        return {**settings, "verify": True, "certify": True}
    return settings


def _contradiction(target: str | None, settings: Settings) -> tuple[str, object] | None:
    """Return the name of a field that contradicts other fields, and the reason, or None."""
    if problem := _field_without_effect(settings):
        return problem
    to, verified = settings.get("to"), settings.get("verify")
    if to is None:
        if not verified or target is None:
            return "to", (
                "specify the layout of the output in the field `to`, or, to verify an existing "
                "target, the fields `target` and `verify`"
            )
        if not storage.exists(target):
            return "target", f"{target} does not exist, and without `to` the job only verifies it"
        return None
    return _target_contradiction(to, target, settings)


def _target_contradiction(
    to: str, target: str | None, settings: Settings
) -> tuple[str, object] | None:
    """Return the name of a field that contradicts the layout `to`, and the reason.

    The reason is a sentence or an error. The result is None if there is no such field.

    Args:
        to: the name of the layout.
        target: the path or URL of the output; None if it is not specified.
        settings: the other fields of the job.
    """
    layout = replace(layouts_named(to)[0], name=to)  # messages use the layout name of the plan
    if "publish" in settings and not is_directory(layout, Path(target or "model")):
        return "publish" if target is None else "target", (
            "only model directories can be published; for `to`, choose a layout that is written as "
            "a directory, and specify a directory as the target"
        )
    if target is None:
        if settings.get("verify") or "publish" in settings:
            return None
        return (
            "target",
            "specify `target`, or set `verify: true` to verify the conversion without writing it",
        )
    try:
        container_kind(layout, Path(PurePosixPath(target).name))
        if storage.is_remote(target):
            storage.filesystem(target)
    except MissingRequirementError:
        raise
    except MaeConvertError as error:
        return "target", error
    return None


# Two fields, of which the second makes the first ineffective, and the message.
TOGETHER = (
    (
        "images",
        "inputs",
        "both `images` and `inputs` specify the images; leave one of the two fields out",
    ),
    ("seed", "inputs", "`inputs` already specifies the images and the noise; leave `seed` out"),
    ("batch", "inputs", "all images of `inputs` are used; leave `batch` out"),
    (
        "at_mask_ratio",
        "unmasked",
        "`unmasked` removes no patches; leave one of the two fields out",
    ),
)


def _field_without_effect(settings: Settings) -> tuple[str, object] | None:
    """Return the name of a field that has no effect on the job, and the reason as a sentence.

    The result is None if there is no such field.
    """
    name = next((name for name in settings if name in VERIFY and settings[name]), None)
    if not settings.get("verify") and name:
        return name, "this field applies to a verification only; add `verify: true`"
    name = next((n for n in settings if n in PUBLISH and n != "publish" and settings[n]), None)
    if "publish" not in settings and name:
        return name, "this field applies to publishing only; add `publish: OWNER/NAME`"
    if settings.get("num_labels") and settings.get("task", "classify") != "classify":
        return "num_labels", "a new head sets the task to `classify`; leave `task` out"
    if settings.get("sincos_positions") and "image_size" not in settings:
        return (
            "sincos_positions",
            "this field computes position embeddings for another image size; add `image_size`",
        )
    for name, other, why in TOGETHER:
        if settings.get(name) is not None and settings.get(other):
            return name, why
    return None


def _names_of(source: str) -> dict[str, str]:
    """Return the placeholders ``stem``, ``name`` and ``parent`` with their values for a source."""
    path = PurePosixPath(source.rstrip("/"))
    suffix = next((s for s in sorted(SUFFIX_FORMATS, key=len)[::-1] if path.name.endswith(s)), "")
    stem = path.name.removesuffix(suffix or ("" if Path(source).is_dir() else path.suffix))
    return {"stem": stem or path.name, "name": path.name, "parent": path.parent.name}


def _filled(template: str, placeholders: Mapping[str, Any]) -> str:
    """Return a name with its placeholders replaced by their values."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise MaeConvertError(
            f"{template}: {error}", hint="write {{ and }} for literal braces"
        ) from error
    filled = ""
    for text, name, specification, conversion in parts:
        filled += text
        if name is None:
            continue
        if specification or conversion:
            raise MaeConvertError(
                f"{template}: a placeholder cannot have a format specification or conversion flag",
                hint=f"write {{{name}}} without : or !",
            )
        if name not in placeholders:
            raise MaeConvertError(
                f"{{{name}}} is not defined",
                hint="write {stem}, {name}, {parent} or a field that the job has",
            )
        value = placeholders[name]
        filled += "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return filled


def _resolved(target: str, folder: Path) -> str:
    if target.startswith(PROTOCOL) or storage.is_remote(target):
        return target.rstrip("/")
    return absolute(folder / storage.local_path(target))


def refuse_collisions(jobs: Sequence[Job]) -> None:
    """Refuse duplicate jobs, jobs with the same target, and targets that overlap with a source.

    Raises:
        PlanError: two jobs conflict; the message states the line and the field.
    """
    seen: dict[str, Job] = {}
    for job in jobs:
        for path in _unique_names(job):
            if (other := seen.setdefault(path, job)) is not job:
                raise _collision(path, job, other)
    _refuse_nesting(jobs)


def _unique_names(job: Job) -> Iterator[str]:
    """Yield the strings that no two jobs may share: key, target and repository with branch."""
    yield job.key
    if job.converts and job.target:
        yield job.target
    if name := job.settings.get("publish"):
        yield f"{PROTOCOL}{name}@{job.settings.get('branch', 'main')}"


def _collision(path: str, job: Job, other: Job) -> PlanError:
    if path == job.key:
        return PlanError(
            f"{job.where}, source: this job is a duplicate of another job ({other.where})"
        )
    different = [n for n in job.settings if job.settings[n] != other.settings.get(n)]
    hint = "{parent}, {stem}" if job.source != other.source else f"{{{different[0]}}}"
    return PlanError(
        f"{job.where}, target: two jobs write {path}", hint=f"use {hint} in the target's name"
    )


def _refuse_nesting(jobs: Sequence[Job]) -> None:
    """Refuse a target that equals, contains or is inside a source or another target."""
    sources = {job.source: job for job in jobs}
    targets = {job.target: job for job in jobs if job.converts and job.target}
    for job in targets.values():
        assert job.target
        for inner, outer in [(job.target, path) for path in (job.target, *_parents(job.target))]:
            if outer in sources:
                raise _refused(job, f"{inner} is, or is inside, {outer}, which is a source")
            if outer != inner and outer in targets:
                raise _refused(job, f"{inner} is inside {outer}, which is also a target")
    for job in jobs:
        for outer in _parents(job.source):
            if outer in targets:
                raise _refused(targets[outer], f"{outer} contains {job.source}, which is a source")


def _refused(job: Job, sentence: str) -> PlanError:
    return PlanError(f"{job.where}, target: {sentence}", hint="choose another name")


def _parents(path: str) -> Iterator[str]:
    """Yield the parent directories of a path, the innermost first."""
    while (path := path.rpartition("/")[0].rstrip("/")) and not path.endswith(":"):
        yield path
