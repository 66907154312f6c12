"""Resolve configuration fields that are not stored in tensors; each value has a named source.

`mae_convert.families.evidence` defines the sources and their order; the model family defines the
fields.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from mae_convert.errors import ConfigurationError, Option, Text, join
from mae_convert.families.canonical import TASKS
from mae_convert.families.checkpoint_options import named
from mae_convert.families.evidence import PREPROCESSING, Evidence, FieldValue, candidates, same_size

if TYPE_CHECKING:
    from mae_convert.families.family import Family


@dataclass(frozen=True)
class Missing:
    """A field without a value, and how to specify it."""

    field: str
    """The name of the field."""

    what: str
    """The description of the field, as a part of a sentence."""

    option: Option
    """The option that specifies the field."""

    reason: str
    """Why the tensors do not determine the field, and which evidence could not be used."""

    hint: str = ""
    """Additional advice, such as a phrase with the image size of a related model; "" for none."""


@dataclass(frozen=True)
class Configuration:
    """A configuration, and the source of each field that is not stored in tensors."""

    model: Any
    """The model's fields, an instance of its family's configuration class.

    The fields in `missing` have placeholder values.
    """

    image_mean: tuple[float, ...]
    """The mean that is subtracted from each channel."""

    image_std: tuple[float, ...]
    """The standard deviation by which each channel is divided after its mean is subtracted."""

    sources: Mapping[str, str]
    """The source, as text, of each field that is not stored in tensors."""

    labels: tuple[str, ...] | None = None
    """The names of a classifier's classes, or None if unknown."""

    assumptions: Mapping[str, str] = field(default_factory=dict)
    """The kind of assumption ("official", "layout" ...) of each field whose value is assumed."""

    missing: tuple[Missing, ...] = ()
    """Fields without a value; empty for every checkpoint that can be run or converted."""

    inferred: Mapping[str, Any] | None = None
    """The evidence of the experiment that determined fields; None if no fields were determined."""

    unspecified: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict, repr=False, compare=False
    )
    """For each task, the fields that the task needs but that are not stored in tensors."""

    def value(self, name: str) -> Any:
        """Return the value of a field of the model or the preprocessing; None if it is missing."""
        if name in {missing.field for missing in self.missing}:
            return None
        return getattr(self, name) if name in PREPROCESSING else getattr(self.model, name)

    def assumed(self) -> dict[str, dict[str, Any]]:
        """Return the value and the source of every field that is not stored in tensors, by name."""
        return {
            name: {"value": self.value(name), "source": source}
            for name, source in self.sources.items()
        }

    def only_assumed(self) -> dict[str, dict[str, Any]]:
        """Return the value, source and kind of assumption of every assumed field, by field name."""
        return {
            name: {**entry, "assumption": self.assumptions[name]}
            for name, entry in self.assumed().items()
            if name in self.assumptions
        }

    def specified(self, fields: Mapping[str, Any], source: str) -> "Configuration":
        """Return a copy of the configuration with some fields set.

        These fields are then neither missing nor assumed.

        Raises:
            ConfigurationError: a value is invalid.
        """
        preprocessing = {name: fields[name] for name in PREPROCESSING if name in fields}
        of_model = {name: value for name, value in fields.items() if name not in preprocessing}
        try:
            model = replace(self.model, **of_model)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"invalid configuration: {error}") from error
        return replace(
            self,
            model=model,
            **preprocessing,
            sources={**self.sources, **dict.fromkeys(fields, source)},
            assumptions={k: v for k, v in self.assumptions.items() if k not in fields},
            missing=tuple(missing for missing in self.missing if missing.field not in fields),
        )

    def for_task(self, task: str) -> "Configuration":
        """Return the configuration for a task, with only the fields that the task needs.

        An encoder, for example, does not need the number of decoder heads. A missing field contains
        a placeholder. If the task does not need a missing field, the fields of the decoder are set
        to the defaults of the configuration class, so that no placeholder is written to a file.
        """
        required = self.unspecified.get(task, ())
        if all(missing.field in required for missing in self.missing):
            return self
        defaults = type(self.model)()
        decoder = {
            field.name: getattr(defaults, field.name)
            for field in fields(defaults)
            if field.name.startswith("decoder_")
        }
        return replace(
            self,
            model=replace(self.model, **decoder),
            missing=tuple(missing for missing in self.missing if missing.field in required),
        )

    def require_complete(self) -> None:
        """Raise ConfigurationError if fields are missing; its message names all of them."""
        if self.missing:
            what = " nor ".join(f"{field.what} ({field.reason})" for field in self.missing)
            stores, it = (
                ("does not store", "it") if len(self.missing) == 1 else ("stores neither", "them")
            )
            infer = f", or determine {it} with `mae-convert inspect FILE --infer`"
            raise ConfigurationError(
                f"the checkpoint {stores} {what}",
                hint=(
                    f"specify {it} with ",
                    options_for(self.missing),
                    "" if self.inferred else infer,
                ),
            )


