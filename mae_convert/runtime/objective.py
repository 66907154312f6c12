"""The scalar function whose gradients are compared, for tasks without a loss.

A pre-training model has its reconstruction loss (MAE, section 3), without per-patch normalisation.
A classifier gets the cross-entropy against fixed labels. An encoder has no loss: its output is
projected on a fixed direction, because the gradient of, for example, its norm is nearly zero after
a layer norm.
"""

import numpy as np


def labels(images: int, classes: int) -> np.ndarray:
    """Return a label for each image, (images,) int64: 0, 1, 2, ..., repeated."""
    return np.arange(images, dtype=np.int64) % classes


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """Return the direction that an encoder's output is projected on, float64 of its shape."""
    size = int(np.prod(shape))
    return np.sin(1.0 + np.arange(size, dtype=np.float64)).reshape(shape)
