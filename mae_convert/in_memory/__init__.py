"""Checkpoints as models of a framework, and models as checkpoints, without a file between."""

from mae_convert.in_memory.loading import load_model
from mae_convert.in_memory.saving import save_model

__all__ = ["load_model", "save_model"]
