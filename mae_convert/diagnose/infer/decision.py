"""The result of an experiment for a field: whether one candidate is significantly the best.

Losses of candidates on the same images and masks are compared in pairs. Crops of one image are
similar, so a hierarchical bootstrap is used: it resamples the images, and then the crops of each
image. A candidate that is better on one image only is therefore not significant.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SIGNIFICANT = 0.99
"""The smallest `Decision.confidence` with which the candidate with the lowest loss is accepted."""


@dataclass(frozen=True)
class Candidate:
    """A possible value of a field, and how well it fits."""

    value: Any
    """The value of the field."""

    loss: float | None = None
    """Mean reconstruction loss on removed patches, divided by the loss of a constant prediction.

    The constant prediction is the mean colour of each image's visible patches, or zeros if the
    model predicts normalized patches. A value below 1 is better than the constant prediction. None
    if no model was run.
    """

    structure: float | None = None
    """If the field is a number of heads, the log-likelihood ratio of this number, computed by
    `head_structure`; otherwise None."""


@dataclass(frozen=True)
class Decision:
    """The result for one field of the configuration."""

    field: str
    """The name of the field."""

    value: Any
    """The decided value; None if undecided."""

    confidence: float | None
    """The confidence, from 0 to 1, that the candidate with the lowest mean loss is the best (see
    `wins`); None if the losses were not used."""

    method: str
    """The evidence: "reconstruction", "weights" or both joined by " and "; "" if undecided."""

    reason: str
    """Why the field is decided or undecided, as a sentence without a full stop."""

    candidates: tuple[Candidate, ...]
    """The tested values, the best first."""

    @property
    def decided(self) -> bool:
        """Whether the experiment has determined the value of the field."""
        return self.value is not None


@dataclass(frozen=True)
class Inference:
    """All decisions of an experiment, and the inputs that it used."""

    decisions: Mapping[str, Decision]
    """The decisions on all fields that the file does not specify, by name of the field."""

    images: int = 0
    """The number of images on which the model was run; 0 if it was not run."""

    masks: int = 0
    """The number of crops of each image, each with its own mask."""

    framework: str = ""
    """The framework that ran the model; "" if no model was run."""

    def decided(self) -> dict[str, Any]:
        """Return the values of the decided fields, by name."""
        return {name: d.value for name, d in self.decisions.items() if d.decided}

    def as_json(self) -> dict[str, Any]:
        """Return the evidence as a dictionary, for JSON output, records and certificates."""
        return {
            "images": self.images,
            "masks_per_image": self.masks,
            "framework": self.framework,
            "fields": {
                name: {**asdict(decision), "decided": decision.decided}
                for name, decision in self.decisions.items()
            },
        }

    def source_of(self, name: str) -> str:
        """Return the source of a decided value as text."""
        decision = self.decisions[name]
        by_loss = "reconstruction" in decision.method and decision.confidence is not None
        confidence = f", confidence {decision.confidence:.3f}" if by_loss else ""
        return f"experiment ({decision.method}{confidence})"


SAMPLES = 2000


def wins(best: np.ndarray, others: np.ndarray, *, seed: int = 0) -> float:
    """Return the confidence that one candidate has a lower mean loss than every other candidate.

    Args:
        best: (images, crops), the losses of the candidate.
        others: (candidates, images, crops), the losses of the other candidates.
        seed: the seed of the bootstrap.

    Returns:
        The candidate is compared with each other candidate on bootstrap samples. The result is the
        smallest fraction of samples that give the candidate the lower mean loss, or 1.0 if there
        are no other candidates.
    """
    differences = others - best
    return min((_share_above_zero(one, seed) for one in differences), default=1.0)


def _share_above_zero(differences: np.ndarray, seed: int) -> float:
    images, crops = differences.shape
    generator = np.random.Generator(np.random.Philox(seed))
    chosen = generator.integers(images, size=(SAMPLES, images, 1))
    within = generator.integers(crops, size=(SAMPLES, images, crops))
    means = differences[chosen, within].mean(axis=(1, 2))
    return float((means > 0).mean())
