"""Families of models: which are refused, which are read as encoders, and how each is named.

``refused`` has those that are taken for MAE and are not, ``known`` those that have its shape, and
``naming`` tells which of the known ones a checkpoint belongs to. Nothing elsewhere knows a family
by its name: to add one, add it to a table here.
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
