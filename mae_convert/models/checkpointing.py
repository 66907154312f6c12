"""Activation checkpointing in PyTorch: blocks recompute their activations in the backward pass.

The method ``forward`` is replaced in the block objects and not in their class, so that other models
are not affected.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from reference_models.outputs import Taps


def blocks_of(model: nn.Module) -> list[Any]:
    """Return the transformer blocks of encoder and decoder."""
    return [module for module in model.modules() if type(module).__name__ == "Block"]


def enable_checkpointing(
    model: nn.Module, options: Mapping[str, Any] | None, every_n_layers: int, *, offload: bool
) -> None:
    """Recompute the activations inside blocks in the backward pass instead of storing them.

    Args:
        model: a model with transformer blocks.
        options: arguments of ``torch.utils.checkpoint.checkpoint``; ``use_reentrant`` defaults to
            False. None for the defaults.
        every_n_layers: checkpoint the first block and every n-th block after it.
        offload: store the inputs of blocks in CPU memory.

    Raises:
        ValueError: ``every_n_layers`` is less than 1.
    """
    if every_n_layers < 1:
        raise ValueError(f"every_n_layers must be 1 or more, not {every_n_layers}")
    disable_checkpointing(model)
    chosen = {"use_reentrant": False, **(options or {})}
    for block in blocks_of(model)[::every_n_layers]:
        block.forward = partial(_recomputed, type(block).forward, block, chosen, offload)


def disable_checkpointing(model: nn.Module) -> None:
    """Store the activations inside blocks again, instead of recomputing them."""
    for block in blocks_of(model):
        block.__dict__.pop("forward", None)


def is_checkpointing(model: nn.Module) -> bool:
    """Return whether any block recomputes its activations."""
    return any("forward" in block.__dict__ for block in blocks_of(model))


def _recomputed(
    forward: Any,
    block: Any,
    options: Mapping[str, Any],
    offload: bool,
    tokens: Tensor,
    taps: Taps | None = None,
) -> Any:
    recorded = taps is not None  # recorded activations must not be recomputed
    if recorded or not (block.training and torch.is_grad_enabled()):
        return forward(block, tokens, taps)
    if not offload:
        return checkpoint(forward, block, tokens, **options)
    with save_on_cpu(pin_memory=torch.cuda.is_available()):
        return checkpoint(forward, block, tokens, **options)
