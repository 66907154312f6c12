"""The models in Keras 3, on the TensorFlow and JAX backends.

Variables of the image MAE have the paths of the TF classes in transformers 4: a variable's path in
``model.weights``, without its first component, is its name in ``tf_model.h5``. The models of the
video families consist of the same blocks. A model is saved and loaded by Keras as a whole, with its
configuration; its layers have no ``get_config`` and cannot be saved as parts of other models.
"""

from reference_models.configuration import (
    MAESTConfig,
    PrithviConfig,
    VideoMAEConfig,
    ViTMAEConfig,
)
from reference_models.keras.mae import (
    TFViTForImageClassification,
    TFViTMAEForPreTraining,
    TFViTMAEModel,
)
from reference_models.keras.mae_st import (
    MAESTForPreTraining,
    MAESTForVideoClassification,
    MAESTModel,
)
from reference_models.keras.prithvi import PrithviForPreTraining, PrithviModel
from reference_models.keras.videomae import (
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
    "TFViTForImageClassification",
    "TFViTMAEForPreTraining",
    "TFViTMAEModel",
    "ViTMAEConfig",
    "VideoMAEConfig",
    "VideoMAEForPreTraining",
    "VideoMAEForVideoClassification",
    "VideoMAEModel",
]
