"""Publish with one commit, then download the files without a cache and compare them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mae_convert.files.byte_ranges import file_sha256
from mae_convert.files.staging import scratch_directory
from mae_convert.publish.commit import Change, Committed, commit
from mae_convert.publish.publication_plan import Publication
from mae_convert.publish.repository import (
    TITLE,
    UNVERIFIED_TITLE,
    Remote,
    commit_url,
    make_ready,
)
from mae_convert.publish.upload_files import Staged
from mae_convert.sources.client import client, hub_errors_explained, with_retries

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class Published:
    """The result of a publication.

    ``wrong`` describes the files whose bytes on the Hub differ from the bytes that were uploaded:
    it maps the path of each such file to a description of the difference.
    """

    publication: Publication
    committed: Committed
    wrong: Mapping[str, str]


def publish(publication: Publication) -> Published:
    """Publish in one commit, then check the files that the Hub serves.

    Raises:
        HubError: the Hub refuses the request, or the repository was changed in the meantime.
        MissingRequirementError: the Hub cannot be reached, or fails repeatedly.
    """
    target, account = publication.request.target, publication.account
    assert account is not None
    with hub_errors_explained(target.repo_id):
        api = client()
        remote = make_ready(api, target, publication.remote)
        committed = _committed(api, publication, remote, account)
    with hub_errors_explained(
        f"published as {committed.url}, but the uploaded files could not be checked"
    ):
        wrong = differences(api, target.repo_id, committed.commit, publication.staged)
    return Published(publication, committed, wrong)


def _committed(api: "HfApi", publication: Publication, remote: Remote, account: str) -> Committed:
    target = publication.request.target
    if not publication.add and not publication.delete:
        head = str(remote.head)
        url = commit_url(api, target.repo_id, head)
        return Committed(head, url, remote.pull_request_url, is_new=False)
    title = UNVERIFIED_TITLE if publication.request.unverified else TITLE
    change = Change(publication.add, publication.delete, title, account)
    return commit(api, target, remote, change)


def differences(
    api: "HfApi", repo_id: str, commit: str, staged: Mapping[str, Staged]
) -> dict[str, str]:
    """Compare the files on the Hub with the published files; return the differences by path.

    Each file is downloaded to a temporary location, hashed and removed, so that only space for the
    largest file is needed. A file that differs is downloaded again, in case the transfer failed.

    Returns:
        A dictionary from the path of each file that differs to a description of the difference.
    """
    wrong = {}
    for path, file in staged.items():
        sha256 = _served_sha256(api, repo_id, commit, path)
        if sha256 != file.sha256:
            sha256 = _served_sha256(api, repo_id, commit, path)
        if sha256 != file.sha256:
            served = f"its SHA-256 is {sha256}" if sha256 else "it does not exist on the Hub"
            wrong[path] = f"{served}, although a file with the SHA-256 {file.sha256} was published"
    return wrong


def _served_sha256(api: "HfApi", repo_id: str, commit: str, path: str) -> str | None:
    """Return the SHA-256 of a file on the Hub, or None if the file does not exist."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with scratch_directory() as folder:
        try:
            local = with_retries(
                lambda: api.hf_hub_download(repo_id, path, revision=commit, cache_dir=folder)
            )
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None
        return file_sha256(Path(local))
