"""Create exactly one commit in a repository on the Hub.

A commit may have been created although the response of the Hub was lost. Therefore the repository
is checked after every failure before anything is sent again: there is never a second commit or a
second pull request.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mae_convert.errors import HubError, MaeConvertError
from mae_convert.files.byte_ranges import ByteFile
from mae_convert.publish.repository import (
    Remote,
    Target,
    changed_meanwhile,
    commit_url,
    open_pull_request,
)
from mae_convert.publish.upload_files import Staged
from mae_convert.sources.client import (
    hub_errors_explained,
    is_transient,
    report_wait,
    status_of,
    wait_after,
    with_retries,
)
from mae_convert.sources.snapshot import entries_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

DESCRIPTION = "Created by `mae-convert publish`; the model card describes the verification."


@dataclass(frozen=True)
class Change:
    """The changes to make to a repository."""

    add: Sequence[Staged]
    """Files that are new or changed."""

    delete: Sequence[str]
    """Files to delete."""

    title: str
    """The title of the commit or of the pull request."""

    account: str
    """The Hub account to which the access token belongs."""


@dataclass(frozen=True)
class Committed:
    """A commit that is in the repository."""

    commit: str
    """The id of the commit."""

    url: str
    """The URL of the commit's page."""

    pull_request_url: str | None = None
    """The URL of the pull request that contains the commit; None for a commit to a branch."""

    is_new: bool = True
    """Whether this run created the commit; False if the repository already had all files."""


def commit(api: "HfApi", target: Target, remote: Remote, change: Change) -> Committed:
    """Apply a change exactly once, as one commit or one pull request.

    Args:
        api: the Hub's client.
        target: where to publish.
        remote: the state of the repository when it was checked; if it has changed since then,
            nothing is committed.
        change: the changes.

    Raises:
        HubError: the Hub refuses the request, or someone else has changed the branch.
        MissingRequirementError: the Hub cannot be reached, or remains unavailable.
    """
    attempt, waited = 0, 0.0
    while True:
        try:
            info = _send(api, target, remote, change)
            return Committed(info.oid, str(info.commit_url), info.pr_url or remote.pull_request_url)
        except Exception as error:
            if isinstance(error, MaeConvertError) or not _may_have_been_created(error):
                raise
            wait = wait_after(error, attempt, waited) if is_transient(error) else None
            if wait is not None:
                report_wait(error, wait)
                time.sleep(wait)  # the lost request may still be in progress
            with hub_errors_explained(
                f"{target.repo_id}: it is unknown whether the commit was created; run the same "
                "command again, which does not create it twice"
            ):
                result = find_created(api, target, remote, change)
            if result is not None:
                return result
            if status_of(error) == 412:
                raise changed_meanwhile(target, remote) from error
            if wait is None:
                raise
        attempt, waited = attempt + 1, waited + wait


def _may_have_been_created(error: BaseException) -> bool:
    """Return whether the Hub may have created, or may still create, the commit despite an error."""
    status = status_of(error)
    return is_transient(error) or status in (None, 409, 412) or status >= 500


def _send(api: "HfApi", target: Target, remote: Remote, change: Change) -> Any:
    """Upload large files, create the commit, and return the Hub's description of it.

    Raises:
        HubError: a file changed after it was checked; nothing is committed.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    new_pull_request = target.pull_request and remote.pull_request_url is None
    revision = None if new_pull_request else remote.revision
    # Each object can be used for one commit only. Uploaded files are not sent again.
    additions = [CommitOperationAdd(staged.path, _content(staged)) for staged in change.add]
    api.preupload_lfs_files(
        target.repo_id,
        additions,
        revision=revision,
        create_pr=new_pull_request,
        free_memory=False,
    )
    for staged, addition in zip(change.add, additions, strict=True):
        changed = isinstance(staged.content, ByteFile) and not staged.content.is_unchanged
        if changed or addition.upload_info.sha256.hex() != staged.sha256:
            raise HubError(
                f"{staged.path} changed during the upload; nothing was published",
                hint="verify it again, then publish again",
            )
    return api.create_commit(
        target.repo_id,
        [*additions, *(CommitOperationDelete(path) for path in change.delete)],
        commit_message=change.title,
        commit_description=DESCRIPTION,
        revision=revision,
        create_pr=new_pull_request,
        parent_commit=remote.head,
    )


def _content(staged: Staged) -> str | bytes:
    """Return the bytes of a small file, or a path of the open file for a large file.

    On Linux, the path refers to the open file even if the file was replaced by another file.
    """
    return staged.content if isinstance(staged.content, bytes) else str(staged.content.pinned)


def find_created(api: "HfApi", target: Target, remote: Remote, change: Change) -> Committed | None:
    """Return the commit if the Hub created it although its response was lost, otherwise None."""
    repo_id, url, revision = target.repo_id, remote.pull_request_url, remote.revision
    if target.pull_request and url is None:
        ours = open_pull_request(api, repo_id, change.account)
        if ours is None:
            return None
        url, revision = ours.url, f"refs/pr/{ours.num}"
    history = with_retries(lambda: api.list_repo_commits(repo_id, revision=revision))
    for entry in history:
        if entry.commit_id == remote.head:
            return None
        if entry.title != change.title:
            continue
        at = entry.commit_id
        state = with_retries(
            lambda at=at: api.model_info(repo_id, revision=at, files_metadata=True)  # type: ignore[misc]
        )
        entries = entries_of(state)
        if all(staged.is_at(entries.get(staged.path)) for staged in change.add):
            return Committed(at, commit_url(api, repo_id, at), url)
    return None
