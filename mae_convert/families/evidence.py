"""Evidence about configuration fields that are not stored in tensors, in order of priority.

The order is: an option; a configuration in the file or in its directory; evidence that the model
family evaluates (training arguments in the checkpoint, fixed position embeddings, official models
whose tensors have exactly the same names and shapes ...); the convention of the layout. Values from
sources with a lower priority than training arguments and position embeddings are assumptions. There
is no convention for the number of heads.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mae_convert.families.checkpoint_options import OF_FIELDS
from mae_convert.formats.tensor import LazyTensor

PREPROCESSING = ("image_mean", "image_std")

# Fields that follow from the names of tensors instead of their shapes.
BY_NAMES = ("global_pool", "use_mean_pooling")

# The kinds of assumptions: why a value is assumed.
OFFICIAL = "official"  # the official model with the same names and shapes has this value
FAMILY = "family"  # all models of the checkpoint's family have this value
SQUARE = "square"  # the grid is assumed to be square
NAMES = "names"  # models with these tensor names usually have this value
LAYOUT = "layout"  # it is the default of the layout's programs
LAYOUT_CODE = "layout code"  # the layout's programs support only this value


@dataclass(frozen=True)
class FieldValue:
    """The value of a field, its source, and the kind of assumption (None if it is not assumed)."""

    value: Any
    source: str
    assumption: str | None = None


@dataclass(frozen=True)
class Evidence:
    """All evidence about the fields of a configuration; each mapping may be empty."""

    geometry: Mapping[str, Any]
    """The fields that follow from the tensors' shapes; also contains ``num_patches``."""

    flags: Mapping[str, Any]
    """The values of the fields that the user specified, by field name."""

    config: Mapping[str, Any]
    """The configuration in the file or in the same directory."""

    config_source: str
    """A phrase that names the file that contains `config`, for messages."""

    preprocessor: Mapping[str, Any]
    """``image_mean`` and ``image_std`` as in preprocessor_config.json."""

    training_args: Mapping[str, Any]
    """Arguments of the training run that wrote the checkpoint."""

    conventions: Mapping[str, Any]
    """The values that the layout assumes, by field."""

    layout: str
    """The name of the layout."""

    fixed: tuple[str, ...] = ()
    """Fields for which the library or program that uses the layout supports only the value in
    `conventions`."""

    relative: Mapping[str, Any] = field(default_factory=dict)
    """The values, by field, that a known model related to the family uses.

    Empty if the checkpoint does not belong to such a model.
    """

    relative_name: str = ""
    """The name of this related model; "" if there is none."""

    size_hint: str = ""
    """A phrase for messages: the image size of a related model with the same tensor shapes.

    It is "" if there is no such model.
    """

    positions: Mapping[str, LazyTensor] = field(default_factory=dict)
    """The position embeddings, by canonical name; they are read to recognise the grid."""

    recorded: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Assumptions of the conversion that wrote the configuration, from its record.

    Each item is a field with its ``value``, ``source`` and ``assumption``.
    """

    by_names: Mapping[str, Any] = field(default_factory=dict)
    """The values that all models with the checkpoint's tensor names have in common, by field."""

    fill_only: bool = False
    """Whether options only fill in fields that the file does not specify."""

    preprocessor_where: str = "preprocessor_config.json"
    """The file that contains `preprocessor`."""

    def config_value(self, name: str) -> Any:
        """Return the value of a field in `config`; None if `config` does not contain the field."""
        value = self.config.get(name)
        if name in ("image_size", *PREPROCESSING) and isinstance(value, list):
            return tuple(value)
        return value


def candidates(
    name: str, evidence: Evidence, of_family: Iterable[FieldValue]
) -> Iterator[FieldValue]:
    """Yield the values of a field in order of priority.

    Args:
        name: the field.
        evidence: all evidence about the field.
        of_family: values with a priority between the configuration and the layout's convention.
    """
    if name != "image_size":
        # An earlier conversion may have chosen the names of the tensors based on an assumption.
        source = "the tensors' names" if name in BY_NAMES else "the tensors' shapes"
        yield _recorded(name, evidence.geometry.get(name), source, evidence)
    option_source = f"option {OF_FIELDS[name].name}" if name in OF_FIELDS else ""
    option = FieldValue(evidence.flags.get(name), option_source)
    specified = [option, _from_configuration(name, evidence)]
    yield from reversed(specified) if evidence.fill_only else specified
    if name in PREPROCESSING:
        yield FieldValue(evidence.preprocessor.get(name), evidence.preprocessor_where)
    yield from of_family
    if name in PREPROCESSING:
        channels = evidence.geometry["num_channels"]
        convention = evidence.conventions.get(name)
        if convention is not None and len(convention) != channels:
            # The conventions of RGB images do not apply to other sensors; use the identity.
            identity = (0.0 if name == "image_mean" else 1.0,) * channels
            yield FieldValue(identity, f"no convention for {channels} channels", LAYOUT)
    kind = LAYOUT_CODE if name in evidence.fixed else LAYOUT
    source = f"convention of the {evidence.layout} layout"
    yield FieldValue(evidence.conventions.get(name), source, kind)


def _from_configuration(name: str, evidence: Evidence) -> FieldValue:
    """Return the value of a field in the configuration of the file."""
    value, where = evidence.config_value(name), evidence.config_source
    if name == "decoder_layer_norm_eps" and value is None and name in evidence.flags:
        # A single epsilon in a configuration applies to the whole model.
        value = evidence.config_value("layer_norm_eps")
    return _recorded(name, value, where, evidence)


def _recorded(name: str, value: Any, where: str, evidence: Evidence) -> FieldValue:
    """Return a stored value with its source.

    If an earlier conversion of the file assumed this value, the value is marked as an assumption.
    """
    recorded = evidence.recorded.get(name, {})
    if value is not None and recorded and same_size(recorded.get("value")) == same_size(value):
        source = f"{where} (assumed by the conversion: {recorded.get('source')})"
        return FieldValue(value, source, str(recorded.get("assumption")))
    return FieldValue(value, where)


def same_size(value: Any) -> Any:
    """Return one number for a square size; return any other value unchanged."""
    sides = tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(sides) == 2 and sides[0] == sides[1]:
        return sides[0]
    return sides or value
