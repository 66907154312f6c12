"""Write a file or a model directory to remote storage, completely or not at all.

A process uploads its files under temporary names, reads them back and compares them. Then it locks
the target: it writes a lock file in the target's parent directory, and checks whether there is a
lock file of another process. Only one process at a time moves its files to their final names.
Remote storage cannot rename a directory: its files are renamed one after the other, and
``config.json``, by which readers recognise a model, is renamed last. Finally the files are compared
again under their final names, the lock is released, and the upload is complete. A later upload to
the same target removes the files of a killed process, but only if they are old: a process cannot
know whether another process, which may be on another machine, is still running.
"""

import hashlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mae_convert.errors import MaeConvertError, OutputError
from mae_convert.formats.shards import SHARD
from mae_convert.formats.write import OUR_NAMES
from mae_convert.sources.storage import CHUNK, filesystem, version_of
from mae_convert.sources.storage_retry import with_retries

LAST = "config.json"
OURS = OUR_NAMES - {"README.md"}
# With these protocols, a path begins with a bucket, which must exist, and there are no directories.
BUCKETS = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl"))
CHECKSUMS = ("ETag", "etag", "md5Hash", "content_md5", "crc32c")
Checksums = dict[str, Any]
ABANDONED = (
    7 * 86400.0
)  # seconds after which a temporary file is assumed to belong to a killed process
LEASE = 3600.0  # seconds for which a lock is valid; it is renewed before each file that is moved
POLL, POLLS = 2.0, 150  # seconds between checks of other locks, and the number of checks


@dataclass(frozen=True)
class UploadedFile:
    """An uploaded file: its current name, its final name, its size and its SHA-256."""

    temporary: str
    final: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Target:
    """The target of an upload: a path in a file system, and the URL that the user specified."""

    system: Any
    path: str
    url: str

    @property
    def folder(self) -> str:
        """The parent directory of the target."""
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        """The last part of the target's path."""
        return self.path.rpartition("/")[2]

    def beside(self, name: str) -> str:
        """Return the path of `name` in the parent directory of the target."""
        return f"{self.folder}/{name}" if self.folder else name

    def make_folder(self, path: str) -> None:
        """Create a directory if the storage has directories."""
        if path and self.url.partition("://")[0] not in BUCKETS:
            with_retries(lambda: self.system.makedirs(path, exist_ok=True), self.url)


def upload(local: Path, url: str) -> dict[str, str]:
    """Upload a file or a directory, and check that the target contains what was uploaded.

    Returns:
        The version of each uploaded file by relative path: a string that changes when the file
        changes, see `version_of`.

    Raises:
        OutputError: the target cannot be written, does not contain what was uploaded, or another
            process writes to it at the same time.
    """
    target = Target(*filesystem(url), url)
    files = {"": local} if local.is_file() else {p.name: p for p in sorted(local.iterdir())}
    temporary = target.beside(f".{target.name}.{uuid.uuid4().hex}")
    try:
        target.make_folder(target.folder if "" in files else temporary)
        sent = [
            _sent(target, source, _inside(temporary, n), _inside(target.path, n))
            for n, source in files.items()
        ]
        sent.sort(key=lambda file: _is_last(file.final))
        with _locked(target) as lock:
            _publish(target, sent, lock, is_directory="" not in files)
            version = version_of(url)
            _remove_abandoned(target, lock)
    except MaeConvertError as error:
        raise OutputError(f"{url} cannot be written: ", error) from error
    finally:
        _remove(target.system, temporary)
    return version


def _inside(path: str, name: str) -> str:
    return f"{path}/{name}" if name else path


def _sent(target: Target, source: Path, temporary: str, final: str) -> UploadedFile:
    """Upload one file under its temporary name, read it back, and compare the hashes.

    Args:
        target: the target of the upload.
        source: the local file.
        temporary: the temporary path in the storage.
        final: the path to which `_publish` will rename the file.
    """

    def send() -> UploadedFile:
        digest, size = hashlib.sha256(), 0
        with (
            source.open("rb") as stream,
            target.system.open(temporary, "wb", block_size=CHUNK) as sink,
        ):
            while piece := stream.read(CHUNK):
                digest.update(piece)
                size += len(piece)
                sink.write(piece)
        sent = UploadedFile(temporary, final, size, digest.hexdigest())
        if _sha256(target.system, temporary) != sent.sha256:
            raise OSError(f"{temporary} does not contain what was sent")
        return sent

    return with_retries(send, target.url)


