"""Open a checkpoint: file, layout, configuration and lazy canonical tensors in one object."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.checkpoint.batch_norm import REASON, STEP, fold_batch_norm, has_batch_norm
from mae_convert.checkpoint.extraction import Found, UndecidedError, recognise_model
from mae_convert.checkpoint.origin import Origin
from mae_convert.checkpoint.prefixes import Stripped
from mae_convert.checkpoint.recognition import Reading, explain
from mae_convert.checkpoint.unknown_fields import unread
from mae_convert.errors import ConfigurationError, LayoutError, MaeConvertError, Option
from mae_convert.families import families, family_of
from mae_convert.families.canonical import BATCH_NORM, TASKS, square_grid
from mae_convert.families.configuration import Configuration, check_flags_taken, resolve
from mae_convert.families.evidence import Evidence
from mae_convert.families.family import Family
from mae_convert.families.options import OF_FIELDS, Flags
from mae_convert.files.strict_json import check_document
from mae_convert.formats import Container, open_container
from mae_convert.formats.registry import PTH, SAFETENSORS
from mae_convert.formats.tensor import LazyTensor
from mae_convert.formats.wrappers import NoSuchKeyError
from mae_convert.layouts.layout import Layout
from mae_convert.layouts.schema import Shape
from mae_convert.layouts.table import Rule, Table, read_tensors

POSITION_EMBEDDINGS = {"encoder.position_embedding", "decoder.position_embedding"}
NO_KEY_BIAS = "zeros: the model has query and value biases but no key bias"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose layout was recognised.

    Its configuration is complete, unless it was opened with ``incomplete``.
    """

    container: Container
    layout: Layout
    table: Table
    synonyms: tuple[str, ...]
    """Other layouts that are the same for these tensors."""

    task: str
    configuration: Configuration
    tensors: Mapping[str, LazyTensor] = field(repr=False)
    """Canonical name → lazy tensor, in canonical order."""

    rules: tuple[Rule, ...] = field(repr=False)
    """How each external tensor was read."""

    dropped: Mapping[str, str]
    """External tensors that are not used, by stored name, with the reason."""

    prefix: Stripped
    """The prefixes that were removed from the names of `container.tensors` and `rules`."""

    relative: Any = None
    """The related model that it is, of those with the same names and shapes, or None if unknown."""

    origin: Origin | None = None
    """The origin of a downloaded checkpoint, or None."""

    created: Mapping[str, str] = field(default_factory=dict)
    """Canonical tensors that are not stored and were created as zeros, with the reason."""

    key_bias: bool = True
    """Whether the model has key biases; if not, they are created as zeros."""

    also: tuple[str, ...] = ()
    """Other tasks that are also complete."""

    incomplete: Mapping[str, str] = field(default_factory=dict)
    """Task → why the tensors cannot be read for it, as far as that was tried."""

    unread: tuple[str, ...] = ()
    """Configuration fields that a library may use and mae-convert does not, each with its file."""

    before_steps: "Checkpoint | None" = field(default=None, repr=False)
    """The checkpoint as it was opened, if a conversion has changed it since."""

    @property
    def family(self) -> Family:
        """The family of the model."""
        return family_of(self.layout)

    @property
    def path(self) -> Path:
        """The path of the file or directory."""
        return self.container.path

    @property
    def as_opened(self) -> "Checkpoint":
        """The checkpoint as stored in its file, before the steps of a conversion."""
        return self.before_steps or self

    def specified(self, fields: Mapping[str, Any], source: str) -> "Checkpoint":
        """Return the checkpoint with some fields of its configuration set.

        Args:
            fields: field of the model's configuration, such as ``num_attention_heads`` → value.
            source: the source of the values, for reports and records.

        Raises:
            ConfigurationError: a value is impossible.
        """
        return replace(self, configuration=self.configuration.specified(fields, source))

    def require_complete(self, task: str | None = None) -> None:
        """Raise ConfigurationError if a field that a task (default: its own) needs is missing."""
        with _naming(self.origin.name if self.origin else self.path):
            self.configuration.for_task(task or self.task).require_complete()

    @property
    def preprocessor(self) -> Mapping[str, Any]:
        """Preprocessing settings besides mean and std; empty if there are none."""
        config, own = self.container.config or {}, None
        if self.layout.owns_config(config):  # the library reads no other file then
            own = self.layout.read_config(config).get("preprocessor")
        if own:
            return own
        beside = self.container.preprocessor or {}
        if self.container.preprocessor_source or set(beside) - {"image_mean", "image_std"}:
            return beside
        inside = config.get("preprocessor")
        if isinstance(inside, Mapping):
            return inside
        known = self.relative is not None and self.relative.certain
        return self.relative.relative.preprocessing if self.relative and known else {}

    @property
    def name(self) -> str:
        """The checkpoint's display name: its origin, or its path."""
        return self.origin.name if self.origin else str(self.path)


