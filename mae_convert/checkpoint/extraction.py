"""Find a complete model among the tensors of a larger checkpoint, under any name prefix.

The module `recognition` requires that all names belong to one model. Here the names of the model
may begin with any prefix (the names of its decoder with another prefix), and there may be other
tensors. If every tensor of a model for a task is present, this model is read, and the other tensors
are dropped with a reason. A tensor that changes what the model computes (see the module `unused`)
is never dropped: the model is then refused. If there are several models, the user must choose one.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from mae_convert.checkpoint.prefixes import (
    ANYWHERE,
    Stripped,
    as_stored,
    prefix_removals,
    without_wrappers,
)
from mae_convert.checkpoint.recognition import (
    Reading,
    explain,
    read_as,
    recognise,
    unexpected_names,
)
from mae_convert.checkpoint.unused import UNKNOWN, Unused, sort_unused
from mae_convert.errors import LayoutError, Option, Text, join
from mae_convert.families import families, family_of
from mae_convert.layouts.layout import Layout
from mae_convert.layouts.table import Table
from mae_convert.layouts.transforms import Shape
from mae_convert.text import listed

MOST_PREFIXES = 8
"""Maximum number of prefixes that are tried for one layout; no real file contains more models."""

TASKS = ("pretrain", "classify", "encoder")
"""The tasks in order of preference."""

PARTS = {
    "pretrain": ("encoder", "decoder"),
    "classify": ("encoder", "head"),
    "encoder": ("encoder",),
}


@dataclass(frozen=True)
class RecognisedModel:
    """A model that was found among the tensors of a file."""

    reading: Reading
    """How the model's tensors map to canonical tensors; the tensors are named without prefixes."""

    synonyms: tuple[str, ...]
    """Other layouts that have the same names and shapes for these tensors."""

    stripped: Stripped
    """The prefixes that were removed from the names of the model's tensors."""

    dropped: Mapping[str, str]
    """The reasons why tensors of the file are not read, by stored name."""

    also: tuple[str, ...] = ()
    """Other tasks for which the file contains a complete model with this encoder.

    They need further tensors: a task for which the tensors of this model suffice is left out.
    """

    incomplete: Mapping[str, str] = field(default_factory=dict)
    """The reasons why the tensors are not a model for other tasks, by task."""

    default_task: str | None = None
    """The task that is read if none is requested."""


@dataclass(frozen=True)
class Candidate:
    """A possible model for a task: tensors with a common prefix, mapped by one mapping table."""

    reading: Reading
    task: str
    prefixes: tuple[str, str]
    """The prefix of the encoder's and the head's names, and the prefix of the decoder's names."""

    stored: Mapping[str, str]
    """The stored names of the tensors that the task needs, by name without the prefix."""

    outside_task: Mapping[str, str]
    """The component ("decoder", "head" ...) of each tensor that the mapping table contains but the
    task does not need, by stored name."""

    encoder: frozenset[str]
    """Stored names of the encoder's tensors."""

    unused: Unused

    @property
    def complete(self) -> bool:
        """Whether no tensor of the task is missing."""
        return not self.reading.problems

    @property
    def readable(self) -> bool:
        """Whether the model is complete, and no tensor outside the table changes its outputs."""
        return self.complete and not self.unused.needed

    @cached_property
    def used(self) -> frozenset[str]:
        """The stored names of the candidate's tensors."""
        return frozenset(self.stored[rule.external] for rule in self.reading.rules)

    def why_not(self) -> str:
        """Return the reason why the candidate cannot be read."""
        if not self.complete:
            return "; ".join(self.reading.problems[:2])
        name, what = next(iter(self.unused.needed.items()))
        more = f" and {count} more" if (count := len(self.unused.needed) - 1) else ""
        return f"{name}{more} would be left out, but the model's outputs depend on {what}"


def recognise_model(
    shapes: Mapping[str, Shape],
    preferred: str | None = None,
    task: str | None = None,
    under: str | None = None,
    family: str | None = None,
) -> RecognisedModel:
    """Return the model in a file: all tensors or, if they fit no layout, a complete part of them.

    Args:
        shapes: stored names and shapes.
        preferred: the layout to choose if several fit equally well; None for no preference.
        task: the task to read if the tensors of several tasks are present; None for the largest
            task.
        under: the prefix of the model to read, as for `find_model`; None for any prefix.
        family: the model family that a configuration in the file specifies; None for any family.

    Raises:
        LayoutError: no known layout fits, or it is ambiguous which model to read.
    """
    if under is None:
        try:
            return _recognise_all(shapes, preferred, family, explain=False)
        except UndecidedError:
            raise
        except LayoutError:
            pass  # the error is raised below if no model is found among the tensors either
    if part := find_model(shapes, preferred, task, under):
        return part
    if under is None:
        return _recognise_all(shapes, preferred, family, explain=True)
    raise LayoutError(
        f"the tensors under {under} are not a complete model in any known layout",
        hint=("specify another key with ", Option("state_key")),
    )


