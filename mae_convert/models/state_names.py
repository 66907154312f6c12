"""Rename the tensors of a state dict from transformers' names to the names of the authors' code.

mae-convert's PyTorch classes have the names of the authors' code. `save_pretrained` writes files
with transformers' names, and ``transformers.Trainer`` loads such a file as a state dict.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mae_convert.errors import LayoutError
from mae_convert.families.mae.layouts import layout_named
from mae_convert.families.mae.schema import schema
from mae_convert.layouts.table import Rule, read_tensors, write_tensors
from mae_convert.runtime.torch_model import lazy_tensor, read_tensor
from reference_models.configuration import ViTMAEConfig


def with_original_names(
    state: Mapping[str, Tensor], config: ViTMAEConfig, task: str
) -> Mapping[str, Tensor]:
    """Return a state dict with the tensor names of the original code.

    Args:
        state: a state dict; it is returned unchanged unless it has all tensor names of
            transformers' class for the task.
        config: the configuration of the model.
        task: "pretrain", "encoder" or "classify".
    """
    if any(name.startswith(("blocks.", "patch_embed.")) for name in state):
        return state
    rules = _rules_that_fit(state, config, task)
    if rules is None:
        return state
    stored = {rule.external for rule in rules}
    canonical = read_tensors({name: lazy_tensor(name, state[name]) for name in stored}, rules)
    table = layout_named("facebook").table_for(task)
    own = write_tensors(canonical, table.expand(canonical))
    others = {name: value for name, value in state.items() if name not in stored}
    return {**{tensor.name: read_tensor(tensor, None) for tensor in own}, **others}


def _rules_that_fit(
    state: Mapping[str, Any], config: ViTMAEConfig, task: str
) -> tuple[Rule, ...] | None:
    """Return the rules of the naming variant of transformers that a state dict uses.

    The rules map the names to canonical names. A state dict uses a naming variant if it has all
    names of the variant. The result is None if it uses no variant.
    """
    names = schema(config, task)
    for table in layout_named("transformers").tables:
        try:
            rules = tuple(table.expand(names))
        except LayoutError:  # this variant is not for the task
            continue
        if all(rule.external in state for rule in rules):
            return rules
    return None
