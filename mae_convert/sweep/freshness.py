"""Detect whether a checkpoint has changed: by size and modification time, then by its hash."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_convert.convert.record import files_sha256
from mae_convert.errors import MaeConvertError
from mae_convert.sources import storage

if TYPE_CHECKING:
    from mae_convert.sweep.plan_fields import Job
    from mae_convert.sweep.result import Row

Version = dict[str, Any]
JSON = ".json"


def checkpoint_version(text: str) -> Version:
    """Return values that change when a checkpoint changes; its tensors are not read.

    Args:
        text: the path, URL, Hub reference or official name of the checkpoint.

    Returns:
        A dictionary. For a local path it contains the size and the modification time of each file
        (for a JSON file, the size and the SHA-256). For remote storage it contains the metadata
        that the storage reports for each file, and for the Hub the commit. It is empty for official
        checkpoints, which do not change, and for a local path that does not exist.
    """
    from mae_convert.sources import HubReference, parse_source

    if storage.is_remote(text):
        return dict(storage.version_of(text))
    source = parse_source(text.removeprefix(storage.FILE))
    if isinstance(source, HubReference):
        return {"commit": _commit(source)}
    if not isinstance(source, Path):
        return {}
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    return {os.path.relpath(path, source): _stamp(path) for path in files}


def _stamp(path: Path) -> list[Any]:
    status = path.stat()
    if path.suffix == JSON:
        return [status.st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
    return [status.st_size, status.st_mtime_ns]


def _commit(source: Any) -> str:
    from mae_convert.sources.client import client, hub_errors_explained
    from mae_convert.sources.snapshot import take_snapshot

    with hub_errors_explained(str(source)):
        return str(take_snapshot(client(), source).commit)


def is_unchanged(row: "Row", job: "Job") -> bool:
    """Return whether a job's source and target have not changed since its row was written."""
    if not _is_unchanged(job.source, dict(row.source_version), row.source_sha256):
        return False
    if job.target is None:
        return True
    return _is_unchanged(
        job.target, dict(row.target_version), row.target_sha256, ignore_new_files=True
    )


def _is_unchanged(
    text: str, before: Version, sha256: str | None, *, ignore_new_files: bool = False
) -> bool:
    """Return whether a checkpoint has not changed since its version and hash were recorded.

    Args:
        text: the path, URL, Hub reference or official name of the checkpoint.
        before: the recorded version.
        sha256: the recorded hash of the tensor files; None if it was not recorded.
        ignore_new_files: ignore files that were added after the version was recorded.
    """
    from mae_convert.checkpoint.open import open_checkpoint
    from mae_convert.files.byte_ranges import ByteFile

    try:
        now = checkpoint_version(text)
        if ignore_new_files:
            now = {name: stamp for name, stamp in now.items() if name in before}
        if now == before:
            return True
        if sha256 is None or storage.is_remote(text) or set(now) != set(before):
            return False
        if any(now[name] != before[name] for name in now if name.endswith(JSON)):
            return False
        # The modification times may differ only because the files were copied.
        path = storage.local_path(text)
        files = [ByteFile(path)] if path.is_file() else open_checkpoint(path).container.opened
        return bool(files_sha256(files).get("sha256") == sha256)
    except (MaeConvertError, OSError):
        return False
