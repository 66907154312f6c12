"""Images as sequences of patches, and which of them are kept.

In shape comments N is images, C channels, L patches (rows x columns of the grid), P numbers in a
patch. Within a patch the order is row, column, channel, as facebookresearch/mae has it.
"""

from keras import ops

from reference_models.configuration import ViTMAEConfig
from reference_models.keras.numerics import mean
from reference_models.outputs import Tensor

# Keeps the deviation of a patch of one colour from being zero; the original's constant.
_VARIANCE_FLOOR = 1e-6


def check_pixels(pixel_values: Tensor, config: ViTMAEConfig) -> None:
    """Raise ValueError unless the pixels are (N, C, H, W) of the configured size."""
    expected = (config.num_channels, *config.image_hw)
    if len(pixel_values.shape) != 4 or tuple(pixel_values.shape[1:]) != expected:
        raise ValueError(
            f"pixel_values must have shape (N, {', '.join(map(str, expected))}),"
            f" not {tuple(pixel_values.shape)}"
        )


def patchify(pixel_values: Tensor, config: ViTMAEConfig) -> Tensor:
    """Cut images (N, C, H, W) into patches (N, L, P)."""
    check_pixels(pixel_values, config)
    (rows, columns), (height, width) = config.grid_hw, config.patch_hw
    grid = ops.reshape(pixel_values, (-1, config.num_channels, rows, height, columns, width))
    patches = ops.transpose(grid, (0, 2, 4, 3, 5, 1))
    return ops.reshape(patches, (-1, config.num_patches, config.patch_dim))


def unpatchify(patches: Tensor, config: ViTMAEConfig) -> Tensor:
    """Put patches (N, L, P) together to images (N, C, H, W)."""
    if tuple(patches.shape[1:]) != (config.num_patches, config.patch_dim):
        raise ValueError(
            f"patches must have shape (N, {config.num_patches}, {config.patch_dim}),"
            f" not {tuple(patches.shape)}"
        )
    grid = ops.reshape(patches, (-1, *config.grid_hw, *config.patch_hw, config.num_channels))
    images = ops.transpose(grid, (0, 5, 1, 3, 2, 4))
    return ops.reshape(images, (-1, config.num_channels, *config.image_hw))


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each patch, (N, L, 1); the variance is unbiased."""
    center = mean(patches, axis=-1, keepdims=True)
    squares = ops.sum(ops.square(patches - center), axis=-1, keepdims=True)
    return center, ops.sqrt(squares / (patches.shape[-1] - 1) + _VARIANCE_FLOOR)


def check_noise(noise: Tensor, images: int | None, config: ViTMAEConfig) -> None:
    """Raise ValueError unless the noise is (N, L); an unknown N fits any."""
    shape = tuple(noise.shape)
    fits = len(shape) == 2 and shape[1] == config.num_patches
    if not fits or (None not in (images, shape[0]) and shape[0] != images):
        raise ValueError(
            f"noise must have shape ({images or 'N'}, {config.num_patches}), not {shape}"
        )


def mask_by_noise(noise: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose patches at random by sorting noise (N, L): the lowest stay (MAE, section 3).

    Returns:
        ids_keep: (N, kept), the patches that stay, in the order of their noise.
        mask: (N, L) float32, 0 where a patch is kept and 1 where it is removed.
        ids_restore: (N, L), the place of each patch in the shuffled order.
    """
    ids_shuffle = ops.argsort(noise, axis=1)  # stable on TensorFlow and on JAX
    ids_restore = ops.argsort(ids_shuffle, axis=1)
    return ids_shuffle[:, :kept], ops.cast(ids_restore >= kept, "float32"), ids_restore


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Pick tokens (N, T, D) by their places (N, K), giving (N, K, D).

    The images are laid end to end and whole tokens are picked; ``ops.take_along_axis`` would need
    an index for every number.
    """
    _, count, width = tokens.shape
    first = ops.arange(ops.shape(tokens)[0], dtype=ids.dtype) * count  # (N,), of each image
    return ops.take(ops.reshape(tokens, (-1, width)), ids + ops.expand_dims(first, -1), axis=0)
