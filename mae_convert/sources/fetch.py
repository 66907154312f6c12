"""Download a file over HTTPS: resumable, verified, and recorded with its hash.

The transfer is implemented by `huggingface_hub`, which resumes interrupted downloads, repeats
failed requests, shows progress, and is already a dependency. The library pooch cannot resume
downloads (of 1.3 GB, for example), and requires a complete hash, but the publisher of the official
files provides only six digits. If no hash is published, the first download is trusted and its hash
is recorded; a later download with another hash is refused.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from mae_convert.errors import CheckpointError, MaeConvertError, OutputError
from mae_convert.files.atomic import write_file
from mae_convert.files.strict_json import JsonError, check_document, parse_json
from mae_convert.sources.client import client, hub_errors_explained, with_retries

VARIABLE = "MAE_CONVERT_CACHE"
RECORDS = "downloads.json"
ADVICE = (
    "the file contains the hashes of earlier downloads: correct it, or remove it to accept the "
    "hashes of the next downloads"
)
PARTIAL = ".partial"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Record:
    """The record of a download."""

    url: str
    """The URL from which the file was downloaded."""

    sha256: str
    """The SHA-256 of the file, in hexadecimal digits."""

    md5: str
    """The MD5 of the file, in hexadecimal digits."""

    bytes: int
    """The size of the file in bytes."""

    mtime_ns: int
    """The modification time of the file, by which changes are detected."""

    trusted: str
    """Why the hash is trusted."""

    first_used: str
    """The time of the first download."""

    fingerprint: str | None = None
    """The fingerprint of the checkpoint in the file, computed when the file was downloaded; None if
    the file is not a checkpoint."""


@dataclass(frozen=True)
class DownloadRequest:
    """A file to download."""

    name: str
    """The name of the file in the cache."""

    url: str
    """The URL to download the file from."""

    md5: str | None
    """The first digits of the file's MD5, as published; None if no digits are published."""

    examine: Callable[[Path], str | None]
    """A function that returns the fingerprint of the checkpoint in the downloaded file, or None if
    the file is not a checkpoint. It raises MaeConvertError if the content is not as expected."""


def fetch(request: DownloadRequest, cache: Path) -> tuple[Path, Record]:
    """Return the local path of a file and its record; the file is downloaded only if needed.

    Raises:
        CheckpointError: the file's hash is not the published hash, or not the hash of an earlier
            download.
        HubError: the server does not have the file.
        MissingRequirementError: the server cannot be reached.
        OutputError: the cache cannot be written to.
    """
    from filelock import FileLock

    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Concurrent downloads would write to the same partial file.
        with FileLock(cache / f".{request.name}.lock"):
            return _fetch(request, cache)
    except PermissionError as error:
        raise OutputError(
            f"{cache} cannot be written ({error.strerror})",
            hint=f"set {VARIABLE} to a writable directory",
        ) from error


def _fetch(file: DownloadRequest, cache: Path) -> tuple[Path, Record]:
    path, previous = cache / file.name, read_records(cache).get(file.name)
    if previous and path.is_file() and _is_untouched(path, previous):
        return path, previous
    if path.is_file():
        record = _examined(path, file, previous)  # changed by the user, or without a record
    else:
        partial = path.with_name(path.name + PARTIAL)
        _transfer(file, partial)
        try:
            record = _examined(partial, file, previous)
        except MaeConvertError:
            partial.unlink()
            raise
        partial.replace(path)
    _remember(cache, file.name, record)
    return path, record


def _is_untouched(path: Path, record: Record) -> bool:
    status = path.stat()
    return (status.st_size, status.st_mtime_ns) == (record.bytes, record.mtime_ns)


def _transfer(download: DownloadRequest, partial: Path) -> None:
    """Download the missing part of a file; received data is kept if the connection breaks."""
    from huggingface_hub.file_download import http_get

    version = partial.with_name(partial.name + ".etag")

    def attempt() -> None:
        tag, size = _ask(download.url)
        # A partial file can only be completed with the same version.
        same = tag and version.is_file() and version.read_text() == tag
        with partial.open("ab" if same else "wb") as stream:
            version.write_text(tag)
            if stream.tell() > (size or 0):
                stream.truncate(0)
            start = stream.tell()
            headers = {"If-Range": tag} if start else {}
            http_get(download.url, stream, resume_size=start, headers=headers, expected_size=size,
                     displayed_filename=download.name)  # fmt: skip

    with hub_errors_explained(download.url, server="its server"):
        client()  # sets the time limit for servers that do not respond
        with_retries(attempt)
    version.unlink(missing_ok=True)


