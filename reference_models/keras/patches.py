"""Images and videos as sequences of patches, and masking.

Shape comments: N images, C channels, L patches (row by row of the grid; in a video, frame by
frame), P values in a patch (in the order [frame,] row, column, channel). Functions take a
configuration with ``pixel_shape`` (C, [T,] H, W), ``patch_shape`` ([t,] h, w), ``grid_shape``
(patches along each axis), ``num_patches`` (L) and ``patch_dim`` (P).
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from reference_models.keras.blocks import Initializer
from reference_models.keras.numerics import mean
from reference_models.outputs import Tensor

Patches = Any  # the configuration of a model family

# Avoids a standard deviation of 0 for a patch of one color; the constant of the original.
_VARIANCE_FLOOR = 1e-6


class PatchProjection(keras.layers.Layer):
    """The linear projection of patches (ViT, equation 1); its weight has a convolution's shape."""

    def __init__(
        self,
        config: Patches,
        width: int,
        *,
        initializer: Initializer = None,
        name: str,
        dtype: Any,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.config, self.width = config, width
        self.initializer = initializer

    def build(self) -> None:
        """Create the kernel ([t,] h, w, C, D) and the bias (D,).

        By default, the kernel is initialized like a matrix (P, D), with Xavier uniform values.
        """
        config, width = self.config, self.width
        limit = (6 / (config.patch_dim + width)) ** 0.5
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*config.patch_shape, config.pixel_shape[0], width),
            initializer=self.initializer or keras.initializers.RandomUniform(-limit, limit),
        )
        self.bias = self.add_weight(name="bias", shape=(width,), initializer="zeros")

    def call(self, patches: Tensor) -> Tensor:
        """Project patches (N, L, P) to tokens (N, L, D).

        The patches do not overlap, so the convolution is a matrix product, which can be applied to
        the visible patches only.
        """
        matrix = ops.reshape(self.kernel, (-1, self.width))  # (P, D)
        return ops.matmul(patches, matrix) + self.bias


def add_positions(
    layer: keras.layers.Layer, name: str, table: np.ndarray, initializer: Any = None
) -> Any:
    """Add a variable of position embeddings to a layer, and return the variable.

    The variable has the shape of `table`. It is trained if an initializer is passed; otherwise it
    is fixed to the values of `table`.
    """
    return layer.add_weight(
        name=name,
        shape=table.shape,
        initializer=initializer or (lambda _, dtype: ops.convert_to_tensor(table, dtype)),
        trainable=initializer is not None,
    )


def check_pixels(pixel_values: Tensor, config: Patches) -> None:
    """Raise ValueError unless the pixels have the configured shape (N, C, [T,] H, W)."""
    expected, shape = config.pixel_shape, tuple(pixel_values.shape)
    if len(shape) != 1 + len(expected) or shape[1:] != expected:
        raise ValueError(
            f"pixel_values must have shape (N, {', '.join(map(str, expected))}), not {shape}"
        )


def patchify(pixel_values: Tensor, config: Patches) -> Tensor:
    """Cut images (N, C, [T,] H, W) into patches (N, L, P).

    Raises:
        ValueError: the images have the wrong shape.
    """
    check_pixels(pixel_values, config)
    lengths = zip(config.grid_shape, config.patch_shape, strict=True)
    split = (length for pair in lengths for length in pair)  # rows, h, columns, w
    axes = len(config.patch_shape)
    grid, within = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
    pixels = ops.reshape(pixel_values, (-1, config.pixel_shape[0], *split))
    patches = ops.transpose(pixels, (0, *grid, *within, 1))
    return ops.reshape(patches, (-1, config.num_patches, config.patch_dim))


