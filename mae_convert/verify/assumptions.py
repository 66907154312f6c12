"""Assumed values of configuration fields that affect the outputs, and whether they prevent a proof.

If both sides assume the same value, their outputs agree even if the value is wrong, so a comparison
cannot confirm the value. If only one side assumes a value and the other side specifies the same
value, the value is confirmed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mae_convert.errors import Text, join
from mae_convert.families.checkpoint_options import OF_FIELDS, named
from mae_convert.families.evidence import LAYOUT, NAMES, OFFICIAL, SQUARE, same_size
from mae_convert.files.strict_json import plain
from mae_convert.runtime.trace import Trace

FUNCTION_FIELDS = (
    "num_attention_heads",
    "decoder_num_attention_heads",
    "layer_norm_eps",
    "decoder_layer_norm_eps",
    "hidden_act",
    "global_pool",
    "image_size",
)
# Kinds of assumptions about a field whose value differs between models with the same tensor names
# and shapes. A convention that the code of a layout or of a model family fixes is not one of them.
UNCERTAIN = (OFFICIAL, NAMES, LAYOUT, SQUARE)

Assumption = Mapping[str, Any]


def assumptions(a: Trace, b: Trace) -> tuple[Assumption, ...]:
    """Return the assumptions of both sides about configuration fields that affect the outputs.

    Returns:
        Dictionaries with ``field``, ``value``, ``source``, ``sides`` (a list of "A", "B" or both),
        and ``blocks_proof``, which is True if the assumption prevents a proof. An assumption does
        if both sides share it, and if the value of the field can differ between models with the
        same tensor names and shapes.
    """
    resampled = any(
        step["step"] == "image_size" for trace in (a, b) for step in trace.description["steps"]
    )
    tasks = {a.description["task"], b.description["task"]}
    return tuple(
        assumption
        for field in FUNCTION_FIELDS
        if tasks == {"pretrain"} or not field.startswith("decoder_")
        for assumption in _assumptions_about(field, a, b, resampled=resampled)
    )


def _assumptions_about(field: str, a: Trace, b: Trace, *, resampled: bool) -> Iterator[Assumption]:
    """Yield the assumptions about one field: a single assumption if both sides share it.

    Args:
        field: the name of the configuration field.
        a: the trace of the source.
        b: the trace of the target.
        resampled: whether the position embeddings of a side were resampled to another image size.
    """
    entries = {
        side: trace.description["assumptions"][field]
        for side, trace in (("A", a), ("B", b))
        if field in trace.description.get("assumptions", {})
    }
    values = [same_size(entry["value"]) for entry in entries.values()]
    shared = len(entries) == 2 and values[0] == values[1]
    for sides in (("A", "B"),) if shared else tuple((side,) for side in entries):
        entry = entries[sides[0]]
        kinds = {entries[side]["assumption"] for side in sides}
        # The same sequence of patches gives the same output on any grid; the grid affects the
        # function only if the position embeddings are resampled.
        uncertain = kinds <= set(UNCERTAIN) and (field != "image_size" or resampled)
        yield {
            "field": field,
            "value": entry["value"],
            "source": entry["source"],
            "sides": list(sides),
            "blocks_proof": shared and uncertain,
        }


def blocking(assumed: Iterable[Assumption]) -> list[Assumption]:
    """Return the assumptions that prevent a proof."""
    return [assumption for assumption in assumed if assumption["blocks_proof"]]


def shared(assumed: Iterable[Assumption]) -> list[Assumption]:
    """Return the assumptions that A and B share, from the assumptions of both sides."""
    return [assumption for assumption in assumed if len(assumption["sides"]) == 2]


def in_words(assumed: Sequence[Assumption]) -> str:
    """Return assumptions as text: fields and values grouped by source."""
    by_source: dict[str, list[str]] = {}
    for assumption in assumed:
        words = f"{assumption['field']} {plain(assumption['value'])}"
        by_source.setdefault(str(assumption["source"]), []).append(words)
    return "; ".join(f"{' and '.join(phrases)} ({source})" for source, phrases in by_source.items())


def how_to_confirm(assumed: Sequence[Assumption]) -> Text:
    """Return advice on how to confirm the assumptions that prevent a proof."""
    options = [named(a["field"]) for a in assumed if a["field"] in OF_FIELDS]
    words = "specify the values that you know (", join(dict.fromkeys(options), ", "), ")"
    if any("official" in str(assumption["source"]) for assumption in assumed):
        return (
            *words,
            ", or use an official checkpoint as the source, because its hash (`mae-convert inspect "
            "FILE --hash`) confirms its configuration",
        )
    return words
