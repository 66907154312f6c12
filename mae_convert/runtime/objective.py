"""The scalar function whose gradients are compared, for each task.

For a pre-training model it is the reconstruction loss (MAE, section 3), without per-patch
normalization. For a classifier it is the cross-entropy of fixed labels. An encoder has no loss; the
function is the projection of its output on a fixed direction. The norm of the output would not be
suitable: after a layer norm, its gradient is nearly zero.
"""

import numpy as np


def labels(images: int, classes: int) -> np.ndarray:
    """Return a label for each image, (images,) int64: 0 to classes - 1 in order, then repeated."""
    return np.arange(images, dtype=np.int64) % classes


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """Return the fixed direction on which the output of an encoder is projected.

    Args:
        shape: the shape of the encoder's output.

    Returns:
        A float64 array of this shape. Its inner product with the output is the scalar function.
    """
    size = int(np.prod(shape))
    return np.sin(1.0 + np.arange(size, dtype=np.float64)).reshape(shape)
