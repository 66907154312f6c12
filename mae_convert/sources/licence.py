"""The licence of weights that were downloaded."""

from collections.abc import Mapping
from typing import Any

from mae_convert.families.mae.official import LICENSE, OFFICIAL

FIELDS = ("license", "license_name", "license_link")


def licence_of_repository(repo_id: str, card: Mapping[str, Any]) -> dict[str, str]:
    """Return what a conversion record keeps of a repository's licence.

    Copies of the official weights have the licence of the official weights, whatever their card
    says: those of facebook/vit-mae-* say Apache-2.0, which is not what the weights were published
    under.
    """
    if any(official.on_the_hub == repo_id for official in OFFICIAL):
        return {"license": LICENSE}
    told = {name: card[name] for name in FIELDS if isinstance(card.get(name), str)}
    return told if "license" in told else {}
