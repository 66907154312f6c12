"""Download official checkpoints by their names in the catalog."""

import shutil
from pathlib import Path
from typing import Any

from mae_convert.checkpoint.checkpoint import Origin
from mae_convert.checkpoint.fingerprint import checkpoint_fingerprint
from mae_convert.checkpoint.image_files import check_images
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import CheckpointError, MaeConvertError
from mae_convert.families import official_files, official_named
from mae_convert.families.official_models import OfficialFile
from mae_convert.files.atomic import check_target, replacing_file
from mae_convert.sources.client import address_in
from mae_convert.sources.fetch import (
    DownloadRequest,
    Record,
    cache_directory,
    fetch,
    read_records,
)
from mae_convert.text import did_you_mean

MIRROR = "MAE_CONVERT_MIRROR"
CATALOG = "the catalog of official checkpoints"


def base_url(official: OfficialFile) -> str:
    """Return the URL to which an official file's path is relative.

    It is the publisher's URL, or ``$MAE_CONVERT_MIRROR`` if that variable is set.

    Raises:
        MaeConvertError: the variable is not a URL.
    """
    return (address_in(MIRROR) or official.base_url).rstrip("/")


def named(text: str) -> OfficialFile:
    """Return the official checkpoint with this name, which may end with ``.pth``.

    Raises:
        MaeConvertError: there is no official checkpoint with this name.
    """
    official = official_named(text) or official_named(text.removesuffix(".pth"))
    if official is None:
        names = [official.name for official in official_files()]
        near = did_you_mean(text, names)
        raise MaeConvertError(
            f"there is no official checkpoint {text!r}",
            hint=near or f"there are {', '.join(names)}",
        )
    return official


def get_official(official: OfficialFile) -> tuple[Path, Origin, Record]:
    """Return the local path, origin and record of an official checkpoint, downloaded if needed.

    Raises:
        CheckpointError: the downloaded file is not the official checkpoint.
        HubError: the server does not have the file.
        MissingRequirementError: the server cannot be reached.
    """
    url = f"{base_url(official)}/{official.path}"
    request = DownloadRequest(
        official.file, url, official.md5, lambda path: _examine(path, official)
    )
    path, record = fetch(request, cache_directory())
    return path, origin_of(official, record), record


def download(name: str, output: Path | None, *, overwrite: bool = False) -> dict[str, Any]:
    """Download a checkpoint by its name in the catalog, and return its URL, hashes and path.

    Args:
        name: the name, with or without ``.pth``.
        output: the file or directory to copy the file to; None to leave it only in the cache.
        overwrite: replace an existing file.

    Raises:
        MaeConvertError: there is no official checkpoint with this name, or `get_official` fails.
        OutputError: the copy cannot be written.
    """
    official = named(name)
    if output is not None and output.is_dir():
        output = output / official.file
    if output is not None:
        check_target(output, overwrite=overwrite)
    path, origin, record = get_official(official)
    if output is not None:
        with replacing_file(output, overwrite=overwrite) as temporary:
            shutil.copyfile(path, temporary)
    return {
        "name": official.name,
        "url": record.url,
        "bytes": record.bytes,
        "sha256": record.sha256,
        "md5": record.md5,
        "trusted": record.trusted,
        "fingerprint": record.fingerprint,
        "license": origin.record["license"],
        "purpose": official.purpose,
        "path": str(output or path),
    }


def get_image(url: str) -> Path:
    """Return the local path of an image, downloaded unless it is in the cache.

    Raises:
        CheckpointError: the downloaded file is not an image, or differs from the file that was
            first downloaded from this URL.
        MissingRequirementError: the server cannot be reached.
    """
    request = DownloadRequest(url.rpartition("/")[2], url, None, _examine_image)
    return fetch(request, cache_directory() / "images")[0]


def get_array(url: str) -> Path:
    """Return the local path of a NumPy or PyTorch file, downloaded unless it is in the cache.

    Raises:
        CheckpointError: the downloaded file has another format, or differs from the file that was
            first downloaded from this URL.
        MissingRequirementError: the server cannot be reached.
    """
    request = DownloadRequest(url.rpartition("/")[2], url, None, _examine_array)
    return fetch(request, cache_directory() / "images")[0]


def _examine_array(path: Path) -> None:
    with path.open("rb") as file:
        if not file.read(6).startswith((b"\x93NUMPY", b"PK\x03\x04")):
            raise CheckpointError("the downloaded file is not a NumPy or PyTorch file")


def _examine_image(path: Path) -> None:
    try:
        check_images([path])
    except MaeConvertError as error:
        raise CheckpointError("the downloaded file is not an image: ", error) from error


def origin_of(official: OfficialFile, record: Record) -> Origin:
    """Return the origin of an official checkpoint, which conversion records contain.

    Args:
        official: the entry of the checkpoint in the catalog.
        record: the record of its download.
    """
    notes = (f"{official.name}: licence {official.license}; {official.purpose}",)
    return Origin(
        name=official.name,
        record={**official.record, "md5": record.md5, "trusted": record.trusted},
        config=official.config,
        config_source=CATALOG,
        notes=notes,
    )


def confirmed_fingerprints() -> dict[str, dict[str, str]]:
    """Return the fingerprints of the official checkpoints in the cache, by checkpoint name.

    Each value is a dictionary with the fields ``fingerprint`` and ``confirmed``: a phrase that
    states how the downloaded file was checked.

    Raises:
        CheckpointError: the cache's file of records is corrupt.
    """
    records = read_records(cache_directory())
    return {
        official.name: {"fingerprint": record.fingerprint, "confirmed": record.trusted}
        for official in official_files()
        if (record := records.get(official.file)) and record.fingerprint
    }


def _examine(path: Path, official: OfficialFile) -> str:
    """Return the fingerprint of a downloaded file, after checking that it is the official file.

    Raises:
        CheckpointError: the file contains another model or layout than the official checkpoint.
    """
    origin = Origin(official.name, config=official.config, config_source=CATALOG)
    checkpoint = open_checkpoint(path, origin=origin)
    family = checkpoint.family
    official_names = family.candidates(checkpoint.configuration.model, checkpoint.task)
    if checkpoint.layout.name != family.model_layouts["torch"] or official not in official_names:
        raise CheckpointError(
            f"the downloaded file is not the official checkpoint {official.name}: it contains "
            "another model or layout "
            f"({checkpoint.task}, {checkpoint.configuration.model.num_hidden_layers} blocks)",
            hint=f"unset {MIRROR} to download the file from its publisher"
            if address_in(MIRROR)
            else "download the file in another way, and specify its path",
        )
    return str(checkpoint_fingerprint(checkpoint))
