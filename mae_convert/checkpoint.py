"""Open a checkpoint: container, layout, configuration and lazy canonical tensors in one value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_convert.canonical import schema
from mae_convert.configuration import Configuration, Evidence, resolve
from mae_convert.containers import Container, open_container
from mae_convert.containers.tensor import LazyTensor
from mae_convert.errors import LayoutError
from mae_convert.layouts import LAYOUTS, Layout
from mae_convert.mapping import Rule, Table, read_tensors
from mae_convert.recognition import recognise


@dataclass(frozen=True)
class Flags:
    """What the user says about a checkpoint; None where nothing was said."""

    num_attention_heads: int | None = None
    decoder_num_attention_heads: int | None = None
    layer_norm_eps: float | None = None
    norm_pix_loss: bool | None = None
    mask_ratio: float | None = None
    image_size: tuple[int, int] | None = None

    def given(self) -> dict[str, Any]:
        """Return the fields that were said."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose layout was recognised and whose configuration is complete.

    Attributes:
        tensors: canonical name → lazy tensor, in canonical order.
        rules: how each external tensor was read.
        dropped: external tensors that MAE does not use, with the reason.
        synonyms: other layouts that are the same for these tensors.
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

    @property
    def path(self) -> Path:
        """The file or directory that the user named."""
        return self.container.path


def _layout_named_by(stated: Mapping[str, Any], kind: str) -> str | None:
    """Return the layout that decides where several are the same for the tensors.

    A configuration beside or inside the file names it, else the container: the original code
    writes ``.pth``, timm publishes ``.safetensors``.
    """
    owner = next((name for name, layout in LAYOUTS.items() if layout.owns_config(stated)), None)
    by_container = {"pth": "facebook", "safetensors": "timm"}
    return owner or stated.get("layout") or by_container.get(kind)


def open_checkpoint(
    path: Path | str, flags: Flags | None = None, *, fill_only: bool = False
) -> Checkpoint:
    """Open a file or directory, recognise its layout and resolve its configuration.

    No tensor data is read.

    Args:
        path: a checkpoint file or a model directory.
        flags: what the user says that the file does not.
        fill_only: refuse a flag that contradicts the file.

    Raises:
        CheckpointError: the file cannot be read.
        LayoutError: no known layout fits.
        ConfigurationError: something is missing or contradicted.
    """
    container = open_container(path)
    shapes = {name: tensor.shape for name, tensor in container.tensors.items()}
    stated = container.config or {}
    try:
        reading, synonyms = recognise(shapes, preferred=_layout_named_by(stated, container.kind))
    except LayoutError as error:
        raise LayoutError(f"{container.path}: {error}") from error
    stated = reading.layout.read_config(stated)
    evidence = Evidence(
        geometry=reading.geometry,
        flags=(flags or Flags()).given(),
        stated=stated,
        stated_where=container.config_source or "the file",
        preprocessor=container.preprocessor or {},
        training_args=container.training_args or {},
        conventions=reading.layout.conventions,
        layout=reading.layout.name,
        fill_only=fill_only,
    )
    configuration = resolve(reading.task, evidence)
    canonical = read_tensors(container.tensors, reading.rules)
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
        dropped=reading.dropped,
    )
