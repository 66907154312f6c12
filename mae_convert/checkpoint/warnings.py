"""Warnings about a checkpoint."""

from collections.abc import Iterator, Mapping

import numpy as np

from mae_convert.checkpoint.canonical_tensors import REASON
from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.errors import Option, Text
from mae_convert.families.position_embeddings import POSITION_EMBEDDINGS, position_in_words
from mae_convert.text import listed, plural

Statistics = Mapping[str, float]


def warnings_of_names(checkpoint: Checkpoint) -> list[Text]:
    """Return warnings about names, shapes and dtypes; no tensor is read."""
    return list(_in_names(checkpoint))


def _in_names(checkpoint: Checkpoint) -> Iterator[Text]:
    if prefix := checkpoint.prefix.in_words():
        yield f"the prefix {prefix} was removed from the tensor names"
    for reason, names in by_reason(checkpoint.dropped).items():
        yield f"{plural(len(names), 'tensor')} not used ({listed(names, 3)}): {reason}"
    for task in checkpoint.also:
        yield (
            f"the checkpoint also contains every tensor of a {task} model: ",
            Option("task", task),
            " reads it",
        )
    for reason, names in by_reason(checkpoint.created).items():
        yield f"{plural(len(names), 'tensor')} not stored ({listed(names, 2)}): {reason}"
    if unread := checkpoint.unread:
        yield (
            "a library may use configuration fields that mae-convert does not know: "
            f"{listed(unread, 8)}"
        )
    dtypes = {str(tensor.dtype) for tensor in checkpoint.tensors.values()}
    if len(dtypes) > 1:
        yield f"the tensors have several dtypes: {', '.join(sorted(dtypes))}"
    if not checkpoint.configuration.model.qkv_bias:
        yield "query, key and value projections have no biases"
    yield from checkpoint.family.warnings(checkpoint.configuration, checkpoint.layout.name)


def by_reason(dropped: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names of the dropped tensors, grouped by reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        reasons.setdefault(reason, []).append(name)
    return reasons


def not_read(checkpoint: Checkpoint) -> list[str]:
    """Return descriptions of the tensors in the file that are not part of the model."""
    return [
        f"{listed(names, 3)}, not read: {reason}"
        for reason, names in by_reason(checkpoint.dropped).items()
        if reason != REASON
    ]


def warnings_of_values(checkpoint: Checkpoint, statistics: Mapping[str, Statistics]) -> list[str]:
    """Return warnings about the values of tensors.

    Most warnings are derived from the statistics. For warnings about position embeddings, the
    embeddings are loaded again and compared with the fixed sine-cosine embeddings.

    Args:
        checkpoint: the checkpoint.
        statistics: the result of `mae_convert.checkpoint.inspect.statistics` for each canonical
            tensor.
    """
    sentences = [*_in_statistics(statistics), *checkpoint.family.warnings_of_values(statistics)]
    if "image_size" in {missing.field for missing in checkpoint.configuration.missing}:
        return sentences
    if checkpoint.family.fixed_positions != "rows and columns":
        return sentences
    grid = checkpoint.configuration.model.grid_hw
    positions = (checkpoint.tensors.get(name) for name in POSITION_EMBEDDINGS)
    return [
        *sentences,
        *(f"{tensor.name} {position_in_words(tensor, grid)}" for tensor in positions if tensor),
    ]


def _in_statistics(statistics: Mapping[str, Statistics]) -> Iterator[str]:
    for name, s in statistics.items():
        if s["not_finite"]:
            yield f"{name} has NaN or infinity in {plural(int(s['not_finite']), 'value')}"
    norms = [name for name in statistics if "norm" in name.split(".")[-2]]
    untouched = [n for n in norms if _is_all(statistics[n], 1.0 if n.endswith("weight") else 0.0)]
    if norms and untouched == norms:
        yield "every layer norm has weight 1 and bias 0, as in an untrained model"
    elif untouched:
        yield f"values of an untrained model: {listed(untouched)}"
    rest = [name for name in statistics if name not in norms]
    if zero := [name for name in rest if _is_all(statistics[name], 0.0)]:
        yield f"all values are zero: {listed(zero)}"
    largest = float(np.finfo(np.float16).max)
    large = [n for n, s in statistics.items() if max(-s["min"], s["max"]) > largest]
    if large:
        yield f"values outside the range of float16: {listed(large)}"


def _is_all(s: Statistics, value: float) -> bool:
    return not s["not_finite"] and s["min"] == s["max"] == value
