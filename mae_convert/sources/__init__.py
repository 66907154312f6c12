"""Sources of checkpoints: a path, the Hugging Face Hub, or the catalog of official checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_convert.checkpoint.checkpoint import (
    Checkpoint,
    Origin,
    as_task,
    check_flags,
    require_comparable,
)
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import CheckpointError, MaeConvertError
from mae_convert.families import official_named
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.official_models import OfficialFile
from mae_convert.sources.reference import HubReference, Source, parse_source


def locate(source: Source, *, certificate: bool = False) -> tuple[Path, Origin | None]:
    """Return the local path of a checkpoint, downloaded if needed, and its origin.

    The origin is None for a local path.

    Args:
        source: the source that the user specified.
        certificate: whether to download the checkpoint's verification certificate too.

    Raises:
        HubError: the source does not exist, or the Hub refuses access.
        MissingRequirementError: the network is not available.
        CheckpointError: the source contains no weights, or a downloaded file is damaged.
    """
    if isinstance(source, HubReference):
        from mae_convert.sources.hub_download import get_from_hub

        return get_from_hub(source, certificate=certificate)
    if isinstance(source, Path) and (official := official_named(source.stem)):
        from mae_convert.sources.fetch import cache_directory

        if source.parent == cache_directory():  # the command `download` prints paths in the cache
            source = official
    if isinstance(source, OfficialFile):
        from mae_convert.sources.official_download import get_official

        path, origin, _ = get_official(source)
        return path, origin
    return source, None


def locate_file(source: Source) -> Path:
    """Return the local path of a file other than a checkpoint, downloaded if needed.

    Raises:
        CheckpointError: the file does not exist.
        MaeConvertError: see `locate`.
    """
    if isinstance(source, HubReference):
        from mae_convert.sources.hub_download import get_file

        return get_file(source)
    path = locate(source)[0]
    if not path.exists():
        raise CheckpointError(path, " does not exist", hint="check the path")
    return path


def open_source(
    source: Source,
    flags: Flags | None = None,
    *,
    fill_only: bool = False,
    incomplete: bool = False,
    state_key: str | None = None,
    task: str | None = None,
) -> Checkpoint:
    """Open a checkpoint from any source; for the other arguments, see `open_checkpoint`.

    Raises:
        MaeConvertError: see `locate` and `open_checkpoint`.
    """
    path, origin = locate(source)
    try:
        return open_checkpoint(
            path,
            flags,
            fill_only=fill_only,
            incomplete=incomplete,
            state_key=state_key,
            task=task,
            origin=origin,
        )
    except MaeConvertError as error:
        if origin is None:
            raise
        # Messages name the source, not the path in the cache.
        raise error.renamed(path, origin.name) from error


def open_pair(
    sources: Sequence[Source],
    flags: Flags | None = None,
    *,
    state_key: str | None = None,
    task: str | None = None,
    incomplete: bool = False,
) -> list[Checkpoint]:
    """Open two checkpoints to be compared.

    The value of an option applies to each checkpoint that does not contain the field itself.

    Args:
        sources: the two sources.
        flags: the options that the user specified.
        state_key: see `open_checkpoint`; ignored for a file in which the key does not occur.
        task: open both checkpoints as models for this task. If it is None, a file that contains
            complete models for several tasks is opened for the task of the other checkpoint.
        incomplete: open the checkpoints even if a field that the comparison needs is missing.

    Raises:
        MaeConvertError: see `open_source`; or an option contradicts both checkpoints; or a field
            that the comparison needs is missing, and `incomplete` is False.
    """
    options: dict[str, Any] = {"fill_only": True, "incomplete": True, "state_key": state_key}
    opened = [open_source(source, flags, task=task, **options) for source in sources]
    if task is None:
        opened = [
            open_source(source, flags, task=other.task, **options)
            if one.also and other.task in (*one.also, "encoder")
            else one
            for source, one, other in zip(sources, opened, opened[::-1], strict=True)
        ]
    opened = [as_task(checkpoint, task) for checkpoint in opened]
    check_flags(flags, *opened)
    if not incomplete:
        require_comparable(*opened)
    return opened


__all__ = [
    "HubReference",
    "Source",
    "locate",
    "locate_file",
    "open_pair",
    "open_source",
    "parse_source",
]
