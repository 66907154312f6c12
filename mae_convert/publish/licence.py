"""The licence of published weights: the licence of their source, which is never guessed."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mae_convert.errors import MaeConvertError, Option, Text
from mae_convert.publish.artifacts import Artifact
from mae_convert.sources.hub_download import LICENCE_FIELDS

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
MORE = "https://huggingface.co/docs/hub/repositories-licenses"


@dataclass(frozen=True)
class Licence:
    """A licence in the form of a card's metadata, and where it was specified."""

    fields: Mapping[str, str]
    """The metadata: ``license`` and, if that is "other", ``license_name`` and ``license_link``."""

    origin: str
    """A phrase that states where the licence was specified."""

    notes: tuple[str, ...] = ()
    """Notes for the user."""

    @property
    def name(self) -> str:
        """The Hub's identifier of the licence, or the name of a licence without an identifier."""
        return self.fields.get("license_name") or self.fields["license"]


def is_repository(name: object) -> bool:
    """Return whether a name in a conversion record is a valid name of a repository on the Hub."""
    return isinstance(name, str) and REPOSITORY.fullmatch(name) is not None


def sources_of(artifact: Artifact) -> Iterator[Mapping[str, Any]]:
    """Yield the source of an artifact, the source of that source, and so on, from the records."""
    source = artifact.record.get("source")
    while isinstance(source, Mapping):
        yield source
        source = source.get("made_from")


def decide_licence(
    artifact: Artifact, specified: Mapping[str, str], existing_card: Mapping[str, Any]
) -> Licence:
    """Return the licence of the source, else the specified licence, else the licence on the card.

    Args:
        artifact: the published model.
        specified: ``license``, ``license_name`` and ``license_link`` of the command line, if any.
        existing_card: the metadata of the repository's card.

    Raises:
        MaeConvertError: the licence is unknown, or the specified licence differs from the source's.
    """
    for source in sources_of(artifact):
        fields = {name: str(source[name]) for name in LICENCE_FIELDS if source.get(name)}
        if "license" not in fields:
            continue
        whose = source.get("official") or source.get("repository") or source.get("name")
        if specified and specified != fields:
            raise MaeConvertError(
                (
                    f"the specified licence differs from {fields['license']}, the licence of the "
                    f"source {whose}, which applies to these weights too"
                ),
                hint=("leave ", Option("license"), " out"),
            )
        return Licence(
            fields, f"the licence of the source {whose}", _conflict(fields, existing_card)
        )
    if specified:
        return Licence(
            specified, "as specified by the publisher", _conflict(specified, existing_card)
        )
    fields = {name: str(existing_card[name]) for name in LICENCE_FIELDS if existing_card.get(name)}
    if "license" in fields:
        return Licence(fields, "as specified on the card of the repository")
    raise MaeConvertError(_request_for_licence(artifact))


def _conflict(fields: Mapping[str, str], card: Mapping[str, Any]) -> tuple[str, ...]:
    before = card.get("license")
    if not before or before == fields["license"]:
        return ()
    return (
        f"the card has license: {before}, but the licence of the weights is {fields['license']}; "
        "correct the text of the card, which is not changed automatically",
    )


def _request_for_licence(artifact: Artifact) -> Text:
    asked = (
        *(
            f"the licence of {artifact.target} is not specified: pass the licence of its source ",
            "with ",
            Option("license"),
        ),
        f" (identifiers: {MORE})",
    )
    checkpoint = artifact.checkpoint
    like = checkpoint.family.official_like(checkpoint.configuration.model, checkpoint.task)
    if like is None:
        return asked
    weights, licence = like
    return (*asked, f"; if it was converted from {weights}, pass ", Option("license", licence))
