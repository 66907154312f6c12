"""Other arithmetic before and after the blocks: masking, embedding, restoring, pooling, the loss.

In shape comments N is images, C channels, L patches, P numbers in a patch, D the width.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor

from mae_convert.verify.explain.alternatives import Arithmetic, linear, norm
from reference_models.pytorch.patches import patchify, take_tokens, unpatchify

Ids = tuple[Tensor, Tensor, Tensor]  # ids_keep (N, kept), mask (N, L), ids_restore (N, L)


def _removed(places: Tensor, kept: int) -> Tensor:
    return (places >= kept).float()


def _as_reference(shuffle: Tensor, kept: int) -> Ids:
    restore = shuffle.argsort(dim=1)
    return shuffle[:, :kept], _removed(restore, kept), restore


def _last_kept(shuffle: Tensor, kept: int) -> Ids:
    return _as_reference(shuffle.flip(1), kept)


def _inverted(shuffle: Tensor, kept: int) -> Ids:
    keep, mask, restore = _as_reference(shuffle, kept)
    return keep, 1 - mask, restore


def _in_shuffled_order(shuffle: Tensor, kept: int) -> Ids:
    keep, mask, restore = _as_reference(shuffle, kept)
    return keep, _removed(torch.arange(mask.shape[1]), kept).expand_as(mask), restore


def _gathered_by_shuffle(shuffle: Tensor, kept: int) -> Ids:
    keep, _, restore = _as_reference(shuffle, kept)
    return keep, _removed(shuffle, kept), restore


def _sorted_once(shuffle: Tensor, kept: int) -> Ids:
    return shuffle[:, :kept], _removed(shuffle, kept), shuffle


def _restored_by_shuffle(shuffle: Tensor, kept: int) -> Ids:
    keep, mask, _ = _as_reference(shuffle, kept)
    return keep, mask, shuffle


def _one_more(shuffle: Tensor, kept: int) -> Ids:
    return _as_reference(shuffle, min(kept + 1, shuffle.shape[1]))


def _kept_in_order(shuffle: Tensor, kept: int) -> Ids:
    inner, outer = (part.sort(dim=1).values for part in (shuffle[:, :kept], shuffle[:, kept:]))
    return _as_reference(torch.cat([inner, outer], dim=1), kept)


def _one_off(shuffle: Tensor, kept: int) -> Ids:
    keep, mask, restore = _as_reference(shuffle, kept)
    return keep, mask, (restore + 1) % restore.shape[1]


MASKS: dict[str | None, Callable[[Tensor, int], Ids]] = {
    None: _as_reference,
    "highest noise kept": _last_kept,
    "inverted": _inverted,
    "in the shuffled order": _in_shuffled_order,
    "gathered by the shuffle": _gathered_by_shuffle,
    "sorted once": _sorted_once,
    "restored by the shuffle": _restored_by_shuffle,
    "one patch more": _one_more,
    "kept patches in order": _kept_in_order,
    "ids one off": _one_off,
}


def mask_ids(noise: Tensor, kept: int, how: Arithmetic) -> Ids:
    """Return which patches are kept, the mask and the way back, for noise (N, L)."""
    return MASKS[how.at("mask", "mask")](noise.argsort(dim=1, stable=True), kept)


def pictures(pixel_values: Tensor, how: Arithmetic) -> Tensor:
    """Return the pictures (N, C, H, W) that the model is given."""
    kind = how.at("pictures", "pictures")
    changed = {
        None: lambda x: x,
        "channels reversed": lambda x: x.flip(1),
        "height and width exchanged": lambda x: x.transpose(2, 3),
        "upside down": lambda x: x.flip(2),
        "mirrored": lambda x: x.flip(3),
    }
    return changed[kind](pixel_values)


def embed(model: Any, pixel_values: Tensor, ids_keep: Tensor | None, how: Arithmetic) -> Tensor:
    """Return class token and patch tokens with their positions, (N, 1 + kept, D)."""
    if not how.touches("encoder.embedding"):
        return model.embed(pixel_values, ids_keep)
    kind = how.at("embedding", "encoder.embedding")
    patches = patchify(pixel_values, model.config)
    if kind == "patches column by column":
        rows, columns = model.config.grid_hw
        grid = patches.unflatten(1, (rows, columns))
        patches = grid.transpose(1, 2).flatten(1, 2)
    positions, first = model.pos_embed[:, 1:], model.pos_embed[:, :1]
    if kind == "position of the next patch":
        positions = positions.roll(-1, dims=1)
    elif kind == "positions counted from the class token":
        positions = model.pos_embed[:, :-1]
    if ids_keep is not None:
        patches = take_tokens(patches, ids_keep)
        ids = ids_keep if kind != "positions not picked" else torch.arange(ids_keep.shape[1])[None]
        positions = take_tokens(positions.expand(len(patches), -1, -1), ids.expand_as(ids_keep))
    if kind == "no positions of patches":
        positions = torch.zeros_like(positions)
    elif kind == "positions added twice":
        positions, first = 2 * positions, 2 * first
    tokens = linear(model.patch_embed, patches, "encoder.embedding", how) + positions
    if kind in ("no position of the class token", "no positions"):
        first = torch.zeros_like(first)
    token = model.cls_token * (2 if kind == "class token added twice" else 1) + first
    tokens = torch.cat([token.expand(len(tokens), -1, -1), tokens], dim=1)
    return tokens * tokens.shape[-1] ** 0.5 if kind == "times the root of the width" else tokens


def decode_tokens(model: Any, latent: Tensor, restore: Tensor, how: Arithmetic) -> Tensor:
    """Return the decoder's input (N, 1 + L, D) for the encoder's output (N, 1 + kept, D)."""
    visible = linear(model.decoder_embed, latent, "decoder.embedding", how)
    kind = how.at("embedding", "decoder.embedding")
    removed = restore.shape[1] + 1 - visible.shape[1]
    if kind == "restored by the shuffle":
        restore = restore.argsort(dim=1)
    mask_tokens = model.mask_token.to(visible.dtype).expand(len(visible), removed, -1)
    if kind == "mask token with the class token's position":
        mask_tokens = mask_tokens + model.decoder_pos_embed[:, :1]
    shuffled = torch.cat([visible[:, 1:], mask_tokens], dim=1)  # (N, L, D)
    if kind == "mask tokens first":
        shuffled = torch.cat([mask_tokens, visible[:, 1:]], dim=1)
    restored = shuffled if kind == "not restored" else take_tokens(shuffled, restore)
    tokens = torch.cat([visible[:, :1], restored], dim=1)
    positions = model.decoder_pos_embed
    if kind == "positions before restoring":
        moved = take_tokens(positions[:, 1:].expand(len(tokens), -1, -1), restore)
        positions = torch.cat([positions[:, :1].expand(len(tokens), -1, -1), moved], dim=1)
    elif kind == "no position of the class token":
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions[:, 1:]], dim=1)
    elif kind == "no positions":
        positions = torch.zeros_like(positions)
    elif kind == "positions one off":
        positions = positions.roll(1, dims=1)
    return tokens + positions


def pooled(model: Any, tokens: Tensor, how: Arithmetic) -> Tensor:
    """Return the normalised mean of patches, (N, 1, D), of tokens (N, 1 + L, D)."""
    kind = how.at("pool", "head")
    if kind == "normalised before":
        return norm(model.fc_norm, tokens, "head.norm", how)[:, 1:].mean(dim=1, keepdim=True)
    if kind == "mean with the class token":
        mean = tokens.mean(dim=1, keepdim=True)
    elif kind == "class token":
        mean = tokens[:, :1]
    elif kind == "largest":
        mean = tokens[:, 1:].amax(dim=1, keepdim=True)
    else:
        mean = tokens[:, 1:].mean(dim=1, keepdim=True)
    return norm(model.fc_norm, mean, "head.norm", how)


def read_out(normed: Tensor, how: Arithmetic) -> Tensor:
    """Return what the head is given, (N, D), of normalised tokens (N, T, D)."""
    kind = how.at("pool", "head")
    if kind == "mean of patches":
        return normed[:, 1:].mean(dim=1)
    if kind == "mean with the class token":
        return normed.mean(dim=1)
    return normed[:, 1] if kind == "first patch" else normed[:, 0]


def without_class_token(tokens: Tensor, how: Arithmetic) -> Tensor:
    """Return the tokens of patches (N, L, D)."""
    kind = how.at("patches", "logits")
    return tokens[:, :-1] if kind == "last token left out" else tokens[:, 1:]


def reconstruct(model: Any, logits: Tensor, how: Arithmetic) -> Tensor:
    """Return predicted patches (N, L, P) as pictures (N, C, H, W)."""
    order = how.at("pixels", "reconstruction")
    return unpatchify(_reordered(logits, model.config, order), model.config)


def _reordered(patches: Tensor, config: Any, order: str | None) -> Tensor:
    """Return patches (N, L, P) whose numbers are in another order than row, column, channel."""
    (height, width), channels = config.patch_hw, config.num_channels
    if order == "channel, row, column":
        return patches.unflatten(2, (channels, height, width)).permute(0, 1, 3, 4, 2).flatten(2)
    apart = patches.unflatten(2, (height, width, channels))
    if order == "channels reversed":
        apart = apart.flip(-1)
    elif order == "column, row, channel":
        apart = patches.unflatten(2, (width, height, channels)).transpose(2, 3)
    return apart.flatten(2)


def loss(
    model: Any, pixel_values: Tensor, logits: Tensor, mask: Tensor, how: Arithmetic, name: str
) -> Tensor:
    """Return the loss, a scalar; ``name`` is "loss" or "loss_norm_pix"."""
    if not how.touches(name):
        return model.forward_loss(pixel_values, logits, mask, norm_pix_loss=name != "loss")
    target = _target(model, pixel_values, how.at("pixels", name))
    kind = how.at("loss", name)
    if name == "loss_norm_pix" and kind != "patches not normalised":
        target = _normalised(target, how.at("statistics", name))
    error = logits - target
    each = error.abs() if kind == "absolute error" else error.square()
    if kind == "smooth absolute error":
        each = F.smooth_l1_loss(logits, target, reduction="none")
    errors = each.sum(dim=-1) if kind == "sum over a patch" else each.mean(dim=-1)  # (N, L)
    if kind == "over all patches":
        return errors.mean()
    if kind == "over visible patches":
        mask = 1 - mask
    if kind == "divided by all patches":
        return (errors * mask).sum() / mask.numel()
    return (errors * mask).sum() / mask.sum()


def _target(model: Any, pixel_values: Tensor, order: str | None) -> Tensor:
    config = model.config
    target = patchify(pixel_values, config)
    apart = target.unflatten(2, (*config.patch_hw, config.num_channels))
    changed = {
        None: lambda x: x,
        "channel, row, column": lambda x: x.permute(0, 1, 4, 2, 3),
        "channels reversed": lambda x: x.flip(-1),
        "column, row, channel": lambda x: x.transpose(2, 3),
    }
    return changed[order](apart).flatten(2)


def _normalised(target: Tensor, statistics: str | None) -> Tensor:
    """Return patches (N, L, P) normalised by statistics that are not the original's."""
    biased = statistics in ("biased variance", "biased variance, other epsilon")
    variance, mean = torch.var_mean(target, dim=-1, correction=0 if biased else 1, keepdim=True)
    if statistics == "epsilon beside the root":
        return (target - mean) / (variance.sqrt() + 1e-6)
    floor = {"no epsilon": 0.0, "epsilon 1e-5": 1e-5, "epsilon 1e-12": 1e-12}
    return (target - mean) / (variance + floor.get(statistics or "", 1e-6)).sqrt()
