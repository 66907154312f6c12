"""Read a plan, a YAML or CSV file, into entries; each value is stored with its file and line."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mae_convert.errors import MaeConvertError, as_field
from mae_convert.files.byte_ranges import open_input
from mae_convert.sweep.plan_fields import check_name

YAML, CSV = (".yaml", ".yml"), (".csv",)
LARGEST = 4_000_000  # maximum number of characters in a plan, enough for about 40,000 jobs
LARGEST_NUMBER = 1 << 63
DEEPEST = 20  # maximum depth of mappings that are merged into each other by <<
MERGE = "tag:yaml.org,2002:merge"
SEPARATOR = ";"  # separates the values of a list in a cell
COMMAND_LINE = "command line"


class PlanError(MaeConvertError):
    """A plan is invalid; the message begins with file and line."""


@dataclass(frozen=True)
class FieldValue:
    """The value of a field, with its position in the plan."""

    values: tuple[Any, ...]
    """The value, or the values of a list."""

    where: str
    """The position: file and line, or the command line."""

    is_list: bool = False
    """Whether the value is a list."""

    is_default: bool = False
    """Whether the value comes from the section ``defaults`` of the plan."""


@dataclass(frozen=True)
class Entry:
    """An entry of a plan: the fields of one job, or of several jobs.

    If the value of a field is a list, each job has one value of the list.
    """

    where: str
    fields: Mapping[str, FieldValue]


def is_plan(text: str) -> bool:
    """Return whether an argument of the command line is a plan rather than a checkpoint."""
    return Path(text).suffix.lower() in (*YAML, *CSV) and "://" not in text


def read_entries(path: Path) -> list[Entry]:
    """Return the entries of a plan file.

    Raises:
        PlanError: the file cannot be read, or does not have the structure of a plan.
    """
    try:
        with open_input(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as stream:
            text = stream.read(LARGEST + 1)
    except MaeConvertError as error:
        raise PlanError(error) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise PlanError(path, f" cannot be read: {reason}") from error
    if len(text) > LARGEST:
        raise PlanError(path, f" has more than {LARGEST} characters", hint="write several plans")
    entries = list(_read_csv(path, text) if path.suffix.lower() in CSV else _read_yaml(path, text))
    if not entries:
        raise PlanError(path, " contains no jobs", hint="write at least one job, with a source")
    return entries


def _read_csv(path: Path, text: str) -> Iterator[Entry]:
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        heads = [head.strip() for head in next(reader, [])]
        if twice := [head for head in heads if heads.count(head) > 1]:
            raise PlanError(path, f", line 1, {twice[0]}: two columns have this name")
        for head in filter(None, heads):
            _check_name(head, f"{path}, line 1")
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(heads) and cells:
                raise PlanError(
                    f"{where}: {len(cells)} cells, but the header has {len(heads)} columns"
                )
            fields = {
                head: _in_cell(head, cell.strip(), where)
                for head, cell in zip(heads, cells, strict=False)
                if cell.strip()
            }
            if fields:
                yield Entry(where, fields)
    except csv.Error as error:
        raise PlanError(path, f", line {reader.line_num}: {error}") from error


def _check_name(name: str, where: str) -> None:
    try:
        check_name(name)
    except MaeConvertError as error:
        raise PlanError(f"{where}, {name}: {error.render(as_field)}") from error


def _in_cell(head: str, cell: str, where: str) -> FieldValue:
    if not head:
        raise PlanError(f"{where}: {cell!r} is in a column without a name")
    cells = cell.split(SEPARATOR)
    values = tuple(value.strip() for value in cells if value.strip())
    if not values:
        raise PlanError(f"{where}, {head}: the list is empty", hint="leave it out")
    return FieldValue(values, where, len(cells) > 1)


def _read_yaml(path: Path, text: str) -> Iterator[Entry]:
    import yaml

    try:
        loader = yaml.SafeLoader(text)
    except yaml.YAMLError as error:  # a character that is not allowed in YAML
        raise _not_yaml(path, error) from error
    try:
        root = loader.get_single_node()
        if root is None:
            return
        defaults: Mapping[str, FieldValue] = {}
        if isinstance(root, yaml.MappingNode):
            parts = dict(_items(path, root, ("defaults", "jobs")))
            if "defaults" in parts:
                fields = _fields(path, parts["defaults"], loader)
                defaults = {n: replace(value, is_default=True) for n, value in fields.items()}
            if "jobs" not in parts:
                raise PlanError(path, ": the list of jobs is missing", hint="write it under jobs:")
            root = parts["jobs"]
        if not isinstance(root, yaml.SequenceNode):
            raise PlanError(
                f"{_at(path, root)}, jobs: this is not a list", hint="begin each job with a dash"
            )
        for node in root.value:
            yield Entry(_at(path, node), {**defaults, **_fields(path, node, loader)})
    except yaml.YAMLError as error:
        raise _not_yaml(path, error) from error
    except RecursionError as error:
        raise PlanError(path, ": lists or mappings are nested too deeply to be read") from error
    finally:
        loader.dispose()


def _not_yaml(path: Path, error: Exception) -> PlanError:
    mark = getattr(error, "problem_mark", None)
    location = f"{path}, line {mark.line + 1}" if mark else str(path)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return PlanError(f"{location}: this is not YAML: {problem}")


def _items(path: Path, node: Any, allowed: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the pairs of key and value node of a YAML mapping, first the pairs merged by ``<<``.

    Args:
        path: the path of the plan, for messages.
        node: the node of the mapping.
        allowed: the allowed keys; if empty, all keys are allowed.

    Raises:
        PlanError: the node is not a mapping, or a key occurs twice or is not allowed.
    """
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise PlanError(
            f"{_at(path, node)}: this is not a job",
            hint="write each field in the form `NAME: VALUE`",
        )
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise PlanError(f"{_at(path, key)}: this is not a field name")
        if key.value in seen:
            raise PlanError(f"{_at(path, key)}, {key.value}: this field occurs twice")
        if allowed and key.value not in allowed:
            raise PlanError(
                f"{_at(path, key)}, {key.value}: there is no such section",
                hint=f"write {' and '.join(allowed)}",
            )
        seen.add(key.value)
    yield from _with_merged(path, node, {}, 0).items()


