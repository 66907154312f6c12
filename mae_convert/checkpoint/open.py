"""Open a checkpoint: recognise its layout, resolve its configuration, find its tensors."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mae_convert.checkpoint.canonical_tensors import canonical_tensors, with_step
from mae_convert.checkpoint.checkpoint import Checkpoint, Origin, naming
from mae_convert.checkpoint.extraction import RecognisedModel, UndecidedError, recognise_model
from mae_convert.checkpoint.recognition import Reading, explain
from mae_convert.checkpoint.unknown_fields import unread
from mae_convert.errors import CheckpointError, ConfigurationError, LayoutError, Option
from mae_convert.families import families, family_of
from mae_convert.families.canonical import BATCH_NORM, TASKS, square_grid
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.configuration import Configuration, resolve
from mae_convert.families.evidence import Evidence
from mae_convert.files.strict_json import check_document
from mae_convert.formats import Container, open_container
from mae_convert.formats.dtypes import DTYPES
from mae_convert.formats.registry import PTH, SAFETENSORS
from mae_convert.formats.tensor import LazyTensor
from mae_convert.formats.wrappers import NoSuchKeyError
from mae_convert.layouts.table import read_tensors
from mae_convert.text import listing

POSITION_EMBEDDINGS = {"encoder.position_embedding", "decoder.position_embedding"}
NO_KEY_BIAS = "zeros: the model has query and value biases but no key bias"


def _layout_named_by(config: Mapping[str, Any], kind: str) -> str | None:
    """Return the name of the layout to choose if several fit the tensors equally well.

    The configuration in the directory or the file determines the layout. If it does not, the file
    format `kind` determines it: the original code writes ``.pth``, timm publishes ``.safetensors``.
    The result is None for other file formats.
    """
    layouts = (la for family in families().values() for la in family.layouts.values())
    owner = next((layout.name for layout in layouts if layout.owns_config(config)), None)
    by_container = {PTH: "facebook", SAFETENSORS: "timm"}
    return owner or config.get("layout") or by_container.get(kind)


def _applicable(
    specified: dict[str, Any], container: Container, *, fill_only: bool
) -> dict[str, Any]:
    """Return the specified options that apply to this file.

    All options apply, with one exception: ``fill_only`` is set if two files are compared, and then
    ``source_image_size`` does not apply to a file that was converted to another image size.
    """
    steps = (container.conversion or {}).get("steps", [])
    if fill_only and any(step.get("step") == "image_size" for step in steps):
        return {name: value for name, value in specified.items() if name != "image_size"}
    return specified


def _open(
    path: Path | str, state_key: str | None, *, optional: bool
) -> tuple[Container, str | None]:
    """Return the container of a file, and the name prefix that the state key specifies, or None.

    A state key is the key of a mapping of tensors, a prefix of names, or both joined by a dot. With
    ``optional``, a state key that does not occur in the file is ignored: if two files are compared,
    the key may belong to the other file.
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


def _with_origin_metadata(container: Container, origin: Origin | None) -> Container:
    """Return the container or, if it has no configuration, a copy with the origin's configuration.

    The container is returned unchanged if `origin` is None or has no configuration.
    """
    if container.config is not None or origin is None or not origin.config:
        return container
    return replace(container, config=origin.config, config_source=origin.config_source)


def _recognise(container: Container, task: str | None, under: str | None) -> RecognisedModel:
    """Return the model that was recognised among the tensors of a container.

    Args:
        container: the tensors and the configuration files.
        task: the task to read; None for the task that is read by default.
        under: the prefix of the tensor names of the model to read; None if it is not specified.

    Raises:
        LayoutError: no known layout fits; the configuration files are used to explain why.
    """
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


