"""Convert a checkpoint: plan which tensor comes from where, then write, re-read and compare."""

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert import __version__
from mae_convert.canonical import check_task, schema
from mae_convert.checkpoint import Checkpoint
from mae_convert.configuration import Configuration
from mae_convert.containers import write_directory, write_file
from mae_convert.containers.tensor import LazyTensor
from mae_convert.containers.write import JsonFile
from mae_convert.errors import LayoutError, MaeConvertError, OutputError
from mae_convert.heads import CREATED
from mae_convert.layouts import Layout, layout_named
from mae_convert.mapping import Rule, Table, write_tensors
from mae_convert.packing import BIN, Packing
from mae_convert.rounding import DTYPES, rounded, rounding_error
from mae_convert.steps import Geometry, Step, with_geometry

SUFFIX_KINDS = {
    ".weights.h5": "keras_h5",
    ".safetensors": "safetensors",
    ".pth": "pth",
    ".pt": "pth",
    ".bin": "pth",
    ".npz": "npz",
}


@dataclass(frozen=True)
class Plan:
    """A conversion that can be carried out: nothing was read or written yet.

    Attributes:
        source: the checkpoint, as a model for the pictures that the target takes.
        tensors: lazy external tensors of the target, in its native order.
        rules: how each target tensor is made of canonical ones.
        steps: what the conversion changes on purpose, each with ``step`` and its parameters.
        dropped: source tensors that the target does not hold, with the reason.
        dtype: what tensors are rounded to, or None where each keeps its own.
        packing: how the tensors are put into files.
    """

    source: Checkpoint
    target: Path
    layout: Layout
    table: Table
    task: str
    configuration: Configuration
    tensors: Sequence[LazyTensor]
    rules: Sequence[Rule]
    steps: Sequence[Mapping[str, Any]]
    dropped: Mapping[str, str]
    created: Mapping[str, str] = field(default_factory=dict)
    dtype: str | None = None
    packing: Packing = field(default_factory=Packing)

    @property
    def is_directory(self) -> bool:
        """Whether the target is a model directory."""
        return _is_directory(self.layout, self.target)


def plan_conversion(
    source: Checkpoint,
    target: Path,
    layout_name: str,
    *,
    task: str | None = None,
    dtype: str | None = None,
    geometry: Geometry | None = None,
    packing: Packing | None = None,
) -> Plan:
    """Work out a conversion and refuse what the target cannot hold.

    Args:
        source: an opened checkpoint.
        target: the directory or file to write.
        layout_name: the layout to write.
        task: what to keep: "encoder" drops the decoder or the head; default: everything.
        dtype: round every tensor to this dtype; default: dtypes are untouched.
        geometry: the pictures that the target is to take; default: those of the source.
        packing: how the tensors are put into files; default: as the layout's own programs do.

    Raises:
        LayoutError: the layout cannot hold the model.
        ConfigurationError: the task is not in the checkpoint, or the model cannot take pictures
            of such a geometry.
        OutputError: the target's name or the packing does not fit the layout.
    """
    layout, packing = layout_named(layout_name), packing or Packing()
    task = task or source.task
    check_task(task, source.task)
    source, changes = with_geometry(source, task, geometry or Geometry())
    model = source.configuration.model
    if reason := layout.refusal(model, task):
        raise LayoutError(f"cannot write {layout.name}: {reason}")
    table = layout.table_for(task)
    names = schema(_token_pooled(model, task), task)
    if missing := [name for name in names if name not in source.tensors]:
        raise LayoutError(
            f"the checkpoint has no {missing[0]}, which a {task} model needs: a globally pooled"
            " classifier has no final norm of its own, so its encoder cannot stand alone"
        )
    packing.check(layout, is_directory=_is_directory(layout, target))
    rules = [
        replace(rule, external=packing.prefix + rule.external).bound(model.num_attention_heads)
        for rule in table.expand(names)
    ]
    _container_kind(layout, target)
    kept = {name: _in_dtype(source.tensors[name], dtype) for name in names}
    created = _created(table, kept, packing.prefix)
    return Plan(
        source=source,
        target=target,
        layout=layout,
        table=table,
        task=task,
        configuration=source.configuration,
        tensors=[_finite(tensor) for tensor in write_tensors(kept, rules)] + list(created),
        rules=rules,
        steps=_steps(source, names, task, changes, dtype),
        dropped=_dropped(source, set(names), task),
        created={tensor.name: reason for tensor, reason in created.items()},
        dtype=dtype,
        packing=packing,
    )


