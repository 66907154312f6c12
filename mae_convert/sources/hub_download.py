"""Download a checkpoint from the Hugging Face Hub: the required files, each checked by its hash."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_convert.checkpoint.checkpoint import Origin
from mae_convert.errors import HubError
from mae_convert.families import official_files
from mae_convert.files.byte_ranges import is_plain_name
from mae_convert.formats.registry import INDEX_SUFFIX
from mae_convert.sources.client import client, hub_errors_explained
from mae_convert.sources.fetch import cache_directory, link_together
from mae_convert.sources.reference import HubReference
from mae_convert.sources.select_files import FileSelection, folder_of, joined, name_of, select_files
from mae_convert.sources.snapshot import Snapshot, download, take_snapshot

if TYPE_CHECKING:
    from huggingface_hub import HfApi


LICENCE_FIELDS = ("license", "license_name", "license_link")  # of a model card


def get_from_hub(reference: HubReference, *, certificate: bool = False) -> tuple[Path, Origin]:
    """Download a checkpoint, unless it is in the cache, and return its path and origin.

    Args:
        reference: a repository, or a file or folder in it.
        certificate: download the certificate of the verification too.

    Raises:
        HubError: the repository, revision or file does not exist, or the Hub refuses access.
        MissingRequirementError: the Hub cannot be reached, and the cache lacks a file.
        CheckpointError: there are no weights, there are several weight files without a conventional
            name, or a file is damaged.
    """
    with hub_errors_explained(str(reference)):
        api = client()
        snapshot = take_snapshot(api, reference)
        chosen = select_files(snapshot, certificate=certificate)
        files = {
            name: download(api, snapshot, path)
            for name, path in {name_of(chosen.weights): chosen.weights, **chosen.beside}.items()
        }
        files |= _shards(api, snapshot, chosen, files)
    folder = cache_directory() / "hub" / snapshot.reference.repo_id.replace("/", "--")
    # Files in one folder affect how the weights are read: each selection has its own folder.
    choice = chosen.weights.replace("/", "--") + "+certificate" * certificate
    folder = folder / snapshot.commit / choice
    link_together(folder, files)
    path = folder if chosen.is_directory else folder / name_of(chosen.weights)
    return path, _origin(snapshot, chosen)


def get_file(reference: HubReference) -> Path:
    """Download one file, unless it is in the cache, and return its path.

    Raises:
        HubError: the reference does not specify a file, or the file does not exist.
        MissingRequirementError: the Hub cannot be reached, and the cache lacks the file.
    """
    with hub_errors_explained(str(reference)):
        api = client()
        snapshot = take_snapshot(api, reference)
        if reference.path not in snapshot.entries:
            raise HubError(f"{reference}: there is no such file", hint=snapshot.listing)
        return download(api, snapshot, reference.path)


def _shards(
    api: "HfApi", snapshot: Snapshot, chosen: FileSelection, files: Mapping[str, Path]
) -> dict[str, Path]:
    """Download the shards that an index lists, and return their local paths by name.

    Errors in the index are not reported here, but when the checkpoint is opened.
    """
    if not chosen.weights.endswith(INDEX_SUFFIX):
        return {}
    try:
        shards = json.loads(files[name_of(chosen.weights)].read_bytes())["weight_map"].values()
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return {}
    folder = folder_of(chosen.weights)
    parts = {name: joined(folder, name) for name in shards if is_plain_name(name)}
    return {
        name: download(api, snapshot, path)
        for name, path in sorted(parts.items())
        if path in snapshot.entries
    }


def _origin(snapshot: Snapshot, chosen: FileSelection) -> Origin:
    record: dict[str, Any] = {
        "repository": snapshot.reference.repo_id,
        "revision": snapshot.commit,
        "file": chosen.weights,
        **licence_of_repository(snapshot.reference.repo_id, snapshot.card),
    }
    if isinstance(datasets := snapshot.card.get("datasets"), list):
        record["datasets"] = datasets
    name = snapshot.address(chosen.weights)
    return Origin(name, record, notes=(*snapshot.notes, *chosen.notes))


def licence_of_repository(repo_id: str, card: Mapping[str, Any]) -> dict[str, str]:
    """Return the licence of a repository as fields of a conversion record; empty if unknown.

    A copy of official weights has the licence of the official weights, even if its model card
    states another licence: the cards of facebook/vit-mae-* state Apache-2.0, but the weights were
    not published under this licence.
    """
    if same := [o for o in official_files() if o.on_the_hub == repo_id]:
        return {"license": same[0].license}
    fields = {name: card[name] for name in LICENCE_FIELDS if isinstance(card.get(name), str)}
    return fields if "license" in fields else {}
