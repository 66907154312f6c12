"""The licence of weights that were downloaded."""

from collections.abc import Mapping
from typing import Any

from mae_convert.families.mae.official import LICENSE, OFFICIAL

FIELDS = ("license", "license_name", "license_link")


def licence_of_repository(repo_id: str, card: Mapping[str, Any]) -> dict[str, str]:
    """Return the licence of a repository for a conversion record.

    Copies of the official weights have the licence of these, even if their model cards state
    another one: those of facebook/vit-mae-* state Apache-2.0, under which the weights were not
    published.
    """
    if any(official.on_the_hub == repo_id for official in OFFICIAL):
        return {"license": LICENSE}
    fields = {name: card[name] for name in FIELDS if isinstance(card.get(name), str)}
    return fields if "license" in fields else {}
