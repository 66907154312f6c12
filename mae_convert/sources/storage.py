"""Files in remote storage through fsspec: S3, Google Cloud Storage and others.

Files are copied to the local disk to be read; `mae_convert.sources.storage_upload` writes files.
"""

from pathlib import Path
from typing import Any

from mae_convert.errors import MaeConvertError, MissingRequirementError
from mae_convert.sources.storage_retry import with_retries
from mae_convert.text.redaction import cause_without_secrets

CHUNK = 8 << 20
FILE = "file://"
PACKAGES = {"s3": "mae-convert[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


def is_remote(text: str) -> bool:
    """Return whether a text is a URL that fsspec opens, such as ``s3://bucket/path``."""
    return "://" in text and not text.startswith((FILE, "hf://", "http://", "https://"))


def local_path(text: str) -> Path:
    """Return the local path that a path or a ``file://`` URL specifies."""
    return Path(text.removeprefix(FILE))


def last_part(url: str) -> str:
    """Return the last component of a URL."""
    return url.rstrip("/").rpartition("/")[2]


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it.

    Raises:
        MissingRequirementError: the package for the protocol of the URL is not installed.
        MaeConvertError: the protocol is unknown.
    """
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        file_system, path = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        package = PACKAGES.get(protocol, protocol)
        raise MissingRequirementError(
            f"{protocol}:// needs a package that is not installed", hint=f"pip install '{package}'"
        ) from error
    except ValueError as error:
        raise MaeConvertError(f"{url} is not a valid URL: {error}") from cause_without_secrets(
            error
        )
    return file_system, path


def exists(address: str) -> bool:
    """Return whether a local path or a URL is an existing file or directory."""
    if not is_remote(address):
        return local_path(address).exists()
    system, path = filesystem(address)
    return bool(with_retries(lambda: system.exists(path), address))


def glob(url: str) -> list[str]:
    """Return the URLs that match a URL with wildcards."""
    system, path = filesystem(url)
    return [system.unstrip_protocol(p) for p in with_retries(lambda: system.glob(path), url)]


def files_below(url: str) -> dict[str, dict[str, Any]]:
    """Return the metadata of each file of a directory by its relative path.

    For a URL of a file, the only relative path is "".

    Raises:
        MaeConvertError: the URL does not exist.
    """
    system, path = filesystem(url)
    entries = with_retries(lambda: system.find(path, detail=True), url)
    if not entries:
        raise MaeConvertError(f"{url} does not exist", hint="check the URL")
    return {str(name)[len(path) :].lstrip("/"): info for name, info in entries.items()}


def size_of(url: str) -> int:
    """Return the number of bytes of a file, or of all files in a directory."""
    return sum(int(info["size"] or 0) for info in files_below(url).values())


def version_of(url: str) -> dict[str, str]:
    """Return the version of each file of a directory: a string that changes when the file changes.

    The versions are by relative path. For a URL of a file, the only relative path is "".
    """
    marks = ("ETag", "etag", "md5Hash", "generation", "LastModified", "mtime", "created", "size")
    return {
        name: " ".join(str(info[mark]) for mark in marks if mark in info)
        for name, info in files_below(url).items()
    }


def download(url: str, folder: Path) -> Path:
    """Copy a file or a directory to a local folder, and return the path of the copy.

    Raises:
        MaeConvertError: the URL does not exist or cannot be read, or a file was changed during the
            download.
    """
    system, path = filesystem(url)
    before = version_of(url)
    local = folder / last_part(path)
    for name, info in files_below(url).items():
        target = local / name if name else local
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(system, f"{path}/{name}" if name else path, target, int(info["size"]))
    if version_of(url) != before:
        raise MaeConvertError(f"{url} was changed while it was being read", hint="run again")
    return local


def _fetch(system: Any, path: str, target: Path, size: int) -> None:
    """Download one file; after a broken connection, continue at the same offset."""

    def resume() -> None:
        with system.open(path, "rb", block_size=CHUNK) as source, target.open("ab") as sink:
            source.seek(sink.tell())
            while piece := source.read(CHUNK):
                sink.write(piece)
        if target.stat().st_size != size:
            raise OSError(f"{target.stat().st_size} of {size} bytes were received")

    with_retries(resume, path)