def _sha256(system: Any, path: str) -> str:
    digest = hashlib.sha256()
    with system.open(path, "rb", block_size=CHUNK) as stream:
        while piece := stream.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _publish(target: Target, sent: list[UploadedFile], lock: str, *, is_directory: bool) -> None:
    """Rename the uploaded files to their final names, and check their contents.

    The file ``config.json`` is renamed last.

    Args:
        target: the target.
        sent: the uploaded files, in the order in which they are renamed.
        lock: the path of this process's lock file, which is renewed before each file.
        is_directory: whether the target is a directory; files in it that are not in `sent` may be
            removed first, see `_clear`.
    """
    if is_directory:
        _clear(target, {file.final for file in sent})
        target.make_folder(target.path)
    moved: dict[UploadedFile, Checksums] = {}
    for file in sent:
        _renew(target, lock)
        if _is_last(file.final):
            _check_contents(target, moved)
        moved[file] = _moved(target, file)
    _check_contents(target, moved)


def _moved(target: Target, file: UploadedFile) -> Checksums:
    """Move an uploaded file to its final name, and return its checksums.

    The storage may have moved the file although its response was lost. Therefore a missing
    temporary file is not an error if the file with the final name contains what was uploaded.
    """
    system, before = target.system, Checksums()

    def move() -> None:
        if system.exists(file.temporary):
            before.update(_checksums(system, file.temporary))
            system.mv(file.temporary, file.final)

    with_retries(move, target.url)
    _check_contents(target, {file: before})
    return with_retries(lambda: _checksums(system, file.final), target.url)


def _check_contents(target: Target, files: Mapping[UploadedFile, Checksums]) -> None:
    """Raise OutputError unless the files under their final names contain what was uploaded.

    Args:
        target: the target of the upload.
        files: the uploaded files; for each, the checksums that the storage reported after its
            content was compared. A file that still has these checksums is not read again.
    """
    for file, checksums in files.items():
        held = with_retries(lambda f=file, k=checksums: _contains(target.system, f, k), target.url)  # type: ignore[misc]
        if not held:
            raise OutputError(
                f"{file.final} does not contain what was sent: another program wrote to "
                f"{target.url} at the same time, and the target may contain files of both programs",
                hint="run again when the other program has ended",
            )


def _contains(system: Any, file: UploadedFile, checksums: Checksums) -> bool:
    if not system.exists(file.final) or int(system.info(file.final)["size"]) != file.size:
        return False
    if checksums and checksums == _checksums(system, file.final):
        return True
    return _sha256(system, file.final) == file.sha256


def _checksums(system: Any, path: str) -> Checksums:
    """Return the checksums that the storage reports for a file; empty if it reports none."""
    info = system.info(path)
    return {mark: info[mark] for mark in CHECKSUMS if info.get(mark)}


def _clear(target: Target, finals: set[str]) -> None:
    """Remove those files of the existing model that the new model does not overwrite.

    ``config.json``, by which readers recognise a model, is always removed, and before the other
    files. Files with names that mae-convert does not write are kept.

    Args:
        target: the target of the upload.
        finals: the paths of the files of the new model.
    """
    system = target.system
    if not with_retries(lambda: system.exists(target.path), target.url):
        return
    existing = [str(path) for path in with_retries(lambda: system.find(target.path), target.url)]
    current = {final.lstrip("/") for final in finals}
    for path in sorted(existing, key=lambda path: not _is_last(path)):
        name = path.rpartition("/")[2]
        ours = name in OURS or SHARD.fullmatch(name)
        if _is_last(path) or (ours and path.lstrip("/") not in current):
            with_retries(lambda p=path: _remove_file(system, p), target.url)  # type: ignore[misc]


def _remove_file(system: Any, path: str) -> None:
    if system.exists(path):
        system.rm_file(path)


def _is_last(path: str) -> bool:
    return path.endswith(f"/{LAST}")