def unpatchify(patches: Tensor, config: Patches) -> Tensor:
    """Merge patches (N, L, P) into images (N, C, [T,] H, W).

    Raises:
        ValueError: the patches have the wrong shape.
    """
    if tuple(patches.shape[1:]) != (config.num_patches, config.patch_dim):
        raise ValueError(
            f"patches must have shape (N, {config.num_patches}, {config.patch_dim}),"
            f" not {tuple(patches.shape)}"
        )
    axes = len(config.patch_shape)
    order = (axis_of_order for axis in range(1, 1 + axes) for axis_of_order in (axis, axes + axis))
    shape = (-1, *config.grid_shape, *config.patch_shape, config.pixel_shape[0])
    images = ops.transpose(ops.reshape(patches, shape), (0, 1 + 2 * axes, *order))
    return ops.reshape(images, (-1, *config.pixel_shape))


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each patch, (N, L, 1); the variance is unbiased."""
    center = mean(patches, axis=-1, keepdims=True)
    squares = ops.sum(ops.square(patches - center), axis=-1, keepdims=True)
    return center, ops.sqrt(squares / (patches.shape[-1] - 1) + _VARIANCE_FLOOR)


def check_noise(noise: Tensor, images: int | None, config: Patches) -> None:
    """Raise ValueError unless the noise has shape (N, L); N may be unknown while tracing."""
    shape = tuple(noise.shape)
    fits = len(shape) == 2 and shape[1] == config.num_patches
    if not fits or (None not in (images, shape[0]) and shape[0] != images):
        raise ValueError(
            f"noise must have shape ({images or 'N'}, {config.num_patches}), not {shape}"
        )


def mask_by_noise(noise: Tensor, visible: int) -> tuple[Tensor, Tensor, Tensor]:
    """Select the patches with the lowest noise as visible patches (MAE, section 3).

    Args:
        noise: (N, L).
        visible: the number of visible patches of each image.

    Returns:
        ids_keep: (N, visible), the indices of the visible patches, in the order of their noise.
        mask: (N, L) float32, 0 where a patch is kept and 1 where it is removed.
        ids_restore: (N, L), the index of each patch in the shuffled order.
    """
    ids_shuffle = ops.argsort(noise, axis=1)  # stable on TensorFlow and on JAX
    ids_restore = ops.argsort(ids_shuffle, axis=1)
    return ids_shuffle[:, :visible], ops.cast(ids_restore >= visible, "float32"), ids_restore


def mask_in_order(noise: Tensor, visible: int) -> tuple[Tensor, Tensor, Tensor]:
    """Select the patches with the lowest noise, and keep them in the order of the image.

    Args:
        noise: (N, L).
        visible: the number of visible patches of each image.

    Returns:
        mask: (N, L) float32, 0 where a patch is kept and 1 where it is removed.
        ids: (N, L), first the visible and then the removed patches, both in ascending order.
        ids_restore: (N, L), the index of each patch in ``ids``.
    """
    _, mask, _ = mask_by_noise(noise, visible)
    ids = ops.argsort(mask, axis=1)  # stable on TensorFlow and on JAX
    return mask, ids, ops.argsort(ids, axis=1)


def random_masking(
    pixel_values: Tensor,
    noise: Tensor | None,
    config: Patches,
    seed: keras.random.SeedGenerator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Select the visible patches of images (N, C, [T,] H, W) by noise, which is random by default.

    Args:
        pixel_values: (N, C, [T,] H, W).
        noise: (N, L); uniform by default, or ascending if all patches are kept.
        config: a configuration with the number of visible patches, ``num_kept``.
        seed: the generator of noise, if no noise is passed.

    Returns:
        ``ids_keep``, ``mask`` and ``ids_restore`` of `mask_by_noise`.

    Raises:
        ValueError: pixels or noise have the wrong shape.
    """
    check_pixels(pixel_values, config)
    if noise is None:
        noise = default_noise(ops.shape(pixel_values)[0], config, seed)
    check_noise(noise, pixel_values.shape[0], config)
    return mask_by_noise(noise, config.num_kept)


def default_noise(images: Any, config: Patches, seed: keras.random.SeedGenerator) -> Tensor:
    """Return noise (N, L): uniform, or ascending if all patches are kept."""
    patches = config.num_patches
    if config.num_kept == patches:
        return ops.broadcast_to(ops.arange(patches, dtype="float32"), (images, patches))
    return keras.random.uniform((images, patches), dtype="float32", seed=seed)


