"""The corpus of malicious files, of which each module contains a part."""

from attacks import advisories, hdf5, pickled, plain, skipped_objects, zipped
from attacks.corpus import ATTACKS, Attack

__all__ = [
    "ATTACKS",
    "Attack",
    "advisories",
    "hdf5",
    "pickled",
    "plain",
    "skipped_objects",
    "zipped",
]