class UndecidedError(LayoutError):
    """The tensors contain several models, or do not contain a model for the requested task."""


def _recognise_all(
    shapes: Mapping[str, Shape], preferred: str | None, family: str | None, *, explain: bool
) -> RecognisedModel:
    """Recognise the layout of tensors that must all belong to one model; see `recognise`.

    Raises:
        LayoutError: no known layout fits, or several fit after removing different prefixes.
    """
    try:
        return RecognisedModel(
            *recognise(shapes, preferred, explain=explain, family=family), as_stored(shapes), {}
        )
    except LayoutError as error:
        misfit: Text = error
    for removals in prefix_removals(shapes):
        fitting: list[RecognisedModel] = []
        for removal in removals:
            stripped = {name: shapes[stored] for name, stored in removal.stored.items()}
            try:
                read = recognise(
                    stripped, preferred, explain=explain and removal.foreign, family=family
                )
                fitting.append(RecognisedModel(*read, removal, {}))
            except LayoutError as error:
                if removal.foreign:
                    misfit = (f"without the prefix {removal.in_words()}: ", error)
        if len(fitting) > 1:
            prefixes = " or ".join(str(candidate.stripped.in_words()) for candidate in fitting)
            raise UndecidedError(
                f"the names fit a layout after removing {prefixes}; it is ambiguous which of these "
                "prefixes to remove",
                hint="rename the tensors",
            )
        if fitting:
            return fitting[0]
    raise LayoutError(misfit)


def find_model(
    shapes: Mapping[str, Shape],
    preferred: str | None = None,
    task: str | None = None,
    under: str | None = None,
) -> RecognisedModel | None:
    """Return the complete model among the tensors, or None if there is no complete model.

    Args:
        shapes: stored names and shapes.
        preferred: the layout to choose if several fit equally well; None for no preference.
        task: the task to read; None for the largest task whose tensors are all present.
        under: the prefix of the model to read, without the dot at its end; "." for names without a
            prefix. None for any prefix.

    Raises:
        LayoutError: the outputs of the model depend on tensors that no layout contains, or there
            are several complete models and it is not specified which one to read.
    """
    every = [c for c in _candidates(shapes) if under is None or _is_under(c.prefixes[0], under)]
    of_task = [c for c in every if task in (None, c.task)]
    complete = [c for c in of_task if c.complete]
    readable = _largest([c for c in complete if c.readable])
    if not readable:
        if complete and not _is_broken(complete, every):
            raise _needed_error(complete, shapes)
        if task is None or not any(c.readable for c in every):
            return None
        if why := _why_not(every, task):
            raise UndecidedError(f"the tensors cannot be read as a {task} model: {why}")
        return find_model(shapes, preferred, None, under)
    exact = [c for c in readable if under is not None and _dotted(under) == c.prefixes[0]]
    chosen, synonyms = _one_model(exact or readable, preferred)
    family = chosen.reading.layout.family  # the problems of other families' layouts are misleading
    same = [c for c in every if c.encoder == chosen.encoder and c.reading.layout.family == family]
    others = [c.task for c in readable if c.encoder == chosen.encoder and c.used != chosen.used]
    incomplete = {task: _why_not(same, task) for task in TASKS}
    readable_tasks = {c.task for c in same if c.readable}
    dropped = _dropped(chosen, same, shapes)
    return RecognisedModel(
        replace(chosen.reading, relative=_without_decoder(chosen, shapes)[0]),
        synonyms,
        Stripped(
            tuple(dict.fromkeys((*_wrappers(chosen.used), *filter(None, chosen.prefixes)))),
            {name: old for name, old in chosen.stored.items() if old not in dropped},
        ),
        dropped,
        tuple(dict.fromkeys(others)),
        {task: w for task, w in incomplete.items() if w and task not in readable_tasks},
        next((t for t in TASKS if t in readable_tasks), chosen.task),
    )


