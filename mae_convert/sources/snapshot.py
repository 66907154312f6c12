"""A repository on the Hub at one commit: its files with their hashes, and how one is downloaded."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_convert.errors import CheckpointError
from mae_convert.files.sha256 import file_sha256
from mae_convert.layouts.table import listed
from mae_convert.sources.client import is_unreachable, patiently, unexpected_answer
from mae_convert.sources.reference import HubReference

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo


@dataclass(frozen=True)
class Entry:
    """A file in a repository: its size and hash, where the Hub tells them."""

    size: int | None = None
    sha256: str | None = None
    git_oid: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit.

    Attributes:
        reference: what the user named.
        commit: what its revision is now.
        entries: the files, by path.
        card: the metadata of the repository's card.
        notes: what the user should know of how it was got.
    """

    reference: HubReference
    commit: str
    entries: Mapping[str, Entry]
    card: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def listing(self) -> str:
        """The names of the files for a sentence, cut after a few."""
        names = sorted(self.entries)
        return f"it holds {listed(names, 12)}" if names else "it is empty"

    def place(self, path: str) -> str:
        """Return a file's exact place, as it is recorded."""
        return str(HubReference(self.reference.repo_id, self.commit, path))


def take_snapshot(api: "HfApi", reference: HubReference) -> Snapshot:
    """Return what a repository holds; from the cache, which is said, where the Hub is away."""
    repo_id = reference.repo_id
    resolved = patiently(lambda: api.resolve_revision(repo_id, revision=reference.revision))
    commit = resolved.resolved
    try:
        info = patiently(lambda: api.model_info(repo_id, revision=commit, files_metadata=True))
    except Exception as error:
        entries = _cached_entries(repo_id, commit)
        if not entries or not is_unreachable(error):
            raise
        note = (
            f"{reference}: the Hub cannot be reached; taken from the cache, as of commit {commit}"
        )
        return Snapshot(reference, commit, entries, {}, (note,))
    card = info.card_data.to_dict() if info.card_data else {}
    return Snapshot(reference, commit, entries_of(info), card)


def entries_of(info: "ModelInfo") -> dict[str, Entry]:
    """Return the files of a repository by path, as the Hub tells them.

    Raises:
        MissingRequirementError: the Hub's answer is not built as a listing is.
    """
    if any(not _is_file(sibling) for sibling in info.siblings or ()):
        raise unexpected_answer("the repository's files")
    return {
        sibling.rfilename: Entry(
            sibling.size, sibling.lfs.sha256 if sibling.lfs else None, sibling.blob_id
        )
        for sibling in info.siblings or ()
    }


def _is_file(sibling: Any) -> bool:
    """Tell whether name, size and hashes of a file that the Hub lists are of the right types."""
    hashes = (sibling.blob_id, sibling.lfs.sha256 if sibling.lfs else None)
    return (
        isinstance(sibling.rfilename, str)
        and isinstance(sibling.size, int | None)
        and all(isinstance(digits, str | None) for digits in hashes)
    )


def _cached_entries(repo_id: str, commit: str) -> dict[str, Entry]:
    """Return the files of a commit that the Hub client's cache holds."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
    root = folder / "snapshots" / commit
    return {str(p.relative_to(root)): Entry() for p in root.rglob("*") if p.is_file()}


def download(api: "HfApi", snapshot: Snapshot, path: str) -> Path:
    """Return the local path of a file, downloaded unless the cache has it, and check its hash.

    Raises:
        CheckpointError: it is not what the Hub says that it is, twice.
    """
    entry, wrong = snapshot.entries[path], ""
    for attempt in range(2):
        again = attempt > 0
        local = Path(
            patiently(
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
    # Neither we nor anyone else is to find it in the cache.
    local.resolve().unlink(missing_ok=True)
    local.unlink(missing_ok=True)
    raise CheckpointError(
        f"{snapshot.place(path)} arrives damaged ({wrong}), also when downloaded again",
        hint="try later, or without a proxy or mirror",
    )


def mismatch(local: Path, entry: Entry) -> str:
    """Return in words how a file differs from what the Hub says of it; empty if it does not."""
    if entry.sha256 is not None:
        found, said, kind = file_sha256(local), entry.sha256, "SHA-256"
    elif entry.git_oid is not None:
        found, said, kind = git_oid(local.read_bytes()), entry.git_oid, "git blob"
    else:
        return ""
    return "" if found == said else f"its {kind} is {found}, and the Hub says {said}"


def git_oid(data: bytes) -> str:
    """Return the name that git gives to a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
