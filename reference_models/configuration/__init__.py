"""Configurations of the model families: frozen, validated dataclasses that need no framework."""

from reference_models.configuration.base import ACTIVATIONS, BlockConfig, Configuration
from reference_models.configuration.mae import POOLINGS, ViTMAEConfig
from reference_models.configuration.mae_st import MAESTConfig
from reference_models.configuration.prithvi import PrithviConfig
from reference_models.configuration.videomae import VideoMAEConfig

__all__ = [
    "ACTIVATIONS",
    "POOLINGS",
    "BlockConfig",
    "Configuration",
    "MAESTConfig",
    "PrithviConfig",
    "ViTMAEConfig",
    "VideoMAEConfig",
]