def _dropped(
    chosen: Candidate, same: list[Candidate], shapes: Mapping[str, Shape]
) -> dict[str, str]:
    """Return the reasons why the chosen candidate does not use tensors, by stored name.

    Args:
        chosen: the candidate that is read.
        same: all candidates with the same encoder.
        shapes: the shapes of all tensors, by stored name.
    """
    dropped = {
        **chosen.unused.dropped,
        **{
            name: f"part of a {part} that does not belong to the model that is read"
            for name, part in chosen.outside_task.items()
        },
    }
    for task in TASKS:
        part, own = PARTS[task][-1], [c for c in same if c.task == task]
        if readable := [c for c in own if c.readable]:
            reason = (
                f"part of a model for the task {task}, not of a model for the task {chosen.task}"
            )
            names = frozenset().union(*(c.used for c in readable)) - chosen.used
        else:
            closest = _closest(own, task)
            reason = f"part of a {part} that cannot be read: {_why_not(own, task)}"
            names = closest.used - chosen.used if closest else frozenset()
        dropped |= dict.fromkeys((name for name in names if name in dropped), reason)
    prefix = chosen.prefixes[0]
    decoder = _without_decoder(chosen, shapes)[2]
    dropped |= {prefix + n: why for n, why in decoder.items() if prefix + n in dropped}
    return {name: dropped[name] for name in shapes if name in dropped}


def _wrappers(names: Iterable[str]) -> list[str]:
    """Return the names of wrapper modules, such as "module.", that occur in the tensor names."""
    pieces = {f"{piece}." for name in names for piece in name.split(".")}
    return [wrapper for wrapper in ANYWHERE if wrapper in pieces]


def _without_decoder(
    candidate: Candidate, shapes: Mapping[str, Shape]
) -> tuple[tuple[Any, str] | None, Mapping[str, Shape], dict[str, str]]:
    """Separate the tensors of an unsupported decoder from the others; see `Family.without_decoder`.

    Returns:
        The related model that has this decoder (see `Family.relative`) and the name of the tensor
        that identifies it, or None if there is no unsupported decoder; the shapes of the remaining
        tensors under the candidate's prefix; and the reason for dropping each dropped tensor, by
        name.
    """
    prefix = candidate.prefixes[0]
    below = {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}
    return family_of(candidate.reading.layout).without_decoder(below)


def _candidates(shapes: Mapping[str, Shape]) -> Iterator[Candidate]:
    """Yield all candidates, complete or not, for every layout, prefix and task."""
    clean = without_wrappers(shapes)
    layouts = (la for family in families().values() for la in family.layouts.values())
    for layout in layouts:
        for table in layout.tables:
            anchor = table.anchor("encoder.patch_embedding.weight")
            for prefix in _prefixes(clean, anchor):
                parts: dict[str, Parts] = {}
                for task in table.tasks:
                    below = {prefix}
                    if task == "pretrain":
                        ends = _prefixes(clean, table.anchor("decoder.prediction.weight"))
                        below = _nearest(prefix, ends) or below
                    for decoder in sorted(below):
                        if decoder not in parts:
                            parts[decoder] = _parts(clean, (prefix, decoder), table)
                        prefixes = (prefix, decoder)
                        yield _candidate(layout, table, task, prefixes, parts[decoder], shapes)


def _candidate(
    layout: Layout,
    table: Table,
    task: str,
    prefixes: tuple[str, str],
    split: "Parts",
    shapes: Mapping[str, Shape],
) -> Candidate:
    """Return a candidate: the tensors that a mapping table reads for a task, and what is missing.

    Args:
        layout: the layout to which the table belongs.
        table: the mapping table with which the tensors are read.
        task: "pretrain", "encoder" or "classify".
        prefixes: the prefix of the encoder's and the head's names, and the prefix of the decoder's
            names.
        split: the result of `_parts` for these prefixes.
        shapes: the shapes of all tensors, by stored name.
    """
    stored: dict[str, str] = {}
    outside_task: dict[str, str] = {}
    parts: dict[str, str] = {}
    unknown: dict[str, Shape] = {}
    for old, (below, part) in split.items():
        if part == "dropped" or part in PARTS[task]:
            stored[below], parts[old] = old, part
        elif part:
            outside_task[old] = part
        else:
            unknown[old] = shapes[old]
    reading = read_as(layout, table, {name: shapes[old] for name, old in stored.items()})
    encoder = frozenset(name for name, part in parts.items() if part == "encoder")
    others = [name for name, part in parts.items() if part in ("decoder", "head")]
    unused = Unused()
    if not reading.problems and reading.task == task:
        width = reading.geometry["hidden_size"]
        unused = sort_unused(unknown, encoder, others, task, width)
    elif reading.task != task:
        problem = f"there is no {PARTS[task][-1]}"
        reading = replace(reading, problems=(*reading.problems, problem))
    candidate = Candidate(reading, task, prefixes, stored, outside_task, encoder, unused)
    if task != "pretrain" or reading.problems:
        return candidate
    if relative := _without_decoder(candidate, shapes)[0]:
        problems = (relative[0].why_dropped, *reading.problems)
        return replace(candidate, reading=replace(reading, problems=problems))
    return candidate


