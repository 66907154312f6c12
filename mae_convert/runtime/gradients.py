"""Gradients under canonical names: a gradient has the layout of its parameter.

A child process uses its own parameter names for gradients, because it has no mapping tables: the
names of the state dict in PyTorch, those of the ``keras`` layout in Keras. The transforms of a
table only move values, so they apply to gradients exactly.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mae_convert.checkpoint.fingerprint import described_family
from mae_convert.errors import LayoutError
from mae_convert.formats.tensor import LazyTensor
from mae_convert.layouts.layout import Layout
from mae_convert.layouts.table import Rule, read_tensors
from mae_convert.runtime.sides import MODELS_OF
from mae_convert.runtime.trace import Trace


def with_canonical_gradients(trace: Trace) -> Trace:
    """Return a trace whose gradients, if any, have canonical names and layouts.

    Raises:
        LayoutError: a parameter's name is in no table.
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
    """Return the layout of the names of a framework's model, and its rules by these names."""
    family, framework = described_family(description), description["framework"]
    layout = family.layout(family.model_layout(MODELS_OF.get(framework, framework)))
    config = family.configuration_class.from_dict(description["config"])
    shapes = family.schema(config, description["task"])
    table = layout.table_for(description["task"], names=shapes)
    return layout, {rule.external: rule for rule in table.expand(shapes)}


def _in_memory(layout: Layout, name: str) -> Rule:
    """Return the rule for a name that a library's model has in memory and not in files."""
    for table in layout.tables:
        if rule := table.rule_for(name):
            return rule
    raise LayoutError(f"the parameter {name} has no canonical name in the layout {layout.name}")