def _check_documents(container: Container) -> None:
    """Validate the JSON files of a checkpoint, which may have been edited, against their schemas.

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


def _renamed(container: Container, recognised: RecognisedModel) -> Container:
    """Return the container with the prefixes removed from the names of the model's tensors.

    Other tensors keep their stored names, preceded by a slash if a tensor of the model has the same
    name.
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

    The row is missing if the configuration specifies ``no_embed_class``. Otherwise, it is assumed
    to be missing if the number of rows is a square, so that there can be one row for each patch and
    none for the class token. It is not assumed to be missing if the user specified an image size,
    if an image of the configured size has one patch fewer than there are rows, or if the first row
    is zero, like the class token's row in the fixed embedding of MAE.

    Raises:
        LayoutError: there is no row for the class token.
    """
    patches, config = reading.geometry["num_patches"], container.config or {}
    arguments = config.get("model_args")
    option = isinstance(arguments, Mapping) and arguments.get("no_embed_class")
    square = square_grid(patches + 1) if square_grid(patches) is None else None
    if not option and (square is None or "image_size" in specified):
        return
    rule = next(r for r in reading.rules if "encoder.position_embedding" in r.canonicals)
    image_size = reading.layout.read_config(config).get("image_size")
    image_size = image_size or (container.training_args or {}).get("input_size")
    if not option and (image_size is not None and _count(image_size, reading) == patches):
        return
    (table,) = read_tensors(container.tensors, [rule]).values()
    if option or table.load()[:, 0].any():
        grid = f", a grid of {square[0]} x {square[1]}," if square else ""
        raise LayoutError(
            f"{rule.external} has {patches + 1} rows{grid} and therefore no row for the class "
            "token: this is a timm model created with no_embed_class=True, which no supported "
            "layout can store",
            hint=(
                "to get the same outputs with a row for the class token, use "
                "torch.cat([torch.zeros(1, 1, D), pos_embed], 1), with D as the width (or pass ",
                *(Option("source_image_size"), " if there is a row for the class token)"),
            ),
        )


def _count(image_size: Any, reading: Reading) -> int | None:
    """Return the number of patches of an image, or None if `image_size` is not a size.

    Args:
        image_size: the value from a configuration; a size is an integer or (height, width).
        reading: the mapped tensors, whose geometry includes the patch size.
    """
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

    No tensor data is read except position embeddings, which may determine the patch grid.

    Args:
        path: a checkpoint file or a model directory.
        flags: fields that the user specified because the file does not contain them.
        fill_only: ignore a flag that contradicts the file, because the flag may apply to the other
            file of a comparison; see `check_flags`.
        incomplete: open the checkpoint even if a field such as the number of heads is unknown;
            ``configuration.missing`` then contains the field, and `Checkpoint.specified` sets it.
        state_key: the key of the state dict in a PyTorch checkpoint, if the state dict cannot be
            recognised. If the file contains several models, `state_key` can also be the prefix of
            the tensor names of the model to read.
        task: the task to read if the file contains more than the tensors of one model. A file that
            contains only one model is read completely; `as_task` then selects the task.
        origin: the origin of a downloaded checkpoint, which may provide configuration fields.

    Raises:
        CheckpointError: the file cannot be read.
        LayoutError: no known layout fits, or it is ambiguous which model to read.
        ConfigurationError: a field is missing or contradicted.
    """
    if task is not None and task not in TASKS:
        raise ConfigurationError(f"unknown task {task!r}", hint=f"the tasks are {', '.join(TASKS)}")
    container, under = _open(path, state_key, optional=fill_only)
    container = _with_origin_metadata(container, origin)
    _check_documents(container)
    recognised, stored = _recognise(container, task, under), frozenset(container.tensors)
    container, reading = _renamed(container, recognised), recognised.reading
    if recognised.default_task not in (None, reading.task):
        # The choice of another task than the default is a change that the record declares.
        container = with_step(
            container, {"step": "task", "from": recognised.default_task, "to": reading.task}
        )
    specified = _applicable((flags or Flags()).given(), container, fill_only=fill_only)
    with naming(origin.name if origin else container.path):
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
    opened = _opened(container, recognised, configuration)
    return replace(opened, relative=relative, origin=origin, unread=unknown)


def _opened(
    container: Container, match: RecognisedModel, configuration: Configuration
) -> Checkpoint:
    """Create the checkpoint from a container, the recognised model and the configuration."""
    container, reading, canonical = canonical_tensors(container, match.reading)
    order = family_of(reading.layout).schema(configuration.model, reading.task)
    stored = match.stripped.stored
    for rule in reading.rules:
        _require_floating_point(container, rule.external, stored[rule.external])
    dropped = {stored[name]: reason for name, reason in reading.dropped.items()}
    return Checkpoint(
        container=container,
        layout=reading.layout,
        table=reading.table,
        synonyms=match.synonyms,
        task=reading.task,
        configuration=configuration,
        tensors={name: canonical[name] for name in order},
        rules=reading.rules,
        dropped={**dropped, **match.dropped},
        prefix=match.stripped,
        created=dict.fromkeys(reading.created, NO_KEY_BIAS),
        key_bias=not reading.created and (container.config or {}).get("key_bias") is not False,
        also=match.also,
        incomplete=match.incomplete,
    )


def _require_floating_point(container: Container, external: str, stored: str) -> None:
    """Refuse weights that are integers (as in a quantized model) or complex numbers.

    Args:
        container: the checkpoint.
        external: the name of the tensor in the container.
        stored: the name of the tensor in the file, for the message.
    """
    dtype = container.tensors[external].dtype
    if dtype.kind in "biuc":
        raise CheckpointError(
            container.path,
            f": {stored} has dtype {dtype}, but weights must be {listing(DTYPES)}",
            hint="save the weights as float32 with the program that wrote the file; dequantize a "
            "quantized model first",
        )


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
    """Return all evidence about fields that are not stored in tensors.

    Args:
        container: the content of the file.
        reading: the mapping of the tensors.
        relative: the related model to which the encoder belongs, or None.
        flags: the values of the specified options, by field.
        fill_only: whether options only fill in fields that the file does not specify.
    """
    patches = reading.geometry.get("num_patches", 0)
    geometry = dict(reading.geometry)
    if _pooling_unspecified(reading):
        del geometry["global_pool"]
    return Evidence(
        geometry=geometry,
        flags=flags,
        config=reading.layout.read_config(container.config or {}),
        config_source=container.config_source or "the file",
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


def _pooling_unspecified(reading: Reading) -> bool:
    """Return whether the tensor names fit both a class-token and a mean-pooled classifier."""
    if reading.layout.pooling_in_names or reading.geometry.get("global_pool") != "token":
        return False
    # Only the original code writes a batch norm before the head, and it writes fc_norm if it pools.
    return not any(
        name.startswith(BATCH_NORM) for rule in reading.rules for name in rule.canonicals
    )


def _positions(container: Container, reading: Reading) -> dict[str, LazyTensor]:
    """Return the position embeddings, by canonical name."""
    rules = [rule for rule in reading.rules if set(rule.canonicals) & POSITION_EMBEDDINGS]
    return read_tensors(container.tensors, rules)
