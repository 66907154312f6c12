"""A mutable configuration with the attributes and methods that scripts for transformers use."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from mae_convert.errors import ConfigurationError
from mae_convert.families.mae.layouts.transformers import CONVENTIONS
from mae_convert.files.atomic import write_file
from mae_convert.models.transformers_errors import raising_as_transformers
from reference_models.configuration import ViTMAEConfig as ReferenceConfig

FIELDS = tuple(field.name for field in fields(ReferenceConfig))
IMPLIED = tuple(
    name
    for base in ReferenceConfig.__mro__
    for name, value in vars(base).items()
    if isinstance(value, property)
)
CONFIG_NAME = "config.json"
# Further attributes of transformers' configurations, with their defaults.
OUTPUT_FIELDS: Mapping[str, Any] = {
    "output_hidden_states": False,
    "output_attentions": False,
    "return_dict": True,
    "problem_type": None,
}
# Pairs of fields of which one must divide the other. They are checked when a model is created,
# because scripts set one after the other.
PARTNERS: Mapping[str, str] = {
    "hidden_size": "num_attention_heads",
    "num_attention_heads": "hidden_size",
    "decoder_hidden_size": "decoder_num_attention_heads",
    "decoder_num_attention_heads": "decoder_hidden_size",
    "image_size": "patch_size",
    "patch_size": "image_size",
}
TRUE, FALSE = ("true", "1", "y", "yes"), ("false", "0", "n", "no")


PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def check_problem_type(kind: Any, num_labels: int) -> None:
    """Raise ValueError if a problem type is unknown, or if it needs more than `num_labels` labels.

    None is valid: as in transformers, the problem type is then not specified.
    """
    if kind is not None and kind not in PROBLEM_TYPES:
        raise ValueError(f"problem_type must be {', '.join(PROBLEM_TYPES)} or None, not {kind!r}")
    if kind == "single_label_classification" and num_labels == 1:
        raise ValueError(
            f"problem_type {kind!r} needs more than one class; set num_labels=2, or"
            ' problem_type="regression"'
        )


class ViTMAEConfig:
    """Configuration of a model, with the field names of ``transformers.ViTMAEConfig``.

    Every field can be set; an invalid value raises ValueError. Fields can be set in any order: two
    fields that contradict each other, such as a number of heads that does not divide the width,
    cause a ValueError only when a model is created. An argument that is not a field becomes an
    attribute, as in transformers. The default of ``layer_norm_eps`` is 1e-6, with which the
    original models were trained, instead of transformers' 1e-12. Two configurations are equal if
    `to_dict` returns equal dictionaries; they have no hash, because they can change. `plain`
    returns the fields as the immutable configuration of ``reference_models``.

    Raises:
        ValueError: the value of a field is invalid.
    """

    model_type = "vit_mae"
    # Attributes of all configurations in transformers; they have no effect here.
    _commit_hash = None
    architectures = None
    attribute_map: Mapping[str, str] = {}
    chunk_size_feed_forward = 0
    dtype = torch_dtype = None
    is_decoder = False
    is_encoder_decoder = False
    sub_configs: Mapping[str, Any] = {}
    task_specific_params = None
    tie_word_embeddings = False
    tokenizer_class = None
    torchscript = False
    output_hidden_states: bool
    output_attentions: bool
    return_dict: bool
    problem_type: str | None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, **values: Any) -> None:
        labels = values.pop("id2label", None)
        values.pop("label2id", None)
        values.pop("model_type", None)
        path = values.pop("name_or_path", values.pop("_name_or_path", ""))
        if labels is not None:
            values["num_labels"] = len(labels)
        fields_given = {n: v for n, v in values.items() if n in FIELDS}
        rest = {**OUTPUT_FIELDS, **{n: v for n, v in values.items() if n not in FIELDS}}
        checked = ReferenceConfig(**fields_given)
        check_problem_type(rest["problem_type"], checked.num_labels)
        self.__dict__.update(vars(checked), **rest, _labels=None, _name_or_path=path)
        if labels is not None:
            self.id2label = labels

    def __getattr__(self, name: str) -> Any:
        """Return values derived from the fields, such as ``num_patches`` and ``grid_hw``."""
        if name in IMPLIED:
            return getattr(plain(self), name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in IMPLIED:
            raise AttributeError(f"{name} is derived from other fields and cannot be set")
        if name in FIELDS:
            value = _checked(name, value)
            if name == "num_labels" and value != self.num_labels:
                self.__dict__["_labels"] = None
        if name == "problem_type":
            check_problem_type(value, self.num_labels)
        object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ViTMAEConfig):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    @property
    def id2label(self) -> dict[int, str]:
        """Names of the classes by number."""
        names = self.__dict__["_labels"] or [f"LABEL_{n}" for n in range(self.num_labels)]
        return dict(enumerate(names))

    @id2label.setter
    def id2label(self, labels: Mapping[Any, str]) -> None:
        by_number = {int(number): str(name) for number, name in labels.items()}
        if sorted(by_number) != list(range(len(by_number))):
            raise ValueError("id2label must name classes 0, 1, 2 and so on")
        self.num_labels = len(by_number)
        names = tuple(by_number[number] for number in range(len(by_number)))
        unnamed = all(name == f"LABEL_{number}" for number, name in enumerate(names))
        self.__dict__["_labels"] = None if unnamed else names

    @property
    def label2id(self) -> dict[str, int]:
        """The number (index) of each class, by the name of the class."""
        return {name: number for number, name in self.id2label.items()}

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes in order, or None if they are not specified."""
        named: tuple[str, ...] | None = self.__dict__["_labels"]
        return named

    @property
    def name_or_path(self) -> str:
        """The name from which the model was loaded; empty if it was not loaded."""
        return str(self.__dict__["_name_or_path"] or "")

    @name_or_path.setter
    def name_or_path(self, name: str) -> None:
        self.__dict__["_name_or_path"] = name

    @property
    def use_return_dict(self) -> bool:
        """Whether outputs are named objects rather than tuples."""
        return bool(self.return_dict)

    def update(self, values: Mapping[str, Any]) -> None:
        """Set several attributes."""
        for name, value in values.items():
            setattr(self, name, value)

    def update_from_string(self, changes: str) -> None:
        """Set attributes from a text such as ``mask_ratio=0.5,norm_pix_loss=true``.

        Each attribute keeps its type.

        Raises:
            ValueError: an attribute does not exist, or a text is not a valid value for it.
        """
        new = {}
        for change in changes.split(","):
            name, separator, text = change.partition("=")
            if not separator or not hasattr(self, name):
                raise ValueError(f"{change!r} does not set an attribute; write name=value")
            new[name] = _in_the_type_of(getattr(self, name), name, text)
        self.update(new)

    def get_text_config(self, *_: Any, **__: Any) -> "ViTMAEConfig":
        """Return the configuration itself: there is no separate configuration for text."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes as values that can be written as JSON."""
        rest = {
            name: value
            for name, value in self.__dict__.items()
            if name not in FIELDS and not name.startswith("_")
        }
        named = {"id2label": self.id2label, "label2id": self.label2id} if self.labels else {}
        values = {name: getattr(self, name) for name in FIELDS}
        stored = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
        return {**stored, **rest, **named, "model_type": self.model_type}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the attributes that differ from the defaults, in the form of `to_dict`."""
        usual = type(self)().to_dict()
        return {
            name: value
            for name, value in self.to_dict().items()
            if name == "model_type" or name not in usual or value != usual[name]
        }

    def to_json_string(self, use_diff: bool = False) -> str:
        """Return all attributes, or only attributes that differ from the defaults, as JSON."""
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, path: str | Path, use_diff: bool = False) -> None:
        """Write the result of `to_json_string` to a file; an existing file is replaced."""
        write_file(Path(path), self.to_json_string(use_diff), overwrite=True)

    @classmethod
    def from_json_file(cls, path: str | Path) -> "ViTMAEConfig":
        """Return the configuration in a JSON file.

        Raises:
            CheckpointError: the file is missing or is not a JSON object; the error is also an
                OSError.
        """
        from mae_convert.models.model_names import read_json

        with raising_as_transformers():
            return cls.from_dict(read_json(Path(path)))

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], *, return_unused_kwargs: bool = False, **changes: Any
    ) -> Any:
        """Return a configuration with the values of a mapping, updated with `changes`.

        With ``return_unused_kwargs``, the result is a pair: the configuration, and a dictionary of
        the changes that are not attributes of a configuration.
        """
        if not return_unused_kwargs:
            return cls(**{**values, **changes})
        usual = cls()
        used = {n: v for n, v in changes.items() if n in values or hasattr(usual, n)}
        unused = {name: value for name, value in changes.items() if name not in used}
        return cls(**{**values, **used}), unused

    @classmethod
    @raising_as_transformers()
    def get_config_dict(
        cls, name: str | Path, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the configuration of a checkpoint as a dictionary, and the remaining options.

        Args:
            name: see `from_pretrained`.
            options: ``revision`` and ``subfolder`` of the checkpoint, and other options, which are
                returned.

        Raises:
            MaeConvertError: see `from_pretrained`.
        """
        from mae_convert.models.model_names import stored_config

        return stored_config(name, options)

    @classmethod
    @raising_as_transformers()
    def from_pretrained(
        cls, name: str | Path, *, return_unused_kwargs: bool = False, **changes: Any
    ) -> Any:
        """Return the configuration of a checkpoint.

        Args:
            name: a directory, its ``config.json``, or a name as for the models' `from_pretrained`.
            return_unused_kwargs: see `from_dict`.
            changes: new values of fields. In addition, ``revision`` and ``subfolder`` specify the
                revision and the directory of a repository on the Hub.

        Raises:
            MaeConvertError: the checkpoint does not exist or cannot be read; the error is also an
                OSError.
        """
        from mae_convert.models.model_names import stored_config

        stored, rest = stored_config(name, changes)
        # transformers' defaults, for fields that the checkpoint's file does not contain.
        usual = {"layer_norm_eps": CONVENTIONS["layer_norm_eps"], "name_or_path": str(name)}
        return cls.from_dict({**usual, **stored}, return_unused_kwargs=return_unused_kwargs, **rest)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json`` to a directory, which is created if needed."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        self.to_json_file(Path(directory) / CONFIG_NAME)


