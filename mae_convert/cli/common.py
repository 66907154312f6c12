"""Open the checkpoints of a command and print notes about them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mae_convert.cli.streams import print_to_stderr

if TYPE_CHECKING:
    from pathlib import Path

    from mae_convert.checkpoint.checkpoint import Checkpoint, Origin
    from mae_convert.diagnose.infer import Inference, InferenceOptions
    from mae_convert.families.checkpoint_options import Flags
    from mae_convert.sources import Source


def open_with_notes(source: "Source", flags: "Flags", **options: Any) -> "Checkpoint":
    """Open a checkpoint, downloading it if necessary, and print notes about its origin."""
    from mae_convert.sources import open_source

    checkpoint = open_source(source, flags, **options)
    print_notes(checkpoint.origin)
    print_unused_options(flags, checkpoint)
    return checkpoint


def open_and_infer(
    source: "Source", flags: "Flags", images: "Path | None", **options: Any
) -> "tuple[Checkpoint, Inference]":
    """Open a checkpoint and determine missing fields by running the model on images.

    Args:
        source: the checkpoint.
        flags: the fields that the user specified.
        images: a directory of images; None for the default images.
        options: further options of `open_with_notes`.

    Returns:
        The checkpoint with the determined fields, and the results of the experiment.
    """
    from mae_convert.diagnose.infer import infer, with_inferred

    checkpoint = open_with_notes(source, flags, incomplete=True, **options)
    inference = infer(checkpoint, inference_options(images))
    return with_inferred(checkpoint, inference), inference


def inference_options(images: "Path | None") -> "InferenceOptions":
    """Return the options for ``--infer``: the images, and the first installed framework."""
    from mae_convert.diagnose.infer import InferenceOptions
    from mae_convert.runtime.sides import has_framework

    frameworks = (name for name in ("torch", "tensorflow", "jax") if has_framework(name, None))
    return InferenceOptions(images, framework=next(frameworks, ""))


def open_pair_with_notes(
    sources: "Sequence[Source]", flags: "Flags", **options: Any
) -> "list[Checkpoint]":
    """Open two checkpoints that are to be compared and print notes about them."""
    from mae_convert.sources import open_pair

    opened = open_pair(sources, flags, **options)
    for checkpoint in opened:
        print_notes(checkpoint.origin)
    print_unused_options(flags, *opened)
    return opened


def open_pair_and_infer(
    sources: "Sequence[Source]", flags: "Flags", images: "Path | None", **options: Any
) -> "list[Checkpoint]":
    """Open two checkpoints, A and B, and determine unspecified fields of A by experiment.

    The fields that are determined for A are also used for B.

    Args:
        sources: A and B.
        flags: configuration fields that the user specified.
        images: the folder of images for the experiments; None for the default images.
        options: further arguments of `open_pair`.
    """
    from mae_convert.checkpoint.checkpoint import require_comparable
    from mae_convert.diagnose.infer import infer, with_inferred, with_inferred_of

    a, b = open_pair_with_notes(sources, flags, incomplete=True, **options)
    inference = infer(a, inference_options(images))
    opened = [with_inferred(a, inference), with_inferred_of(b, a, inference)]
    require_comparable(*opened)
    return opened


def print_unused_options(flags: "Flags", *checkpoints: "Checkpoint") -> None:
    """Print on standard error which options have no effect on models for these tasks.

    The tasks are the tasks of the checkpoints.
    """
    from mae_convert.checkpoint.checkpoint import without_effect
    from mae_convert.errors import as_option

    tasks = " or ".join(dict.fromkeys(checkpoint.task for checkpoint in checkpoints))
    for option in without_effect(flags, *checkpoints):
        print_to_stderr(f"note: {as_option(option)} has no effect on a model for the task {tasks}")


def print_notes(origin: "Origin | None") -> None:
    """Print the notes about a checkpoint's origin on standard error; print nothing for None."""
    for note in origin.notes if origin else ():
        print_to_stderr(f"note: {note}")
