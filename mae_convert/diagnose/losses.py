"""Other ways to put predicted patches together, and to compute the loss.

In shape comments N is images, C channels, L patches, P numbers in a patch, in the order row,
column, channel.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor

from mae_convert.diagnose.alternatives import Arithmetic
from reference_models.pytorch.patches import patchify, unpatchify

# Of patches (N, L, rows, columns, channels), to and from the order that is mistaken for theirs.
CUT: Mapping[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "channel, row, column": lambda x: x.permute(0, 1, 4, 2, 3),
    "channels reversed": lambda x: x.flip(-1),
    "column, row, channel": lambda x: x.transpose(2, 3),
}


def reconstruct(model: Any, logits: Tensor, how: Arithmetic) -> Tensor:
    """Return predicted patches (N, L, P) as pictures (N, C, H, W)."""
    config = model.config
    (height, width), channels = config.patch_hw, config.num_channels
    order = how.at("pixels", "reconstruction")
    put: Mapping[str | None, Callable[[Tensor], Tensor]] = {
        None: lambda x: x,
        "channel, row, column": lambda x: x.unflatten(2, (channels, height, width)).permute(
            0, 1, 3, 4, 2
        ),
        "channels reversed": lambda x: x.unflatten(2, (height, width, channels)).flip(-1),
        "column, row, channel": lambda x: x.unflatten(2, (width, height, channels)).transpose(2, 3),
    }
    return unpatchify(put[order](logits).flatten(2), config)


# Of the mean square or otherwise of each patch, (N, L).
ERRORS: Mapping[str | None, Callable[[Tensor], Tensor]] = {
    "absolute error": lambda error: error.abs().mean(dim=-1),
    "smooth absolute error": lambda error: F.smooth_l1_loss(
        error, torch.zeros_like(error), reduction="none"
    ).mean(dim=-1),
    "sum over a patch": lambda error: error.square().sum(dim=-1),
}
# Of errors and mask, both (N, L), a scalar.
AVERAGES: Mapping[str | None, Callable[[Tensor, Tensor], Tensor]] = {
    None: lambda errors, mask: (errors * mask).sum() / mask.sum(),
    "over all patches": lambda errors, _: errors.mean(),
    "over visible patches": lambda errors, mask: (errors * (1 - mask)).sum() / (1 - mask).sum(),
    "divided by all patches": lambda errors, mask: (errors * mask).sum() / mask.numel(),
}


def loss(  # the parameters of forward_loss, and two
    model: Any, pixel_values: Tensor, logits: Tensor, mask: Tensor, how: Arithmetic, name: str
) -> Tensor:
    """Return the loss, a scalar; ``name`` is "loss" or "loss_norm_pix"."""
    if not how.touches(name):
        usual: Tensor = model.forward_loss(
            pixel_values, logits, mask, norm_pix_loss=name == "loss_norm_pix"
        )
        return usual
    config, kind = model.config, how.at("loss", name)
    apart = patchify(pixel_values, config).unflatten(2, (*config.patch_hw, config.num_channels))
    target = CUT[how.at("pixels", name)](apart).flatten(2)
    if name == "loss_norm_pix" and kind != "patches not normalised":
        target = _normalised(target, how.at("statistics", name))
    errors = ERRORS.get(kind, lambda error: error.square().mean(dim=-1))(logits - target)
    return AVERAGES.get(kind, AVERAGES[None])(errors, mask)


# Degrees of freedom that the variance loses, and what is added to it.
STATISTICS: Mapping[str | None, tuple[int, float]] = {
    None: (1, 1e-6),
    "biased variance": (0, 1e-6),
    "biased variance, no epsilon": (0, 0.0),
    "no epsilon": (1, 0.0),
    "epsilon 1e-5": (1, 1e-5),
    "epsilon 1e-12": (1, 1e-12),
}


def _normalised(target: Tensor, statistics: str | None) -> Tensor:
    """Return patches (N, L, P) normalised by statistics that are not the original's."""
    if statistics == "epsilon beside the root":
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        return (target - mean) / (variance.sqrt() + 1e-6)
    correction, floor = STATISTICS[statistics]
    variance, mean = torch.var_mean(target, dim=-1, correction=correction, keepdim=True)
    return (target - mean) / (variance + floor).sqrt()
