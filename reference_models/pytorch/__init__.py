"""The models in PyTorch; parameters are named as the authors of each family name them."""

from reference_models.configuration import MAESTConfig, VideoMAEConfig, ViTMAEConfig
from reference_models.pytorch.mae import (
    ViTForImageClassification,
    ViTMAEForPreTraining,
    ViTMAEModel,
)
from reference_models.pytorch.mae_st import (
    MAESTForPreTraining,
    MAESTForVideoClassification,
    MAESTModel,
)
from reference_models.pytorch.videomae import (
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
)

__all__ = [
    "MAESTConfig",
    "MAESTForPreTraining",
    "MAESTForVideoClassification",
    "MAESTModel",
    "ViTForImageClassification",
    "ViTMAEConfig",
    "ViTMAEForPreTraining",
    "ViTMAEModel",
    "VideoMAEConfig",
    "VideoMAEForPreTraining",
    "VideoMAEForVideoClassification",
    "VideoMAEModel",
]
