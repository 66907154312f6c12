"""Paired comparison of losses of several candidates on the same images and masks.

Crops of one image are alike. So images are resampled first, and then the crops of each (a
hierarchical bootstrap): a candidate that wins on one image only is not significant.
"""

import numpy as np

SAMPLES = 2000


def wins(best: np.ndarray, others: np.ndarray, *, seed: int = 0) -> float:
    """Return the confidence that one candidate has a lower mean loss than every other one.

    Args:
        best: (images, crops), the losses of the candidate.
        others: (candidates, images, crops), those of the others.
        seed: of the bootstrap.

    Returns:
        The smallest share, over the other candidates, of bootstrap samples in which ``best`` is
        lower; 1.0 if there is no other.
    """
    differences = others - best
    return min((_share_above_zero(one, seed) for one in differences), default=1.0)


def _share_above_zero(differences: np.ndarray, seed: int) -> float:
    images, crops = differences.shape
    generator = np.random.Generator(np.random.Philox(seed))
    chosen = generator.integers(images, size=(SAMPLES, images, 1))
    within = generator.integers(crops, size=(SAMPLES, images, crops))
    means = differences[chosen, within].mean(axis=(1, 2))
    return float((means > 0).mean())