def prepend_class_token(token: Tensor, tokens: Tensor) -> Tensor:
    """Put a class token (1, 1, D) before the tokens (N, T, D) of each image: (N, 1 + T, D)."""
    repeated = ops.repeat(token, ops.shape(tokens)[0], axis=0)
    return ops.concatenate([repeated, tokens], axis=1)


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Return the tokens at the indices ``ids``, (N, K, D).

    The tokens of all images are joined into one sequence, from which whole tokens are taken;
    ``ops.take_along_axis`` would need an index for every value.

    Args:
        tokens: (N, T, D), or (1, T, D) for tokens that are the same for all images.
        ids: (N, K), the indices of K tokens for each image.
    """
    images, count, width = tokens.shape
    if images == 1:
        return ops.take(tokens[0], ids, axis=0)
    first = (
        ops.arange(ops.shape(tokens)[0], dtype=ids.dtype) * count
    )  # (N,), the index of each image's first token
    return ops.take(ops.reshape(tokens, (-1, width)), ids + ops.expand_dims(first, -1), axis=0)


def restore_order(visible: Tensor, mask_token: Tensor, ids_restore: Tensor) -> Tensor:
    """Return tokens (N, L, D) in the order of the image, with mask tokens for removed patches.

    Args:
        visible: (N, kept, D), the tokens of the visible patches, in the shuffled order.
        mask_token: (1, 1, D).
        ids_restore: (N, L), the index of each patch in the shuffled order.
    """
    removed = ids_restore.shape[1] - visible.shape[1]
    mask_tokens = ops.tile(mask_token, (ops.shape(visible)[0], removed, 1))
    return take_tokens(ops.concatenate([visible, mask_tokens], axis=1), ids_restore)


class PixelPrediction:
    """Mixin for models that predict pixels: patchify, unpatchify, loss and reconstruction."""

    config: Any
    _cast: Any

    @property
    def predicted(self) -> Patches:
        """The shapes of the predicted images and of their patches."""
        return self.config

    def forward_loss(
        self,
        pixel_values: Tensor,
        logits: Tensor,
        mask: Tensor,
        norm_pix_loss: bool | None = None,
    ) -> Tensor:
        """Return the mean squared error over the removed patches, a scalar (MAE, section 3).

        Args:
            pixel_values: (N, C, [T,] H, W).
            logits: (N, L, P), the predicted patches.
            mask: (N, L), 1 where a patch is removed; at least one patch must be removed.
            norm_pix_loss: whether the target is normalized with the mean and the unbiased variance
                of each patch; by default as configured.
        """
        target = self.patchify(pixel_values)
        if self.config.norm_pix_loss if norm_pix_loss is None else norm_pix_loss:
            center, deviation = patch_statistics(target)
            target = (target - center) / deviation
        errors = mean(ops.square(self._cast(logits) - target), axis=-1)  # (N, L)
        removed = self._cast(mask)
        return ops.sum(errors * removed) / ops.sum(removed)

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """Cut images (N, C, [T,] H, W) into patches (N, L, P)."""
        return patchify(self._cast(pixel_values), self.predicted)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Merge patches (N, L, P) into images (N, C, [T,] H, W)."""
        return unpatchify(patches, self.predicted)

    def reconstruct(
        self, pixel_values: Tensor, logits: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return predicted patches as images (N, C, [T,] H, W).

        If the model predicts normalized pixels, the mean and the standard deviation of each patch
        are taken from ``pixel_values``. If ``mask`` (N, L) is passed, the visible
        patches are taken from ``pixel_values``.
        """
        patches, logits = self.patchify(pixel_values), self._cast(logits)
        if self.config.norm_pix_loss:
            center, deviation = patch_statistics(patches)
            logits = logits * deviation + center
        if mask is not None:
            logits = ops.where(ops.expand_dims(mask, -1) > 0, logits, patches)
        return self.unpatchify(logits)