Parts = Mapping[str, tuple[str, str]]
"""For each stored name, the name without its prefix and the component of the model, such as
"encoder"; see `_part_of`."""


def _parts(clean: Mapping[str, str], prefixes: tuple[str, str], table: Table) -> Parts:
    return {old: _part_of(name, prefixes, table) for name, old in clean.items()}


def _part_of(name: str, prefixes: tuple[str, str], table: Table) -> tuple[str, str]:
    """Return a tensor's name without its prefix, and the component to which the tensor belongs.

    The component is "encoder", "decoder" or "head"; "dropped" for a tensor that the table declares
    as unused; or "" for a name that the table does not contain.

    Args:
        name: the name of the tensor.
        prefixes: the prefix of the encoder's and the head's names, and the prefix of the decoder's
            names.
        table: the mapping table with which the names are read.
    """
    for prefix, parts in zip(prefixes, (("encoder", "head"), ("decoder",)), strict=True):
        if not name.startswith(prefix):
            continue
        below = name.removeprefix(prefix)
        if rule := table.rule_for(below):
            part = rule.canonicals[0].partition(".")[0]
            if part in parts:
                return below, part
        elif table.drop_for(below):
            return below, "dropped"
    return name, ""


def _prefixes(names: Iterable[str], anchor: Iterable[str]) -> list[str]:
    """Return the prefixes of the names that end with a name in `anchor`.

    For example, the name "model.patch_embed.proj.weight" has the prefix "model." if `anchor`
    contains "patch_embed.proj.weight". The shortest prefix is first; at most `MOST_PREFIXES` are
    returned.

    Args:
        names: the names of the tensors of a file.
        anchor: the names of one tensor in a layout, such as the weight of the patch embedding.
    """
    candidates = dict.fromkeys(p for name in names for p in Table.before(name, anchor))
    return sorted(candidates, key=len)[:MOST_PREFIXES]


def _nearest(prefix: str, others: list[str]) -> set[str]:
    """Return the prefixes in `others` that share the most leading components with `prefix`.

    If `prefix` itself is in `others`, it is the only result.
    """

    def common(other: str) -> int:
        pairs = list(zip(prefix.split("."), other.split("."), strict=False))
        return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))

    if prefix in others:
        return {prefix}
    most = max(map(common, others), default=0)
    return {other for other in others if common(other) == most}


def _largest(candidates: list[Candidate]) -> list[Candidate]:
    """Return the candidates except those that use only some tensors of another candidate."""
    used = {candidate.used for candidate in candidates}
    largest = {some for some in used if not any(some < others for others in used)}
    return [candidate for candidate in candidates if candidate.used in largest]


def _one_model(
    candidates: list[Candidate], preferred: str | None
) -> tuple[Candidate, tuple[str, ...]]:
    """Return the candidate to read, and the names of other layouts that fit the same tensors.

    If several layouts fit equally well, the candidate has the layout `preferred`, unless it is
    None.

    Raises:
        LayoutError: there are several models, or layouts that map the tensors differently.
    """
    first: dict[frozenset[str], Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: len("".join(c.prefixes))):
        first.setdefault(candidate.encoder, candidate)
    if len(first) > 1:
        raise UndecidedError(_which(sorted({c.prefixes[0] for c in first.values()})))
    ordered = sorted(
        candidates,
        key=lambda c: (
            TASKS.index(c.task),
            len("".join(dict.fromkeys(c.prefixes))),
            c.reading.layout.name != preferred,
        ),
    )
    chosen = ordered[0]
    alike = [c for c in ordered if c.task == chosen.task]
    if others := {c.prefixes[1] for c in alike if c.used != chosen.used} - {chosen.prefixes[1]}:
        decoders = listed([f"{p}*" for p in sorted({*others, chosen.prefixes[1]})])
        raise UndecidedError(
            f"there are several complete decoders for this encoder ({decoders}), and it is not "
            "specified which one to read",
            hint=("read the encoder alone with ", Option("task", "encoder")),
        )
    for other in alike:
        if _canonical(other) != _canonical(chosen):
            raise LayoutError(
                f"the tensors fit {chosen.reading.layout.name} and {other.reading.layout.name},"
                " which would read them differently",
                hint="put a config.json that specifies the layout into the directory of the file",
            )
    same = [c.reading.layout.name for c in alike if c.prefixes == chosen.prefixes]
    return chosen, tuple(n for n in dict.fromkeys(same) if n != chosen.reading.layout.name)