def _with_merged(
    path: Path, node: Any, merged: dict[int, dict[str, Any]], depth: int
) -> dict[str, Any]:
    """Return a dictionary from the keys of a YAML mapping to the nodes of their values.

    The mapping's own keys replace the keys of mappings that are merged by ``<<``.

    Args:
        path: the plan.
        node: the node of the mapping.
        merged: the results for mappings that were read before, with the ``id`` of the mapping's
            node as key, so that a mapping that is merged many times is read once.
        depth: the number of nested merges.
    """
    import yaml

    if id(node) in merged:
        return merged[id(node)]
    own: dict[str, Any] = {}
    inherited: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise PlanError(f"{_at(path, key)}: this is not a field name")
        if key.tag != MERGE:
            own[str(key.value)] = value
            continue
        for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if not isinstance(part, yaml.MappingNode):
                raise PlanError(
                    f"{_at(path, part)}: the value of a merge key (<<) is not a mapping",
                    hint="write <<: *NAME for a mapping that is marked with &NAME",
                )
            if depth == DEEPEST:
                raise PlanError(
                    f"{_at(path, value)}: merge keys (<<) are nested more than {DEEPEST} levels "
                    "deep"
                )  # fmt: skip
            inherited = {**_with_merged(path, part, merged, depth + 1), **inherited}
    merged[id(node)] = {**inherited, **own}
    return merged[id(node)]


def _constructed(path: Path, node: Any, name: str, loader: Any) -> Any:
    """Return the value of a field, a scalar or a list of scalars, from its YAML node."""
    import yaml

    parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not all(isinstance(part, yaml.ScalarNode) for part in parts):
        raise PlanError(f"{_at(path, node)}, {name}: write one value, or a list of values")
    try:
        constructed = loader.construct_object(node, deep=True)
    except (ValueError, OverflowError) as error:
        raise PlanError(f"{_at(path, node)}, {name}: this cannot be read: {error}") from error
    for value in constructed if isinstance(constructed, list) else [constructed]:
        if isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
            raise PlanError(f"{_at(path, node)}, {name}: this number is too large")
        if isinstance(value, bytes):
            raise PlanError(f"{_at(path, node)}, {name}: write text, not binary data")
    return constructed


def _fields(path: Path, node: Any, loader: Any) -> dict[str, FieldValue]:
    fields = {}
    for name, value in _items(path, node):
        constructed = _constructed(path, value, name, loader)
        is_list = isinstance(constructed, list)
        if is_list and not constructed:
            raise PlanError(f"{_at(path, value)}, {name}: the list is empty", hint="leave it out")
        values = tuple(constructed) if is_list else (constructed,)
        fields[name] = FieldValue(values, _at(path, value), is_list)
    return fields


def _at(path: Path, node: Any) -> str:
    return f"{path}, line {node.start_mark.line + 1}"
