"""Open a checkpoint: container, layout, configuration and lazy canonical tensors in one value."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mae_convert.canonical import BATCH_NORM, schema
from mae_convert.configuration import Configuration, check_flags_taken, resolve
from mae_convert.containers import Container, open_container
from mae_convert.containers.tensor import LazyTensor
from mae_convert.containers.wrappers import NoSuchKeyError
from mae_convert.errors import LayoutError, MaeConvertError
from mae_convert.evidence import Evidence
from mae_convert.families import Membership, name_family
from mae_convert.folding import REASON, STEP, fold_batch_norm, has_batch_norm
from mae_convert.layouts import LAYOUTS, Layout
from mae_convert.mapping import Rule, Table, read_tensors
from mae_convert.origin import Origin
from mae_convert.position_tables import TABLES as POSITION_EMBEDDINGS
from mae_convert.prefixes import Stripped, as_stored, strippings
from mae_convert.recognition import Reading, recognise
from mae_convert.validation import check_document


@dataclass(frozen=True)
class Flags:
    """What the user says about a checkpoint; None where nothing was said."""

    num_attention_heads: int | None = None
    decoder_num_attention_heads: int | None = None
    layer_norm_eps: float | None = None
    decoder_layer_norm_eps: float | None = None
    norm_pix_loss: bool | None = None
    mask_ratio: float | None = None
    image_size: int | tuple[int, int] | None = None
    global_pool: str | None = None

    def given(self) -> dict[str, Any]:
        """Return the fields that were said."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose layout was recognised.

    Its configuration is complete, unless it was opened with ``incomplete``.

    Attributes:
        tensors: canonical name → lazy tensor, in canonical order.
        rules: how each external tensor was read.
        dropped: external tensors that MAE does not use, by stored name, with the reason.
        synonyms: other layouts that are the same for these tensors.
        prefix: what was taken off the names; `container.tensors` and `rules` are without it.
        family: the family of models that it belongs to, or None where nothing tells one.
        origin: where it was downloaded from, or None.
    """

    container: Container
    layout: Layout
    table: Table
    synonyms: tuple[str, ...]
    task: str
    configuration: Configuration
    tensors: Mapping[str, LazyTensor] = field(repr=False)
    rules: tuple[Rule, ...] = field(repr=False)
    dropped: Mapping[str, str]
    prefix: Stripped
    family: Membership | None = None
    origin: Origin | None = None

    @property
    def path(self) -> Path:
        """The file or directory that was opened."""
        return self.container.path

    def specified(self, fields: Mapping[str, Any], source: str) -> "Checkpoint":
        """Return the checkpoint with some fields of its configuration set, as heads that are tried.

        Args:
            fields: field of the model's configuration → value, as ``num_attention_heads``.
            source: where the values come from, for reports and records.

        Raises:
            ConfigurationError: a value is impossible.
        """
        return replace(self, configuration=self.configuration.specified(fields, source))

    @property
    def preprocessor(self) -> Mapping[str, Any]:
        """What it says about preprocessing beyond mean and deviation; empty if that is nothing."""
        beside = self.container.preprocessor or {}
        if set(beside) - {"image_mean", "image_std"}:
            return beside
        inside = (self.container.config or {}).get("preprocessor")
        if isinstance(inside, Mapping):
            return inside
        return self.family.family.preprocessing if self.family and self.family.certain else {}

    @property
    def name(self) -> str:
        """The checkpoint as a person knows it: where it was got from, or its path."""
        return self.origin.name if self.origin else str(self.path)


def _layout_named_by(stated: Mapping[str, Any], kind: str) -> str | None:
    """Return the layout that decides where several are the same for the tensors.

    A configuration beside or inside the file names it, else the container: the original code
    writes ``.pth``, timm publishes ``.safetensors``.
    """
    owner = next((name for name, layout in LAYOUTS.items() if layout.owns_config(stated)), None)
    by_container = {"pth": "facebook", "safetensors": "timm"}
    return owner or stated.get("layout") or by_container.get(kind)


def _said(given: dict[str, Any], container: Container, *, fill_only: bool) -> dict[str, Any]:
    """Return the flags that are about this file.

    Of two files that are compared, one that was made for another image size states its own, and
    ``--source-image-size`` is about the other.
    """
    steps = (container.conversion or {}).get("steps", [])
    if fill_only and any(step.get("step") == "image_size" for step in steps):
        return {name: value for name, value in given.items() if name != "image_size"}
    return given


def _open(path: Path | str, state_key: str | None, *, optional: bool) -> Container:
    """Open a container; of two files that are compared, a key may be about the other one only."""
    try:
        return open_container(path, state_key)
    except NoSuchKeyError:
        if not optional:
            raise
        return open_container(path)


def _with_known(container: Container, origin: Origin | None) -> Container:
    """Return the container with what is known of where it comes from, if it states nothing."""
    if container.config is not None or origin is None or not origin.config:
        return container
    return replace(container, config=origin.config, config_source=origin.config_source)


Recognised = tuple[Reading, tuple[str, ...]]


def _recognise(container: Container, preferred: str | None) -> tuple[Recognised, Stripped]:
    """Return how the tensors read, and what had to be taken off their names for it.

    Raises:
        LayoutError: no known layout fits, or several ways to take off prefixes make one fit.
    """
    shapes = {name: tensor.shape for name, tensor in container.tensors.items()}
    try:
        return recognise(shapes, preferred), as_stored(shapes)
    except LayoutError as error:
        misfit = f"{container.path}: {error}"
    for ways in strippings(shapes):
        fitting: list[tuple[Recognised, Stripped]] = []
        for way in ways:
            stripped = {name: shapes[stored] for name, stored in way.stored.items()}
            try:
                fitting.append((recognise(stripped, preferred), way))
            except LayoutError as error:
                if way.foreign:
                    misfit = f"{container.path}, without the prefix {way.said()}: {error}"
        if len(fitting) > 1:
            said = " or ".join(str(way.said()) for _, way in fitting)
            raise LayoutError(
                f"{container.path}: the names fit a layout without {said}, and it is not told"
                " which is meant; rename the tensors"
            )
        if fitting:
            return fitting[0]
    raise LayoutError(misfit)


def _folded(
    container: Container, reading: Reading
) -> tuple[Container, Reading, dict[str, LazyTensor]]:
    """Return the canonical tensors; a linear probe's batch norm is folded, declared and dropped."""
    canonical = read_tensors(container.tensors, reading.rules)
    if not has_batch_norm(canonical):
        return container, reading, canonical
    canonical = fold_batch_norm(canonical)
    gone = [rule for rule in reading.rules if not canonical.keys() & set(rule.canonicals)]
    rules = tuple(rule for rule in reading.rules if rule not in gone)
    dropped = {**reading.dropped, **dict.fromkeys((rule.external for rule in gone), REASON)}
    return _after(container, STEP), replace(reading, rules=rules, dropped=dropped), canonical