def options_for(missing: Iterable[Missing]) -> Text:
    """Return the options that specify missing fields, for a message."""
    return join([(field.option, field.hint) for field in missing], " and ")


def resolve(
    task: str, evidence: Evidence, family: "Family", *, incomplete: bool = False
) -> Configuration:
    """Return the configuration that follows from the evidence, with the source of each field.

    Args:
        task: "pretrain", "encoder" or "classify".
        evidence: all evidence about the fields.
        family: the model family, which determines the fields and further evidence.
        incomplete: return a configuration even if fields are missing.

    Raises:
        ConfigurationError: a value is impossible or contradicts other evidence, or, unless
            ``incomplete``, a field is missing.
    """
    _refuse_unknown_flags(evidence, family)
    family.check(task, evidence)
    names = [field.name for field in fields(family.configuration_class)]
    values: dict[str, Any] = {k: v for k, v in evidence.geometry.items() if k in names}
    sources: dict[str, str] = {}
    assumptions: dict[str, str] = {}
    missing = []
    for name in (*family.unspecified_fields(task), *family.optional_fields(task)):
        chosen = _chosen(name, task, evidence, family)
        if chosen is None:
            if name in family.unspecified_fields(task):
                missing.append(family.missing(name, evidence))
                values[name] = family.placeholder(name, evidence)
            continue
        values[name], sources[name] = chosen.value, chosen.source
        if chosen.assumption:
            assumptions[name] = chosen.assumption
    channels = evidence.geometry["num_channels"]
    preprocessing = {
        name: _per_channel(name, values.pop(name), channels, sources[name])
        for name in PREPROCESSING
    }
    values |= _values_along(values, evidence.config, names)
    values |= family.derived({**values, **preprocessing}, evidence)
    try:
        model = family.configuration_class(**values)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"invalid configuration: {error}") from error
    resolved = Configuration(
        model,
        image_mean=preprocessing["image_mean"],
        image_std=preprocessing["image_std"],
        sources=sources,
        labels=_labels(evidence) if task == "classify" else None,
        assumptions=assumptions,
        missing=tuple(missing),
        unspecified={name: family.unspecified_fields(name) for name in TASKS},
    )
    if not incomplete:
        resolved.require_complete()
    return resolved


def _chosen(name: str, task: str, evidence: Evidence, family: "Family") -> FieldValue | None:
    """Return a field's value from the evidence with the highest priority; None if there is none.

    Raises:
        ConfigurationError: an option contradicts the tensors, or the value is impossible.
    """
    values = candidates(name, evidence, family.values_of(name, task, evidence))
    chosen = next((each for each in values if each.value is not None), None)
    _check_flag(name, evidence)
    if chosen is not None and name.endswith("num_attention_heads"):
        _check_heads(name, chosen.value, chosen.source, evidence)
    return chosen


