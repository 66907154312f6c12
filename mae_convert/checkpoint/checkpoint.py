"""An open checkpoint: file, layout, configuration and lazy canonical tensors in one object."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mae_convert.checkpoint.prefixes import Stripped
from mae_convert.errors import ConfigurationError, MaeConvertError, Option
from mae_convert.families import family_of
from mae_convert.families.checkpoint_options import OF_FIELDS, Flags
from mae_convert.families.configuration import Configuration, check_flags_apply
from mae_convert.families.family import Family
from mae_convert.formats import Container
from mae_convert.formats.tensor import LazyTensor
from mae_convert.layouts.layout import Layout
from mae_convert.layouts.table import Rule, Table


@dataclass(frozen=True)
class Origin:
    """The origin of a downloaded checkpoint: a Hub repository or an official file."""

    name: str
    """The exact location: ``hf://owner/name@commit/file``, or the name of an official file."""

    record: Mapping[str, Any] = field(default_factory=dict)
    """The description for a conversion record: repository and commit, or URL, and the licence."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """Configuration fields of the downloaded model, used if the file does not contain them."""

    config_source: str = ""
    """The source of the fields in `config`, for messages; "" if `config` is empty."""

    notes: tuple[str, ...] = ()
    """Messages for the user about the selection or the download."""


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint whose layout was recognised.

    Its configuration is complete unless `open_checkpoint` was called with ``incomplete``.
    """

    container: Container
    layout: Layout
    table: Table
    synonyms: tuple[str, ...]
    """Other layouts that have the same names and shapes for these tensors."""

    task: str
    configuration: Configuration
    tensors: Mapping[str, LazyTensor] = field(repr=False)
    """The lazy tensors by canonical name, in canonical order."""

    rules: tuple[Rule, ...] = field(repr=False)
    """The mapping rules of the stored tensors that the model uses."""

    dropped: Mapping[str, str]
    """The reasons why tensors of the file are not used, by stored name."""

    prefix: Stripped
    """The prefixes that were removed from the stored tensor names.

    The names in `container.tensors` and in `rules` do not have these prefixes.
    """

    relative: Any = None
    """The model to which the tensors belong, if it is a variant of the family such as CrossMAE;
    otherwise None."""

    origin: Origin | None = None
    """The origin of a downloaded checkpoint, or None."""

    created: Mapping[str, str] = field(default_factory=dict)
    """The reasons why tensors that are not stored were created as zeros, by canonical name."""

    key_bias: bool = True
    """Whether the model has key biases; if not, zero key biases are created."""

    also: tuple[str, ...] = ()
    """Other tasks for which the file contains every tensor."""

    incomplete: Mapping[str, str] = field(default_factory=dict)
    """The tasks, other than `task`, for which the tensors cannot be read, each with the reason."""

    unread: tuple[str, ...] = ()
    """Configuration fields that a library may use but mae-convert does not, each with its file."""

    before_steps: "Checkpoint | None" = field(default=None, repr=False)
    """The checkpoint before steps of a conversion were applied; None if no step was applied."""

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
        """Return a copy of the checkpoint with some fields of its configuration set.

        Args:
            fields: the values by name of the field, such as ``num_attention_heads``.
            source: the source of the values, for reports and records.

        Raises:
            ConfigurationError: a value is impossible.
        """
        return replace(self, configuration=self.configuration.specified(fields, source))

    def require_complete(self, task: str | None = None) -> None:
        """Check that the configuration has all fields that a task needs.

        Args:
            task: the task; default: the task of the checkpoint.

        Raises:
            ConfigurationError: a field is missing.
        """
        with naming(self.origin.name if self.origin else self.path):
            self.configuration.for_task(task or self.task).require_complete()

    @property
    def preprocessor(self) -> Mapping[str, Any]:
        """The preprocessing settings other than mean and std; empty if no file contains any."""
        config, of_library = self.container.config or {}, None
        if self.layout.owns_config(config):  # the library then reads no other preprocessing file
            of_library = self.layout.read_config(config).get("preprocessor")
        if of_library:
            return of_library
        settings = self.container.preprocessor or {}
        if self.container.preprocessor_source or set(settings) - {"image_mean", "image_std"}:
            return settings
        in_config = config.get("preprocessor")
        if isinstance(in_config, Mapping):
            return in_config
        is_named = self.relative is not None and self.relative.certain
        return self.relative.relative.preprocessing if self.relative and is_named else {}

    @property
    def name(self) -> str:
        """The checkpoint's display name: its origin, or its path."""
        return self.origin.name if self.origin else str(self.path)


