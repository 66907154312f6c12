"""The licence of weights that were downloaded."""

from collections.abc import Mapping
from typing import Any

from mae_convert.families import official_files

FIELDS = ("license", "license_name", "license_link")


def licence_of_repository(repo_id: str, card: Mapping[str, Any]) -> dict[str, str]:
    """Return the licence of a repository for a conversion record.

    Copies of the official weights have the licence of these, even if their model cards state
    another one: those of facebook/vit-mae-* state Apache-2.0, under which the weights were not
    published.
    """
    if same := [o for o in official_files() if o.on_the_hub == repo_id]:
        return {"license": same[0].license}
    fields = {name: card[name] for name in FIELDS if isinstance(card.get(name), str)}
    return fields if "license" in fields else {}
