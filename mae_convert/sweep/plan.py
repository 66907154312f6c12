"""From what a plan says to jobs; what is wrong is refused by line and field, before any work."""

import itertools
import math
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mae_convert.convert.plan import container_kind, is_directory
from mae_convert.errors import MaeConvertError, MissingRequirementError, as_field
from mae_convert.families import layouts_named
from mae_convert.formats.registry import SUFFIX_FORMATS
from mae_convert.sources import storage
from mae_convert.sources.patterns import absolute, sources_named
from mae_convert.sources.reference import PROTOCOL, parse_source
from mae_convert.sweep.collisions import refuse_collisions
from mae_convert.sweep.fields import LISTS, LOCAL, PUBLISH, VERIFY, parse
from mae_convert.sweep.job import Job
from mae_convert.sweep.plan_file import COMMAND_LINE, Entry, Given, PlanError, is_plan, read_entries

MOST_JOBS = 100_000  # of one plan, in which each list makes a job of each of its values
Settings = dict[str, Any]


def read_plan(arguments: Sequence[str], said: Mapping[str, Sequence[str]]) -> list[Job]:
    """Return the jobs of a plan, or of checkpoints and patterns that the command line names.

    Args:
        arguments: one plan, or any number of checkpoints and patterns.
        said: fields that the command line gives; they replace what the plan says.

    Raises:
        PlanError: something is wrong; the sentence says where, and in which field.
    """
    plans = [text for text in arguments if is_plan(text)]
    if plans and len(arguments) > 1:
        raise PlanError(
            f"{plans[0]} is a plan", hint="name it alone, or checkpoints without a plan"
        )
    folder = Path(plans[0]).parent if plans else Path()
    given = {name: Given(tuple(v), COMMAND_LINE, len(v) > 1) for name, v in said.items()}
    sources = Given(tuple(arguments), COMMAND_LINE, is_list=True)
    entries = read_entries(Path(plans[0])) if plans else [Entry(COMMAND_LINE, {"source": sources})]
    found = (
        job
        for entry in entries
        for job in _jobs(Entry(entry.where, {**entry.fields, **given}), folder)
    )
    jobs = list(itertools.islice(found, MOST_JOBS + 1))
    if len(jobs) > MOST_JOBS:
        raise _too_many(jobs[-1].where)
    refuse_collisions(jobs)
    return jobs


def _too_many(where: str) -> PlanError:
    return PlanError(
        f"{where}: this makes more than {MOST_JOBS} jobs",
        hint="give lists to fewer fields, or write several plans",
    )


