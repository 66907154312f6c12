"""Identify official checkpoints by tensor names, tensor shapes and the hash of the file.

The publisher gives only the first digits of a hash, so an equal hash is not a proof.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.families.evidence import OFFICIAL as OFFICIAL_KIND
from mae_convert.families.evidence import PREPROCESSING
from mae_convert.files.byte_ranges import ByteFile, hex_digest


def probable(checkpoint: Checkpoint) -> list[Any]:
    """Return the official files whose tensors have the names and shapes of a checkpoint's tensors.

    If an official file has the checkpoint's file name, it is first in the list. The list is empty
    if the layout of the checkpoint is not the layout of the official files, or if the checkpoint
    is known to be a related model.
    """
    if checkpoint.layout.name != checkpoint.family.model_layouts.get("torch"):
        return []
    if checkpoint.relative and checkpoint.relative.certain:
        return []  # other families can have the same shapes
    officials = checkpoint.family.candidates(checkpoint.configuration.model, checkpoint.task)
    return sorted(officials, key=lambda official: official.file != checkpoint.path.name)


def identify(checkpoint: Checkpoint, *, with_hash: bool) -> dict[str, Any] | None:
    """Return which official file a checkpoint probably is, or None if no official file fits.

    The result has the field ``probable``, the name of the official file, and, if other official
    files have the same tensor names and shapes, the field ``or``, a list of their names. With
    ``with_hash``, the result for a single file also has the fields ``md5`` and ``confirmed``:
    whether the published hash matches, or None if no hash is published.
    """
    officials = probable(checkpoint)
    if not officials:
        return None
    report: dict[str, Any] = {"probable": officials[0].file}
    if others := [other.file for other in officials[1:]]:
        report["or"] = others
    if with_hash and len(checkpoint.container.files) == 1:
        report["md5"] = file_md5(checkpoint.container.weights_file)
        report["confirmed"] = officials[0].md5 and report["md5"].startswith(officials[0].md5)
    return report


def confirmed(checkpoint: Checkpoint, md5: Callable[[], str] | None = None) -> Any:
    """Return the official file with the tensor names, shapes and hash of a checkpoint, or None.

    Args:
        checkpoint: the checkpoint.
        md5: a function that returns the MD5 of the file, called only if a hash is published.
            Default: the file is read and hashed.
    """
    hashed: Sequence[Any] = [official for official in probable(checkpoint) if official.md5]
    if not hashed or len(checkpoint.container.files) != 1:
        return None
    digest = md5() if md5 else open_md5(checkpoint.container.opened[0])
    return next((o for o in hashed if digest.startswith(str(o.md5))), None)


def confirmed_by_hash(checkpoint: Checkpoint, md5: Callable[[], str] | None = None) -> Checkpoint:
    """Confirm the assumed fields of a checkpoint by the hash of its file, if possible.

    The file is hashed only if a field was assumed from an official file with the same tensor names
    and shapes. If the official file has the same hash, it is recorded as the source of each
    assumed field whose value agrees with the official model; otherwise the checkpoint is returned
    unchanged.

    Args:
        checkpoint: the checkpoint.
        md5: a function that returns the MD5 of the file. Default: the file is read and hashed.
    """
    configuration = checkpoint.configuration
    assumed = [name for name in configuration.assumptions if name not in PREPROCESSING]
    official = (
        confirmed(checkpoint, md5) if OFFICIAL_KIND in configuration.assumptions.values() else None
    )
    if official is None:
        return checkpoint
    configuration_fields = {
        name: configuration.value(name)
        for name in assumed
        if configuration.value(name) == getattr(official.model, name)
    }
    return checkpoint.specified(configuration_fields, f"{official.file}, confirmed by its MD5")


def open_md5(file: ByteFile, advance: Callable[[int], None] | None = None) -> str:
    """Return the MD5 of an open file, as hexadecimal digits.

    For some official files, the first digits of the MD5 are published; see `confirmed`.

    Args:
        file: the file.
        advance: a function that is called with the number of bytes of each piece that was read.
    """
    return hex_digest(file, hashlib.md5(usedforsecurity=False), advance)


def file_md5(path: Path) -> str:
    """Return the MD5 of a file's bytes; see `open_md5`."""
    return open_md5(ByteFile(path))
