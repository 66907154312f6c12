"""What a model card says of a family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Card:
    """The parts of a model card that are the same for all models of a family."""

    introduction: str
    """What the models are, as Markdown; the beginning of a sentence."""

    citation: str
    """BibTeX entries."""

    tags: Sequence[str]
    """Tags for the Hub's search."""

    pipeline_tags: Mapping[str, str] = field(default_factory=dict)
    """Task → the Hub's name of what a model is for, where it has one; the Hub shows a widget for
    it, which must take such inputs."""

    licences: Mapping[str, str] = field(default_factory=dict)
    """Publisher of weights → their licence, for a question to the user."""

    addresses: Sequence[str] = ()
    """Beginnings of addresses at which the authors publish weights, with a slash."""
