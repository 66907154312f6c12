"""The published facebookresearch/mae checkpoints, as far as names, sizes and hashes tell them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_convert.checkpoint import Checkpoint


@dataclass(frozen=True)
class Official:
    """One published file; ``md5`` holds the six digits that its publisher names, where any."""

    name: str
    task: str
    hidden_size: int
    num_hidden_layers: int
    patch_size: int
    md5: str | None


_SIZES = (("base", 768, 12, 16), ("large", 1024, 24, 16), ("huge", 1280, 32, 14))
_MD5 = {
    "mae_pretrain_vit_base.pth": "8cad7c",
    "mae_pretrain_vit_large.pth": "b8b06e",
    "mae_pretrain_vit_huge.pth": "9bdbb0",
    "mae_finetuned_vit_base.pth": "1b25e9",
    "mae_finetuned_vit_large.pth": "51f550",
    "mae_finetuned_vit_huge.pth": "2541f2",
}
_TASKS = {"visualize": "pretrain", "pretrain": "encoder", "finetuned": "classify"}

OFFICIAL = tuple(
    Official(name, task, width, depth, patch, _MD5.get(name))
    for kind, task in _TASKS.items()
    for size, width, depth, patch in _SIZES
    for name in [f"mae_{kind}_vit_{size}.pth"]
)


def probable(checkpoint: Checkpoint) -> Official | None:
    """Return the published file whose tensors have the same names and shapes, if there is one."""
    if checkpoint.family and checkpoint.family.certain:
        return None  # of another family, whatever the shapes
    model = checkpoint.configuration.model
    pooled = checkpoint.task != "classify" or (model.global_pool, model.num_labels) == ("avg", 1000)
    decoder = (model.decoder_hidden_size, model.decoder_num_hidden_layers) == (512, 8)
    if checkpoint.layout.name != "facebook" or not pooled or model.image_size != 224:
        return None
    if checkpoint.task == "pretrain" and not decoder:
        return None
    sizes = (model.hidden_size, model.num_hidden_layers, model.patch_size)
    for official in OFFICIAL:
        expected = (official.hidden_size, official.num_hidden_layers, official.patch_size)
        if official.task == checkpoint.task and expected == sizes:
            return official
    return None


def identify(checkpoint: Checkpoint, *, with_hash: bool) -> dict[str, Any] | None:
    """Return which published file a checkpoint probably is, and with its hash whether it can be.

    ``confirmed`` is None where the publisher names no hash. Six equal digits suggest, they do not
    prove.
    """
    official = probable(checkpoint)
    if official is None:
        return None
    found: dict[str, Any] = {"probable": official.name}
    if with_hash and len(checkpoint.container.files) == 1:
        found["md5"] = file_md5(checkpoint.container.weights_file)
        found["confirmed"] = official.md5 and found["md5"].startswith(official.md5)
    return found


def file_md5(path: Path) -> str:
    """Return the MD5 of a file's bytes, by which the publisher names its files."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
