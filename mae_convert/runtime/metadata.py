"""Metadata of a model besides weights and configuration: preprocessing, class names, origin."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mae_convert.convert.plan import Plan
from mae_convert.families.configuration import PREPROCESSING
from mae_convert.layouts.layout import IMAGENET

CONVENTION = "convention: the values of ImageNet, because no checkpoint specifies others"
NO_CONVENTION = "no convention for this number of channels"


@dataclass(frozen=True)
class ModelMetadata:
    """The preprocessing of images for a model, the names of its classes, and its origin."""

    image_mean: tuple[float, ...]
    """The mean of each channel, which is subtracted from the image."""

    image_std: tuple[float, ...]
    """The standard deviation of each channel; the image minus the mean is divided by it."""

    labels: tuple[str, ...] | None = None
    """Names of the classes, or None if they are unknown."""

    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    """The settings of preprocessing other than mean and standard deviation, with the names of
    ``preprocessor_config.json``."""

    sources: Mapping[str, str] = field(default_factory=dict)
    """The sources of ``image_mean`` and ``image_std``, by these names."""

    name: str | None = None
    """The name of the checkpoint from which the model was loaded; None without a checkpoint."""

    assumptions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The fields of the configuration that were assumed when the model was loaded, as
    `Configuration.only_assumed` returns them."""

    key_bias: bool = True
    """Whether the checkpoint has key biases. If it has none, the key biases of the model are zeros,
    and they are saved only if training has changed them."""

    @classmethod
    def of(cls, plan: Plan) -> "ModelMetadata":
        """Return the metadata of the model that a conversion creates."""
        configuration = plan.configuration
        return cls(
            image_mean=configuration.image_mean,
            image_std=configuration.image_std,
            labels=configuration.labels if plan.task == "classify" else None,
            preprocessor=plan.source.preprocessor,
            sources={name: configuration.sources[name] for name in PREPROCESSING},
            name=plan.source.origin.name if plan.source.origin else plan.source.path.name,
            assumptions=configuration.only_assumed(),
        )

    @classmethod
    def default(cls, channels: int) -> "ModelMetadata":
        """Return the default metadata of a model that was not loaded from a checkpoint."""
        if channels != len(IMAGENET["image_mean"]):
            sources = dict.fromkeys(PREPROCESSING, NO_CONVENTION)
            return cls((0.0,) * channels, (1.0,) * channels, sources=sources)
        sources = dict.fromkeys(PREPROCESSING, CONVENTION)
        return cls(IMAGENET["image_mean"], IMAGENET["image_std"], sources=sources)
