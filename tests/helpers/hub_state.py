"""The state behind the local Hub of the tests: repositories with commits, branches and PRs.

Contents are stored by hash in a folder, as git and LFS store them, so that large files are not kept
in memory. A commit is a mapping of paths to files; nothing is ever changed in place.
"""

import hashlib
import itertools
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
LFS_SUFFIXES = (".safetensors", ".h5", ".bin", ".pth", ".pt", ".npz", ".png")


def git_oid(data: bytes) -> str:
    """Return the name that git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class File:
    """A file at one commit: its size and hashes, and where its bytes are."""

    size: int
    oid: str
    content: Path
    sha256: str | None = None  # of files in LFS
    xet_hash: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    """One commit; its id is a hash of its contents, as in git."""

    id: str
    parent: str | None
    title: str
    description: str
    author: str
    files: dict[str, File]


@dataclass(frozen=True)
class PullRequest:
    number: int
    title: str
    description: str
    author: str
    status: str = "open"


@dataclass
class Repository:
    """A model repository. ``refs`` has branches by name and PRs as ``refs/pr/N``."""

    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pull_requests: list[PullRequest] = field(default_factory=list)

    def commit_at(self, revision: str) -> Commit | None:
        """Return the commit of a branch, a PR or a (short) commit id."""
        if revision in self.refs:
            return self.commits[self.refs[revision]]
        return next((c for i, c in self.commits.items() if i.startswith(revision)), None)

    def history(self, revision: str) -> list[Commit]:
        """Return commits, the newest first."""
        commits, commit = [], self.commit_at(revision)
        while commit is not None:
            commits.append(commit)
            commit = self.commits.get(commit.parent or "")
        return commits


@dataclass(frozen=True)
class Account:
    """The account of a token, and its permissions."""

    name: str
    may_write: bool = True
    organisations: tuple[str, ...] = ()
    may_read_gated: bool = False


class HubState:
    """The complete state of a Hub. Its methods are called under ``lock``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self.repositories: dict[str, Repository] = {}
        self.accounts: dict[str, Account] = {}
        self._numbers = itertools.count()
        (folder / "blobs").mkdir(parents=True)
        (folder / "lfs").mkdir()

    def create(self, repo_id: str, *, private: bool = False, gated: bool = False) -> Repository:
        """Create a repository with a first commit, as the Hub does."""
        repository = Repository(repo_id, private, gated)
        self.repositories[repo_id] = repository
        files = {".gitattributes": self.blob(GIT_ATTRIBUTES)}
        self.add_commit(repository, "main", "initial commit", "", "hub", files)
        return repository

    def blob(self, data: bytes) -> File:
        """Store a small file and return it."""
        path = self.folder / "blobs" / git_oid(data)
        path.write_bytes(data)
        return File(len(data), git_oid(data), path)

    def lfs_path(self, sha256: str) -> Path:
        return self.folder / "lfs" / sha256

    def lfs_file(self, sha256: str, size: int, xet_hash: str | None = None) -> File:
        """Return a file whose bytes were uploaded before."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return File(size, git_oid(pointer.encode()), self.lfs_path(sha256), sha256, xet_hash)

    def put(self, repo_id: str, files: dict[str, bytes | Path], revision: str = "main") -> Commit:
        """Commit files without the client, as a change by someone else."""
        repository = self.repositories.get(repo_id) or self.create(repo_id)
        before = repository.commit_at(revision)
        files_before = dict(before.files) if before else {}
        for name, content in files.items():
            data = content.read_bytes() if isinstance(content, Path) else content
            if name.endswith(LFS_SUFFIXES):
                sha256 = hashlib.sha256(data).hexdigest()
                self.lfs_path(sha256).write_bytes(data)
                files_before[name] = self.lfs_file(sha256, len(data))
            else:
                files_before[name] = self.blob(data)
        return self.add_commit(repository, revision, "by hand", "", "somebody", files_before)

    def add_commit(
        self,
        repository: Repository,
        revision: str,
        title: str,
        description: str,
        author: str,
        files: dict[str, File],
    ) -> Commit:
        """Add a commit to a branch or PR and return it."""
        parent = repository.refs.get(revision)
        identity = f"{parent}{title}{description}{next(self._numbers)}{sorted(files)}"
        commit_id = hashlib.sha1(identity.encode(), usedforsecurity=False).hexdigest()
        commit = Commit(commit_id, parent, title, description, author, files)
        repository.commits[commit_id] = commit
        repository.refs[revision] = commit_id
        return commit

    def open_pull_request(
        self, repository: Repository, base: str, title: str, description: str, author: str
    ) -> PullRequest:
        """Open a PR that begins at a commit of the main branch."""
        number = len(repository.pull_requests) + 1
        opened = PullRequest(number, title, description, author)
        repository.pull_requests.append(opened)
        repository.refs[f"refs/pr/{number}"] = base
        return opened

    def close_pull_request(self, repository: Repository, number: int) -> None:
        closed = replace(repository.pull_requests[number - 1], status="closed")
        repository.pull_requests[number - 1] = closed

    def file(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """Return the bytes of a file."""
        commit = self.repositories[repo_id].commit_at(revision)
        assert commit is not None
        return commit.files[path].content.read_bytes()

    def names(self, repo_id: str, revision: str = "main") -> set[str]:
        """Return the paths at a revision, except the files that the Hub created."""
        commit = self.repositories[repo_id].commit_at(revision)
        assert commit is not None
        return set(commit.files) - {".gitattributes"}
