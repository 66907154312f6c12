"""A trace: the results of one side of a comparison, named and hashed, in one safetensors file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.fingerprint import Fingerprint, described_family, described_fingerprint
from mae_convert.checkpoint.preprocessing import described
from mae_convert.convert.record import files_sha256
from mae_convert.errors import CheckpointError, LayoutError, Option
from mae_convert.families.configuration import Configuration
from mae_convert.families.family import Family
from mae_convert.files.byte_ranges import ByteFile, FileArray, kind_of
from mae_convert.files.strict_json import parse_json
from mae_convert.formats.safetensors_file import read_safetensors
from mae_convert.formats.tensor import LazyTensor, sha256
from mae_convert.layouts.layout import Layout
from mae_convert.layouts.table import Rule, read_tensors
from mae_convert.runtime.inputs import inputs_sha256
from mae_convert.runtime.sides import MODELS_OF, Side
from mae_convert.runtime.trace_check import check_trace

FORMAT = 1


@dataclass(frozen=True)
class Trace:
    """The results of one side of a comparison, with their description."""

    description: Mapping[str, Any]
    """Framework, versions, device, configuration, hashes; see ``describe``."""

    arrays: Mapping[str, np.ndarray] = field(repr=False)
    """The arrays by name. For the run in each dtype, the names are ``DTYPE/RESULT`` for an output,
    ``DTYPE/tap/NAME`` for an intermediate activation and ``DTYPE/grad/NAME`` for a gradient.
    ``mask`` and ``ids_restore`` are the same for all dtypes."""

    @classmethod
    def load(cls, path: Path) -> "Trace":
        """Read a trace file.

        Raises:
            CheckpointError: the file does not exist, is not a trace, or has an unsupported version.
        """
        if not path.exists():
            raise CheckpointError(path, " does not exist", hint="check the path")
        if kind := kind_of(path):  # safetensors would wait for a pipe, and could not be interrupted
            raise CheckpointError(
                path, f" is {kind} and not a regular file", hint="specify a trace file"
            )
        try:
            text, arrays = read_trace(path)
            description = parse_json(text)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, MemoryError) as error:
            raise CheckpointError(
                path,
                f" is not a trace ({type(error).__name__}: {error})",
                hint=(
                    "write a trace with `mae-convert trace CKPT OUT.safetensors`, or compare the "
                    "arrays of another program with ",
                    Option("names", placeholder="MAP.json"),
                ),
            ) from error
        version = description.get("format") if isinstance(description, dict) else None
        if version != FORMAT:
            raise CheckpointError(
                path,
                f" is a trace of format {version!r}, and this version of mae-convert reads"
                f" format {FORMAT}",
                hint="trace the checkpoint again",
            )
        check_trace(description, arrays, str(path))
        return cls(description, arrays)

    @property
    def family(self) -> Family:
        """The family of the model."""
        return described_family(self.description)

    @property
    def configuration(self) -> Configuration:
        """The configuration of the model, without the sources of its fields."""
        return Configuration(
            model=self.family.configuration_class.from_dict(self.description["config"]),
            image_mean=tuple(self.description["image_mean"]),
            image_std=tuple(self.description["image_std"]),
            sources={},
        )

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the checkpoint that was run, after any declared changes."""
        return described_fingerprint(self.description)

    def results(self, dtype: str) -> dict[str, np.ndarray]:
        """Return the outputs, activations and gradients (``grad/NAME``) of one dtype, by name."""
        prefix = f"{dtype}/"
        return {
            name.removeprefix(prefix).removeprefix("tap/"): array
            for name, array in self.arrays.items()
            if name.startswith(prefix)
        }


