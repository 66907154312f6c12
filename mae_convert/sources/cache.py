"""The cache of downloads that are not in the Hub client's cache."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from mae_convert.errors import OutputError

VARIABLE = "MAE_CONVERT_CACHE"


def cache_directory() -> Path:
    """Return the download directory: ``$MAE_CONVERT_CACHE``, or one in the user's cache."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mae-convert"


def link_together(folder: Path, files: Mapping[str, Path]) -> None:
    """Create a directory of links to files in other directories.

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
