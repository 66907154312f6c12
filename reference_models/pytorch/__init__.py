"""The models in PyTorch; parameters are named as the authors of each family name them."""

from reference_models.configuration import (
    MAESTConfig,
    PrithviConfig,
    VideoMAEConfig,
    ViTMAEConfig,
)
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
from reference_models.pytorch.prithvi import PrithviForPreTraining, PrithviModel
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
    "PrithviConfig",
    "PrithviForPreTraining",
    "PrithviModel",
    "ViTForImageClassification",
    "ViTMAEConfig",
    "ViTMAEForPreTraining",
    "ViTMAEModel",
    "VideoMAEConfig",
    "VideoMAEForPreTraining",
    "VideoMAEForVideoClassification",
    "VideoMAEModel",
]
