"""The models in Keras 3; variables have the paths of the TF classes in transformers 4.

They run on the TensorFlow and JAX backends. Weights are ``model.weights``; a variable's path there,
without its first component, is its name in ``tf_model.h5``. A model is saved and loaded by Keras as
a whole, by the configuration that it is made of; its layers have no ``get_config`` of their own and
cannot be put into other models' archives.
"""

from reference_models.configuration import ViTMAEConfig
from reference_models.keras.mae import (
    TFViTForImageClassification,
    TFViTMAEForPreTraining,
    TFViTMAEModel,
)

__all__ = [
    "TFViTForImageClassification",
    "TFViTMAEForPreTraining",
    "TFViTMAEModel",
    "ViTMAEConfig",
]
