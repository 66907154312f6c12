"""A Hub repository at one commit: its files with their hashes, and their download."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_convert.errors import CheckpointError
from mae_convert.files.byte_ranges import file_sha256
from mae_convert.sources.client import is_unreachable, unexpected_response, with_retries
from mae_convert.sources.reference import HubReference
from mae_convert.text import listed

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo


@dataclass(frozen=True)
class Entry:
    """A file in a repository: its size and hash, if the Hub provides them."""

    size: int | None = None
    sha256: str | None = None
    git_oid: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit."""

    reference: HubReference
    """The reference that the user specified."""

    commit: str
    """The hash of the commit to which the revision of ``reference`` refers."""

    entries: Mapping[str, Entry]
    """The files, by path."""

    card: Mapping[str, Any]
    """The metadata of the repository's card."""

    notes: tuple[str, ...] = ()
    """Messages for the user about the download."""

    @property
    def listing(self) -> str:
        """A phrase that lists the file names, truncated after a few."""
        names = sorted(self.entries)
        return f"it contains {listed(names, 12)}" if names else "it is empty"

    def address(self, path: str) -> str:
        """Return a file's Hub reference at this commit, for records."""
        return str(HubReference(self.reference.repo_id, self.commit, path))


def take_snapshot(api: "HfApi", reference: HubReference) -> Snapshot:
    """Return a snapshot of a repository, or of its copy in the cache if the Hub is unreachable.

    Errors of the Hub's client are not converted.
    """
    repo_id = reference.repo_id
    resolved = with_retries(lambda: api.resolve_revision(repo_id, revision=reference.revision))
    commit = resolved.resolved
    try:
        info = with_retries(lambda: api.model_info(repo_id, revision=commit, files_metadata=True))
    except Exception as error:
        entries = _cached_entries(repo_id, commit)
        if not entries or not is_unreachable(error):
            raise
        note = (
            f"{reference}: the Hub cannot be reached; the copy in the cache is used, from commit "
            f"{commit}"
        )
        return Snapshot(reference, commit, entries, {}, (note,))
    card = info.card_data.to_dict() if info.card_data else {}
    return Snapshot(reference, commit, entries_of(info), card)


def entries_of(info: "ModelInfo") -> dict[str, Entry]:
    """Return the files of a repository by path, as listed by the Hub.

    Raises:
        MissingRequirementError: the response is not a valid listing.
    """
    if any(not _is_file(sibling) for sibling in info.siblings or ()):
        raise unexpected_response("the repository's files")
    return {
        sibling.rfilename: Entry(
            sibling.size, sibling.lfs.sha256 if sibling.lfs else None, sibling.blob_id
        )
        for sibling in info.siblings or ()
    }


def _is_file(sibling: Any) -> bool:
    """Return whether the name, size and hashes that the Hub states for a file have valid types."""
    hashes = (sibling.blob_id, sibling.lfs.sha256 if sibling.lfs else None)
    return (
        isinstance(sibling.rfilename, str)
        and isinstance(sibling.size, int | None)
        and all(isinstance(digits, str | None) for digits in hashes)
    )


def _cached_entries(repo_id: str, commit: str) -> dict[str, Entry]:
    """Return the files of a commit in the Hub client's cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
    root = folder / "snapshots" / commit
    return {str(p.relative_to(root)): Entry() for p in root.rglob("*") if p.is_file()}


def download(api: "HfApi", snapshot: Snapshot, path: str) -> Path:
    """Return the local path of a file, downloaded unless the cache has it; its hash is checked.

    Raises:
        CheckpointError: the hash differs from the hash that the Hub states, even after a second
            download.
    """
    entry, wrong = snapshot.entries[path], ""
    for attempt in range(2):
        again = attempt > 0
        local = Path(
            with_retries(
                lambda again=again: api.hf_hub_download(  # type: ignore[misc]
                    snapshot.reference.repo_id,
                    path,
                    revision=snapshot.commit,
                    force_download=again,
                )
            )
        )
        wrong = mismatch(local, entry)
        if not wrong:
            return local
    # The corrupt file is removed, so that no other program reads it from the cache.
    local.resolve().unlink(missing_ok=True)
    local.unlink(missing_ok=True)
    raise CheckpointError(
        f"{snapshot.address(path)} was downloaded twice and was corrupt both times ({wrong})",
        hint="try again later, or without a proxy or mirror",
    )


def mismatch(local: Path, entry: Entry) -> str:
    """Return a phrase with both hashes if a file's hash differs from the Hub's hash, else ""."""
    if entry.sha256 is not None:
        measured, expected, kind = file_sha256(local), entry.sha256, "SHA-256"
    elif entry.git_oid is not None:
        measured, expected, kind = git_oid(local.read_bytes()), entry.git_oid, "git blob"
    else:
        return ""
    same = measured == expected
    return "" if same else f"its {kind} is {measured}, but the Hub states {expected}"


def git_oid(data: bytes) -> str:
    """Return the git object ID of a file with these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