def _layout_named_by(stated: Mapping[str, Any], kind: str) -> str | None:
    """Return the layout that takes precedence if several match the tensors equally well.

    It is determined by a configuration in the directory or the file, else by the format: the
    original code writes ``.pth``, timm publishes ``.safetensors``.
    """
    layouts = (la for family in families().values() for la in family.layouts.values())
    owner = next((layout.name for layout in layouts if layout.owns_config(stated)), None)
    by_container = {PTH: "facebook", SAFETENSORS: "timm"}
    return owner or stated.get("layout") or by_container.get(kind)


def _applicable(given: dict[str, Any], container: Container, *, fill_only: bool) -> dict[str, Any]:
    """Return the options that apply to this file.

    If two files are compared and one specifies its own image size, the option ``source_image_size``
    applies to the other only.
    """
    steps = (container.conversion or {}).get("steps", [])
    if fill_only and any(step.get("step") == "image_size" for step in steps):
        return {name: value for name, value in given.items() if name != "image_size"}
    return given


def _open(
    path: Path | str, state_key: str | None, *, optional: bool
) -> tuple[Container, str | None]:
    """Open a file, and return the prefix of names that the state key specifies, or None.

    A state key is the key of a mapping of tensors, a prefix of names, or both joined by a dot. If
    two files are compared, it may apply to the other one only.
    """
    try:
        container = open_container(path, state_key)
        also = any(name.startswith(f"{state_key}.") for name in container.tensors)
        return container, state_key if also else None
    except NoSuchKeyError as error:
        missing = error
    pieces = str(state_key).rstrip(".").split(".")
    for end in range(len(pieces) - 1, -1, -1):
        try:
            container = open_container(path, ".".join(pieces[:end]) or None)
        except NoSuchKeyError:
            continue
        prefix = ".".join(pieces[end:])
        if not prefix or any(name.startswith(f"{prefix}.") for name in container.tensors):
            return container, prefix or "."
        break
    if not optional:
        raise missing
    return open_container(path), None


def _with_known(container: Container, origin: Origin | None) -> Container:
    """Return the container with metadata from its origin, if it has none itself."""
    if container.config is not None or origin is None or not origin.config:
        return container
    return replace(container, config=origin.config, config_source=origin.config_source)


def _recognise(container: Container, task: str | None, under: str | None) -> Found:
    """Recognise the layout; errors are explained with the help of the configuration files."""
    shapes = {name: tensor.shape for name, tensor in container.tensors.items()}
    preferred = _layout_named_by(container.config or {}, container.kind)
    try:
        family = (container.config or {}).get("model_family")
        return recognise_model(shapes, preferred, task, under, family)
    except UndecidedError as error:
        raise LayoutError(container.path, ": ", error) from error
    except LayoutError as error:
        explanation = explain(shapes, container.config, container.adapter)
        raise LayoutError(container.path, ": ", explanation or error) from error


def _key_biases(
    created: Mapping[str, Shape], canonical: Mapping[str, LazyTensor]
) -> dict[str, LazyTensor]:
    """Return key biases of zeros, with the dtype of the query biases."""
    dtypes = {name: canonical[name[: -len("k.bias")] + "q.bias"].dtype for name in created}
    return {name: _zeros(name, shape, dtypes[name]) for name, shape in created.items()}


def _zeros(name: str, shape: Shape, dtype: np.dtype) -> LazyTensor:
    return LazyTensor(name, shape, dtype, lambda: np.zeros(shape, dtype))


