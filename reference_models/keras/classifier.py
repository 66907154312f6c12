"""The module name under which `.keras` files of earlier versions store the classifier's class."""

from reference_models.keras.mae import TFViTForImageClassification

__all__ = ["TFViTForImageClassification"]
