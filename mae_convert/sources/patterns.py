"""Patterns that match several checkpoints, on disk and in remote storage."""

import os
import re
from pathlib import Path

from mae_convert.errors import MaeConvertError
from mae_convert.files.byte_ranges import refuse_nul
from mae_convert.sources import storage
from mae_convert.sources.reference import PAGES, PROTOCOL, parse_source
from mae_convert.text import natural_sort_key

MAGIC = re.compile(r"[*?[]")


def sources_named(text: str, folder: Path = Path()) -> list[str]:
    """Return the checkpoints that match a name or a pattern, in natural order.

    In natural order, checkpoint-9 comes before checkpoint-10. Local paths are returned as absolute
    paths.

    Args:
        text: a path or URL, which may contain the wildcards ``*``, ``?``, ``[...]`` and ``**``; a
            reference to the Hub, or an official name.
        folder: the directory to which relative paths refer.

    Raises:
        MaeConvertError: the file does not exist, or no file matches the pattern.
        MissingRequirementError: the package for the protocol of the URL is not installed.
    """
    refuse_nul(text)
    if text.startswith((PROTOCOL, *PAGES)):
        parse_source(text)
        return [text]
    if storage.is_remote(text):
        storage.filesystem(text)  # raises an error if its protocol is not supported
        names = storage.glob(text) if MAGIC.search(text) else [text]
    else:
        path = folder / storage.local_path(text)
        if path.exists():
            return [absolute(path)]
        if not MAGIC.search(text):
            if isinstance(parse_source(text), Path):
                raise MaeConvertError(path, " does not exist", hint="check the path")
            return [text]
        try:
            names = [absolute(p) for p in Path(path.anchor).glob(_relative(path))]
        except ValueError as error:
            raise MaeConvertError(
                f"{text} is not a valid pattern: {error}",
                hint="use *, ? and [...]; ** matches any number of directories",
            ) from error
    if not names:
        raise MaeConvertError(
            f"no file matches the pattern {text}",
            hint="check the pattern; quotes keep the shell from expanding it",
        )
    return sorted(names, key=natural_sort_key)


def absolute(path: Path) -> str:
    """Return the absolute form of a path; links are not resolved."""
    return os.path.normpath(Path.cwd() / path)


def _relative(path: Path) -> str:
    return str(path.relative_to(path.anchor)) if path.anchor else str(path)
