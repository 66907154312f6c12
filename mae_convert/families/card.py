"""What a model card says of a family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Card:
    """The parts of a model card that are the same for all models of a family.

    Attributes:
        introduction: what the models are, as Markdown; the beginning of a sentence.
        citation: BibTeX entries.
        tags: for the Hub's search.
        pipeline_tags: task → the Hub's name of what a model is for, where it has one; the Hub shows
            a widget for it, which must take such inputs.
        licences: whose published weights → their licence, for a question to the user.
        addresses: beginnings of addresses at which the authors publish weights, with a slash.
    """

    introduction: str
    citation: str
    tags: Sequence[str]
    pipeline_tags: Mapping[str, str] = field(default_factory=dict)
    licences: Mapping[str, str] = field(default_factory=dict)
    addresses: Sequence[str] = ()
