"""Other arithmetic before the blocks and after them: embedding, restoring, pooling.

In shape comments N is images, C channels, L patches, D the width.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mae_convert.diagnose.alternatives import Arithmetic
from mae_convert.diagnose.layers import linear, norm
from reference_models.pytorch.patches import patchify, take_tokens

Change = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    """Return what the reference takes."""
    return x


def twice(x: Tensor) -> Tensor:
    """Return what is added two times."""
    return 2 * x


PICTURES: Mapping[str | None, Change] = {
    None: same,
    "channels reversed": lambda x: x.flip(1),
    "height and width exchanged": lambda x: x.transpose(2, 3),
    "upside down": lambda x: x.flip(2),
    "mirrored": lambda x: x.flip(3),
    "multiplied by 255": lambda x: x * 255,
    "divided by 255": lambda x: x / 255,
}
# Positions of the patches and of the class token, and the token, of (1, 1 + L, D) and (1, 1, D).
PATCH_POSITIONS: Mapping[str | None, Change] = {
    "position of the next patch": lambda p: p[:, 1:].roll(-1, dims=1),
    "positions counted from the class token": lambda p: p[:, :-1],
    "no positions of patches": lambda p: torch.zeros_like(p[:, 1:]),
    "no positions": lambda p: torch.zeros_like(p[:, 1:]),
    "positions added twice": lambda p: 2 * p[:, 1:],
}
FIRST_POSITION: Mapping[str | None, Change] = {
    "no position of the class token": torch.zeros_like,
    "no positions": torch.zeros_like,
    "positions added twice": twice,
}
CLASS_TOKEN: Mapping[str | None, Change] = {"class token added twice": twice}
DECODER_POSITIONS: Mapping[str | None, Change] = {
    "no position of the class token": lambda p: torch.cat(
        [torch.zeros_like(p[:, :1]), p[:, 1:]], 1
    ),
    "no positions": torch.zeros_like,
    "positions one off": lambda p: p.roll(1, dims=1),
}


def pictures(pixel_values: Tensor, how: Arithmetic) -> Tensor:
    """Return the pictures (N, C, H, W) that the model is given."""
    return PICTURES[how.at("pictures", "pictures")](pixel_values)


def embed(model: Any, pixel_values: Tensor, ids_keep: Tensor | None, how: Arithmetic) -> Tensor:
    """Return class token and patch tokens with their positions, (N, 1 + kept, D)."""
    if not how.touches("encoder.embedding"):
        embedded: Tensor = model.embed(pixel_values, ids_keep)
        return embedded
    kind = how.at("embedding", "encoder.embedding")
    patches = patchify(pixel_values, model.config)
    if kind == "patches column by column":
        patches = patches.unflatten(1, model.config.grid_hw).transpose(1, 2).flatten(1, 2)
    positions = PATCH_POSITIONS.get(kind, lambda p: p[:, 1:])(model.pos_embed)
    if ids_keep is not None:
        patches = take_tokens(patches, ids_keep)
        ids = torch.arange(ids_keep.shape[1])[None] if kind == "positions not picked" else ids_keep
        positions = take_tokens(positions.expand(len(patches), -1, -1), ids.expand_as(ids_keep))
    tokens = linear(model.patch_embed, patches, "encoder.embedding", how) + positions
    first = FIRST_POSITION.get(kind, same)(model.pos_embed[:, :1])
    token = CLASS_TOKEN.get(kind, same)(model.cls_token) + first
    tokens = torch.cat([token.expand(len(tokens), -1, -1), tokens], dim=1)
    return tokens * tokens.shape[-1] ** 0.5 if kind == "times the root of the width" else tokens


def decode_tokens(model: Any, latent: Tensor, restore: Tensor, how: Arithmetic) -> Tensor:
    """Return the decoder's input (N, 1 + L, D) for the encoder's output (N, 1 + kept, D)."""
    visible = linear(model.decoder_embed, latent, "decoder.embedding", how)
    kind = how.at("embedding", "decoder.embedding")
    positions = DECODER_POSITIONS.get(kind, same)(model.decoder_pos_embed)
    mask_token = model.mask_token.to(visible.dtype)
    if kind == "mask token with the class token's position":
        mask_token = mask_token + positions[:, :1]
    masks = mask_token.expand(len(visible), restore.shape[1] + 1 - visible.shape[1], -1)
    parts = [visible[:, 1:], masks]
    shuffled = torch.cat(parts[::-1] if kind == "mask tokens first" else parts, dim=1)  # (N, L, D)
    if kind == "positions before restoring":
        tokens = take_tokens(shuffled + positions[:, 1:], restore)
        return torch.cat([visible[:, :1] + positions[:, :1], tokens], dim=1)
    if kind == "restored by the shuffle":
        restore = restore.argsort(dim=1)
    restored = shuffled if kind == "not restored" else take_tokens(shuffled, restore)
    return torch.cat([visible[:, :1], restored], dim=1) + positions


POOLS: Mapping[str | None, Change] = {
    None: lambda x: x[:, 1:].mean(dim=1, keepdim=True),
    "mean with the class token": lambda x: x.mean(dim=1, keepdim=True),
    "class token": lambda x: x[:, :1],
    "largest": lambda x: x[:, 1:].amax(dim=1, keepdim=True),
}
READ_OUTS: Mapping[str | None, Change] = {
    None: lambda x: x[:, 0],
    "mean of patches": lambda x: x[:, 1:].mean(dim=1),
    "mean with the class token": lambda x: x.mean(dim=1),
    "first patch": lambda x: x[:, 1],
}


def pooled(model: Any, tokens: Tensor, how: Arithmetic) -> Tensor:
    """Return the normalised mean of patches, (N, 1, D), of tokens (N, 1 + L, D)."""
    kind = how.at("pool", "head")
    if kind == "normalised before":
        return POOLS[None](norm(model.fc_norm, tokens, "head.norm", how))
    return norm(model.fc_norm, POOLS[kind](tokens), "head.norm", how)


def read_out(normed: Tensor, how: Arithmetic) -> Tensor:
    """Return what the head is given, (N, D), of normalised tokens (N, T, D)."""
    kind = how.at("pool", "head")
    return READ_OUTS[kind if normed.shape[1] > 1 else None](normed)


def without_class_token(tokens: Tensor, how: Arithmetic) -> Tensor:
    """Return the tokens of patches (N, L, D)."""
    kind = how.at("patches", "logits")
    return tokens[:, :-1] if kind == "last token left out" else tokens[:, 1:]
