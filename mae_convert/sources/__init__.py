"""Sources of checkpoints: a path, the Hugging Face Hub, or the catalog of official checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_convert.checkpoint.open import (
    Checkpoint,
    as_task,
    check_flags,
    open_checkpoint,
    require_comparable,
)
from mae_convert.checkpoint.origin import Origin
from mae_convert.errors import CheckpointError, MaeConvertError
from mae_convert.families.mae.official import Official, official_named
from mae_convert.families.options import Flags
from mae_convert.sources.cache import cache_directory
from mae_convert.sources.reference import HubReference, Source, parse_source


def locate(source: Source, *, certificate: bool = False) -> tuple[Path, Origin | None]:
    """Return the path of a checkpoint, downloaded if need be, and where it was got from.

    Args:
        source: what the user named.
        certificate: download the certificate of its verification too.

    Raises:
        HubError: there is no such thing, or it may not be read.
        MissingRequirementError: the network that is needed is not there.
        CheckpointError: what was downloaded is damaged.
    """
    if isinstance(source, HubReference):
        from mae_convert.sources.hub import get_from_hub

        return get_from_hub(source, certificate=certificate)
    if isinstance(source, Path) and source.parent == cache_directory():
        # What `download` has printed is what its name means.
        source = official_named(source.stem) or source
    if isinstance(source, Official):
        from mae_convert.sources.official_download import get_official

        path, origin, _ = get_official(source)
        return path, origin
    return source, None


def locate_file(source: Source) -> Path:
    """Return the path of a file that is no checkpoint, downloaded if need be.

    Raises:
        CheckpointError: there is no such file.
        MaeConvertError: as `locate`.
    """
    if isinstance(source, HubReference):
        from mae_convert.sources.hub import get_file

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
    """Open a checkpoint wherever it is, as `open_checkpoint` opens what is on the disk.

    Raises:
        MaeConvertError: as `locate` and `open_checkpoint`.
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
        # The user knows where it is from, and not where it is kept.
        raise error.renamed(path, origin.name) from error


def open_pair(
    sources: Sequence[Source],
    flags: Flags | None = None,
    *,
    state_key: str | None = None,
    task: str | None = None,
    incomplete: bool = False,
) -> list[Checkpoint]:
    """Open two checkpoints that are compared; a flag is about the one that lacks what it says.

    Args:
        sources: the two.
        flags: what the user specifies of them.
        state_key: as `open_checkpoint`; of a file that has no keys it is ignored.
        task: compare both as models of this task. Without it, a file that contains complete models
            for several tasks is read as the other file is.
        incomplete: open them even where a field is missing that the comparison needs.

    Raises:
        MaeConvertError: as `open_source`; or a flag contradicts both.
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
