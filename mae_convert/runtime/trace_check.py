"""Check that the description in a trace file is valid, and that the arrays match it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from mae_convert.checkpoint.fingerprint import described_family, described_fingerprint
from mae_convert.errors import CheckpointError
from mae_convert.families.family import Family
from mae_convert.files.strict_json import check_document

BLOCK_STEPS = ("q", "k", "v", "attention", "mlp", "output")
GRADIENT = "grad/"  # the prefix of gradients in a run's results
TAP = "tap/"
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
BLOCK = re.compile(rf"(encoder|decoder)\.blocks\.(\d{{1,4}})\.({'|'.join(BLOCK_STEPS)})")
STEPS = ("encoder.embedding", "encoder.norm", "decoder.embedding", "decoder.norm")
FINAL = {"encoder": "last_hidden_state", "pretrain": "logits", "classify": "logits"}
MASKING = ("mask", "ids_restore")
RESULTS = {
    "pretrain": (*MASKING, "last_hidden_state", "logits", "reconstruction"),
    "encoder": (*MASKING, "last_hidden_state"),
    "classify": ("logits",),
}

Shape = tuple[int | None, ...]  # None: any number except 0


def check_trace(description: Any, arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Check all parts of a trace that a verdict depends on.

    Args:
        description: the metadata of a trace file, or ``source_trace`` of a certificate.
        arrays: the arrays by name, as in `Trace`.
        where: the file, for the message.

    Raises:
        CheckpointError: a part of the trace is missing or invalid.
    """
    check_document(description, "trace", where, "trace the checkpoint again")
    for problem in _problems(description, arrays):
        raise CheckpointError(f"{where}: {problem}", hint="trace the checkpoint again")


def _problems(description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Yield a phrase for each problem; only the first phrase is reliable.

    Each check assumes that the previous checks have found no problem.
    """
    if has_control_characters(description):
        yield "a string in it contains control characters"
    family = described_family(description)
    kind = family.configuration_class
    if missing := [f.name for f in fields(kind) if f.name not in description["config"]]:
        yield f"config lacks {missing[0]}"
    try:
        config = kind.from_dict(description["config"])
    except (ValueError, TypeError) as error:
        yield f"config: {error}"
        return
    task = description["task"]
    expected = {name: list(shape) for name, shape in family.schema(config, task).items()}
    shapes = {name: entry[0] for name, entry in description["tensors"].items()}
    if shapes != expected:
        name = next(n for n in {**expected, **shapes} if shapes.get(n) != expected.get(n))
        model = f"a model with this configuration for the task {task}"
        if name not in shapes:
            yield f"tensors: {name} is missing, which {model} has"
        elif name not in expected:
            yield f"tensors: {name} does not belong to {model}"
        else:
            yield f"tensors: {name} has shape {shapes[name]}, but {model} has {expected[name]}"
    if description.get("fingerprint") not in (None, str(described_fingerprint(description))):
        yield "its fingerprint does not match its tensors and configuration"
    yield from _array_problems(family, config, description, arrays)


def _array_problems(
    family: Family,
    config: Any,
    description: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> Iterator[str]:
    if "float64" in description["dtypes"]:
        for name in _required_results(description):
            if (name if name in MASKING else f"float64/{name}") not in arrays:
                yield f"it lacks {name}"
    for name, array in arrays.items():
        dtype, _, result = name.partition("/")
        if name not in MASKING and (dtype not in description["dtypes"] or not result):
            yield (
                f"the array {name} does not belong to a run of the trace; the runs are in "
                f"{', '.join(description['dtypes'])}"
            )
        elif (
            expected := _shape(name if name in MASKING else result, family, config, description)
        ) is None:
            yield f"the array {name} is not a result of this model"
        elif not _fits(array.shape, expected):
            sizes = ", ".join("any" if n is None else str(n) for n in expected)
            yield f"the array {name} has shape {array.shape}, not ({sizes})"
        elif not _is_of_dtype(name, array.dtype):
            yield f"the array {name} has the dtype {array.dtype}"
    batches = {a.shape[0] for name, a in arrays.items() if name in MASKING or _is_batched(name, a)}
    if len(batches) > 1:
        yield f"its arrays have different batch sizes, {' and '.join(map(str, sorted(batches)))}"


def _required_results(description: Mapping[str, Any]) -> list[str]:
    """Return the names of the results that a float64 run must have.

    External code may omit all results except the final result.
    """
    task = description["task"]
    settings = description.get("settings") or {}
    omitted = settings.get("omits", ()) if "foreign" in description else ()
    return [name for name in RESULTS[task] if name == FINAL[task] or name not in omitted]


def _is_batched(name: str, array: np.ndarray) -> bool:
    return bool(array.ndim) and f"/{GRADIENT}" not in name


def _is_of_dtype(name: str, dtype: np.dtype) -> bool:
    if name in MASKING:
        return dtype.kind in "iufb"
    return dtype == np.float64 if name.startswith("float64/") else dtype.kind == "f"


def _fits(shape: tuple[int, ...], expected: Shape) -> bool:
    return len(shape) == len(expected) and all(
        size > 0 and length in (None, size) for size, length in zip(shape, expected, strict=True)
    )


def _shape(
    result: str, family: Family, config: Any, description: Mapping[str, Any]
) -> Shape | None:
    """Return the expected shape of a result, or None if no run has a result of this name."""
    patches = config.num_patches
    if result.startswith(GRADIENT):
        entry = description["tensors"].get(result.removeprefix(GRADIENT))
        return entry and tuple(entry[0])
    if result.startswith(TAP):
        return _tap_shape(result.removeprefix(TAP), family, config)
    classes = description["task"] == "classify"
    predicted = None if family.predicts_removed_only else patches
    numbers, pixels = family.prediction_shapes(config)
    return {
        "mask": (None, patches),
        "ids_restore": (None, patches),
        "last_hidden_state": (None, None, config.hidden_size),
        "logits": (None, config.num_labels) if classes else (None, predicted, numbers),
        "reconstruction": (None, *pixels),
        "loss": (),
        "loss_norm_pix": (),
    }.get(result)


def _tap_shape(name: str, family: Family, config: Any) -> Shape | None:
    if name == "head.norm":
        return (None, 1, config.hidden_size)
    match = BLOCK.fullmatch(name)
    if match is None and name not in STEPS:
        return None
    decoder = name.startswith("decoder.")
    depth = config.decoder_num_hidden_layers if decoder else config.num_hidden_layers
    if match and int(match[2]) >= depth:
        return None
    width = config.decoder_hidden_size if decoder else config.hidden_size
    return (None, family.decoder_tokens(config) if decoder else None, width)


def has_control_characters(value: Any) -> bool:
    """Return whether a string in a value, at any depth, contains control characters."""
    if isinstance(value, str):
        return bool(CONTROL.search(value))
    if isinstance(value, Mapping):
        return any(has_control_characters(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple):
        return any(map(has_control_characters, value))
    return False
