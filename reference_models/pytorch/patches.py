"""Images and videos as sequences of patches, and masking.

Shape comments: N images, C channels, L patches (row by row of the grid; in a video, frame by
frame), P values in a patch (in the order [frame,] row, column, channel). Functions take a
configuration with ``pixel_shape`` (C, [T,] H, W), ``patch_shape`` ([t,] h, w), ``grid_shape``
(patches along each axis), ``num_patches`` (L) and ``patch_dim`` (P).
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor, nn

# Avoids a standard deviation of 0 for a patch of one color; the constant of the original.
_VARIANCE_FLOOR = 1e-6


class Patches(Protocol):
    """The attributes of a configuration that describe the shapes of images and patches."""

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of an image, channels first."""

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Shape of a patch, without channels."""

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Number of patches along each axis."""

    @property
    def num_patches(self) -> int:
        """Number of patches in an image, L."""

    @property
    def patch_dim(self) -> int:
        """Number of values in a patch, P."""


class PatchEmbedding(nn.Module):
    """The linear projection of patches (ViT, equation 1); its weight has a convolution's shape."""

    def __init__(self, config: Patches, width: int) -> None:
        super().__init__()
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[len(config.patch_shape)]
        self.proj = convolution(
            config.pixel_shape[0], width, config.patch_shape, stride=config.patch_shape
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Project patches (N, L, P) to tokens (N, L, D).

        The patches do not overlap, so the convolution is a matrix product, which can be applied to
        the visible patches only.
        """
        weight = self.proj.weight.movedim(1, -1).flatten(
            1
        )  # (D, P), with values in the order of a patch
        return F.linear(patches, weight, self.proj.bias)


def check_pixels(pixel_values: Tensor, config: Patches) -> None:
    """Raise ValueError unless the pixels have the configured shape (N, C, [T,] H, W)."""
    expected = config.pixel_shape
    if pixel_values.ndim != 1 + len(expected) or tuple(pixel_values.shape[1:]) != expected:
        raise ValueError(
            f"pixel_values must have shape (N, {', '.join(map(str, expected))}),"
            f" not {tuple(pixel_values.shape)}"
        )


def patchify(pixel_values: Tensor, config: Patches) -> Tensor:
    """Cut images (N, C, [T,] H, W) into patches (N, L, P).

    Raises:
        ValueError: the images have the wrong shape.
    """
    check_pixels(pixel_values, config)
    axes = len(config.patch_shape)
    for axis in reversed(range(axes)):  # split (..., H, W) into (..., rows, h, columns, w)
        lengths = (config.grid_shape[axis], config.patch_shape[axis])
        pixel_values = pixel_values.unflatten(2 + axis, lengths)
    grid, within = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
    return pixel_values.permute(0, *grid, *within, 1).flatten(1 + axes).flatten(1, axes)


def unpatchify(patches: Tensor, config: Patches) -> Tensor:
    """Merge patches (N, L, P) into images (N, C, [T,] H, W).

    Raises:
        ValueError: the patches have the wrong shape.
    """
    if patches.ndim != 3 or tuple(patches.shape[1:]) != (config.num_patches, config.patch_dim):
        raise ValueError(
            f"patches must have shape (N, {config.num_patches}, {config.patch_dim}),"
            f" not {tuple(patches.shape)}"
        )
    axes = len(config.patch_shape)
    grid = patches.unflatten(2, (*config.patch_shape, -1)).unflatten(1, config.grid_shape)
    order = (axis_of_order for axis in range(1, 1 + axes) for axis_of_order in (axis, axes + axis))
    images = grid.permute(0, 1 + 2 * axes, *order)  # (N, C, rows, h, columns, w)
    for axis in range(axes):
        images = images.flatten(2 + axis, 3 + axis)
    return images


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each patch, (N, L, 1); the variance is unbiased."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + _VARIANCE_FLOOR).sqrt()


def check_noise(noise: Tensor, images: int, config: Patches) -> None:
    """Raise ValueError unless the noise has shape (N, L)."""
    if tuple(noise.shape) != (images, config.num_patches):
        raise ValueError(
            f"noise must have shape ({images}, {config.num_patches}), not {tuple(noise.shape)}"
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
    ids_shuffle = noise.argsort(dim=1, stable=True)
    ids_restore = ids_shuffle.argsort(dim=1)
    return ids_shuffle[:, :visible], (ids_restore >= visible).float(), ids_restore


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
    ids = mask.argsort(dim=1, stable=True)
    return mask, ids, ids.argsort(dim=1)


def random_masking(
    pixel_values: Tensor, noise: Tensor | None, config: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Select the visible patches of images (N, C, [T,] H, W) by noise, random by default.

    Args:
        pixel_values: (N, C, [T,] H, W).
        noise: (N, L); uniform by default, or ascending if all patches are kept.
        config: a configuration with the number of visible patches, ``num_kept``.

    Returns:
        ``ids_keep``, ``mask`` and ``ids_restore`` of `mask_by_noise`.

    Raises:
        ValueError: the noise has the wrong shape.
    """
    images = pixel_values.shape[0]
    if noise is None:
        noise = default_noise(images, config, pixel_values.device)
    check_noise(noise, images, config)
    return mask_by_noise(noise, config.num_kept)


def default_noise(images: int, config: Any, device: torch.device) -> Tensor:
    """Return noise (N, L): uniform, or ascending if all patches are kept."""
    patches = config.num_patches
    if config.num_kept == patches:
        return torch.arange(patches, dtype=torch.float32, device=device).expand(images, -1)
    return torch.rand(images, patches, device=device)


def prepend_class_token(token: Tensor, tokens: Tensor) -> Tensor:
    """Put a class token (1, 1, D) before the tokens (N, T, D) of each image: (N, 1 + T, D)."""
    return torch.cat([token.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Return the tokens at the indices ``ids``, (N, K, D).

    Args:
        tokens: (N, T, D), or (1, T, D) for tokens that are the same for all images.
        ids: (N, K), the indices of K tokens for each image.
    """
    images, width = ids.shape[0], tokens.shape[-1]
    # With take_along_dim, torch.export would create a program for a fixed number of images.
    return tokens.expand(images, -1, -1).gather(1, ids.unsqueeze(-1).expand(-1, -1, width))


def restore_order(visible: Tensor, mask_token: Tensor, ids_restore: Tensor) -> Tensor:
    """Return tokens (N, L, D) in the order of the image, with mask tokens for removed patches.

    Args:
        visible: (N, kept, D), the tokens of the visible patches, in the shuffled order.
        mask_token: (1, 1, D).
        ids_restore: (N, L), the index of each patch in the shuffled order.
    """
    images, count, width = visible.shape
    mask_tokens = mask_token.to(visible.dtype).expand(images, ids_restore.shape[1] - count, width)
    return take_tokens(torch.cat([visible, mask_tokens], dim=1), ids_restore)


class PixelPrediction:
    """Mixin for models that predict pixels: patchify, unpatchify, loss and reconstruction."""

    config: Any

    @property
    def predicted(self) -> Patches:
        """The shapes of the predicted images and of their patches."""
        config: Patches = self.config
        return config

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
            mean, deviation = patch_statistics(target)
            target = (target - mean) / deviation
        errors = (logits - target).square().mean(dim=-1)  # (N, L)
        return (errors * mask).sum() / mask.sum()

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """Cut images (N, C, [T,] H, W) into patches (N, L, P)."""
        return patchify(pixel_values, self.predicted)

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
        patches = self.patchify(pixel_values)
        if self.config.norm_pix_loss:
            mean, deviation = patch_statistics(patches)
            logits = logits * deviation + mean
        if mask is not None:
            logits = torch.where(mask.unsqueeze(-1) > 0, logits, patches)
        return self.unpatchify(logits)