def _checked(name: str, value: Any) -> Any:
    """Check a value independently of the other fields, and return it as a configuration stores it.

    Raises:
        ValueError: the value is invalid.
    """
    try:
        return getattr(ReferenceConfig(**{name: value}), name)
    except ValueError:
        if name not in PARTNERS:
            raise
        try:
            return getattr(ReferenceConfig(**{name: value, PARTNERS[name]: value}), name)
        except ValueError:
            pass
        raise


def _in_the_type_of(value: Any, name: str, text: str) -> Any:
    """Return `text` converted to the type of `value`, the current value of the attribute `name`.

    Raises:
        ValueError: `text` cannot be converted.
    """
    if isinstance(value, bool) and text.lower() in (*TRUE, *FALSE):
        return text.lower() in TRUE
    if isinstance(value, int | float) and not isinstance(value, bool):
        return type(value)(text)
    if isinstance(value, str):
        return text
    raise ValueError(f"{name} is {value!r} and cannot be set to the text {text!r}")


def as_config(config: ViTMAEConfig | ReferenceConfig | Mapping[str, Any]) -> ViTMAEConfig:
    """Convert a configuration or a mapping to a `ViTMAEConfig`.

    Raises:
        ConfigurationError: `config` is neither a configuration nor a mapping.
        ValueError: the value of a field is invalid.
    """
    if isinstance(config, ViTMAEConfig):
        return config
    values = config.to_dict() if isinstance(config, ReferenceConfig) else config
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{config!r} is not a configuration", hint="pass a ViTMAEConfig")
    return ViTMAEConfig(**values)


def plain(config: ViTMAEConfig | ReferenceConfig, **changes: Any) -> ReferenceConfig:
    """Return the immutable configuration of the reference models, with some fields changed."""
    return ReferenceConfig(**{**{name: getattr(config, name) for name in FIELDS}, **changes})