@contextmanager
def _locked(target: Target) -> Iterator[str]:
    """Lock a target, so that only one process at a time moves files to it.

    Each process writes its lock file before it lists the lock files of other processes, so at least
    one of two processes detects the other. The names of lock files are ordered by the time of their
    creation. The process with the earlier lock waits until the later lock is released; the process
    with the later lock releases its lock and fails.

    Yields:
        The path of this process's lock file.

    Raises:
        OutputError: another process has locked the target, or has removed the lock of this process.
    """
    name = f".{target.name}.claim-{time.time_ns():020d}-{uuid.uuid4().hex}"
    lock = target.beside(name)
    target.make_folder(target.folder)
    try:
        _write_lock(target, lock)
        for _ in range(POLLS):
            others = _locks_of_others(target, lock)
            if not others:
                break
            if min(others) < lock:
                raise _taken(target, min(others))
            time.sleep(POLL)
            _renew(target, lock)
        else:
            raise _taken(target, min(others))
        yield lock
    finally:
        _remove(target.system, lock)


def _write_lock(target: Target, lock: str) -> None:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    owner = {"host": socket.gethostname(), "process": os.getpid(), "since": started}
    data = json.dumps(owner).encode()
    with_retries(lambda: target.system.pipe_file(lock, data), target.url)


def _renew(target: Target, lock: str) -> None:
    """Renew a lock, so that it does not expire.

    Raises:
        OutputError: the lock has expired, and another process has removed it.
    """
    if not with_retries(lambda: target.system.exists(lock), target.url):
        raise OutputError(
            f"the lock file {lock} of this run was removed, because the run took longer than "
            f"{LEASE / 60:.0f} minutes for one file",
            hint="run again",
        )
    _write_lock(target, lock)


def _locks_of_others(target: Target, lock: str) -> list[str]:
    """Return the paths of other processes' lock files, except expired ones.

    Args:
        target: the target.
        lock: the path of this process's lock file.
    """
    pattern = re.compile(re.escape(f".{target.name}.claim-") + "[0-9]{20}-[0-9a-f]{32}")
    others = [path for path in _listed(target, pattern) if path != lock]
    return [path for path in others if not _is_older(target.system, path, lock, LEASE)]


def _taken(target: Target, lock: str) -> OutputError:
    try:
        owner = json.loads(target.system.cat_file(lock))
        whose = f"process {owner['process']} on {owner['host']}, since {owner['since']}"
    except Exception:  # the lock was just removed, or another version wrote it
        whose = "its owner cannot be read"
    return OutputError(
        f"another run is writing to {target.url} ({whose}), so this run wrote nothing",
        hint=(
            f"run again when the other run has ended. If it was killed, remove {lock}, which "
            f"otherwise expires after {LEASE / 60:.0f} minutes"
        ),
    )


def _listed(target: Target, pattern: re.Pattern[str]) -> list[str]:
    """Return the paths in the parent directory of the target whose names match a pattern."""

    def listed() -> list[Any]:
        return list(target.system.ls(target.folder, detail=False))

    names = {str(p).rstrip("/").rpartition("/")[2] for p in with_retries(listed, target.url)}
    return sorted(target.beside(name) for name in names if pattern.fullmatch(name))


def _is_older(system: Any, path: str, than: str, seconds: float) -> bool:
    """Return whether a file was written more than `seconds` before the file `than`.

    The times are measured by the storage's clock. The result is False if a time is not available.
    """
    try:
        return bool((system.modified(than) - system.modified(path)).total_seconds() > seconds)
    except Exception:  # some file systems have no times, and the file may have been removed
        return False


def _remove_abandoned(target: Target, lock: str) -> None:
    """Remove the temporary files that killed processes have left for a target.

    Args:
        target: the target.
        lock: the path of this process's lock file. Only files that were written at least
            `ABANDONED` seconds before this file are removed.
    """
    ours = re.compile(
        re.escape(f".{target.name}.") + "(claim-[0-9]{20}-)?[0-9a-f]{32}",
    )
    for path in _listed(target, ours):
        try:
            files = [str(file) for file in target.system.find(path)]
        except Exception:  # failures are ignored, as in `_remove`
            continue
        if files and all(_is_older(target.system, file, lock, ABANDONED) for file in files):
            _remove(target.system, path)


def _remove(system: Any, path: str) -> None:
    """Remove a temporary file or directory; failures are ignored."""

    def remove() -> None:
        if system.exists(path):
            system.rm(path, recursive=True)

    with suppress(Exception):
        with_retries(remove, path)
