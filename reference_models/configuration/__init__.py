"""Configurations of the model families, one module each; frozen, validated, no framework needed."""

from reference_models.configuration.block import ACTIVATIONS, BlockConfig
from reference_models.configuration.mae import POOLINGS, ViTMAEConfig

__all__ = ["ACTIVATIONS", "POOLINGS", "BlockConfig", "ViTMAEConfig"]
