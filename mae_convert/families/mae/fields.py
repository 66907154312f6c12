"""Determine the configuration fields of the image MAE that are not stored in tensors.

Contradictions between the sources of a field are detected.
"""

from collections.abc import Iterator
from typing import Any

from mae_convert.errors import ConfigurationError
from mae_convert.families.canonical import square_grid
from mae_convert.families.checkpoint_options import named
from mae_convert.families.configuration import Missing, missing_heads
from mae_convert.families.evidence import (
    FAMILY,
    NAMES,
    PREPROCESSING,
    SQUARE,
    Evidence,
    FieldValue,
)
from mae_convert.families.mae.position_tables import Grid, grid_of_tables
from mae_convert.families.mae.training_arguments import HEADS, TrainingArguments

# The layouts in which the official weights are published.
PUBLISHED_AS = ("facebook", "timm", "transformers", "transformers-tf")
FROM_OFFICIAL = ("num_attention_heads", "decoder_num_attention_heads", "image_size")


def arguments(evidence: Evidence) -> TrainingArguments:
    """Return the training arguments of a checkpoint, and the shapes that they must agree with."""
    return TrainingArguments.of(evidence.training_args, evidence.geometry)


def values_of(
    name: str, evidence: Evidence, official: Iterator[FieldValue]
) -> Iterator[FieldValue]:
    """Yield the values of a field in order of priority.

    Args:
        name: the field.
        evidence: all evidence about the field.
        official: values of the official models with the same tensor shapes.

    Raises:
        ConfigurationError: training arguments and position table contradict each other.
    """
    relative = FieldValue(
        evidence.relative.get(name), f"convention of {evidence.relative_name}", FAMILY
    )
    argument = arguments(evidence).value
    if name in PREPROCESSING:
        yield relative
        yield FieldValue(argument(name), "training arguments")
        return
    if name == "image_size":
        # If positions do not follow the grid, neither their table nor the arguments determine the
        # size.
        yield relative
        yield _image_size(evidence)
    else:
        yield FieldValue(argument(name), "training arguments")
        yield relative
    contradicted = name in HEADS and arguments(evidence).contradiction(name)
    if name in FROM_OFFICIAL and evidence.layout in PUBLISHED_AS and not contradicted:
        yield from official
    if name == "image_size":
        yield FieldValue(_square_size(evidence), "square grid", SQUARE)
    if name == "global_pool":
        source = (
            "tensor names of a class-token classifier; a pooled classifier without fc_norm has the "
            "same names"
        )
        yield FieldValue("token", source, NAMES)
    source = "convention of solo-learn, identified by the tensor names"
    yield FieldValue(evidence.by_names.get(name), source, NAMES)


def _image_size(evidence: Evidence) -> FieldValue:
    """Return the image size that the training arguments or the fixed position table specify.

    The value is None if neither of them specifies the size.

    Raises:
        ConfigurationError: the arguments contradict the table or the tensors' shapes.
    """
    table = grid_of_tables(evidence.positions, evidence.geometry["num_patches"])
    size = arguments(evidence).image_size(table)
    if size is not None:
        confirmed = f", confirmed by {table.where}" if table else ""
        return FieldValue(size, f"training arguments{confirmed}")
    if table is not None:
        return FieldValue(_size_of(table.grid, evidence), f"{table.where} ({table.words})")
    return FieldValue(None, "")


def _square_size(evidence: Evidence) -> Any:
    grid = square_grid(evidence.geometry["num_patches"])
    return None if grid is None else _size_of(grid, evidence)


def _size_of(grid: Grid, evidence: Evidence) -> int | tuple[int, int]:
    patch = evidence.geometry["patch_size"]
    height, width = (patch, patch) if isinstance(patch, int) else patch
    size = (grid[0] * height, grid[1] * width)
    return size[0] if size[0] == size[1] else size


def grid_of_size(size: Any, patch: Any) -> Grid:
    """Return rows and columns of patches; ``size`` and ``patch`` are numbers or (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    return height // rows, width // columns


def missing(name: str, evidence: Evidence) -> Missing:
    """Return the description of a missing image size or number of heads."""
    if name != "image_size":
        return missing_heads(name, evidence, arguments(evidence).contradiction(name))
    count = evidence.geometry["num_patches"]
    reason = f"{count} patches do not form a square grid"
    option = named(name, placeholder="HxW")
    return Missing(name, "the image size", option, reason, evidence.size_hint)


def placeholder(name: str, evidence: Evidence) -> Any:
    """Return a valid value for a missing field; it must not be used for computations."""
    if name != "image_size":
        return 1
    patch = evidence.geometry["patch_size"]
    height, width = (patch, patch) if isinstance(patch, int) else patch
    return evidence.geometry["num_patches"] * height, width


def check_pooling(task: str, evidence: Evidence) -> None:
    """Refuse a configuration with pooling if the tensors belong to a class-token classifier.

    A configuration with ``fc_norm`` False is accepted: it describes a classifier that normalizes
    before the pooling, and such a classifier has the tensor names of a class-token classifier.

    Raises:
        ConfigurationError: the configuration belongs to other weights.
    """
    if task != "classify" or "global_pool" in {**evidence.geometry, **evidence.flags}:
        return
    pooling = evidence.config.get("global_pool")
    before = pooling == "avg" and evidence.config.get("fc_norm") is False
    if pooling not in (None, "token") and not before:
        raise ConfigurationError(
            f"{evidence.config_source} specifies global_pool {pooling}, but the tensors have no "
            "fc_norm, so they belong to a model with global_pool token",
            hint="this configuration belongs to other weights",
        )


def check_image_size(size: Any, evidence: Evidence) -> None:
    """Refuse an image size whose number of patches is not the number of stored positions.

    Raises:
        ConfigurationError: the numbers differ, or `size` is not an image size.
    """
    patch, count = evidence.geometry["patch_size"], evidence.geometry["num_patches"]
    where = named("image_size") if evidence.flags.get("image_size") else evidence.config_source
    try:
        height, width = (size, size) if isinstance(size, int) else size
        rows, columns = (patch, patch) if isinstance(patch, int) else patch
        fits = height % rows == width % columns == 0
        fits = fits and (height // rows) * (width // columns) == count
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ConfigurationError(
            where,
            f" specifies an image size of {size}, but the tensors have position embeddings for "
            f"{count} patches of size {patch}",
            hint=(
                "specify the image size that the model was trained for with ",
                named("image_size"),
            ),
        )


def check_position_tables(size: Any, evidence: Evidence) -> None:
    """Refuse a configuration whose image size contradicts the grid of the fixed position tables.

    The check is skipped if an option specifies the size, and for models whose positions do not
    follow the grid.

    Raises:
        ConfigurationError: the image size contradicts a table, or the tables of encoder and decoder
            have different grids.
    """
    if evidence.flags.get("image_size") or "image_size" in evidence.relative:
        return
    table = grid_of_tables(evidence.positions, evidence.geometry["num_patches"])
    grid = grid_of_size(size, evidence.geometry["patch_size"])
    if table is not None and table.grid != grid:
        raise ConfigurationError(
            f"{evidence.config_source} specifies an image size of {size}, which is {grid[0]} x "
            f"{grid[1]} patches, but {table.where} has the values for {table.words}",
            hint=(
                "specify the image size that the model was trained for with ",
                named("image_size", placeholder="HxW"),
            ),
        )
