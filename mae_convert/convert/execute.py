"""Execute conversions: write, re-read and compare outputs before renaming them to the targets."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mae_convert.convert.plan import Plan
from mae_convert.convert.record import (
    Fingerprints,
    SourceHashes,
    archived_config,
    complete_config,
    completed,
    conversion_record,
    preprocessor_config,
    record_in_file,
)
from mae_convert.convert.target import BIN_NAME, container_kind
from mae_convert.errors import Option, OutputError
from mae_convert.files.progress import Progress
from mae_convert.formats.output_file import Weights
from mae_convert.formats.registry import BIN, FORMATS, KERAS_ARCHIVE
from mae_convert.formats.write import Output, directory_output, file_output, write_all


def execute_all(
    plans: Sequence[Plan],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    on_commit: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Execute conversions of one source, which is read once, and return their reports.

    The outputs are renamed to their targets after all of them have been written, flushed, re-read
    and compared. The report of a directory is stored in it as ``conversion.json``.

    Args:
        plans: the conversions.
        overwrite: replace existing targets.
        progress: an object that shows the progress; default: it is not shown.
        on_commit: a function that is called after the outputs have been renamed, before any
            deferred signal is handled.

    Raises:
        OutputError: a target exists or cannot be written.
        MaeConvertError: a tensor is not finite, or the source was changed during the conversion.
    """
    source = SourceHashes(plans[0].source.container.opened, progress)
    records = [conversion_record(plan, source) for plan in plans]
    for plan in plans:
        for each in plan.measured.roundings.values():
            each.begin()
    fingerprints = [Fingerprints(plan) for plan in plans]
    outputs = [
        _output(plan, record, source, each)
        for plan, record, each in zip(plans, records, fingerprints, strict=True)
    ]
    hashes = write_all(
        outputs, overwrite=overwrite, source=source, progress=progress, on_commit=on_commit
    )
    return [
        completed(record, plan, source, of_tensors, each)
        for plan, record, of_tensors, each in zip(plans, records, hashes, fingerprints, strict=True)
    ]


def execute(plan: Plan, *, overwrite: bool = False) -> dict[str, Any]:
    """Execute one plan; see `execute_all`."""
    return execute_all([plan], overwrite=overwrite)[0]


def _output(
    plan: Plan, record: Mapping[str, Any], source: SourceHashes, fingerprints: Fingerprints
) -> Output:
    """Return the output of a plan.

    The record of the output is completed later, when the hash of the source has been computed.
    """
    kind, config = container_kind(plan.layout, plan.target), complete_config(plan)
    _check_dtypes(plan, kind)
    weights_name = plan.layout.weights_name
    if weights_name is None or not plan.is_directory:
        config = archived_config(plan) if kind == KERAS_ARCHIVE else config
        state_key = plan.layout.state_key
        reserved = fingerprints.reserved(record_in_file(record))
        weights = Weights(kind, plan.tensors, config, reserved, state_key, fingerprints.complete)
        return file_output(plan.target, weights)
    return directory_output(
        plan.target,
        BIN_NAME if plan.packing.pickled else weights_name,
        Weights(BIN if plan.packing.pickled else kind, plan.tensors, config),
        {
            "config.json": plan.layout.write_config(config),
            "preprocessor_config.json": preprocessor_config(plan),
            "conversion.json": lambda hashes: completed(record, plan, source, hashes, fingerprints),
        },
        max_shard_size=plan.packing.max_shard_size,
    )


def _check_dtypes(plan: Plan, kind: str) -> None:
    """Refuse dtypes that a target of the format `kind` cannot store."""
    narrow = any(str(tensor.dtype) == "bfloat16" for tensor in plan.tensors)
    if narrow and "bfloat16" not in FORMATS[kind].dtypes:
        raise OutputError(
            f"{plan.target} cannot store bfloat16",
            hint=("choose another dtype, for example ", Option("dtype", "float32")),
            path=plan.target,
        )