def _folded(
    container: Container, reading: Reading
) -> tuple[Container, Reading, dict[str, LazyTensor]]:
    """Return the canonical tensors; the batch norm of a linear probe is folded, and declared."""
    canonical = read_tensors(container.tensors, reading.rules)
    canonical |= _key_biases(reading.created, canonical)
    if not has_batch_norm(canonical):
        return container, reading, canonical
    canonical = fold_batch_norm(canonical)
    gone = [rule for rule in reading.rules if not canonical.keys() & set(rule.canonicals)]
    rules = tuple(rule for rule in reading.rules if rule not in gone)
    dropped = {**reading.dropped, **dict.fromkeys((rule.external for rule in gone), REASON)}
    return _after(container, STEP), replace(reading, rules=rules, dropped=dropped), canonical


def _after(container: Container, step: Mapping[str, Any]) -> Container:
    """Return the container with a step, applied while opening, in its record."""
    record = container.conversion or {}
    return replace(container, conversion={**record, "steps": [*record.get("steps", []), step]})


def _check_documents(container: Container) -> None:
    """Validate the JSON files of a checkpoint, which anyone can edit, against their schemas.

    Raises:
        CheckpointError: a field has the wrong type.
    """
    for schema_name, document, what in (
        ("config", container.config, container.config_source),
        (
            "preprocessor",
            container.preprocessor,
            container.preprocessor_source or "preprocessor_config.json",
        ),
        ("preprocessor", (container.config or {}).get("preprocessor"), "preprocessor inside"),
        ("conversion", container.conversion, "conversion record (conversion.json)"),
    ):
        if document:
            check_document(
                document, schema_name, f"{container.path}: {what}", "correct or remove it"
            )


def _renamed(container: Container, recognised: Found) -> Container:
    """Return the container with the model's tensors under their names without prefixes.

    Other tensors keep their stored names, after a slash if they would collide with the model's.
    """
    tensors = {
        name: container.tensors[old].renamed(name)
        for name, old in recognised.stripped.stored.items()
    }
    for name in recognised.dropped:
        tensors[f"/{name}" if name in tensors else name] = container.tensors[name]
    return replace(container, tensors=tensors)


def _check_class_position(
    container: Container, reading: Reading, specified: Mapping[str, Any]
) -> None:
    """Refuse position embeddings without a row for the class token (timm's no_embed_class).

    In that case the number of rows is a square, and one less is not. With an explicit image size,
    or a first row of zeros as in MAE's fixed table, there is a row for the class token.

    Raises:
        LayoutError: there is no such row.
    """
    patches, config = reading.geometry["num_patches"], container.config or {}
    arguments = config.get("model_args")
    option = isinstance(arguments, Mapping) and arguments.get("no_embed_class")
    square = square_grid(patches + 1) if square_grid(patches) is None else None
    if not option and (square is None or "image_size" in specified):
        return
    rule = next(r for r in reading.rules if "encoder.position_embedding" in r.canonicals)
    stated = reading.layout.read_config(config).get("image_size")
    stated = stated or (container.training_args or {}).get("input_size")
    if not option and (stated is not None and _count(stated, reading) == patches):
        return
    (table,) = read_tensors(container.tensors, [rule]).values()
    if option or table.load()[:, 0].any():
        grid = f", a grid of {square[0]} x {square[1]}," if square else ""
        raise LayoutError(
            f"{rule.external} has {patches + 1} rows{grid} and therefore no row for the class "
            "token: this is a timm model created with no_embed_class=True, which no supported "
            "layout can hold; to get the same function with a row for the class token, use "
            "torch.cat([torch.zeros(1, 1, D), pos_embed], 1), with D as the width (or pass ",
            *(Option("source_image_size"), " if there is a row for it)"),
        )


