"""Models that are related to MAE: which are refused, which are read, and how each is recognised.

The module ``refused`` lists models that are similar to MAE and cannot be converted, and ``known``
lists related models that can be converted, wholly or in part; ``naming`` identifies the related
model of a checkpoint. No other code refers to a related model by name; a new model is added to the
table in ``refused`` or ``known``.
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