def _jobs(entry: Entry, folder: Path) -> Iterator[Job]:
    """Yield the jobs of an entry: each source with each combination of what lists hold."""
    fixed, varied = _values(entry, folder)
    patterns = varied.pop("source", None) or (fixed.pop("source", None),)
    if None in patterns:
        raise PlanError(
            f"{entry.where}, source: every job needs one", hint="write a path or a pattern"
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
    """Return what each job of an entry says, and what lists give, of which each says one."""
    fixed: Settings = {}
    varied: dict[str, tuple[Any, ...]] = {}
    for name, given in entry.fields.items():
        values = tuple(_parsed(name, value, given.where) for value in given.values)
        if name in LOCAL:
            values = tuple(_local_file(name, value, given.where, folder) for value in values)
        if name in LISTS:
            fixed[name] = [value for value in values if value is not None] or None
        elif given.is_list:
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
    """Return a job that can be begun, with names put into its target.

    Raises:
        PlanError: its fields do not go together.
    """

    def refuse(field: str, sentence: object) -> PlanError:
        if field == "publish" and field not in entry.fields:
            field = "target"  # hf://OWNER/NAME
        given = entry.fields.get(field)
        words = sentence.render(as_field) if isinstance(sentence, MaeConvertError) else sentence
        return PlanError(f"{given.where if given else entry.where}, {field}: {words}", option=field)

    words = {**settings, **_names_of(source)}
    target = settings.pop("target", None)
    try:
        field = "target"
        target = None if target is None else _resolved(_filled(target, words), folder)
        field = "publish"
        if target and target.startswith(PROTOCOL):
            settings["publish"], target = target.removeprefix(PROTOCOL), None
        if "publish" in settings:
            settings["publish"] = _filled(settings["publish"], words)
            _check_repository(settings["publish"])
        settings = _completed(_without_idle_defaults(settings, entry))
    except MaeConvertError as error:
        raise refuse(field, error) from error
    if complaint := _complaint(target, settings):
        raise refuse(*complaint)
    return Job(source, target, settings, entry.where)


def _check_repository(name: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        MaeConvertError: it is none, or more than that.
    """
    place = parse_source(f"{PROTOCOL}{name}")
    if getattr(place, "repo_id", None) != name:
        raise MaeConvertError(f"{name} is no OWNER/NAME; the branch is another field, branch")


def _without_idle_defaults(settings: Settings, entry: Entry) -> Settings:
    """Return the settings without what `defaults` say about a step that this job has not."""
    publishes = "publish" in settings
    idle = set() if publishes else set(PUBLISH)
    if not settings.get("verify") and not (publishes and not settings.get("unverified")):
        idle |= set(VERIFY)
    return {
        name: value
        for name, value in settings.items()
        if name not in idle or not entry.fields[name].is_default
    }


def _completed(settings: Settings) -> Settings:
    """Return the settings with what publishing asks for: a proof that goes out with the weights."""
    if "publish" in settings and not settings.get("unverified"):
        return {**settings, "verify": True, "certify": True}
    return settings


def _complaint(target: str | None, settings: Settings) -> tuple[str, object] | None:
    """Return the field that does not go with the others, and why; None if all do."""
    if stray := _stray(settings):
        return stray
    to, verified = settings.get("to"), settings.get("verify")
    if to is None:
        if not verified or target is None:
            return "to", "say which layout to write, or, to verify what is there, target and verify"
        if not storage.exists(target):
            return "target", f"{target} does not exist, and without `to` it is only verified"
        return None
    layout = layouts_named(to)[0]
    if "publish" in settings and not is_directory(layout, Path(target or "model")):
        return "publish" if target is None else "target", (
            "a model directory is published; let `to` be a layout, and the target, that is one"
        )
    if target is None:
        keeps = verified or "publish" in settings
        return None if keeps else ("target", "say where to write to; or verify: true to try only")
    try:
        container_kind(layout, Path(PurePosixPath(target).name))
        if storage.is_remote(target):
            storage.filesystem(target)
    except MissingRequirementError:
        raise
    except MaeConvertError as error:
        return "target", error
    return None


# Fields of which the second leaves the first without effect.
TOGETHER = (
    ("images", "inputs", "inputs names images too; give one of them"),
    ("seed", "inputs", "the images and the noise are those of inputs; leave seed out"),
    ("batch", "inputs", "all images of inputs are used; leave batch out"),
    ("at_mask_ratio", "unmasked", "nothing is masked then; leave one of them out"),
)


def _stray(settings: Settings) -> tuple[str, object] | None:
    """Return a field that is about a step that the job has not, and why; None if all are."""
    stray = next((name for name in settings if name in VERIFY and settings[name]), None)
    if not settings.get("verify") and stray:
        return stray, "this is about a verification; add verify: true"
    stray = next((n for n in settings if n in PUBLISH and n != "publish" and settings[n]), None)
    if "publish" not in settings and stray:
        return stray, "this is about publishing; add publish: OWNER/NAME"
    if settings.get("num_labels") and settings.get("task", "classify") != "classify":
        return "num_labels", "a new head makes a model of task classify; leave task out"
    if settings.get("sincos_positions") and "image_size" not in settings:
        return "sincos_positions", "position embeddings are made for another grid; add image_size"
    for name, other, why in TOGETHER:
        if settings.get(name) is not None and settings.get(other):
            return name, why
    return None


def _names_of(source: str) -> dict[str, str]:
    """Return what a target's name can be made of, besides the fields: stem, name, parent."""
    path = PurePosixPath(source.rstrip("/"))
    suffix = next((s for s in sorted(SUFFIX_FORMATS, key=len)[::-1] if path.name.endswith(s)), "")
    stem = path.name.removesuffix(suffix or ("" if Path(source).is_dir() else path.suffix))
    return {"stem": stem or path.name, "name": path.name, "parent": path.parent.name}


def _filled(template: str, words: Mapping[str, Any]) -> str:
    """Return a name with what stands in braces replaced."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise MaeConvertError(f"{template}: {error}", hint="write a brace itself twice") from error
    filled = ""
    for text, name, specification, conversion in parts:
        filled += text
        if name is None:
            continue
        if specification or conversion:
            raise MaeConvertError(
                f"{template}: a name in braces is replaced as it is; write {{{name}}} without"
                " : or !"
            )
        if name not in words:
            raise MaeConvertError(
                f"nothing says what {{{name}}} is; write {{stem}}, {{name}}, {{parent}} or a field"
                " that the job has"
            )
        value = words[name]
        filled += "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return filled


def _resolved(target: str, folder: Path) -> str:
    if target.startswith(PROTOCOL) or storage.is_remote(target):
        return target.rstrip("/")
    return absolute(folder / storage.local_path(target))
