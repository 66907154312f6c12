"""Compare the files that the Hub serves after a publication, downloaded without any cache."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mae_convert.files.hashes import file_sha256
from mae_convert.files.staging import scratch_directory
from mae_convert.publish.staging import Staged
from mae_convert.sources.client import patiently

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def differences(
    api: "HfApi", repo_id: str, commit: str, staged: Mapping[str, Staged]
) -> dict[str, str]:
    """Return how the files that the Hub serves differ from those published: path → description.

    Each file is downloaded to a temporary location, hashed and removed, so the space needed is that
    of the largest file. A file that differs is downloaded once more, in case the transfer failed.
    """
    wrong = {}
    for path, file in staged.items():
        found = _served_sha256(api, repo_id, commit, path)
        if found != file.sha256:
            found = _served_sha256(api, repo_id, commit, path)
        if found != file.sha256:
            wrong[path] = f"its SHA-256 is {found}, and {file.sha256} was published"
    return wrong


def _served_sha256(api: "HfApi", repo_id: str, commit: str, path: str) -> str | None:
    """Return the hash of a file as it is served now, or None if it does not exist."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with scratch_directory() as folder:
        try:
            local = patiently(
                lambda: api.hf_hub_download(repo_id, path, revision=commit, cache_dir=folder)
            )
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None
        return file_sha256(Path(local))
