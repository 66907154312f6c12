"""Files that are elsewhere: S3, Google's storage and whatever else fsspec speaks.

What is read is streamed to a local file. What is written is sent under a temporary name, read back
and compared, and only then takes its name, so that nothing half-written is ever seen under it. A
directory has no single name there: its files take theirs one after the other, ``config.json``, by
which readers know a model, last.
"""

import hashlib
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mae_convert.containers.output import OUR_NAMES
from mae_convert.containers.shards import SHARD
from mae_convert.errors import MaeConvertError, MissingRequirementError, OutputError

CHUNK = 8 << 20
ATTEMPTS = 5
WAIT = 0.5  # seconds before the second attempt; doubled for each further one
LAST = "config.json"
OURS = OUR_NAMES - {"README.md"}
FILE = "file://"
# Here a path begins with a bucket, which is not made unasked, and folders need no making.
BUCKETS = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl"))
PACKAGES = {"s3": "mae-convert[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
T = TypeVar("T")


def is_remote(text: str) -> bool:
    """Return whether a name is an address that fsspec is asked for."""
    return "://" in text and not text.startswith((FILE, "hf://", "http://", "https://"))


def local_path(text: str) -> Path:
    """Return a local path, which may be written as file://."""
    return Path(text.removeprefix(FILE))


def last_part(url: str) -> str:
    """Return the name of what an address is that of."""
    return url.rstrip("/").rpartition("/")[2]


def filesystem(url: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path there.

    Raises:
        MissingRequirementError: the package that speaks its protocol is not installed.
        MaeConvertError: no package speaks it.
    """
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        found, path = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        package = PACKAGES.get(protocol, protocol)
        raise MissingRequirementError(
            f"{protocol}:// needs a package that is not installed; pip install '{package}'"
        ) from error
    except ValueError as error:
        raise MaeConvertError(f"{url} is no address that can be read: {error}") from error
    return found, path


def exists(place: str) -> bool:
    """Return whether there is a file or a directory."""
    if not is_remote(place):
        return local_path(place).exists()
    system, path = filesystem(place)
    return bool(patiently(lambda: system.exists(path), place))


def glob(url: str) -> list[str]:
    """Return the addresses that fit a pattern."""
    system, path = filesystem(url)
    return [system.unstrip_protocol(p) for p in patiently(lambda: system.glob(path), url)]


def files_below(url: str) -> dict[str, dict[str, Any]]:
    """Return what a file, or each file of a directory, is known by; by its name within.

    Raises:
        MaeConvertError: there is nothing.
    """
    system, path = filesystem(url)
    found = patiently(lambda: system.find(path, detail=True), url)
    if not found:
        raise MaeConvertError(f"{url} does not exist")
    return {str(name)[len(path) :].lstrip("/"): info for name, info in found.items()}


def size_of(url: str) -> int:
    """Return the bytes of a file, or of all files in a directory."""
    return sum(int(info["size"] or 0) for info in files_below(url).values())


def version_of(url: str) -> dict[str, str]:
    """Return for each file something that changes when the file does."""
    marks = ("ETag", "etag", "md5Hash", "generation", "LastModified", "mtime", "created", "size")
    return {
        name: " ".join(str(info[mark]) for mark in marks if mark in info)
        for name, info in files_below(url).items()
    }


def download(url: str, folder: Path) -> Path:
    """Stream a file or a directory into a local folder, and return where it is.

    Raises:
        MaeConvertError: there is nothing, or it cannot be read, or changes meanwhile.
    """
    system, path = filesystem(url)
    before = version_of(url)
    local = folder / last_part(path)
    for name, info in files_below(url).items():
        place = local / name if name else local
        place.parent.mkdir(parents=True, exist_ok=True)
        _fetch(system, f"{path}/{name}" if name else path, place, int(info["size"]))
    if version_of(url) != before:
        raise MaeConvertError(f"{url} was changed while it was read; run again")
    return local


def _fetch(system: Any, path: str, place: Path, size: int) -> None:
    """Stream one file; after a break it goes on where it was."""

    def go_on() -> None:
        with system.open(path, "rb", block_size=CHUNK) as source, place.open("ab") as sink:
            source.seek(sink.tell())
            while piece := source.read(CHUNK):
                sink.write(piece)
        if place.stat().st_size != size:
            raise OSError(f"{place.stat().st_size} bytes came of {size}")

    patiently(go_on, path)


def upload(local: Path, url: str) -> None:
    """Send a file or a directory; it takes its name when everything is there and was compared.

    Raises:
        OutputError: it cannot be written, or does not read back as it was sent.
    """
    system, path = filesystem(url)
    files = {"": local} if local.is_file() else {p.name: p for p in sorted(local.iterdir())}
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}"
    places = {n: (f"{temporary}/{n}" if n else temporary) for n in files}
    try:
        _make_folder(system, temporary if "" not in files else folder, url)
        for n, source in files.items():
            patiently(lambda s=source, t=places[n]: _send(system, s, t), url)  # type: ignore[misc]
        if "" not in files:
            _clear(system, path, set(files), url)
            _make_folder(system, path, url)
        for n in sorted(files, key=lambda n: n == LAST):
            final = f"{path}/{n}" if n else path
            patiently(lambda a=places[n], b=final: _rename(system, a, b), url)  # type: ignore[misc]
    except MaeConvertError as error:
        raise OutputError(f"{url} cannot be written: {error}") from error
    finally:
        _forget(system, temporary)
    for left in _left_behind(system, folder, name):
        _forget(system, left)


def _make_folder(system: Any, path: str, url: str) -> None:
    if url.partition("://")[0] not in BUCKETS:
        patiently(lambda: system.makedirs(path, exist_ok=True), url)


def _left_behind(system: Any, folder: str, name: str) -> list[str]:
    """Return what runs that were killed have left under temporary names of this target."""
    ours = re.compile(re.escape(f".{name}.") + "[0-9a-f]{32}")
    try:
        listed = [str(place).rstrip("/") for place in system.ls(folder, detail=False)]
    except Exception:  # as `_forget`
        return []
    return [place for place in listed if ours.fullmatch(place.rpartition("/")[2])]


def _send(system: Any, source: Path, place: str) -> None:
    """Send one file in pieces, read it back, and compare."""
    sent, back = hashlib.sha256(), hashlib.sha256()
    with source.open("rb") as stream, system.open(place, "wb", block_size=CHUNK) as sink:
        while piece := stream.read(CHUNK):
            sent.update(piece)
            sink.write(piece)
    with system.open(place, "rb", block_size=CHUNK) as stream:
        while piece := stream.read(CHUNK):
            back.update(piece)
    if sent.digest() != back.digest():
        raise OSError(f"{place} does not read back as it was sent")


def _rename(system: Any, temporary: str, final: str) -> None:
    if system.exists(temporary):  # else an attempt whose answer was lost has done it
        system.mv(temporary, final)
    if not system.exists(final):
        raise OSError(f"{final} is not there")


def _clear(system: Any, path: str, names: set[str], url: str) -> None:
    """Make a model that is replaced unknown first, and take away what the new one has not.

    Files that this program does not write stay.
    """
    if not patiently(lambda: system.exists(path), url):
        return
    for place in sorted(patiently(lambda: system.find(path), url), key=lambda p: not _is_last(p)):
        name = str(place).rpartition("/")[2]
        ours = name in OURS or SHARD.fullmatch(name)
        if _is_last(place) or (ours and name not in names):
            patiently(lambda p=place: system.rm_file(p), url)  # type: ignore[misc]


def _is_last(place: str) -> bool:
    return place.endswith(f"/{LAST}")


def _forget(system: Any, temporary: str) -> None:
    """Remove what is left under a temporary name; that it cannot be is not worth a failure."""
    try:
        if system.exists(temporary):
            system.rm(temporary, recursive=True)
    except Exception:
        return


def patiently(work: Callable[[], T], what: str) -> T:
    """Return what a function returns, called again after failures that may pass.

    Raises:
        MaeConvertError: it fails each time, or in a way that will not pass.
    """
    for attempt in range(ATTEMPTS):
        try:
            return work()
        except MaeConvertError:
            raise
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            reason = "there is no such thing" if isinstance(error, FileNotFoundError) else error
            raise MaeConvertError(f"{what}: {reason}") from error
        except Exception as error:
            # Each file system has errors of its own, and many are not the system's.
            if attempt == ATTEMPTS - 1:
                said = " ".join(str(error).split()) or type(error).__name__
                raise MaeConvertError(f"{what}: {said}") from error
            time.sleep(WAIT * 2**attempt)
    raise AssertionError
