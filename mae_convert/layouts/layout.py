"""Layouts: mapping tables, file formats, and the configuration fields that a layout implies."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mae_convert.errors import LayoutError, Option, Text
from mae_convert.layouts.table import Table

ConfigReader = Callable[[Mapping[str, Any]], dict[str, Any]]
ConfigWriter = ConfigReader
Refusal = Callable[[Any, str], Text | None]

CODE_EPSILON = 1e-6
"""The epsilon of all layer norms in the code of the authors of MAE, MAE-ST and VideoMAE."""

IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


def _nothing_to_refuse(config: Any, task: str) -> Text | None:  # noqa: ARG001
    return None


@dataclass(frozen=True)
class Difference:
    """A known difference between the reference model and the program that uses a layout."""

    activation: str | None
    """The first intermediate activation that differs, or None if it is not specified."""

    sentence: str
    """A description of the difference."""

    def __str__(self) -> str:
        return self.sentence


def code_differences(
    program: str, config: Any, task: str, more: Mapping[str, float] | None = None
) -> tuple[Difference, ...]:
    """Return a `Difference` if the code of a model's authors uses other values than the model.

    The code does not read a configuration. All epsilons of its layer norms are 1e-6, and its
    activation is GELU. The result is empty if the model has the same values.

    Args:
        program: the name of the authors' code, for the message.
        config: the configuration of the model.
        task: the task of the model; the epsilon of the decoder is compared only for "pretrain".
        more: further epsilons of the model, by the names of the fields; None if there are none.
    """
    epsilons = {"layer_norm_eps": config.layer_norm_eps}
    if task == "pretrain" and config.decoder_eps != config.layer_norm_eps:
        epsilons["decoder_layer_norm_eps"] = config.decoder_eps
    epsilons |= more or {}
    fields = {name: (CODE_EPSILON, value) for name, value in epsilons.items()}
    values = [
        f"{name} ({in_code} there, {value} in this model)"
        for name, (in_code, value) in {**fields, "hidden_act": ("gelu", config.hidden_act)}.items()
        if in_code != value
    ]
    sentence = (
        f"{program} does not read the configuration in the file and uses other values for "
        f"{', '.join(values)}, so its outputs are not the outputs of this model"
    )
    return (Difference(None, sentence),) if values else ()


@dataclass(frozen=True)
class Layout:
    """The names and orientations of a model's tensors in one library or program."""

    name: str
    """The name on the command line."""

    family: str
    """The name of the family of models."""

    title: str
    """A description in one line."""

    tables: tuple[Table, ...]
    """The mapping tables of all naming variants. All variants are read; files are written with the
    first table that supports the task."""

    containers: tuple[str, ...]
    """The file formats in which this layout can be stored. The weights in a directory are written
    in the first format."""

    weights_name: str | None = None
    """The name of the weights file if the layout is written as a directory, or None if it is
    written as a single file."""

    state_key: str | None = None
    """The key under which the programs that define the layout store the tensors in a ``.pth``
    file; None if they store a plain state dict."""

    conventions: Mapping[str, Any] = field(default_factory=dict)
    """The values that the layout implies for configuration fields, ``image_mean`` and
    ``image_std`` if no values are specified."""

    fixed: tuple[str, ...] = ()
    """The fields of `conventions` whose value is fixed in the code of the library or program that
    uses the layout."""

    class_defaults: tuple[str, ...] = ()
    """The fields of `conventions` whose value is also the default of the configuration class of the
    library that uses the layout. A stored configuration that omits such a field specifies this
    value."""

    pooling_in_names: bool = True
    """Whether the tensor names of a classifier show its pooling: the class token or the mean of the
    patches."""

    also_file: bool = False
    """Whether a layout that is written as a directory can also be written as a single file."""

    read_config: ConfigReader = dict
    """Returns the model's configuration fields, given the configuration that is stored in the
    checkpoint's directory or in its weights file."""

    write_config: ConfigWriter = dict
    """Returns the content of ``config.json`` for a directory or a Keras archive. The argument is a
    dictionary: the fields of the model, ``image_mean``, ``image_std`` and ``task``."""

    owns_config: Callable[[Mapping[str, Any]], bool] = lambda _: False
    """Returns whether a configuration can only belong to this layout."""

    refusal: Refusal = _nothing_to_refuse
    """Returns why a model cannot be written in this layout, or None."""

    differences: Callable[[Any, str], tuple[Difference, ...]] = lambda _, __: ()
    """Called with a configuration and a task; returns the known differences between this model and
    the model as the library or program that uses the layout runs it. Differences that a setting of
    this library or program removes are left out."""

    def table_for(self, task: str, *, key_bias: bool = True, names: Collection[str] = ()) -> Table:
        """Return the table that is written for a task.

        Args:
            task: the task.
            key_bias: whether the blocks have a key bias; has no effect if the layout always has
                key biases.
            names: the canonical names of the tensors to be written; a table that contains all of
                them is preferred.

        Raises:
            LayoutError: the layout does not support the task.
        """
        possible = [table for table in self.tables if task in table.tasks]
        holding = [table for table in possible if table.holds(names)] or possible
        if holding:
            return next((t for t in holding if t.has_key_bias == key_bias), holding[0])
        tasks = dict.fromkeys(task for table in self.tables for task in table.tasks)
        raise LayoutError(
            (
                f"the {self.name} layout does not support models for the task {task}, only for "
                f"{', '.join(tasks)}"
            ),
            hint=(Option("task", "encoder"), " converts only the encoder"),
        )