def _created(table: Table, kept: Mapping[str, LazyTensor], prefix: str) -> dict[LazyTensor, str]:
    """Return tensors of zeros that the layout's own class insists on, with the reason."""
    return {
        LazyTensor(
            prefix + drop.external,
            like.shape,
            like.dtype,
            lambda like=like: np.zeros(like.shape, like.dtype),  # type: ignore[misc]
        ): f"zeros: {drop.why}"
        for drop in table.drops
        if drop.zeros_like is not None
        for like in [kept[drop.zeros_like]]
    }


def _is_directory(layout: Layout, target: Path) -> bool:
    """Return whether a layout is written to such a target as a model directory."""
    return layout.weights_name is not None and not (layout.also_file and _suffix(target))


def _suffix(target: Path) -> str | None:
    """Return the suffix that names a container, or None."""
    return next((s for s in SUFFIX_KINDS if target.name.endswith(s)), None)


def _token_pooled(model: Any, task: str) -> Any:
    """Return the configuration whose schema the task has: only classifiers pool."""
    return model if task == "classify" else replace(model, global_pool="token")


def _container_kind(layout: Layout, target: Path) -> str:
    """Return the kind of container that the target's name asks for."""
    suffix = _suffix(target)
    if _is_directory(layout, target):
        if suffix is not None:
            raise OutputError(
                f"{layout.name} is written as a directory; name one instead of {target.name}"
            )
        return layout.containers[0]
    kind = SUFFIX_KINDS.get(suffix or "")
    if kind not in layout.containers:
        suffixes = [s for s, k in SUFFIX_KINDS.items() if k in layout.containers]
        raise OutputError(
            f"{layout.name} is written as a file whose name ends in {' or '.join(suffixes)}, not as"
            f" {target.name}"
        )
    return kind


def _in_dtype(tensor: LazyTensor, dtype: str | None) -> LazyTensor:
    if dtype is None or tensor.dtype == DTYPES[dtype]:
        return tensor
    wanted = DTYPES[dtype]
    return replace(tensor, dtype=wanted, load=lambda: rounded(tensor.load(), wanted))


def _finite(tensor: LazyTensor) -> LazyTensor:
    """Return the tensor with a guard: weights that are not numbers are never written."""

    def load() -> np.ndarray:
        array = tensor.load()
        if array.dtype.kind in "fV" and not np.isfinite(array).all():
            count = int(array.size - np.isfinite(array).sum())
            raise MaeConvertError(
                f"{tensor.name} would hold {count} values that are NaN or infinite; the checkpoint"
                " is broken, or --dtype overflows: nothing was written"
            )
        return array

    return replace(tensor, load=load)


def _steps(
    source: Checkpoint,
    kept: Iterable[str],
    task: str,
    changes: Iterable[Step],
    dtype: str | None,
) -> list[Step]:
    """Return the steps that the source declares, and after them those of this conversion."""
    steps = list((source.container.conversion or {}).get("steps", []))
    if task != source.task:
        steps.append({"step": "task", "from": source.task, "to": task})
    steps += changes
    rounded_from = {str(source.tensors[name].dtype) for name in kept} - {dtype}
    if dtype and rounded_from:
        steps.append({"step": "dtype", "from": sorted(rounded_from), "to": dtype})
    return steps


def _dropped(source: Checkpoint, kept: set[str], task: str) -> dict[str, str]:
    reason = f"not part of a model whose task is {task}"
    unused = {
        source.prefix.stored[rule.external]: reason
        for rule in source.rules
        if not kept & set(rule.canonicals)
    }
    return {**source.dropped, **unused, **source.container.ignored}