def read_trace(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Return a trace file's description, as JSON, and its arrays.

    Errors of the safetensors library are not converted.
    """
    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return (file.metadata() or {})["trace"], arrays


def map_trace(path: Path) -> tuple[str, Mapping[str, np.ndarray]]:
    """Return the same as `read_trace`; the arrays are views of a private memory mapping.

    The file may be removed afterwards. But it must be a file that no other program changes, because
    reading the memory mapping of a file that becomes shorter ends the process.
    """
    file = ByteFile(path)
    mapping = file.private_mapping()
    if mapping is None:
        return read_trace(path)
    arrays = {}
    for name, tensor in read_safetensors(file).tensors.items():
        assert isinstance(tensor.load, FileArray)
        values = np.frombuffer(mapping, tensor.dtype, tensor.load.size, tensor.load.offset)
        arrays[name] = values.reshape(tensor.shape)
    with safe_open(path, "numpy") as opened:
        return opened.metadata()["trace"], arrays


def describe(
    checkpoint: Checkpoint,
    side: Side,
    inputs: Mapping[str, np.ndarray],
    *,
    converted_by: str | None,
) -> dict[str, Any]:
    """Return a trace's metadata, which a verdict needs in addition to the results.

    The field ``tensors`` contains shape, dtype and SHA-256 of every canonical tensor. The field
    ``native`` is true if `converted_by` is None: no code of mae-convert read or converted the
    stored tensors.
    """
    hashes = files_sha256(checkpoint.container.opened)
    description = {
        "format": FORMAT,
        "checkpoint": {**hashes, "name": checkpoint.name},
        "layout": checkpoint.layout.name,
        "family": checkpoint.family.name,
        "task": checkpoint.task,
        "framework": side.framework,
        "native": converted_by is None,
        "ours": converted_by,
        "device": side.device,
        "mode": side.mode,
        "config": checkpoint.configuration.model.to_dict(),
        "image_mean": list(checkpoint.configuration.image_mean),
        "image_std": list(checkpoint.configuration.image_std),
        "labels": list(checkpoint.configuration.labels or ()),
        "assumed": checkpoint.configuration.assumed(),
        "assumptions": checkpoint.configuration.only_assumed(),
        "preprocessing": described(checkpoint),
        "unread": list(checkpoint.unread),
        "inputs": inputs_sha256(inputs),
        "steps": list((checkpoint.container.conversion or {}).get("steps", [])),
        "tensors": {
            name: [list(tensor.shape), str(tensor.dtype), sha256(tensor)]
            for name, tensor in checkpoint.tensors.items()
        },
    }
    return {**description, "fingerprint": str(described_fingerprint(description))}


def with_canonical_gradients(trace: Trace) -> Trace:
    """Return a trace whose gradients, if any, are named and shaped like the canonical tensors.

    A child process has no mapping tables, so it names and shapes gradients like the parameters of
    its model: with the names of the state dict in PyTorch, with the names of the ``keras`` layout
    in Keras. The transforms of a table only move values, so they convert gradients exactly too.

    Raises:
        LayoutError: the name of a parameter is not in the layout's mapping tables.
    """
    arrays: dict[str, np.ndarray] = {}
    rules: Mapping[str, Rule] | None = None
    layout = None
    for key, array in trace.arrays.items():
        dtype, _, name = key.partition("/grad/")
        if not name:
            arrays[key] = array
            continue
        if layout is None or rules is None:
            layout, rules = _tables(trace.description)
        rule = rules.get(name) or _in_memory(layout, name)
        tensor = LazyTensor.from_array(rule.external, array)
        canonical = read_tensors({rule.external: tensor}, [rule])
        arrays |= {f"{dtype}/grad/{part}": t.load() for part, t in canonical.items()}
    return replace(trace, arrays=arrays)


def _tables(description: Mapping[str, Any]) -> tuple[Layout, dict[str, Rule]]:
    """Return the layout that the run's model uses, and its mapping rules by parameter name."""
    family, framework = described_family(description), description["framework"]
    layout = family.layout(family.model_layout(MODELS_OF.get(framework, framework)))
    config = family.configuration_class.from_dict(description["config"])
    shapes = family.schema(config, description["task"])
    table = layout.table_for(description["task"], names=shapes)
    return layout, {rule.external: rule for rule in table.expand(shapes)}


def _in_memory(layout: Layout, name: str) -> Rule:
    """Return the mapping rule for a parameter whose name in memory differs from its name in files.

    Args:
        layout: the layout that the run's model uses.
        name: the name of the parameter in memory.

    Raises:
        LayoutError: no mapping table of the layout has the name.
    """
    for table in layout.tables:
        if rule := table.rule_for(name):
            return rule
    raise LayoutError(f"the parameter {name} has no canonical name in the layout {layout.name}")
