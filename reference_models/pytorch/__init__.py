"""The models in PyTorch; parameters are named as in facebookresearch/mae."""

from reference_models.configuration import ViTMAEConfig
from reference_models.pytorch.mae import (
    ViTForImageClassification,
    ViTMAEForPreTraining,
    ViTMAEModel,
)

__all__ = ["ViTForImageClassification", "ViTMAEConfig", "ViTMAEForPreTraining", "ViTMAEModel"]
