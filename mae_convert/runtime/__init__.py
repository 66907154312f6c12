"""Checkpoints as models of a framework, and models as checkpoints, without a file between."""

from mae_convert.runtime.loading import load_model
from mae_convert.runtime.saving import save_model

__all__ = ["load_model", "save_model"]