def _canonical(candidate: Candidate) -> dict[str, tuple[str, ...]]:
    return {candidate.stored[rule.external]: rule.canonicals for rule in candidate.reading.rules}


def _which(prefixes: list[str]) -> Text:
    """Return a message that lists several models and the options that select one of them."""
    keys = [_shortest(prefix, prefixes) for prefix in prefixes]
    options = [Option("state_key", key) for key in keys]
    names = [f"{key}.*" if key != "." else "names without a prefix" for key in keys]
    return (
        f"there are {len(prefixes)} complete models among the tensors ({', '.join(names)}), and it "
        "is not specified which one to read; choose with ",
        join(options, " or "),
    )


def _shortest(prefix: str, prefixes: list[str]) -> str:
    """Return the first components of `prefix` that distinguish it from all other prefixes.

    The result has as few components as possible: all components if fewer components do not
    distinguish the prefix, and "." if the prefix is empty.
    """
    pieces = prefix.split(".")[:-1]
    for end in range(1, len(pieces)):
        key = ".".join(pieces[:end])
        if not any(_is_under(other, key) for other in prefixes if other != prefix):
            return key
    return ".".join(pieces) or "."


def _is_under(prefix: str, key: str) -> bool:
    return prefix == "" if key == "." else prefix.startswith(_dotted(key))


def _dotted(key: str) -> str:
    return "" if key == "." else key.rstrip(".") + "."


def _why_not(candidates: Iterable[Candidate], task: str) -> str:
    """Return why the closest candidate for a task cannot be read; "" if no candidate exists."""
    closest = _closest(candidates, task)
    return closest.why_not() if closest else ""


def _closest(candidates: Iterable[Candidate], task: str) -> Candidate | None:
    """Return the candidate for a task that is closest to a readable model; None if there is none.

    Of the candidates that cannot be read, it is the candidate with the most tensors. Candidates
    without any tensor of the task's last component (decoder, head, encoder) are ignored.
    """
    own = f"{PARTS[task][-1]}."
    tried = [
        c
        for c in candidates
        if c.task == task
        and not c.readable
        and any(name.startswith(own) for r in c.reading.rules for name in r.canonicals)
    ]
    return min(tried, key=lambda c: (-len(c.reading.rules), len(c.reading.problems)), default=None)


def _is_broken(complete: list[Candidate], every: list[Candidate]) -> bool:
    """Return whether models that seem complete are incomplete models of other variants.

    This is the case if every tensor that these models do not use, but that would change their
    outputs, is a tensor of another variant in the same family. For example, a file with query and
    key biases but without value biases contains an incomplete model with biases, not a complete
    model without biases.

    Args:
        complete: the candidates that seem complete: no tensor of their task is missing.
        every: all candidates, also incomplete candidates and candidates for other tasks.
    """
    names_of_family: dict[str, set[str]] = {}  # models of another family are not variants
    for candidate in every:
        names = names_of_family.setdefault(candidate.reading.layout.family, set())
        names.update(candidate.stored.values())
    return all(c.unused.needed.keys() <= names_of_family[c.reading.layout.family] for c in complete)


def _needed_error(complete: list[Candidate], shapes: Mapping[str, Shape]) -> LayoutError:
    """Return the error for complete models that cannot be read.

    Their outputs also depend on tensors that no supported layout contains.
    """
    least = min(complete, key=lambda c: (len(c.unused.needed), -TASKS.index(c.task)))
    if explanation := explain(shapes):
        return LayoutError(explanation)
    kinds = list(dict.fromkeys(least.unused.needed.values()))
    where = f" under the prefix {least.prefixes[0]}" if least.prefixes[0] else ""
    reading = least.reading
    names = list(least.unused.needed)
    unexpected = f"unexpected: {listed(names)}"
    if kinds == [UNKNOWN]:  # possibly a misspelled name
        canonicals_of = {name: () for rule in reading.rules for name in rule.canonicals}
        unexpected = next(unexpected_names(names, reading.table, canonicals_of))
    return LayoutError(
        f"the file contains a complete {least.task} model of the {reading.layout.name} "
        f"layout{where}, but also {' and '.join(kinds)}: without these tensors the model would "
        f"compute different outputs, and no supported layout can store them ({unexpected})",
        hint="use the model with the program that wrote it, or train without this component",
    )
