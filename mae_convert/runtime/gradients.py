"""Gradients under canonical names: a gradient has the layout of its parameter.

A child names gradients by its own parameter names, because it has no mapping tables. Transforms of
a table only move values, so they apply to gradients exactly.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from mae_convert.errors import LayoutError
from mae_convert.families.mae.layouts import LAYOUTS
from mae_convert.families.mae.layouts.transformers_tf import norm
from mae_convert.formats.tensor import LazyTensor
from mae_convert.layouts.table import Rule, Table, read_tensors
from mae_convert.runtime.trace import Trace

# What transformers' TensorFlow classes do not have: the norm of a pooled classifier.
POOLED = Table("keras variables", ("classify",), (norm("head.norm", "fc_norm/model/fc_norm"),))
LAYOUT_OF = {"torch": "facebook", "transformers": "transformers", "timm": "timm"}


def with_canonical_gradients(trace: Trace) -> Trace:
    """Return a trace whose gradients, if any, have canonical names and layouts.

    Raises:
        LayoutError: a parameter's name is in no table.
    """
    arrays: dict[str, np.ndarray] = {}
    for key, array in trace.arrays.items():
        dtype, _, name = key.partition("/grad/")
        if not name:
            arrays[key] = array
            continue
        rule = _rule_for(trace.description["framework"], name)
        tensor = LazyTensor.from_array(rule.external, array)
        canonical = read_tensors({rule.external: tensor}, [rule])
        arrays |= {f"{dtype}/grad/{part}": t.load() for part, t in canonical.items()}
    return replace(trace, arrays=arrays)


def _rule_for(framework: str, name: str) -> Rule:
    if framework in LAYOUT_OF and "/" not in name:
        tables: Iterable[Table] = LAYOUTS[LAYOUT_OF[framework]].tables
        external = name
    else:
        # A variable's path becomes a dataset's: its layer and any scope before it.
        tables = (*LAYOUTS["transformers-tf"].tables, POOLED)
        external = f"{name.split('/', maxsplit=1)[0]}/model/{name}:0"
    for table in tables:
        if rule := table.rule_for(external):
            return rule
    raise LayoutError(f"the parameter {name} of {framework} has no canonical name")