def _after(container: Container, step: Mapping[str, Any]) -> Container:
    """Return the container with a step in its record that was taken when it was opened."""
    record = container.conversion or {}
    return replace(container, conversion={**record, "steps": [*record.get("steps", []), step]})


def _check_documents(container: Container) -> None:
    """Hold what stands beside or inside a file, and anyone may edit, against its schema.

    Raises:
        CheckpointError: a field is not of the type that it must have.
    """
    for schema_name, document, what in (
        ("config", container.config, container.config_source),
        ("preprocessor", container.preprocessor, "preprocessor_config.json"),
        ("conversion", container.conversion, "conversion record (conversion.json)"),
    ):
        if document:
            check_document(document, schema_name, f"{container.path}: {what}", "mend or remove it")


def _renamed(container: Container, way: Stripped) -> Container:
    tensors = {name: container.tensors[old].renamed(name) for name, old in way.stored.items()}
    return replace(container, tensors=tensors)


def open_checkpoint(
    path: Path | str,
    flags: Flags | None = None,
    *,
    fill_only: bool = False,
    incomplete: bool = False,
    state_key: str | None = None,
    origin: Origin | None = None,
) -> Checkpoint:
    """Open a file or directory, recognise its layout and resolve its configuration.

    Of the tensor data only the position embeddings are read, which may give the grid of patches.

    Args:
        path: a checkpoint file or a model directory.
        flags: what the user says that the file does not.
        fill_only: a flag tells what the file does not, and does not overrule it; of two files that
            are compared, it may be about the other. See `check_flags`.
        incomplete: open the checkpoint even where nothing gives a field, as the number of heads;
            ``configuration.missing`` then has the field, and `Checkpoint.specified` sets it.
        state_key: the key of the weights in a PyTorch checkpoint, where it is not plain.
        origin: where it was downloaded from, which tells what the file may not.

    Raises:
        CheckpointError: the file cannot be read.
        LayoutError: no known layout fits.
        ConfigurationError: something is missing or contradicted.
    """
    container = _with_known(_open(path, state_key, optional=fill_only), origin)
    _check_documents(container)
    stated = container.config or {}
    (reading, synonyms), prefix = _recognise(container, _layout_named_by(stated, container.kind))
    container = _renamed(container, prefix)
    said = _said((flags or Flags()).given(), container, fill_only=fill_only)
    with _naming(origin.name if origin else str(container.path)):
        family = _family(container, reading)
        evidence = _evidence(container, reading, family, said, fill_only)
        configuration = resolve(reading.task, evidence, incomplete=incomplete)
    container, reading, canonical = _folded(container, reading)
    order = schema(configuration.model, reading.task)
    return Checkpoint(
        container=container,
        layout=LAYOUTS[reading.layout.name],
        table=reading.table,
        synonyms=synonyms,
        task=reading.task,
        configuration=configuration,
        tensors={name: canonical[name] for name in order},
        rules=reading.rules,
        dropped={prefix.stored[name]: reason for name, reason in reading.dropped.items()},
        prefix=prefix,
        family=family,
        origin=origin,
    )