def parse_targets(target: Path, wanted: Sequence[str]) -> list[tuple[str, Path]]:
    """Return layout and path of each ``--to``: LAYOUT goes to ``target``, LAYOUT=PATH elsewhere.

    Raises:
        OutputError: not exactly one layout is without a path of its own, or two paths are the same.
    """
    parsed = []
    for text in wanted:
        layout, equals, path = text.partition("=")
        parsed.append((layout, Path(path) if equals else target))
    plain = sum("=" not in text for text in wanted)
    if plain != 1:
        raise OutputError(
            f"{plain} of the --to options name no path of their own; write one as --to LAYOUT, for"
            f" {target}, and every other as --to LAYOUT=PATH"
        )
    if len({path.resolve() for _, path in parsed}) < len(parsed):
        raise OutputError("two --to options name the same path; give each its own")
    return parsed


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
    kind = _container_kind(plan.layout, plan.target)
    narrow = any(tensor.dtype == DTYPES["bfloat16"] for tensor in plan.tensors)
    if narrow and kind in ("tf_h5", "keras_h5", "npz"):
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
    kind = _container_kind(plan.layout, plan.target)
    carried = carried_config(plan)
    weights_name = plan.layout.weights_name
    if weights_name is None or not plan.is_directory:
        hashes = write_file(
            plan.target,
            kind,
            plan.tensors,
            config=carried,
            conversion={k: record[k] for k in ("mae_convert", "source", "task", "steps")},
            overwrite=overwrite,
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


def conversion_record(plan: Plan) -> dict[str, Any]:
    """Return what a conversion does: source, account of every tensor, declared steps."""
    source = plan.source
    stored = source.prefix.stored
    origin = {name: stored[rule.external] for rule in source.rules for name in rule.canonicals}
    return {
        "mae_convert": __version__,
        "source": {
            **files_sha256(source.container.files),
            "container": source.container.kind,
            "wrapper": source.container.wrapper,
            "prefix": source.prefix.said(),
            "layout": source.layout.name,
            "task": source.task,
        },
        "layout": plan.layout.name,
        "task": plan.task,
        "assumed": source.configuration.assumed(),
        "steps": list(plan.steps),
        "tensors": {
            rule.external: {
                "from": list(dict.fromkeys(origin[n] for n in rule.canonicals if n in origin)),
                "canonical": list(rule.canonicals),
                **_rounding([source.tensors[name] for name in rule.canonicals], plan.dtype),
            }
            for rule in plan.rules
        },
        "dropped": dict(plan.dropped),
        "created": {
            **{
                rule.external: CREATED for rule in plan.rules if not origin.keys() & rule.canonicals
            },
            **plan.created,
        },
    }


def _rounding(parts: Sequence[LazyTensor], dtype: str | None) -> dict[str, Any]:
    """Return the largest rounding error of what is joined to one tensor, where it is rounded."""
    if dtype is None or all(part.dtype == DTYPES[dtype] for part in parts):
        return {}
    errors = [rounding_error(part.load(), DTYPES[dtype]) for part in parts]
    return {"rounding": {kind: max(e[kind] for e in errors) for kind in errors[0]}}


def carried_config(plan: Plan) -> dict[str, Any]:
    """Return the configuration that a file carries inside: nothing else needs to be known of it."""
    labels, preprocessor = plan.configuration.labels, _their_preprocessor(plan.source)
    named = {str(number): name for number, name in enumerate(labels or ())}
    return {
        **({"id2label": named} if named and plan.task == "classify" else {}),
        **({"preprocessor": preprocessor} if preprocessor else {}),
        **plan.configuration.model.to_dict(),
        **_image_statistics(plan.configuration),
        "task": plan.task,
        "layout": plan.layout.name,
    }


def preprocessor_config(plan: Plan) -> dict[str, Any]:
    """Return ``preprocessor_config.json`` for transformers' ViTImageProcessor.

    What the source says about preprocessing stays, but for the size of other pictures.
    """
    height, width = plan.configuration.model.image_hw
    theirs = dict(_their_preprocessor(plan.source))
    if plan.configuration.model.image_hw != plan.source.configuration.model.image_hw:
        theirs = {name: value for name, value in theirs.items() if "size" not in name}
    return {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_processor_type": "ViTImageProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": height, "width": width},
        **theirs,
        **_image_statistics(plan.configuration),
    }


def _their_preprocessor(source: Checkpoint) -> Mapping[str, Any]:
    """Return what the source says about preprocessing beyond mean and deviation, if anything."""
    beside = source.container.preprocessor or {}
    if set(beside) - {"image_mean", "image_std"}:
        return beside
    inside = (source.container.config or {}).get("preprocessor")
    return inside if isinstance(inside, Mapping) else {}


def _image_statistics(configuration: Configuration) -> dict[str, list[float]]:
    return {
        "image_mean": list(configuration.image_mean),
        "image_std": list(configuration.image_std),
    }


def files_sha256(files: Sequence[Path]) -> dict[str, Any]:
    """Return the name and the SHA-256 of what tensors are read from.

    Where that is several files, the name is the first one's in its directory, ``files`` has the
    SHA-256 of each, and ``sha256`` is that of the lines that ``sha256sum`` prints for them.
    """
    hashes = {path.name: file_sha256(path) for path in files}
    if len(files) == 1:
        return {"name": files[0].name, "sha256": hashes[files[0].name]}
    lines = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
    whole = hashlib.sha256(lines.encode()).hexdigest()
    folder = files[0].resolve().parent.name
    return {"name": f"{folder}/{files[0].name}", "sha256": whole, "files": hashes}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