def missing_heads(name: str, evidence: Evidence, contradiction: str | None = None) -> Missing:
    """Return the description of a missing number of attention heads.

    Args:
        name: "num_attention_heads" or "decoder_num_attention_heads".
        evidence: the evidence about the fields of the checkpoint's configuration.
        contradiction: a sentence about evidence that could not be used, or None.
    """
    width_field = name.replace("num_attention_heads", "hidden_size")
    width = evidence.geometry[width_field]
    possible = [str(n) for n in range(1, width + 1) if width % n == 0 and width // n >= 4]
    part = "decoder" if name.startswith("decoder") else "encoder"
    reason = f"{width_field} {width} allows {', '.join(possible)}"
    if contradiction:
        reason += f"; {contradiction}"
    return Missing(name, f"the number of attention heads of the {part}", named(name), reason)


def _labels(evidence: Evidence) -> tuple[str, ...] | None:
    """Return the class names of a classifier, or None if the configuration has none."""
    named = evidence.config.get("id2label")
    if named is None:
        return None
    count = evidence.geometry["num_labels"]
    try:
        by_number = {int(number): str(name) for number, name in named.items()}
    except (AttributeError, TypeError, ValueError):
        by_number = {}
    if sorted(by_number) != list(range(count)):
        raise ConfigurationError(
            f"{evidence.config_source} names {len(by_number)} classes in id2label, but the head "
            f"has {count} outputs",
            hint="this configuration belongs to other weights",
        )
    return tuple(by_number[number] for number in range(count))


def _per_channel(name: str, value: Any, channels: int, source: str) -> tuple[float, ...]:
    """Return a number for each channel; a single number, as image processors allow, is repeated."""
    numbers = value if isinstance(value, (list, tuple)) else (value,) * channels
    if len(numbers) != channels or not all(
        type(number) in (int, float) and math.isfinite(number) for number in numbers
    ):
        raise ConfigurationError(
            *(f"{name} is {value!r} (", _option_of(source), f"), but must be {channels} numbers, "),
            "one for each channel",
        )
    return tuple(numbers)


def _check_flag(name: str, evidence: Evidence) -> None:
    flag = evidence.flags.get(name)
    measured = evidence.geometry.get(name)
    if None not in (flag, measured) and flag != measured:
        raise ConfigurationError(
            *(
                named(name, _written(flag)),
                f" contradicts the tensors' shapes, which imply {measured}",
            ),
            hint="leave it out",
        )


def _refuse_unknown_flags(evidence: Evidence, family: "Family") -> None:
    """Refuse an option for a field that models of the family do not have.

    If two files are compared, the option may apply to the other file and is not refused.
    """
    names = {field.name for field in fields(family.configuration_class)}
    for name in evidence.flags:
        if name not in names and not evidence.fill_only:
            raise ConfigurationError(
                named(name),
                f" has no meaning for a model of the family {family.name}",
                hint="leave it out",
            )


def check_flags_apply(flags: Mapping[str, Any], opened: Mapping[str, Configuration]) -> None:
    """Check that each option applies to at least one of the files.

    Args:
        flags: the fields that the user specified, by name.
        opened: the configuration of each file, by file name. The files were opened with
            ``fill_only=True``: an option that contradicts a file was ignored for this file.

    Raises:
        ConfigurationError: all files contradict an option.
    """
    for name, flag in flags.items():
        others = {
            file: configuration.value(name)
            for file, configuration in opened.items()
            if name in configuration.sources
        }
        if others and all(same_size(flag) != same_size(value) for value in others.values()):
            options = " and ".join(
                f"{file}, which specifies {value}" for file, value in others.items()
            )
            raise ConfigurationError(
                named(name, _written(flag)), f" contradicts {options}", hint="leave the option out"
            )


def check_config(task: str, evidence: Evidence) -> None:
    """Refuse a configuration that contradicts the tensors.

    Raises:
        ConfigurationError: a field of the configuration contradicts the tensors.
    """
    for name, measured in evidence.geometry.items():
        option_value = evidence.config.get(name)
        option_value = tuple(option_value) if isinstance(option_value, list) else option_value
        if (
            isinstance(option_value, tuple)
            and option_value
            and option_value.count(option_value[0]) == len(option_value)
        ):
            option_value = option_value[0]
        if name == "num_labels" or (task != "pretrain" and name.startswith("decoder_")):
            continue
        if option_value is not None and option_value != measured:
            raise ConfigurationError(
                f"{evidence.config_source} specifies {name} as {option_value}, but the tensors "
                f"have {measured}",
                hint="this configuration belongs to other weights",
            )


def _values_along(
    values: Mapping[str, Any], config: Mapping[str, Any], taken: Sequence[str]
) -> dict[str, Any]:
    """Return the values of fields, such as dropout, whose only source is the configuration.

    Args:
        values: the fields that are already resolved.
        config: the stored configuration.
        taken: the names of all fields of the family's configuration class.
    """
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config.items()
        if name in taken and name not in (*values, *PREPROCESSING) and value is not None
    }


def _option_of(source: str) -> Option | str:
    """Return an `Option` for messages if a source is "option NAME", otherwise the source itself."""
    name = source.removeprefix("option ")
    return Option(name) if name != source else source


def _check_heads(name: str, heads: Any, source: str, evidence: Evidence) -> None:
    width_field = name.replace("num_attention_heads", "hidden_size")
    width = evidence.geometry[width_field]
    if type(heads) is not int:
        raise ConfigurationError(
            *(f"{name} is {heads!r} (", _option_of(source), "), but must be a whole number"),
            hint=("specify the number of heads with ", named(name)),
        )
    if heads < 1 or width % heads:
        raise ConfigurationError(
            *(f"{heads} attention heads (", _option_of(source)),
            f") do not divide {width_field} {width}",
            hint=("specify the number of heads with ", named(name)),
        )


def _written(value: Any) -> Any:
    """Return the value of an option as users write it; an image size is written as HxW."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else value
