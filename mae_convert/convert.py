"""Carry out planned conversions: write, re-read and compare, and only then put in place."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_convert.containers import write_directory, write_file
from mae_convert.containers.limits import HDF5_KINDS
from mae_convert.containers.write import JsonFile
from mae_convert.errors import OutputError
from mae_convert.packing import BIN
from mae_convert.planning import Plan, container_kind
from mae_convert.record import (
    archived_config,
    carried_config,
    conversion_record,
    preprocessor_config,
    record_in_file,
)
from mae_convert.rounding import DTYPES


def execute_all(plans: Sequence[Plan], *, overwrite: bool = False) -> list[dict[str, Any]]:
    """Carry out several plans; if one fails, what the others have newly made is removed again."""
    existed = [plan.target.exists() for plan in plans]
    if any(existed) and not overwrite:
        found = plans[existed.index(True)].target
        raise OutputError(f"{found} exists already; pass --overwrite to replace it")
    for plan in plans:
        _check_writable(plan)
    done: list[Path] = []
    reports = []
    try:
        for plan, before in zip(plans, existed, strict=True):
            reports.append(execute(plan, overwrite=overwrite))
            done += [] if before else [plan.target]
    except BaseException:
        for path in done:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
    return reports


def _check_writable(plan: Plan) -> None:
    """Refuse what would fail late, before an earlier target is touched."""
    if not plan.target.resolve().parent.is_dir():
        raise OutputError(f"there is no directory {plan.target.parent} to write {plan.target} in")
    kind = container_kind(plan.layout, plan.target)
    narrow = any(tensor.dtype == DTYPES["bfloat16"] for tensor in plan.tensors)
    if narrow and kind in (*HDF5_KINDS, "npz"):
        raise OutputError(
            f"{plan.target} cannot hold bfloat16; choose a type that it can hold, for instance"
            " --dtype float32"
        )


def execute(plan: Plan, *, overwrite: bool = False) -> dict[str, Any]:
    """Carry out a plan and return its report, which a directory keeps as ``conversion.json``.

    The output appears under its name only when it was written, flushed, re-read and found equal.

    Raises:
        OutputError: the target exists, or cannot be written.
        MaeConvertError: a tensor is not finite.
    """
    record = conversion_record(plan)
    kind = container_kind(plan.layout, plan.target)
    carried = carried_config(plan)
    weights_name = plan.layout.weights_name
    if weights_name is None or not plan.is_directory:
        hashes = write_file(
            plan.target,
            kind,
            plan.tensors,
            config=archived_config(plan) if kind == "keras_archive" else carried,
            conversion=record_in_file(record),
            overwrite=overwrite,
            state_key=plan.layout.state_key,
        )
        return {**record, "sha256": hashes}
    json_files: dict[str, JsonFile] = {
        "config.json": plan.layout.write_config(carried),
        "preprocessor_config.json": preprocessor_config(plan),
        "conversion.json": lambda hashes: {**record, "sha256": hashes},
    }
    hashes = write_directory(
        plan.target,
        BIN if plan.packing.pickled else weights_name,
        "bin" if plan.packing.pickled else kind,
        plan.tensors,
        json_files,
        config=carried,
        overwrite=overwrite,
        max_shard_size=plan.packing.max_shard_size,
    )
    return {**record, "sha256": hashes}
