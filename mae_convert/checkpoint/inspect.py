"""Describe a checkpoint, by default without reading tensor data."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.fingerprint import checkpoint_fingerprint
from mae_convert.checkpoint.official_match import confirmed_by_hash, identify
from mae_convert.checkpoint.warnings import warnings_of_names, warnings_of_values
from mae_convert.errors import OptionStyle, as_argument, render
from mae_convert.families.configuration import Missing, options_for


def inspect(
    checkpoint: Checkpoint,
    *,
    stats: bool = False,
    with_hash: bool = False,
    style: OptionStyle = as_argument,
) -> dict[str, Any]:
    """Return the output of ``mae-convert inspect --json`` as a dictionary.

    Args:
        checkpoint: an opened checkpoint.
        stats: read all tensors and compute statistics of their values.
        with_hash: hash the tensors; also hash the file, to determine whether it is an official
            checkpoint.
        style: how options are rendered in messages.
    """
    checkpoint = confirmed_by_hash(checkpoint) if with_hash else checkpoint
    container = checkpoint.container
    tensors = container.tensors.values()
    report: dict[str, Any] = {
        "path": checkpoint.name,
        "container": container.kind,
        "files": len(container.files),
        "wrapper": container.wrapper,
        "prefix": checkpoint.prefix.in_words(),
        "layout": checkpoint.layout.name,
        "naming_variant": checkpoint.table.name,
        "synonyms": list(checkpoint.synonyms),
        "task": checkpoint.task,
        "model_family": checkpoint.family.name,
        "family": checkpoint.relative.to_dict() if checkpoint.relative else None,
        "config": _known_fields(checkpoint),
        "assumed": checkpoint.configuration.assumed(),
        "assumptions": checkpoint.configuration.only_assumed(),
        "missing": [_missing(field, style) for field in checkpoint.configuration.missing],
        "tensors": len(container.tensors),
        "parameters": sum(int(np.prod(tensor.shape)) for tensor in tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "dtypes": dict(Counter(str(tensor.dtype) for tensor in tensors)),
        "official": identify(checkpoint, with_hash=with_hash),
        "ignored": dict(container.ignored),
        "dropped": dict(checkpoint.dropped),
        "created": dict(checkpoint.created),
        "also": list(checkpoint.also),
        "incomplete": dict(checkpoint.incomplete),
        "reconstruction": reconstruction(checkpoint),
        "pooling": pooling(checkpoint),
        "differences": differences(checkpoint),
        "becomes": convertible_layouts(checkpoint, style),
        "odd": [render(text, style) for text in warnings_of_names(checkpoint)],
    }
    if with_hash:
        report |= checkpoint_fingerprint(checkpoint).to_dict()
    if checkpoint.configuration.inferred is not None:
        report["inferred"] = dict(checkpoint.configuration.inferred)
    if stats:
        values = {name: statistics(tensor.pieces()) for name, tensor in checkpoint.tensors.items()}
        report |= {"stats": values, "odd": report["odd"] + warnings_of_values(checkpoint, values)}
    return report


def _missing(missing: Missing, style: OptionStyle) -> dict[str, str]:
    option = render((missing.option, missing.hint), style)
    return {
        "field": missing.field,
        "what": missing.what,
        "option": option,
        "reason": missing.reason,
    }


def _known_fields(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the values of the configuration fields by name; None for missing fields."""
    missing = {missing.field: None for missing in checkpoint.configuration.missing}
    return {**checkpoint.configuration.model.to_dict(), **missing}


def reconstruction(checkpoint: Checkpoint) -> str | None:
    """Return in words how predictions are converted to pixels; None if there is no decoder."""
    if checkpoint.task != "pretrain":
        return None
    return checkpoint.family.target_in_words(checkpoint.configuration.model)


def pooling(checkpoint: Checkpoint) -> str | None:
    """Return the input of a classifier's head, in words; None for other tasks."""
    if checkpoint.task != "classify":
        return None
    return checkpoint.family.pooling_in_words(checkpoint.configuration.model)


def differences(checkpoint: Checkpoint) -> list[str]:
    """Return sentences about the differences between the layout's library and the model.

    Each sentence states why the library computes other outputs than the model.
    """
    layout, model = checkpoint.layout, checkpoint.configuration.model
    return [str(difference) for difference in layout.differences(model, checkpoint.task)]


def convertible_layouts(checkpoint: Checkpoint, style: OptionStyle = as_argument) -> dict[str, str]:
    """Return, for each layout, "yes" or the reason why a checkpoint cannot be converted to it.

    `style` determines how options are rendered in the reasons.
    """
    model, task = checkpoint.configuration.model, checkpoint.task
    layouts = checkpoint.family.layouts
    if missing := checkpoint.configuration.missing:
        first = ("specify ", options_for(missing), " first")
        return dict.fromkeys(layouts, render(first, style))
    return {
        name: render(layout.refusal(model, task) or "", style)
        or ("yes" if any(task in table.tasks for table in layout.tables) else f"has no {task}")
        for name, layout in layouts.items()
    }


def statistics(pieces: Iterable[np.ndarray]) -> dict[str, float | int]:
    """Return min, max, mean and std of the finite values, and the number of non-finite values.

    Args:
        pieces: the values in pieces, so that a large tensor need not be in memory as a whole.
    """
    size = zeros = count = 0
    least, most, mean, squares = np.inf, -np.inf, 0.0, 0.0
    for piece in pieces:
        values = piece.astype(np.float64).ravel()
        finite = values[np.isfinite(values)]
        size, zeros = size + values.size, zeros + int((values == 0).sum())
        if not finite.size:
            continue
        least, most = min(least, finite.min()), max(most, finite.max())
        # Combine mean and sum of squares of two samples (Chan, Golub and LeVeque 1983).
        total, away = count + finite.size, float(finite.mean()) - mean
        squares += float(finite.var()) * finite.size + away**2 * count * finite.size / total
        mean, count = mean + away * finite.size / total, total
    return {
        "not_finite": size - count,
        "zeros": zeros,
        "min": float(least) if count else 0.0,
        "max": float(most) if count else 0.0,
        "mean": mean,
        "std": (squares / count) ** 0.5 if count else 0.0,
    }
