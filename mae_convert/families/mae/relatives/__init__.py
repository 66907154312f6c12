"""Families of models: which are refused, which are read as encoders, and how each is named.

``refused`` has models that look like MAE but are not, ``known`` has models with the same shapes,
and ``naming`` determines the known model to which a checkpoint belongs. No other code refers to
such a model by name; a new one is added to a table here.
"""

from mae_convert.families.mae.relatives.known import KNOWN, Relative
from mae_convert.families.mae.relatives.naming import Membership, name_relative, without_decoder
from mae_convert.families.mae.relatives.refused import explain

__all__ = [
    "KNOWN",
    "Membership",
    "Relative",
    "explain",
    "name_relative",
    "without_decoder",
]
