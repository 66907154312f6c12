"""Download a file over HTTPS: resumed after a break, checked, and remembered by its hash.

The transfer is `huggingface_hub`'s: it is needed anyway, resumes, retries and shows progress. pooch
begins again from nothing after a break, which at 1.3 GB is what matters most, and it needs a whole
hash, of which the publisher of the official files names six digits.

Where a publisher names no hash, the first download is trusted and its hash recorded: from then on
the file is what it was, or is refused.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from mae_convert.errors import CheckpointError, MaeConvertError, OutputError
from mae_convert.files.atomic import write_file
from mae_convert.files.strict_json import JsonError, check_document, parse_json
from mae_convert.sources.cache import VARIABLE
from mae_convert.sources.client import client, patiently, speaking

RECORDS = "downloads.json"
ADVICE = (
    "it contains the hashes of earlier downloads: correct it, or remove it to accept the hashes of "
    "the next downloads"
)
PARTIAL = ".partial"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Record:
    """What is remembered of a download."""

    url: str
    """Where it came from."""

    sha256: str
    """Of the whole file, in hexadecimal digits."""

    md5: str
    """Likewise."""

    bytes: int
    """Its size."""

    mtime_ns: int
    """When the file was last written, by which a file that was touched is known."""

    trusted: str
    """Why the hash is believed."""

    first_used: str
    """When it was first downloaded."""

    fingerprint: str | None = None
    """Of the checkpoint in it, when its hash was confirmed as ``trusted`` says; None for what is
    not a checkpoint."""


@dataclass(frozen=True)
class Wanted:
    """A file to download."""

    name: str
    """What it is called in the cache."""

    url: str
    """Where it is."""

    md5: str | None
    """Digits with which its MD5 begins as published; None where none says."""

    examine: Callable[[Path], str | None]
    """Returns the fingerprint of the checkpoint in a file, or None for another file; raises
    MaeConvertError for one that is not what it should be, whatever its hash."""


def fetch(wanted: Wanted, cache: Path) -> tuple[Path, Record]:
    """Return the local path of a file and what is known of it; it is downloaded once.

    Raises:
        CheckpointError: it is not the file that its publisher named, or that was here before.
        HubError: the server has no such file.
        MissingRequirementError: the server cannot be reached.
        OutputError: the cache cannot be written to.
    """
    from filelock import FileLock

    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Two downloads at the same time would write into the same partial file.
        with FileLock(cache / f".{wanted.name}.lock"):
            return _fetch(wanted, cache)
    except PermissionError as error:
        raise OutputError(
            f"{cache} cannot be written ({error.strerror})",
            hint=f"set {VARIABLE} to a writable directory",
        ) from error


def _fetch(wanted: Wanted, cache: Path) -> tuple[Path, Record]:
    path, known = cache / wanted.name, read_records(cache).get(wanted.name)
    if known and path.is_file() and _is_untouched(path, known):
        return path, known
    if path.is_file():
        record = _examined(path, wanted, known)  # touched by hand, or its record is lost
    else:
        partial = path.with_name(path.name + PARTIAL)
        _transfer(wanted, partial)
        try:
            record = _examined(partial, wanted, known)
        except MaeConvertError:
            partial.unlink()
            raise
        partial.replace(path)
    _remember(cache, wanted.name, record)
    return path, record


def _is_untouched(path: Path, known: Record) -> bool:
    status = path.stat()
    return (status.st_size, status.st_mtime_ns) == (known.bytes, known.mtime_ns)


def _transfer(wanted: Wanted, partial: Path) -> None:
    """Download the missing part of a file; received data is kept if the connection breaks."""
    from huggingface_hub.file_download import http_get

    version = partial.with_name(partial.name + ".etag")

    def attempt() -> None:
        tag, size = _ask(wanted.url)
        # Only of the same version is the rest what is missing.
        same = tag and version.is_file() and version.read_text() == tag
        with partial.open("ab" if same else "wb") as stream:
            version.write_text(tag)
            if stream.tell() > (size or 0):
                stream.truncate(0)
            start = stream.tell()
            headers = {"If-Range": tag} if start else {}
            http_get(wanted.url, stream, resume_size=start, headers=headers, expected_size=size,
                     displayed_filename=wanted.name)  # fmt: skip

    with speaking(wanted.url, server="its server"):
        client()  # sets the time after which a silent server is given up
        patiently(attempt)
    version.unlink(missing_ok=True)


def _ask(url: str) -> tuple[str, int | None]:
    """Return the version of a file (its ETag) and its size, as reported by the server."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status

    response = get_session().head(
        url, follow_redirects=True, headers={"Accept-Encoding": "identity"}
    )
    hf_raise_for_status(response)
    size = response.headers.get("Content-Length", "")
    tag = response.headers.get("ETag", "")
    # A weak tag promises the same meaning, not the same bytes.
    return "" if tag.startswith("W/") else tag, int(size) if size.isdigit() else None


def _examined(path: Path, wanted: Wanted, known: Record | None) -> Record:
    """Return what is to be remembered of a file.

    Raises:
        CheckpointError: it is not the one that is wanted.
    """
    sha256, md5 = hashes(path)
    if wanted.md5 and not md5.startswith(wanted.md5):
        raise CheckpointError(
            f"{wanted.url} is not what its publisher named: its MD5 is {md5} and should begin with"
            f" {wanted.md5}",
            hint="try again later, or without a proxy or mirror",
        )
    if known and sha256 != known.sha256:
        raise CheckpointError(
            f"{wanted.name} is not the file that was downloaded on {known.first_used[:10]}: its"
            f" SHA-256 is {sha256} and was {known.sha256}; if its publisher has replaced it, remove"
            f" {wanted.name} from {path.with_name(RECORDS)}"
        )
    fingerprint = wanted.examine(path)
    status = path.stat()
    if known:
        return replace(known, mtime_ns=status.st_mtime_ns, fingerprint=fingerprint)
    trusted = (
        f"its MD5 begins with {wanted.md5}, as published"
        if wanted.md5
        else "on first use: no hash is published"
    )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    times = status.st_mtime_ns, trusted, now
    return Record(wanted.url, sha256, md5, status.st_size, *times, fingerprint)


def hashes(path: Path) -> tuple[str, str]:
    """Return SHA-256 and MD5 of a file, reading it once."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
    return sha256.hexdigest(), md5.hexdigest()


def read_records(cache: Path) -> dict[str, Record]:
    """Return what is remembered of downloads, by name.

    Raises:
        CheckpointError: the file of records is damaged.
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