def require_images(checkpoint: Checkpoint, work: str) -> None:
    """Check that the preprocessing of images or videos is known for a model's family.

    Args:
        checkpoint: the checkpoint.
        work: the operation that needs images, used as the subject of the message.

    Raises:
        MaeConvertError: the preprocessing is not known.
    """
    if not checkpoint.family.takes_images and checkpoint.family.clips is None:
        raise MaeConvertError(
            checkpoint.path,
            f": {work} needs images or videos, but their preprocessing is not known for the"
            f" family of this model ({checkpoint.family.title})",
            hint="use a checkpoint of a family of image or video models",
        )


def as_task(checkpoint: Checkpoint, task: str | None) -> Checkpoint:
    """Return a checkpoint as a model for a task, without the tensors that the task does not need.

    Args:
        checkpoint: the checkpoint.
        task: the task; None for the checkpoint's own task, for which nothing is changed.

    Raises:
        ConfigurationError: the checkpoint does not contain a model for this task.
    """
    if task in (None, checkpoint.task):
        return checkpoint
    checkpoint.family.check_task(task, checkpoint.task)
    names = checkpoint.family.schema(checkpoint.configuration.model, task)
    if missing := [name for name in names if name not in checkpoint.tensors]:
        raise ConfigurationError(
            f"the checkpoint has no {missing[0]}, which the task {task} needs",
            hint=("choose ", Option("task", checkpoint.task)),
        )
    rules = tuple(rule for rule in checkpoint.rules if names.keys() & set(rule.canonicals))
    unused = [rule.external for rule in checkpoint.rules if rule not in rules]
    reason = f"not part of a model for the task {task}"
    return replace(
        checkpoint,
        task=task,
        configuration=checkpoint.configuration.for_task(task),
        tensors={name: checkpoint.tensors[name] for name in names},
        rules=rules,
        dropped={**checkpoint.dropped, **{checkpoint.prefix.stored[n]: reason for n in unused}},
    )


def require_comparable(a: Checkpoint, b: Checkpoint) -> None:
    """Check that two checkpoints have all fields that a comparison needs.

    If their tasks differ, only the encoders are compared.

    Raises:
        ConfigurationError: a field is missing.
    """
    task = a.task if a.task == b.task else "encoder"
    for checkpoint in (a, b):
        checkpoint.require_complete(task)


def without_effect(flags: Flags | None, *checkpoints: Checkpoint) -> list[Option]:
    """Return the specified options that have no effect on the tasks of the checkpoints.

    The result is empty if `flags` is None.
    """
    tasks = {checkpoint.task for checkpoint in checkpoints}
    return [
        Option(option.name)
        for name, option in OF_FIELDS.items()
        if name in (flags or Flags()).given() and not tasks & set(option.tasks)
    ]


def check_flags(flags: Flags | None, *checkpoints: Checkpoint) -> None:
    """Check that each option agrees with at least one of the checkpoints.

    Args:
        flags: the options that the user specified; None if there are none.
        checkpoints: checkpoints that `open_checkpoint` opened with these options and with
            ``fill_only=True``: an option that contradicts a checkpoint was ignored for it.

    Raises:
        ConfigurationError: an option contradicts all of the checkpoints.
    """
    opened = {checkpoint.name: checkpoint.configuration for checkpoint in checkpoints}
    check_flags_apply((flags or Flags()).given(), opened)


@contextmanager
def naming(name: str | Path) -> Iterator[None]:
    """Prefix the messages of errors raised in the context with a name, such as a file name."""
    try:
        yield
    except MaeConvertError as error:
        raise type(error)(name, ": ", error) from error