def _ask(url: str) -> tuple[str, int | None]:
    """Return the version of a file and its size, as sent by the server.

    The version is the ETag; "" if the server sends none, or a weak one. The size is in bytes; None
    if the server does not send it.
    """
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status

    response = get_session().head(
        url, follow_redirects=True, headers={"Accept-Encoding": "identity"}
    )
    hf_raise_for_status(response)
    size = response.headers.get("Content-Length", "")
    tag = response.headers.get("ETag", "")
    # A weak tag does not mean that the bytes are the same.
    return "" if tag.startswith("W/") else tag, int(size) if size.isdigit() else None


def _examined(path: Path, download: DownloadRequest, record: Record | None) -> Record:
    """Check a file's hash and content, and return its record.

    Args:
        path: the downloaded file.
        download: the request for the file.
        record: the record of an earlier download; None for a first download.

    Raises:
        CheckpointError: the hash or the content of the file is not as expected.
    """
    sha256, md5 = hashes(path)
    if download.md5 and not md5.startswith(download.md5):
        raise CheckpointError(
            f"{download.url} is not the file that was published: its MD5 is {md5} and should begin"
            f" with {download.md5}",
            hint="try again later, or without a proxy or mirror",
        )
    if record and sha256 != record.sha256:
        raise CheckpointError(
            f"{download.name} is not the file that was downloaded on"
            f" {record.first_used[:10]}: its SHA-256 is {sha256} and was {record.sha256}",
            hint=(
                f"if its publisher has replaced it, remove the entry {download.name} from"
                f" {path.with_name(RECORDS)}"
            ),
        )
    fingerprint = download.examine(path)
    status = path.stat()
    if record:
        return replace(record, mtime_ns=status.st_mtime_ns, fingerprint=fingerprint)
    trusted = (
        f"its MD5 begins with {download.md5}, as published"
        if download.md5
        else "on first use: no hash is published"
    )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    times = status.st_mtime_ns, trusted, now
    return Record(download.url, sha256, md5, status.st_size, *times, fingerprint)


def hashes(path: Path) -> tuple[str, str]:
    """Return the SHA-256 and the MD5 of a file, in hexadecimal digits; the file is read once."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
    return sha256.hexdigest(), md5.hexdigest()


def read_records(cache: Path) -> dict[str, Record]:
    """Return the records of all downloads in a cache, by file name.

    Raises:
        CheckpointError: the file that contains the records is damaged.
    """
    path = cache / RECORDS
    if not path.is_file():
        return {}
    try:
        stored: Mapping[str, Mapping] = parse_json(path.read_bytes())
    except (OSError, JsonError) as error:
        raise CheckpointError(path, f" cannot be read ({error})", hint=ADVICE) from error
    check_document(stored, "downloads", path, ADVICE)
    return {name: Record(**fields) for name, fields in stored.items()}


def _remember(cache: Path, name: str, record: Record) -> None:
    from filelock import FileLock

    with FileLock(cache / f".{RECORDS}.lock"):
        records = {**read_records(cache), name: record}
        text = json.dumps({n: asdict(r) for n, r in sorted(records.items())}, indent=2) + "\n"
        write_file(cache / RECORDS, text, overwrite=True)


def cache_directory() -> Path:
    """Return ``$MAE_CONVERT_CACHE`` or the default directory for downloads, in the user's cache."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mae-convert"


def link_together(folder: Path, files: Mapping[str, Path]) -> None:
    """Create a directory in the cache, with links to files in other directories.

    Args:
        folder: the directory; links that it already contains are replaced.
        files: the file to which each link refers, by the name of the link.

    Raises:
        OutputError: the cache cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, target in files.items():
            temporary = folder / f".{name}.{secrets.token_hex(4)}"
            temporary.symlink_to(target.absolute())
            temporary.replace(folder / name)
    except OSError as error:
        raise OutputError(
            folder,
            f" cannot be written ({error.strerror})",
            hint=f"set {VARIABLE} to a writable directory",
        ) from error