def _count(image_size: Any, reading: Reading) -> int | None:
    """Return the number of patches of a specified size, or None if it is not a size."""
    try:
        sides = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
        patch = reading.geometry["patch_size"]
        rows, columns = (patch, patch) if isinstance(patch, int) else patch
        return (sides[0] // rows) * (sides[1] // columns)
    except (TypeError, ValueError, IndexError):
        return None


def open_checkpoint(
    path: Path | str,
    flags: Flags | None = None,
    *,
    fill_only: bool = False,
    incomplete: bool = False,
    state_key: str | None = None,
    task: str | None = None,
    origin: Origin | None = None,
) -> Checkpoint:
    """Open a file or directory, recognise its layout and resolve its configuration.

    Of the tensors' data only position embeddings are read, which may determine the patch grid.

    Args:
        path: a checkpoint file or a model directory.
        flags: options of the user for what the file does not contain.
        fill_only: do not let a flag contradict the file; if two files are compared, it may apply to
            the other one. See `check_flags`.
        incomplete: open the checkpoint even if a field such as the number of heads is unknown;
            ``configuration.missing`` then has the field, and `Checkpoint.specified` sets it.
        state_key: the key of the weights in a PyTorch checkpoint, if they cannot be recognised, or
            the prefix of the names of one of several models.
        task: the task to read, if the tensors of several are among other tensors. A file that
            contains only a model is read completely: see `as_task`.
        origin: the place that it was downloaded from, which may provide metadata.

    Raises:
        CheckpointError: the file cannot be read.
        LayoutError: no known layout fits.
        ConfigurationError: something is missing or contradicted.
    """
    if task is not None and task not in TASKS:
        raise ConfigurationError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    container, under = _open(path, state_key, optional=fill_only)
    container = _with_known(container, origin)
    _check_documents(container)
    found, stored = _recognise(container, task, under), frozenset(container.tensors)
    container, reading = _renamed(container, found), found.reading
    if found.whole not in (None, reading.task):  # declared, as by a conversion to a task
        container = _after(container, {"step": "task", "from": found.whole, "to": reading.task})
    specified = _applicable((flags or Flags()).given(), container, fill_only=fill_only)
    with _naming(origin.name if origin else container.path):
        family = family_of(reading.layout)
        if family.may_lack_class_position:
            _check_class_position(container, reading, specified)
        relative = _relative(container, reading)
        evidence = _evidence(container, reading, relative, specified, fill_only)
        evidence = replace(evidence, by_names=family.conventions_by_names(stored))
        configuration = resolve(reading.task, evidence, family, incomplete=True)
        if not incomplete:
            configuration.for_task(task or reading.task).require_complete()
        dtypes = {container.tensors[rule.external].dtype for rule in reading.rules}
        unknown = unread(container, reading.layout, reading.task, dtypes)
    container, reading, canonical = _folded(container, reading)
    order = family.schema(configuration.model, reading.task)
    return Checkpoint(
        container=container,
        layout=reading.layout,
        table=reading.table,
        synonyms=found.synonyms,
        task=reading.task,
        configuration=configuration,
        tensors={name: canonical[name] for name in order},
        rules=reading.rules,
        dropped={
            **{found.stripped.stored[name]: reason for name, reason in reading.dropped.items()},
            **found.dropped,
        },
        prefix=found.stripped,
        relative=relative,
        origin=origin,
        created=dict.fromkeys(reading.created, NO_KEY_BIAS),
        key_bias=not reading.created and (container.config or {}).get("key_bias") is not False,
        also=found.also,
        incomplete=found.incomplete,
        unread=unknown,
    )


def require_images(checkpoint: Checkpoint, work: str) -> None:
    """Require that a model's family tells how inputs are made of images or videos.

    Args:
        checkpoint: the checkpoint.
        work: the operation that needs images, the subject of the message.

    Raises:
        MaeConvertError: it does not.
    """
    if not checkpoint.family.takes_images and checkpoint.family.clips is None:
        raise MaeConvertError(
            checkpoint.path,
            f": {work} needs images or videos, and the family of this model"
            f" ({checkpoint.family.title}) does not tell how inputs are made of them",
        )


def as_task(checkpoint: Checkpoint, task: str | None) -> Checkpoint:
    """Return a checkpoint as a model of a task; what the task does not need is dropped.

    Raises:
        ConfigurationError: there is no such model in the checkpoint.
    """
    if task in (None, checkpoint.task):
        return checkpoint
    checkpoint.family.check_task(task, checkpoint.task)
    names = checkpoint.family.schema(checkpoint.configuration.model, task)
    if missing := [name for name in names if name not in checkpoint.tensors]:
        raise ConfigurationError(f"the checkpoint has no {missing[0]}, which an {task} needs")
    rules = tuple(rule for rule in checkpoint.rules if names.keys() & set(rule.canonicals))
    gone = [rule.external for rule in checkpoint.rules if rule not in rules]
    reason = f"not part of a model whose task is {task}"
    return replace(
        checkpoint,
        task=task,
        configuration=checkpoint.configuration.for_task(task),
        tensors={name: checkpoint.tensors[name] for name in names},
        rules=rules,
        dropped={**checkpoint.dropped, **{checkpoint.prefix.stored[n]: reason for n in gone}},
    )


def require_comparable(a: Checkpoint, b: Checkpoint) -> None:
    """Check that no field that a comparison needs is missing; of different tasks, of the encoder.

    Raises:
        ConfigurationError: a field is missing.
    """
    task = a.task if a.task == b.task else "encoder"
    for checkpoint in (a, b):
        checkpoint.require_complete(task)


def without_effect(flags: Flags | None, *checkpoints: Checkpoint) -> list[Option]:
    """Return the specified options that apply only to a task that none of the checkpoints has."""
    tasks = {checkpoint.task for checkpoint in checkpoints}
    return [
        Option(option.name)
        for name, option in OF_FIELDS.items()
        if name in (flags or Flags()).given() and not tasks & set(option.tasks)
    ]


def check_flags(flags: Flags | None, *checkpoints: Checkpoint) -> None:
    """Check that every option applies to one of the checkpoints, opened with `fill_only`.

    Raises:
        ConfigurationError: a flag contradicts all of them.
    """
    opened = {checkpoint.name: checkpoint.configuration for checkpoint in checkpoints}
    check_flags_taken((flags or Flags()).given(), opened)


@contextmanager
def _naming(name: str | Path) -> Iterator[None]:
    """Prefix errors with the name of the file, because two files may be compared."""
    try:
        yield
    except MaeConvertError as error:
        raise type(error)(name, ": ", error) from error


def _relative(container: Container, reading: Reading) -> Any:
    return family_of(reading.layout).relative(
        reading.relative,
        container.training_args or {},
        (container.conversion or {}).get("family"),
        {**reading.geometry, "task": reading.task},
    )


def _evidence(
    container: Container,
    reading: Reading,
    relative: Any,
    flags: Mapping[str, Any],
    fill_only: bool,
) -> Evidence:
    """Return all evidence about fields that are not stored in tensors."""
    patches = reading.geometry.get("num_patches", 0)
    geometry = dict(reading.geometry)
    if _pooling_untold(reading):
        del geometry["global_pool"]
    return Evidence(
        geometry=geometry,
        flags=flags,
        stated=reading.layout.read_config(container.config or {}),
        stated_where=container.config_source or "the file",
        preprocessor=container.preprocessor or {},
        preprocessor_where=container.preprocessor_source or "preprocessor_config.json",
        training_args=container.training_args or {},
        conventions=reading.layout.conventions,
        layout=reading.layout.name,
        relative=relative.conventions(patches) if relative else {},
        relative_name=relative.relative.name if relative else "",
        size_hint=relative.size_hint(patches) if relative else "",
        fixed=reading.layout.fixed + reading.layout.class_defaults * bool(container.config),
        positions=_positions(container, reading),
        recorded=(container.conversion or {}).get("assumptions", {}),
        fill_only=fill_only,
    )


def _pooling_untold(reading: Reading) -> bool:
    """Return whether the names fit both a class-token classifier and a pooled one."""
    if reading.layout.pooling_in_names or reading.geometry.get("global_pool") != "token":
        return False
    # Only the original's program writes a batch norm before the head, and fc_norm if it pools.
    return not any(
        name.startswith(BATCH_NORM) for rule in reading.rules for name in rule.canonicals
    )


def _positions(container: Container, reading: Reading) -> dict[str, LazyTensor]:
    """Return the position embeddings by canonical name."""
    rules = [rule for rule in reading.rules if set(rule.canonicals) & POSITION_EMBEDDINGS]
    return read_tensors(container.tensors, rules)
