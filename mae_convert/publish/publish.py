"""Publish with one commit, then check what the Hub serves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mae_convert.publish.commit import Change, Committed, commit
from mae_convert.publish.plan import Publication
from mae_convert.publish.repository import (
    TITLE,
    UNVERIFIED_TITLE,
    Remote,
    commit_url,
    make_ready,
)
from mae_convert.publish.verify_upload import differences
from mae_convert.sources.client import client, speaking

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class Published:
    """The commit, and how the files that the Hub serves differ: path → description."""

    publication: Publication
    committed: Committed
    wrong: Mapping[str, str]


def publish(publication: Publication) -> Published:
    """Publish in one commit, then check the files that the Hub serves.

    Raises:
        HubError: the Hub refuses, or the repository was changed in the meantime.
        MissingRequirementError: the Hub cannot be reached, or keeps failing.
    """
    target, account = publication.request.target, publication.account
    assert account is not None
    with speaking(target.repo_id):
        api = client()
        remote = make_ready(api, target, publication.remote)
        committed = _committed(api, publication, remote, account)
    with speaking(f"published as {committed.url}, but the uploaded files could not be checked"):
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
