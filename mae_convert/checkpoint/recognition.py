"""Recognise the layout of a set of tensors by all their names and shapes.

Every mapping table of every layout is tried: the table maps the names to canonical names, the
shapes determine the sizes of the model, and the result must be exactly the canonical schema of a
model with these sizes. A table fits only if no tensor is missing or unexpected.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mae_convert.errors import LayoutError
from mae_convert.families import families, family_of
from mae_convert.families.canonical import task_of
from mae_convert.layouts.layout import Layout
from mae_convert.layouts.table import Rule, Table, external_shapes
from mae_convert.layouts.transforms import KEY_BIAS, Shape, SplitHeads
from mae_convert.text import listed


@dataclass(frozen=True)
class Reading:
    """The result of mapping the tensors of a file to canonical tensors with one mapping table."""

    layout: Layout
    table: Table
    rules: tuple[Rule, ...]
    """The mapping rules, one for each tensor of the file that is mapped."""

    task: str
    """The task of the model that the canonical tensors form: "pretrain", "encoder", "classify"."""

    geometry: Mapping[str, Any]
    """Configuration fields that the shapes determine."""

    dropped: Mapping[str, str]
    """The reasons why the table declares tensors as unused, by stored name."""

    problems: tuple[str, ...]
    """Sentences about the mismatches; empty if the table fits."""

    created: Mapping[str, Shape] = field(default_factory=dict)
    """The shapes of key biases that are not stored although query and value have biases, by
    canonical name; they are created as zeros, which does not change the model's outputs."""

    relative: tuple[Any, str] | None = None
    """If only the encoder of a related model is read: this model, and the tensor by which it was
    recognised; otherwise None."""


def recognise(
    shapes: Mapping[str, Shape],
    preferred: str | None = None,
    *,
    explain: bool = True,
    family: str | None = None,
) -> tuple[Reading, tuple[str, ...]]:
    """Return the mapping of the tensors, and the names of other layouts that also fit them.

    Args:
        shapes: stored names and shapes.
        preferred: the layout to choose if several fit equally well.
        family: the model family that a configuration in the file specifies; other families are not
            tried. If it is None, all families are tried.
        explain: if no layout fits, determine the nearest layout for the error message, which takes
            longer.

    Raises:
        LayoutError: no layout fits (the message describes the nearest layout), or several layouts
            fit that map the tensors differently.
    """
    fitting = _first_of_each_layout(
        r for r in _readings(shapes, family, complete=True) if not r.problems
    )
    if not fitting and not explain:
        raise LayoutError("no layout fits")
    if not fitting:
        raise _misfit_error(list(_readings(shapes, family, complete=False)), shapes)
    chosen = next((r for r in fitting if r.layout.name == preferred), fitting[0])
    for other in fitting:
        if _canonical_names(other) != _canonical_names(chosen):
            raise LayoutError(
                f"the tensors fit {chosen.layout.name} and {other.layout.name}, which would read"
                " them differently",
                hint="put a config.json that specifies the layout into the directory of the file",
            )
    return chosen, tuple(r.layout.name for r in fitting if r is not chosen)


def _readings(
    shapes: Mapping[str, Shape], only: str | None, *, complete: bool
) -> Iterator[Reading]:
    """Yield the result of each mapping table, of one family or of all families.

    Args:
        shapes: stored names and shapes.
        only: the name of the only family whose tables are tried; if it is None or unknown, the
            tables of all families are tried.
        complete: try only tables that contain every stored name.
    """
    for family in families().values():
        if only in families() and family.name != only:
            continue
        relative, encoder_shapes, decoder = family.without_decoder(shapes)
        for layout in family.layouts.values():
            for table in layout.tables:
                if not complete or all(map(table.has_external, encoder_shapes)):
                    reading = read_as(layout, table, encoder_shapes)
                    dropped = {**reading.dropped, **decoder}
                    yield replace(reading, relative=relative, dropped=dropped)


def explain(
    shapes: Mapping[str, Shape],
    config: Mapping[str, Any] | None = None,
    adapter: Mapping[str, Any] | None = None,
) -> str | None:
    """Return a message that explains why a model is not supported, or None.

    The result is None if no model family recognises the tensors or files as an unsupported model.

    Args:
        shapes: stored names and shapes.
        config: ``config.json``, or None.
        adapter: ``adapter_config.json``, or None.
    """
    explanations = (f.explain(shapes, config, adapter) for f in families().values())
    return next(filter(None, explanations), None)


def _first_of_each_layout(readings: Iterator[Reading]) -> list[Reading]:
    first: dict[tuple[str, str], Reading] = {}
    for reading in readings:
        first.setdefault((reading.layout.family, reading.layout.name), reading)
    return list(first.values())


def _canonical_names(reading: Reading) -> dict[str, tuple[str, ...]]:
    return {rule.external: rule.canonicals for rule in reading.rules}


