"""Open what a command is given, and say what is to be known of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mae_convert.commands.streams import say

if TYPE_CHECKING:
    from mae_convert.checkpoint import Checkpoint, Flags
    from mae_convert.origin import Origin
    from mae_convert.sources import Source


def open_and_tell(source: "Source", flags: "Flags", **options: Any) -> "Checkpoint":
    """Open a checkpoint, downloaded if need be, and print what is noted of its origin."""
    from mae_convert.sources import open_source

    checkpoint = open_source(source, flags, **options)
    say_notes(checkpoint.origin)
    return checkpoint


def open_pair_and_tell(
    sources: "Sequence[Source]",
    flags: "Flags",
    *,
    state_key: str | None,
    task: str | None = None,
    incomplete: bool = False,
) -> "list[Checkpoint]":
    """Open two checkpoints that are compared; a flag is about the one that lacks what it says.

    With a task, both are compared as models of it. Without one, a file that holds complete models
    of several tasks is read as the other file is.
    """
    from mae_convert.checkpoint import as_task, check_flags
    from mae_convert.sources import open_source

    options: dict[str, Any] = {
        "fill_only": True,
        "state_key": state_key,
        "incomplete": incomplete,
    }
    opened = [open_and_tell(source, flags, task=task, **options) for source in sources]
    if task is None:
        opened = [
            open_source(source, flags, task=other.task, **options)
            if one.also and other.task in (*one.also, "encoder")
            else one
            for source, one, other in zip(sources, opened, opened[::-1], strict=True)
        ]
    opened = [as_task(checkpoint, task) for checkpoint in opened]
    check_flags(flags, *opened)
    return opened


def say_notes(origin: "Origin | None") -> None:
    """Print on standard error what is noted of a checkpoint's origin."""
    for note in origin.notes if origin else ():
        say(f"note: {note}")
