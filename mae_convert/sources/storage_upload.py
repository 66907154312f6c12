"""Write a file or a model directory to remote storage, whole or not at all.

A run sends its files under names of its own, reads them back and compares. Then it claims the
target: it writes a small file beside it and looks whether another run has one there. Only one run
at a time moves its files to their final names. A directory has no single name in storage: its files
take theirs one after the other, ``config.json``, by which readers know a model, last. At the end
the files are compared once more under their final names; only then the claim is given up and the
upload counts as done.

What a run that was killed left behind is removed by a later run to the same target, by its age
alone: a run cannot know whether another one, perhaps on another machine, is still alive.
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
from mae_convert.formats.output import OUR_NAMES
from mae_convert.formats.shards import SHARD
from mae_convert.sources.storage import CHUNK, filesystem, version_of
from mae_convert.sources.storage_retry import patiently

LAST = "config.json"
OURS = OUR_NAMES - {"README.md"}
# Here a path begins with a bucket, which is not made unasked, and folders need no making.
BUCKETS = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl"))
CHECKSUMS = ("ETag", "etag", "md5Hash", "content_md5", "crc32c")
Checksums = dict[str, Any]
ABANDONED = 7 * 86400.0  # seconds after which temporary files are taken for those of a killed run
LEASE = 3600.0  # seconds for which a claim holds; it is renewed before each file that is moved
POLL, POLLS = 2.0, 150  # seconds between two looks at the claims of others, and how many looks


@dataclass(frozen=True)
class Sent:
    """An uploaded file: its current and final name, size and SHA-256."""

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
        """Return a path in the parent directory of the target."""
        return f"{self.folder}/{name}" if self.folder else name

    def make_folder(self, path: str) -> None:
        """Create a directory if the storage has directories."""
        if path and self.url.partition("://")[0] not in BUCKETS:
            patiently(lambda: self.system.makedirs(path, exist_ok=True), self.url)


def upload(local: Path, url: str) -> dict[str, str]:
    """Send a file or a directory, and return its `version_of` once storage holds exactly that.

    Raises:
        OutputError: it cannot be written, does not contain what was sent, or another run writes
            to the same target at the same time.
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
        with _claimed(target) as claim:
            _publish(target, sent, claim, is_directory="" not in files)
            version = version_of(url)
            _remove_abandoned(target, claim)
    except MaeConvertError as error:
        raise OutputError(f"{url} cannot be written: ", error) from error
    finally:
        _remove(target.system, temporary)
    return version


def _inside(path: str, name: str) -> str:
    return f"{path}/{name}" if name else path


def _sent(target: Target, source: Path, temporary: str, final: str) -> Sent:
    """Upload one file under its temporary name, read it back, and compare."""

    def send() -> Sent:
        digest, size = hashlib.sha256(), 0
        with (
            source.open("rb") as stream,
            target.system.open(temporary, "wb", block_size=CHUNK) as sink,
        ):
            while piece := stream.read(CHUNK):
                digest.update(piece)
                size += len(piece)
                sink.write(piece)
        sent = Sent(temporary, final, size, digest.hexdigest())
        if _sha256(target.system, temporary) != sent.sha256:
            raise OSError(f"{temporary} does not contain what was sent")
        return sent

    return patiently(send, target.url)


def _sha256(system: Any, path: str) -> str:
    digest = hashlib.sha256()
    with system.open(path, "rb", block_size=CHUNK) as stream:
        while piece := stream.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _publish(target: Target, sent: list[Sent], claim: str, *, is_directory: bool) -> None:
    """Rename the uploaded files to their final names, ``config.json`` last, and compare."""
    if is_directory:
        _clear(target, {file.final for file in sent})
        target.make_folder(target.path)
    moved: dict[Sent, Checksums] = {}
    for file in sent:
        _renew(target, claim)
        if _is_last(file.final):
            _check_held(target, moved)
        moved[file] = _moved(target, file)
    _check_held(target, moved)


def _moved(target: Target, file: Sent) -> Checksums:
    """Move a file that was sent to its final name, and return the checksums that it has there.

    Storage may have moved it although its answer was lost. So an attempt that finds nothing to move
    is a success only if the final name holds what was sent.
    """
    system, before = target.system, Checksums()

    def move() -> None:
        if system.exists(file.temporary):
            before.update(_checksums(system, file.temporary))
            system.mv(file.temporary, file.final)

    patiently(move, target.url)
    _check_held(target, {file: before})
    return patiently(lambda: _checksums(system, file.final), target.url)


def _check_held(target: Target, files: Mapping[Sent, Checksums]) -> None:
    """Raise OutputError unless each final name holds what was sent.

    A file that storage tells the same checksums for as when it was compared is not read again.
    """
    for file, known in files.items():
        held = patiently(lambda f=file, k=known: _holds(target.system, f, k), target.url)  # type: ignore[misc]
        if not held:
            raise OutputError(
                f"{file.final} does not contain what was sent: another program wrote to "
                f"{target.url} at the same time, and the target may contain files of both",
                hint="run again when the other program has ended",
            )


def _holds(system: Any, file: Sent, known: Checksums) -> bool:
    if not system.exists(file.final) or int(system.info(file.final)["size"]) != file.size:
        return False
    if known and known == _checksums(system, file.final):
        return True
    return _sha256(system, file.final) == file.sha256