def read_as(layout: Layout, table: Table, shapes: Mapping[str, Shape]) -> Reading:
    """Return the result of mapping names and shapes with one mapping table, with all mismatches."""
    family = family_of(layout)
    rules: list[Rule] = []
    dropped: dict[str, str] = {}
    unknown: list[str] = []
    for name in shapes:
        if rule := table.rule_for(name):
            rules.append(rule)
        elif drop := table.drop_for(name):
            dropped[name] = drop.why
        else:
            unknown.append(name)
    heads = _heads_in(rules, shapes)
    rules = [rule.bound(heads or 0) for rule in rules]
    canonical, problems = _canonical_shapes(rules, shapes)
    created = _key_biases(canonical) if family.has_key_bias else {}
    canonical |= created
    task = task_of(canonical)
    values: dict[str, Any] = {}
    expected: dict[str, Shape] = {}
    if not problems:
        try:
            values = family.geometry(canonical) | ({"num_attention_heads": heads} if heads else {})
            expected = family.expected(values, task, canonical)
        except (LayoutError, ValueError) as error:
            problems.append(str(error))
    if task not in table.tasks:
        problems.append(f"{table.name} uses other names for a {task} model")
    if expected:
        stored = {name: shape for name, shape in expected.items() if name not in created}
        filled = {name: shape for name, shape in canonical.items() if name not in created}
        problems += _misfit(filled, stored, table, heads)
    problems += unexpected_names(unknown, table, expected or canonical)
    return Reading(layout, table, tuple(rules), task, values, dropped, tuple(problems), created)


def _key_biases(canonical: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shapes of key biases that are missing although query and value have biases."""
    if any(KEY_BIAS.search(name) for name in canonical):
        return {}
    values = (name for name in canonical if name.endswith(".attention.v.bias"))
    return {
        key: canonical[query]
        for value in values
        for query, key in [(value[:-6] + "q.bias", value[:-6] + "k.bias")]
        if query in canonical
    }


def _heads_in(rules: list[Rule], shapes: Mapping[str, Shape]) -> int | None:
    """Return the number of heads if the layout has an axis for heads, else None."""
    for rule in rules:
        if isinstance(rule.transform, SplitHeads) and len(shapes[rule.external]) > 1:
            return rule.transform.heads_in(shapes[rule.external])
    return None


def _canonical_shapes(
    rules: list[Rule], shapes: Mapping[str, Shape]
) -> tuple[dict[str, Shape], list[str]]:
    canonical: dict[str, Shape] = {}
    problems = []
    for rule in rules:
        try:
            parts = rule.transform.read_shapes(shapes[rule.external])
        except LayoutError as error:
            problems.append(f"{rule.external}: {error}")
            continue
        for name, shape in zip(rule.canonicals, parts, strict=True):
            if name in canonical:
                problems.append(f"two tensors are mapped to {name}; one is {rule.external}")
            canonical[name] = shape
    return canonical, problems


def _misfit(
    given: Mapping[str, Shape], expected: Mapping[str, Shape], table: Table, heads: int | None
) -> Iterator[str]:
    missing = [name for name in expected if name not in given]
    try:
        rules = [rule.bound(heads or 0) for rule in table.expand(expected)]
        required = external_shapes(rules, dict(expected))
    except LayoutError as error:
        yield str(error)
        return
    external = {name: rule.external for rule in rules for name in rule.canonicals}
    names = list(dict.fromkeys(external[name] for name in missing))
    if names:
        yield f"missing: {listed(names)}"
    extra = [name for name in given if name not in expected]
    if extra:
        yield f"tensors that a model of this layout and task does not have: {listed(extra)}"
    stored = [rule for rule in rules if all(name in given for name in rule.canonicals)]
    actual = external_shapes(stored, dict(given))
    for name, shape in required.items():
        if name in actual and actual[name] != shape:
            yield f"{name} has shape {actual[name]} but the other tensors require {shape}"


def unexpected_names(
    unknown: list[str], table: Table, schema: Mapping[str, Shape]
) -> Iterator[str]:
    """Yield a sentence about names that a table does not contain, if there are any."""
    if not unknown:
        return
    from difflib import get_close_matches

    try:
        expected = [rule.external for rule in table.expand(schema)]
    except LayoutError:
        expected = []
    nearest = get_close_matches(unknown[0], expected, n=1, cutoff=0.5)
    hint = f" (nearest known name: {nearest[0]})" if nearest else ""
    yield f"unexpected: {listed(unknown)}{hint}"


def _misfit_error(readings: list[Reading], shapes: Mapping[str, Shape]) -> LayoutError:
    if explanation := explain(shapes):
        return LayoutError(explanation)
    # A related model is recognised by a tensor that no other model has.
    best = max(readings, key=lambda r: (r.relative is not None, len(r.rules), -len(r.problems)))
    if best.relative is None and len(best.rules) * 2 < len(shapes):
        return LayoutError(
            f"these {len(shapes)} tensors are not an MAE in any known layout (they begin with "
            f"{listed(list(shapes), 3)})",
            hint="`mae-convert layouts` lists the layouts that can be read",
        )
    relative = best.relative
    encoder = (
        f"the encoder of {relative[0].name} (recognised by {relative[1]}): " if relative else ""
    )
    nearest = (
        f"{encoder}the nearest layout is {best.table.name} ({best.task}), with these mismatches: "
    )
    names = f"`mae-convert layouts {best.layout.name}` lists the tensors of this layout"
    problems = "; ".join(best.problems[:4])
    return LayoutError(nearest + problems, hint=f"check how the file was written; {names}")
