"""The module in which `.keras` files of earlier versions name the classifier's class."""

from reference_models.keras.mae import TFViTForImageClassification

__all__ = ["TFViTForImageClassification"]
