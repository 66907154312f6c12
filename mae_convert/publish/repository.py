"""The target repository of a publication: its state, and its creation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mae_convert.errors import HubError, Option
from mae_convert.sources.client import with_retries
from mae_convert.sources.snapshot import Entry, entries_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"
TITLE = "Add MAE weights that mae-convert has verified"
UNVERIFIED_TITLE = "Add MAE weights, converted by mae-convert and not verified"
TITLES = (TITLE, UNVERIFIED_TITLE)
CARD = "README.md"
ATTRIBUTES = ".gitattributes"  # the Hub creates it in each new repository


@dataclass(frozen=True)
class Target:
    """The target of a publication."""

    repo_id: str
    """``owner/name``."""

    branch: str = MAIN
    """The branch that gets the commit; or refs/pr/N, an existing pull request."""

    pull_request: bool = False
    """Whether to propose the change in a new pull request instead of changing the branch."""

    private: bool = False
    """Whether a new repository is created as private."""


@dataclass(frozen=True)
class Remote:
    """The state of the repository."""

    exists: bool
    """Whether the repository exists."""

    private: bool
    """Whether the repository is private."""

    revision: str
    """The revision to read and to commit to: the branch, or the open pull request that an earlier
    run of mae-convert created."""

    is_new_branch: bool = False
    """Whether the branch does not exist yet."""

    head: str | None = None
    """The current commit; None if the repository is empty or does not exist."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    """The files of the repository, by path."""

    card: str | None = None
    """The text of the card; None without a card."""

    pull_request_url: str | None = None
    """The URL of the open pull request that an earlier run of mae-convert created, or None."""


def remote_state(api: "HfApi", target: Target, account: str | None) -> Remote:
    """Return the state of the branch, or of the pull request, that gets the commit.

    Args:
        api: the Hub's client.
        target: where to publish.
        account: the Hub account whose open pull request is looked for; None to look for none.

    Raises:
        HubError: a pull request is requested for a repository that does not exist, or ``private``
            is requested for an existing public repository.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    repo_id = target.repo_id
    try:
        info = with_retries(lambda: api.model_info(repo_id))
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        if target.pull_request:
            raise HubError(
                f"{repo_id} does not exist on the Hub, or you have no access to it, so a pull "
                "request cannot be opened",
                hint=("leave ", Option("create_pr", True), " out to create the repository"),
            ) from None
        return Remote(False, target.private, target.branch)
    if target.private and not info.private:
        raise HubError(
            f"{repo_id} is public already, and ",
            *(Option("private", True), " applies only to a new repository"),
            hint="leave it out, or change the repository's visibility in its settings",
        )
    revision, url, is_new = target.branch, None, False
    if target.pull_request and account and (ours := open_pull_request(api, repo_id, account)):
        revision, url = f"refs/pr/{ours.num}", ours.url
    elif target.branch != MAIN and not target.branch.startswith("refs/"):
        references = with_retries(lambda: api.list_repo_refs(repo_id))
        is_new = target.branch not in {branch.name for branch in references.branches}
    revision_to_read = MAIN if is_new else revision
    state = with_retries(
        lambda: api.model_info(repo_id, revision=revision_to_read, files_metadata=True)
    )
    entries = entries_of(state)
    card = read_text(api, repo_id, str(state.sha), CARD) if CARD in entries else None
    return Remote(
        True, bool(info.private), revision, is_new, state.sha, entries, card, url
    )  # fmt: skip


def open_pull_request(api: "HfApi", repo_id: str, account: str) -> Any:
    """Return the open pull request that an earlier run of this account created, or None."""

    def find() -> Any:
        discussions = api.get_repo_discussions(
            repo_id, author=account, discussion_type="pull_request"
        )
        ours = (pr for pr in discussions if pr.is_pull_request and pr.title in TITLES)
        return next((pr for pr in ours if pr.status in ("open", "draft")), None)

    return with_retries(find)


def read_text(api: "HfApi", repo_id: str, revision: str, path: str) -> str:
    """Return the text of a file in the repository, with its original line endings.

    Raises:
        HubError: the file is not UTF-8 text.
    """
    local = with_retries(lambda: api.hf_hub_download(repo_id, path, revision=revision))
    with open(local, encoding="utf-8", newline="") as stream:  # noqa: PTH123
        try:
            return stream.read().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise HubError(
                path, f" of {repo_id} is not UTF-8 text", hint="correct it there"
            ) from error


def check_card(card: str) -> None:
    """Let the Hub validate a card's metadata, before anything is created or uploaded.

    Raises:
        HubError: the Hub would refuse the metadata.
    """
    from huggingface_hub import ModelCard

    try:
        with_retries(ModelCard(card, ignore_metadata_errors=True).validate)
    except ValueError as error:
        raise HubError(
            f"the Hub refuses the card's metadata: {_complaints(error)}",
            hint="correct the metadata of README.md, then publish again",
        ) from error


def _complaints(error: ValueError) -> str:
    """Return the messages about errors in a card, which the Hub sends as JSON, in one line."""
    try:
        return "; ".join(item["message"] for item in json.loads(str(error))["errors"])
    except (ValueError, KeyError, TypeError):
        return str(error)


def make_ready(api: "HfApi", target: Target, remote: Remote) -> Remote:
    """Create the repository and the branch if they do not exist, and return the new state.

    Raises:
        HubError: the files in the repository have changed since `remote` was read.
    """
    if not remote.exists:
        private = True if target.private else None  # None is the default of the account
        with_retries(lambda: api.create_repo(target.repo_id, private=private, exist_ok=True))
    elif not remote.is_new_branch:
        return remote
    if target.branch != MAIN:
        with_retries(lambda: api.create_branch(target.repo_id, branch=target.branch, exist_ok=True))
    state = with_retries(
        lambda: api.model_info(target.repo_id, revision=target.branch, files_metadata=True)
    )
    entries = entries_of(state)
    if _by_people(entries) != _by_people(remote.entries):
        raise changed_meanwhile(target, remote)
    return Remote(True, remote.private, target.branch, False, state.sha, entries, remote.card)


def _by_people(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the files except .gitattributes, which the Hub creates in each new repository."""
    return {path: entry for path, entry in entries.items() if path != ATTRIBUTES}


def commit_url(api: "HfApi", repo_id: str, commit_id: str) -> str:
    """Return the URL of a commit's page."""
    return f"{api.endpoint}/{repo_id}/commit/{commit_id}"


def changed_meanwhile(target: Target, remote: Remote) -> HubError:
    """Return the error for a repository that changed since it was checked."""
    return HubError(
        f"{target.repo_id} was changed by someone else in the meantime (commit {remote.head}); "
        "nothing was published",
        hint="check the change, then run the same command again",
    )
