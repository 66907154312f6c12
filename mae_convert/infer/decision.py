"""The result of an experiment for a field: its candidates, and whether one is significant."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SIGNIFICANT = 0.99
"""Fraction of bootstrap samples in which a candidate must have the lowest loss."""


@dataclass(frozen=True)
class Candidate:
    """A value that a field may have, and how well it fits."""

    value: Any
    """The value."""

    loss: float | None = None
    """Mean reconstruction loss on removed patches, relative to that of filling each image in one
    colour (below 1 is better than that); None where no model was run."""

    structure: float | None = None
    """Of a number of heads, the log-likelihood ratio of `head_structure`; else None."""


@dataclass(frozen=True)
class Decision:
    """The result for one field of the configuration."""

    field: str
    """The field."""

    value: Any
    """The value that was decided, or None: undecided."""

    confidence: float | None
    """The fraction of bootstrap samples in which the best candidate has the lowest loss; None where
    images decided nothing."""

    method: str
    """What decided: "reconstruction", "weights" or both joined by " and "; "" if nothing."""

    reason: str
    """The reason, as a sentence without a full stop."""

    candidates: tuple[Candidate, ...]
    """The values that were tried, the best first."""

    @property
    def decided(self) -> bool:
        """Whether there is a value."""
        return self.value is not None


@dataclass(frozen=True)
class Inference:
    """All decisions of an experiment, and the inputs that it used."""

    decisions: Mapping[str, Decision]
    """Field → decision, for every field that the file does not specify."""

    images: int = 0
    """How many images were shown to the model; 0 if it was not run."""

    masks: int = 0
    """The number of crops of each image, each with its own mask."""

    framework: str = ""
    """The framework that ran the model, or ""."""

    def decided(self) -> dict[str, Any]:
        """Return field → value of the decided fields."""
        return {name: d.value for name, d in self.decisions.items() if d.decided}

    def as_json(self) -> dict[str, Any]:
        """Return the evidence as plain data, for JSON output, records and certificates."""
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