def _checksums(system: Any, path: str) -> Checksums:
    """Return the checksums of a file that the storage reports, if any."""
    info = system.info(path)
    return {mark: info[mark] for mark in CHECKSUMS if info.get(mark)}


def _clear(target: Target, finals: set[str]) -> None:
    """Make a model that is replaced unknown first, and remove what the new one does not have.

    Files that this program does not write stay.
    """
    system = target.system
    if not patiently(lambda: system.exists(target.path), target.url):
        return
    found = [str(path) for path in patiently(lambda: system.find(target.path), target.url)]
    kept = {final.lstrip("/") for final in finals}
    for path in sorted(found, key=lambda path: not _is_last(path)):
        name = path.rpartition("/")[2]
        ours = name in OURS or SHARD.fullmatch(name)
        if _is_last(path) or (ours and path.lstrip("/") not in kept):
            patiently(lambda p=path: _remove_file(system, p), target.url)  # type: ignore[misc]


def _remove_file(system: Any, path: str) -> None:
    if system.exists(path):
        system.rm_file(path)


def _is_last(path: str) -> bool:
    return path.endswith(f"/{LAST}")


@contextmanager
def _claimed(target: Target) -> Iterator[str]:
    """Claim a target, so that of several runs only one at a time moves files to it.

    Each run writes its claim before it looks at those of others, so of two runs at least one sees
    the other. The one whose claim has the smaller name, which begins with the time, waits for the
    other to end or to withdraw; the other withdraws.

    Raises:
        OutputError: another run has claimed it.
    """
    name = f".{target.name}.claim-{time.time_ns():020d}-{uuid.uuid4().hex}"
    claim = target.beside(name)
    target.make_folder(target.folder)
    try:
        _write_claim(target, claim)
        for _ in range(POLLS):
            others = _claims_of_others(target, claim)
            if not others:
                break
            if min(others) < claim:
                raise _taken(target, min(others))
            time.sleep(POLL)
            _renew(target, claim)
        else:
            raise _taken(target, min(others))
        yield claim
    finally:
        _remove(target.system, claim)


def _write_claim(target: Target, claim: str) -> None:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    owner = {"host": socket.gethostname(), "process": os.getpid(), "since": started}
    data = json.dumps(owner).encode()
    patiently(lambda: target.system.pipe_file(claim, data), target.url)


def _renew(target: Target, claim: str) -> None:
    """Begin the lease of a claim anew.

    Raises:
        OutputError: it is gone: another run took it for that of a killed run.
    """
    if not patiently(lambda: target.system.exists(claim), target.url):
        raise OutputError(
            f"the lock file {claim} of this run was removed, because the run took longer than "
            f"{LEASE / 60:.0f} minutes for one file",
            hint="run again",
        )
    _write_claim(target, claim)


def _claims_of_others(target: Target, claim: str) -> list[str]:
    """Return the claims of other runs that are not older than a claim holds."""
    pattern = re.compile(re.escape(f".{target.name}.claim-") + "[0-9]{20}-[0-9a-f]{32}")
    others = [path for path in _listed(target, pattern) if path != claim]
    return [path for path in others if not _is_older(target.system, path, claim, LEASE)]


def _taken(target: Target, claim: str) -> OutputError:
    try:
        owner = json.loads(target.system.cat_file(claim))
        whose = f"process {owner['process']} on {owner['host']}, since {owner['since']}"
    except Exception:  # it has just ended, or another version wrote it
        whose = "its owner cannot be read"
    return OutputError(
        f"another run is writing to {target.url} ({whose}), so this run wrote nothing",
        hint=(
            f"run again when the other has ended. If it was killed, remove {claim}, which "
            f"otherwise expires after {LEASE / 60:.0f} minutes"
        ),
    )


def _listed(target: Target, pattern: re.Pattern[str]) -> list[str]:
    """Return the paths beside the target whose name has a pattern of this module."""

    def listed() -> list[Any]:
        return list(target.system.ls(target.folder, detail=False))

    names = {str(p).rstrip("/").rpartition("/")[2] for p in patiently(listed, target.url)}
    return sorted(target.beside(name) for name in names if pattern.fullmatch(name))


def _is_older(system: Any, path: str, than: str, seconds: float) -> bool:
    """Return whether a file was written so many seconds before another, by storage's own clock.

    A file whose time is not told is not older.
    """
    try:
        return bool((system.modified(than) - system.modified(path)).total_seconds() > seconds)
    except Exception:  # not every file system tells times, and the file may be gone
        return False


def _remove_abandoned(target: Target, claim: str) -> None:
    """Remove temporary files of this target that killed runs have left behind."""
    ours = re.compile(
        re.escape(f".{target.name}.") + "(claim-[0-9]{20}-)?[0-9a-f]{32}",
    )
    for path in _listed(target, ours):
        try:
            files = [str(file) for file in target.system.find(path)]
        except Exception:  # as `_remove`
            continue
        if files and all(_is_older(target.system, file, claim, ABANDONED) for file in files):
            _remove(target.system, path)


def _remove(system: Any, path: str) -> None:
    """Remove temporary files; failures are ignored."""

    def remove() -> None:
        if system.exists(path):
            system.rm(path, recursive=True)

    with suppress(Exception):
        patiently(remove, path)
