"""Images as sequences of patches, and which of them are kept.

In shape comments N is images, C channels, L patches (rows x columns of the grid), P numbers in a
patch. Within a patch the order is row, column, channel, as facebookresearch/mae has it.
"""

import torch
from torch import Tensor

from reference_models.configuration import ViTMAEConfig

# Keeps the deviation of a patch of one colour from being zero; the original's constant.
_VARIANCE_FLOOR = 1e-6


def check_pixels(pixel_values: Tensor, config: ViTMAEConfig) -> None:
    """Raise ValueError unless the pixels are (N, C, H, W) of the configured size."""
    expected = (config.num_channels, *config.image_hw)
    if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
        raise ValueError(
            f"pixel_values must have shape (N, {', '.join(map(str, expected))}),"
            f" not {tuple(pixel_values.shape)}"
        )


def patchify(pixel_values: Tensor, config: ViTMAEConfig) -> Tensor:
    """Cut images (N, C, H, W) into patches (N, L, P)."""
    check_pixels(pixel_values, config)
    (rows, columns), (height, width) = config.grid_hw, config.patch_hw
    grid = pixel_values.unflatten(3, (columns, width)).unflatten(2, (rows, height))
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, config: ViTMAEConfig) -> Tensor:
    """Put patches (N, L, P) together to images (N, C, H, W)."""
    if patches.ndim != 3 or tuple(patches.shape[1:]) != (config.num_patches, config.patch_dim):
        raise ValueError(
            f"patches must have shape (N, {config.num_patches}, {config.patch_dim}),"
            f" not {tuple(patches.shape)}"
        )
    grid = patches.unflatten(2, (*config.patch_hw, -1)).unflatten(1, config.grid_hw)
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each patch, (N, L, 1); the variance is unbiased."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + _VARIANCE_FLOOR).sqrt()


def check_noise(noise: Tensor, images: int, config: ViTMAEConfig) -> None:
    """Raise ValueError unless the noise is (N, L)."""
    if tuple(noise.shape) != (images, config.num_patches):
        raise ValueError(
            f"noise must have shape ({images}, {config.num_patches}), not {tuple(noise.shape)}"
        )


def mask_by_noise(noise: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose patches at random by sorting noise (N, L): the lowest stay (MAE, section 3).

    Returns:
        ids_keep: (N, kept), the patches that stay, in the order of their noise.
        mask: (N, L) float32, 0 where a patch is kept and 1 where it is removed.
        ids_restore: (N, L), the place of each patch in the shuffled order.
    """
    ids_shuffle = noise.argsort(dim=1, stable=True)
    ids_restore = ids_shuffle.argsort(dim=1)
    return ids_shuffle[:, :kept], (ids_restore >= kept).float(), ids_restore


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Pick tokens (N, T, D), or (1, T, D) for all images, by their places (N, K): (N, K, D)."""
    images, width = ids.shape[0], tokens.shape[-1]
    # Not take_along_dim, of which torch.export makes a program for one number of images only.
    return tokens.expand(images, -1, -1).gather(1, ids.unsqueeze(-1).expand(-1, -1, width))