def check_flags(flags: Flags | None, *checkpoints: Checkpoint) -> None:
    """Check that what the user says is said of one of the checkpoints, opened with `fill_only`.

    Raises:
        ConfigurationError: a flag contradicts all of them.
    """
    opened = {checkpoint.name: checkpoint.configuration for checkpoint in checkpoints}
    check_flags_taken((flags or Flags()).given(), opened)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the name before an error's sentence: of two files that are compared, either may be it."""
    try:
        yield
    except MaeConvertError as error:
        raise type(error)(f"{name}: {error}") from error


def _family(container: Container, reading: Reading) -> Membership | None:
    return name_family(
        reading.family,
        container.training_args or {},
        (container.conversion or {}).get("family"),
        {**reading.geometry, "task": reading.task},
    )


def _evidence(
    container: Container,
    reading: Reading,
    family: Membership | None,
    flags: Mapping[str, Any],
    fill_only: bool,
) -> Evidence:
    """Return everything that may tell what no tensor tells."""
    patches = reading.geometry["num_patches"]
    geometry = dict(reading.geometry)
    if _pooling_untold(reading):
        del geometry["global_pool"]
    return Evidence(
        geometry=geometry,
        flags=flags,
        stated=reading.layout.read_config(container.config or {}),
        stated_where=container.config_source or "the file",
        preprocessor=container.preprocessor or {},
        training_args=container.training_args or {},
        conventions=reading.layout.conventions,
        layout=reading.layout.name,
        family=family.conventions(patches) if family else {},
        family_name=family.family.name if family else "",
        size_hint=family.size_hint(patches) if family else "",
        fixed=reading.layout.fixed + reading.layout.class_defaults * bool(container.config),
        positions=_positions(container, reading),
        recorded=(container.conversion or {}).get("assumptions", {}),
        fill_only=fill_only,
    )


def _pooling_untold(reading: Reading) -> bool:
    """Return whether the names are those of a class-token classifier and of a pooled one."""
    if reading.layout.pooling_in_names or reading.geometry.get("global_pool") != "token":
        return False
    # Only the original's program writes a batch norm before the head, and it has fc_norm to pool.
    return not any(
        name.startswith(BATCH_NORM) for rule in reading.rules for name in rule.canonicals
    )


def _positions(container: Container, reading: Reading) -> dict[str, LazyTensor]:
    """Return the position embeddings by canonical name."""
    rules = [rule for rule in reading.rules if set(rule.canonicals) & set(POSITION_EMBEDDINGS)]
    return read_tensors(container.tensors, rules)
