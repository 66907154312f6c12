"""The former module of the classifier's class, kept for `.keras` files of earlier versions.

Files that earlier versions of this project wrote contain the name of this module.
"""

from reference_models.keras.mae import TFViTForImageClassification

__all__ = ["TFViTForImageClassification"]
