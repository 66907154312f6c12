"""Compute the steps before and after the blocks differently from the reference model.

These steps are: input images, masking, embedding, decoder input, pooling, reconstruction, losses.

In shapes, N is the number of images, C the number of channels, L the number of patches, ``kept``
the number of visible patches, T the number of tokens, D the width, and P the number of values of a
patch, in the order row, column, channel.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor

from mae_convert.diagnose.block_variants import Variants, linear, norm
from reference_models.pytorch.patches import patchify, take_tokens, unpatchify

Ids = tuple[Tensor, Tensor, Tensor]  # ids_keep (N, kept), mask (N, L), ids_restore (N, L)


def mask_ids(noise: Tensor, visible: int, variants: Variants) -> Ids:
    """Return ids_keep (N, kept), mask (N, L) and ids_restore (N, L) for noise (N, L)."""
    return MASKS[variants.get("mask", "mask")](noise.argsort(dim=1, stable=True), visible)


def _removed(ranks: Tensor, visible: int) -> Tensor:
    return (ranks >= visible).float()


def _as_reference(shuffle: Tensor, visible: int) -> Ids:
    restore = shuffle.argsort(dim=1)
    return shuffle[:, :visible], _removed(restore, visible), restore


def _last_kept(shuffle: Tensor, visible: int) -> Ids:
    return _as_reference(shuffle.flip(1), visible)


def _inverted(shuffle: Tensor, visible: int) -> Ids:
    keep, mask, restore = _as_reference(shuffle, visible)
    return keep, 1 - mask, restore


def _in_shuffled_order(shuffle: Tensor, visible: int) -> Ids:
    keep, mask, restore = _as_reference(shuffle, visible)
    return keep, _removed(torch.arange(mask.shape[1]), visible).expand_as(mask), restore


def _gathered_by_shuffle(shuffle: Tensor, visible: int) -> Ids:
    keep, _, restore = _as_reference(shuffle, visible)
    return keep, _removed(shuffle, visible), restore


def _sorted_once(shuffle: Tensor, visible: int) -> Ids:
    return shuffle[:, :visible], _removed(shuffle, visible), shuffle


def _restored_by_shuffle(shuffle: Tensor, visible: int) -> Ids:
    keep, mask, _ = _as_reference(shuffle, visible)
    return keep, mask, shuffle


def _one_more(shuffle: Tensor, visible: int) -> Ids:
    return _as_reference(shuffle, min(visible + 1, shuffle.shape[1]))


def _one_fewer(shuffle: Tensor, visible: int) -> Ids:
    return _as_reference(shuffle, max(visible - 1, 0))


def _kept_in_order(shuffle: Tensor, visible: int) -> Ids:
    inner, outer = (
        part.sort(dim=1).values for part in (shuffle[:, :visible], shuffle[:, visible:])
    )
    return _as_reference(torch.cat([inner, outer], dim=1), visible)


def _one_off(shuffle: Tensor, visible: int) -> Ids:
    keep, mask, restore = _as_reference(shuffle, visible)
    return keep, mask, (restore + 1) % restore.shape[1]


MASKS: Mapping[str | None, Callable[[Tensor, int], Ids]] = {
    None: _as_reference,
    "patches with the highest noise are kept": _last_kept,
    "the mask is inverted": _inverted,
    "the mask is in the shuffled order": _in_shuffled_order,
    "the mask is computed from ids_shuffle": _gathered_by_shuffle,
    "ids_shuffle is used as ids_restore and for the mask": _sorted_once,
    "ids_restore is ids_shuffle": _restored_by_shuffle,
    "one more patch is kept": _one_more,
    "one fewer patch is kept": _one_fewer,
    "kept patches are in ascending order": _kept_in_order,
    "ids_restore is shifted by one": _one_off,
}


TensorFunction = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    """Return the tensor unchanged, as in the reference model."""
    return x


def twice(x: Tensor) -> Tensor:
    """Return the tensor doubled."""
    return 2 * x


IMAGES: Mapping[str | None, TensorFunction] = {
    None: same,
    "channels reversed": lambda x: x.flip(1),
    "height and width exchanged": lambda x: x.transpose(2, 3),
    "upside down": lambda x: x.flip(2),
    "mirrored": lambda x: x.flip(3),
    "multiplied by 255": lambda x: x * 255,
    "divided by 255": lambda x: x / 255,
}
# Functions that map the position embedding (1, 1 + L, D) to the rows of the patches (1, L, D), the
# position of the class token (1, 1, D) to a changed position, and the class token (1, 1, D) to a
# changed token.
PATCH_POSITIONS: Mapping[str | None, TensorFunction] = {
    "patches get the position of the next patch": lambda p: p[:, 1:].roll(-1, dims=1),
    "patches get the position of the previous token": lambda p: p[:, :-1],
    "no position embeddings of patches": lambda p: torch.zeros_like(p[:, 1:]),
    "no position embeddings": lambda p: torch.zeros_like(p[:, 1:]),
    "position embeddings are added twice": lambda p: 2 * p[:, 1:],
}
FIRST_POSITION: Mapping[str | None, TensorFunction] = {
    "no position embedding of the class token": torch.zeros_like,
    "no position embeddings": torch.zeros_like,
    "position embeddings are added twice": twice,
}
CLASS_TOKEN: Mapping[str | None, TensorFunction] = {"the class token is added twice": twice}
DECODER_POSITIONS: Mapping[str | None, TensorFunction] = {
    "no position embedding of the class token": lambda p: torch.cat(
        [torch.zeros_like(p[:, :1]), p[:, 1:]], 1
    ),
    "no position embeddings": torch.zeros_like,
    "position embeddings are shifted by one": lambda p: p.roll(1, dims=1),
}


def changed_images(pixel_values: Tensor, variants: Variants) -> Tensor:
    """Return the images (N, C, H, W) with the variant of the input applied."""
    return IMAGES[variants.get("images", "images")](pixel_values)


def embed(model: Any, pixel_values: Tensor, ids_keep: Tensor | None, variants: Variants) -> Tensor:
    """Embed images with the variant of the embedding, if there is one; return tokens (N, 1 + K, D).

    The result has the class token and the K patches of `ids_keep` (N, K), or all patches if
    `ids_keep` is None, with position embeddings added.
    """
    if not variants.affects("encoder.embedding"):
        embedded: Tensor = model.embed(pixel_values, ids_keep)
        return embedded
    kind = variants.get("embedding", "encoder.embedding")
    patches = patchify(pixel_values, model.config)
    if kind == "patches are ordered column by column":
        patches = patches.unflatten(1, model.config.grid_hw).transpose(1, 2).flatten(1, 2)
    positions = PATCH_POSITIONS.get(kind, lambda p: p[:, 1:])(model.pos_embed)
    if ids_keep is not None:
        patches = take_tokens(patches, ids_keep)
        ids = (
            torch.arange(ids_keep.shape[1])[None]
            if kind == "visible patches get the positions of the first patches"
            else ids_keep
        )
        positions = take_tokens(positions.expand(len(patches), -1, -1), ids.expand_as(ids_keep))
    tokens = linear(model.patch_embed, patches, "encoder.embedding", variants) + positions
    first = FIRST_POSITION.get(kind, same)(model.pos_embed[:, :1])
    token = CLASS_TOKEN.get(kind, same)(model.cls_token) + first
    tokens = torch.cat([token.expand(len(tokens), -1, -1), tokens], dim=1)
    return (
        tokens * tokens.shape[-1] ** 0.5
        if kind == "multiplied by the square root of the width"
        else tokens
    )


def decode_tokens(model: Any, latent: Tensor, restore: Tensor, variants: Variants) -> Tensor:
    """Return the decoder's input (N, 1 + L, D) for the encoder's output (N, 1 + kept, D)."""
    visible = linear(model.decoder_embed, latent, "decoder.embedding", variants)
    kind = variants.get("embedding", "decoder.embedding")
    positions = DECODER_POSITIONS.get(kind, same)(model.decoder_pos_embed)
    mask_token = model.mask_token.to(visible.dtype)
    if kind == "mask tokens get the class token's position in addition to their own":
        mask_token = mask_token + positions[:, :1]
    masks = mask_token.expand(len(visible), restore.shape[1] + 1 - visible.shape[1], -1)
    parts = [visible[:, 1:], masks]
    shuffled = torch.cat(
        parts[::-1] if kind == "mask tokens come before visible tokens" else parts, dim=1
    )  # (N, L, D)
    if kind == "position embeddings are added before the order is restored":
        tokens = take_tokens(shuffled + positions[:, 1:], restore)
        return torch.cat([visible[:, :1] + positions[:, :1], tokens], dim=1)
    if kind == "tokens are restored with ids_shuffle":
        restore = restore.argsort(dim=1)
    restored = (
        shuffled
        if kind == "tokens are not restored to the original order"
        else take_tokens(shuffled, restore)
    )
    return torch.cat([visible[:, :1], restored], dim=1) + positions


POOLS: Mapping[str | None, TensorFunction] = {
    None: lambda x: x[:, 1:].mean(dim=1, keepdim=True),
    "mean of all tokens, including the class token": lambda x: x.mean(dim=1, keepdim=True),
    "class token": lambda x: x[:, :1],
    "maximum instead of mean": lambda x: x[:, 1:].amax(dim=1, keepdim=True),
}
READ_OUTS: Mapping[str | None, TensorFunction] = {
    None: lambda x: x[:, 0],
    "mean of patches": lambda x: x[:, 1:].mean(dim=1),
    "mean of all tokens, including the class token": lambda x: x.mean(dim=1),
    "first patch": lambda x: x[:, 1],
}


def pooled(model: Any, tokens: Tensor, variants: Variants) -> Tensor:
    """Return the layer-normalized mean of patch tokens, (N, 1, D), for tokens (N, 1 + L, D).

    ``variants`` can replace the mean by another pooling, or apply the layer norm before it.
    """
    kind = variants.get("pool", "head")
    if kind == "layer norm before the mean":
        return POOLS[None](norm(model.fc_norm, tokens, "head.norm", variants))
    return norm(model.fc_norm, POOLS[kind](tokens), "head.norm", variants)


def read_out(normed: Tensor, variants: Variants) -> Tensor:
    """Return the head's input (N, D) from normalized tokens (N, T, D).

    The input is the class token, unless ``variants`` specifies another pooling.
    """
    kind = variants.get("pool", "head")
    return READ_OUTS[kind if normed.shape[1] > 1 else None](normed)


def without_class_token(tokens: Tensor, variants: Variants) -> Tensor:
    """Return the patch tokens (N, L, D) of tokens (N, 1 + L, D).

    The class token, which is the first token, is left out. ``variants`` can specify that the last
    token is left out instead.
    """
    kind = variants.get("patches", "logits")
    return (
        tokens[:, :-1]
        if kind == "the last token is left out instead of the class token"
        else tokens[:, 1:]
    )


# Functions that permute the values of patches (N, L, rows, columns, channels) to a wrong order.
CUT: Mapping[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "in the order channel, row, column": lambda x: x.permute(0, 1, 4, 2, 3),
    "channels reversed": lambda x: x.flip(-1),
    "in the order column, row, channel": lambda x: x.transpose(2, 3),
}


def reconstruct(model: Any, logits: Tensor, variants: Variants) -> Tensor:
    """Merge predicted patches (N, L, P) into images (N, C, H, W), with the requested variants."""
    config = model.config
    (height, width), channels = config.patch_hw, config.num_channels
    order = variants.get("pixels", "reconstruction")
    put: Mapping[str | None, Callable[[Tensor], Tensor]] = {
        None: lambda x: x,
        "in the order channel, row, column": lambda x: x.unflatten(
            2, (channels, height, width)
        ).permute(0, 1, 3, 4, 2),
        "channels reversed": lambda x: x.unflatten(2, (height, width, channels)).flip(-1),
        "in the order column, row, channel": lambda x: x.unflatten(
            2, (width, height, channels)
        ).transpose(2, 3),
    }
    return unpatchify(put[order](logits).flatten(2), config)


# Functions from the errors of the values (N, L, P) to the errors of the patches (N, L).
ERRORS: Mapping[str | None, Callable[[Tensor], Tensor]] = {
    "absolute error": lambda error: error.abs().mean(dim=-1),
    "smooth absolute error": lambda error: F.smooth_l1_loss(
        error, torch.zeros_like(error), reduction="none"
    ).mean(dim=-1),
    "sum instead of mean over a patch": lambda error: error.square().sum(dim=-1),
}
# Functions from the errors of the patches and the mask, both (N, L), to the loss, a scalar.
AVERAGES: Mapping[str | None, Callable[[Tensor, Tensor], Tensor]] = {
    None: lambda errors, mask: (errors * mask).sum() / mask.sum(),
    "mean over all patches": lambda errors, _: errors.mean(),
    "mean over visible patches": lambda errors, mask: (
        (errors * (1 - mask)).sum() / (1 - mask).sum()
    ),
    "divided by the number of all patches": lambda errors, mask: (
        (errors * mask).sum() / mask.numel()
    ),
}


def loss(  # the parameters of forward_loss, variants and name
    model: Any, pixel_values: Tensor, logits: Tensor, mask: Tensor, variants: Variants, name: str
) -> Tensor:
    """Return the loss, a scalar, computed with the requested variants.

    Args:
        model: the reference model.
        pixel_values: (N, C, [T,] H, W).
        logits: (N, L, P), the predicted patches.
        mask: (N, L), 1 where a patch is removed.
        variants: the variants of the computation.
        name: "loss", or "loss_norm_pix" for the loss on normalized patches.
    """
    if not variants.affects(name):
        usual: Tensor = model.forward_loss(
            pixel_values, logits, mask, norm_pix_loss=name == "loss_norm_pix"
        )
        return usual
    config, kind = model.config, variants.get("loss", name)
    patches = patchify(pixel_values, config).unflatten(2, (*config.patch_hw, config.num_channels))
    target = CUT[variants.get("pixels", name)](patches).flatten(2)
    if name == "loss_norm_pix" and kind != "patches not normalized":
        target = _normalized(target, variants.get("statistics", name))
    errors = ERRORS.get(kind, lambda error: error.square().mean(dim=-1))(logits - target)
    return AVERAGES.get(kind, AVERAGES[None])(errors, mask)


# The ``correction`` of torch.var_mean, and the epsilon that is added to the variance.
STATISTICS: Mapping[str | None, tuple[int, float]] = {
    None: (1, 1e-6),
    "biased variance": (0, 1e-6),
    "biased variance without epsilon": (0, 0.0),
    "without epsilon": (1, 0.0),
    "epsilon 1e-5": (1, 1e-5),
    "epsilon 1e-12": (1, 1e-12),
}


def _normalized(target: Tensor, statistics: str | None) -> Tensor:
    """Return patches (N, L, P), each normalized with its mean and variance.

    ``statistics`` is the name of the variant of the variance (a key of ``STATISTICS``, or epsilon
    added to the standard deviation); None for the variance of the reference model.
    """
    if statistics == "epsilon added to the standard deviation":
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        return (target - mean) / (variance.sqrt() + 1e-6)
    correction, eps = STATISTICS[statistics]
    variance, mean = torch.var_mean(target, dim=-1, correction=correction, keepdim=True)
    return (target - mean) / (variance + eps).sqrt()
