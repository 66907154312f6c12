"""What a layout is: tables, the containers it lives in, and what it takes for granted."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mae_convert.errors import LayoutError, Option, Text
from mae_convert.layouts.table import Table

ConfigReader = Callable[[Mapping[str, Any]], dict[str, Any]]
ConfigWriter = ConfigReader
Refusal = Callable[[Any, str], Text | None]

IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


def _nothing_to_refuse(config: Any, task: str) -> Text | None:  # noqa: ARG001
    return None


@dataclass(frozen=True)
class Difference:
    """A known difference between a layout's own programs and the reference model."""

    activation: str
    """The first intermediate activation that differs."""

    sentence: str
    """What differs, for a person."""

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class Layout:
    """One naming and orientation of a model's tensors, as people have them."""

    name: str
    """The name on the command line."""

    family: str
    """The name of the family of models whose tensors it names."""

    title: str
    """One line of description."""

    tables: tuple[Table, ...]
    """The spellings; all are read, the first that can hold a task is written."""

    containers: tuple[str, ...]
    """Kinds of file that hold this layout; the first is used for a directory."""

    weights_name: str | None = None
    """Name of the weights file when the layout is written as a directory, or None when it is
    written as a single file."""

    state_key: str | None = None
    """The key under which the layout's own programs look for the tensors in a ``.pth``; None where
    they want a plain state dict."""

    conventions: Mapping[str, Any] = field(default_factory=dict)
    """Configuration fields that the layout implies where nothing else tells them, and
    ``image_mean``, ``image_std``."""

    fixed: tuple[str, ...] = ()
    """The conventions that the layout's own code has no other value for."""

    class_defaults: tuple[str, ...] = ()
    """The conventions that its classes take where a configuration is there and lacks the field."""

    pooling_in_names: bool = True
    """A classifier that reads the class token has other names than a pooled one in every program
    that uses the layout."""

    also_file: bool = False
    """Whether a layout with a directory is also written as a single file."""

    read_config: ConfigReader = dict
    """The fields that a configuration beside or inside the weights tells."""

    write_config: ConfigWriter = dict
    """``config.json`` of a directory or of a Keras archive, made of the configuration as files
    carry it: the fields of the model, ``image_mean``, ``image_std`` and ``task``."""

    owns_config: Callable[[Mapping[str, Any]], bool] = lambda _: False
    """Whether a configuration can only be this layout's."""

    refusal: Refusal = _nothing_to_refuse
    """Why a model cannot be written in this layout, or None."""

    differences: Callable[[Any, str], tuple[Difference, ...]] = lambda _, __: ()
    """What the layout's own programs compute otherwise than such a model, and no configuration of
    theirs can express."""

    def table_for(self, task: str, *, key_bias: bool = True, names: Collection[str] = ()) -> Table:
        """Return the table that is written for a task.

        Args:
            task: the task.
            key_bias: whether the blocks have a bias of the key; where the layout always has a
                place for one, this makes no difference.
            names: canonical names that are to be written, where tables differ in what they hold.

        Raises:
            LayoutError: the layout cannot hold the task.
        """
        possible = [table for table in self.tables if task in table.tasks]
        holding = [table for table in possible if table.holds(names)] or possible
        if holding:
            return next((t for t in holding if t.has_key_bias == key_bias), holding[0])
        held = dict.fromkeys(task for table in self.tables for task in table.tasks)
        raise LayoutError(
            (
                f"the {self.name} layout cannot hold a model for the task {task}, only for "
                f"{', '.join(held)}"
            ),
            hint=(Option("task", "encoder"), " leaves the rest out"),
        )
