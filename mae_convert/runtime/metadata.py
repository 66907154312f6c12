"""Metadata of a model that is not weights or configuration: preprocessing, class names, origin."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mae_convert.convert.plan import Plan
from mae_convert.families.configuration import PREPROCESSING
from mae_convert.layouts.layout import IMAGENET

CONVENTION = "convention: ImageNet, because not specified"
NO_CONVENTION = "no convention for this number of channels"


@dataclass(frozen=True)
class Carried:
    """How images are prepared for a model, and what its classes are called."""

    image_mean: tuple[float, ...]
    """Taken off each channel."""

    image_std: tuple[float, ...]
    """What each channel is then divided by."""

    labels: tuple[str, ...] | None = None
    """Names of the classes; None where nothing names them."""

    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    """What else is said of preprocessing, as in ``preprocessor_config.json``."""

    sources: Mapping[str, str] = field(default_factory=dict)
    """Who says mean and deviation."""

    name: str | None = None
    """The checkpoint that the model was loaded from."""

    assumptions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What was assumed of the model's configuration when it was loaded, by field, as
    `Configuration.only_assumed` returns it."""

    key_bias: bool = True
    """Whether the checkpoint has biases of the key; if not, the model's are zeros, and they are
    left out again when it is saved, unless they were trained."""

    @classmethod
    def by(cls, plan: Plan) -> "Carried":
        """Return the metadata that a conversion passes on."""
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
    def nothing(cls, channels: int) -> "Carried":
        """Return the default metadata of a model that was not loaded from a checkpoint."""
        if channels != len(IMAGENET["image_mean"]):
            sources = dict.fromkeys(PREPROCESSING, NO_CONVENTION)
            return cls((0.0,) * channels, (1.0,) * channels, sources=sources)
        sources = dict.fromkeys(PREPROCESSING, CONVENTION)
        return cls(IMAGENET["image_mean"], IMAGENET["image_std"], sources=sources)
