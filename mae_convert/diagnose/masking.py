"""Other ways to choose patches by noise, and to find the way back.

In shape comments N is images, L patches.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mae_convert.diagnose.alternatives import Arithmetic

Ids = tuple[Tensor, Tensor, Tensor]  # ids_keep (N, kept), mask (N, L), ids_restore (N, L)


def mask_ids(noise: Tensor, kept: int, how: Arithmetic) -> Ids:
    """Return which patches are kept, the mask and the way back, for noise (N, L)."""
    return MASKS[how.at("mask", "mask")](noise.argsort(dim=1, stable=True), kept)


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


def _one_fewer(shuffle: Tensor, kept: int) -> Ids:
    return _as_reference(shuffle, max(kept - 1, 0))


def _kept_in_order(shuffle: Tensor, kept: int) -> Ids:
    inner, outer = (part.sort(dim=1).values for part in (shuffle[:, :kept], shuffle[:, kept:]))
    return _as_reference(torch.cat([inner, outer], dim=1), kept)


def _one_off(shuffle: Tensor, kept: int) -> Ids:
    keep, mask, restore = _as_reference(shuffle, kept)
    return keep, mask, (restore + 1) % restore.shape[1]


MASKS: Mapping[str | None, Callable[[Tensor, int], Ids]] = {
    None: _as_reference,
    "highest noise kept": _last_kept,
    "inverted": _inverted,
    "in the shuffled order": _in_shuffled_order,
    "gathered by the shuffle": _gathered_by_shuffle,
    "sorted once": _sorted_once,
    "restored by the shuffle": _restored_by_shuffle,
    "one patch more": _one_more,
    "one patch fewer": _one_fewer,
    "kept patches in order": _kept_in_order,
    "ids one off": _one_off,
}
