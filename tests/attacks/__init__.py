"""The corpus of hostile files, of which each module holds a part."""

from attacks import hdf5, passed_over, pickled, plain, zipped
from attacks.corpus import ATTACKS, Attack

__all__ = ["ATTACKS", "Attack", "hdf5", "passed_over", "pickled", "plain", "zipped"]
