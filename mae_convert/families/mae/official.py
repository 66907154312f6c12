"""The official facebookresearch/mae checkpoints with their purposes, and the text for model cards.

The module `mae_convert.checkpoint.official_match` identifies official checkpoints.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mae_convert.families.mae.schema import schema
from mae_convert.families.official_models import Card, OfficialFile
from reference_models.configuration import ViTMAEConfig

BASE_URL = "https://dl.fbaipublicfiles.com/mae"
# From the file LICENSE of facebookresearch/mae; copies of the weights that specify Apache-2.0 are
# wrong.
LICENSE = "cc-by-nc-4.0"
LICENSE_URL = "https://github.com/facebookresearch/mae/blob/main/LICENSE"
DATASET = "imagenet-1k"


@dataclass(frozen=True)
class Official(OfficialFile):
    """An official file, and the model configuration that a function of the original code sets."""

    base_url = BASE_URL
    license = LICENSE
    data = DATASET

    @property
    def model_name(self) -> str:
        """The size of the model in the paper, for example ViT-B/16."""
        return f"ViT-{self.name.partition('_vit_')[2][0].upper()}/{self.model.patch_size}"

    @property
    def parameters(self) -> int:
        """The number of values in the file."""
        return sum(math.prod(shape) for shape in schema(self.model, self.task).values())


# Width, depth, heads and patch size.
_SIZES = {"base": (768, 12, 12, 16), "large": (1024, 24, 16, 16), "huge": (1280, 32, 16, 14)}
_MD5 = {
    "mae_pretrain_vit_base": "8cad7c",
    "mae_pretrain_vit_large": "b8b06e",
    "mae_pretrain_vit_huge": "9bdbb0",
    "mae_finetuned_vit_base": "1b25e9",
    "mae_finetuned_vit_large": "51f550",
    "mae_finetuned_vit_huge": "2541f2",
}
# Top-1 accuracy in percent that the publisher reports for the fine-tuned models.
_ACCURACY = {"base": 83.664, "large": 85.952, "huge": 86.928}
_HUB = {
    "mae_visualize_vit_base": "facebook/vit-mae-base",
    "mae_visualize_vit_large": "facebook/vit-mae-large",
    "mae_visualize_vit_huge": "facebook/vit-mae-huge",
    "mae_pretrain_vit_base": "timm/vit_base_patch16_224.mae",
    "mae_pretrain_vit_large": "timm/vit_large_patch16_224.mae",
    "mae_pretrain_vit_huge": "timm/vit_huge_patch14_224.mae",
}
_KINDS = (
    # name, folder, task, normalized, purpose
    ("mae_visualize_vit_{}", "visualize", "pretrain", False,
     ("for viewing reconstructions: encoder and decoder, trained on pixels that are not normalized "
     "per patch")),
    ("mae_pretrain_vit_{}", "pretrain", "encoder", None,
     "for features and fine-tuning: the encoders of the models in the paper"),
    ("mae_pretrain_vit_{}_full", "pretrain", "pretrain", True,
     "for further pre-training: encoder and decoder, reported to be trained on normalized pixels"),
    ("mae_finetuned_vit_{}", "finetune", "classify", None,
     "for classifying images of ImageNet-1k: top-1 accuracy of {accuracy} % as published"),
)  # fmt: skip


def _model(size: str, task: str, *, normalized: bool) -> ViTMAEConfig:
    width, depth, heads, patch = _SIZES[size]
    return ViTMAEConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=patch,
        norm_pix_loss=normalized,
        global_pool="avg" if task == "classify" else "token",
    )


def _fields_not_in_tensors(
    model: ViTMAEConfig, task: str, normalized: bool | None
) -> dict[str, Any]:
    """Return the configuration fields of an official file that its tensors do not determine.

    `normalized` is whether the model was trained to predict normalized patches; None for a file
    without a decoder.
    """
    values: dict[str, Any] = {"num_attention_heads": model.num_attention_heads}
    if task == "pretrain":
        values["decoder_num_attention_heads"] = model.decoder_num_attention_heads
    if normalized is not None:
        values["norm_pix_loss"] = normalized
    return {**values, "layer_norm_eps": model.layer_norm_eps, "image_size": model.image_size}


def _catalog() -> Iterator[Official]:
    for pattern, folder, task, normalized, purpose in _KINDS:
        for size in _SIZES:
            name = pattern.format(size)
            model = _model(size, task, normalized=bool(normalized))
            yield Official(
                name,
                folder,
                task,
                model,
                normalized,
                purpose.format(accuracy=_ACCURACY[size]),
                _MD5.get(name),
                _HUB.get(name),
                _fields_not_in_tensors(model, task, normalized),
            )


OFFICIAL = tuple(_catalog())


def candidates(model: ViTMAEConfig, task: str) -> list[Official]:
    """Return the official files whose tensors have the names and shapes of a model's tensors."""
    expected = schema(model, task)
    return [o for o in OFFICIAL if o.task == task and schema(o.model, task) == expected]


WHICH = (
    (
        "for viewing reconstructions",
        (
            "mae_visualize_vit_*: encoder and decoder; predict pixels that are not normalized per "
            "patch"
        ),
    ),
    ("features, fine-tuning", "mae_pretrain_vit_*: encoders without a decoder"),
    (
        "for further pre-training",
        "mae_pretrain_vit_*_full: encoder and decoder; predict pixels normalized per patch",
    ),
    (
        "for ImageNet-1k classification",
        "mae_finetuned_vit_*: classifiers with global average pooling",
    ),
)
ADVICE = (
    WHICH,
    "The encoders of *_visualize_* and *_pretrain_* are not the same: an encoder of *_pretrain_*"
    " with a decoder of *_visualize_* gives wrong reconstructions.\n"
    "Users report, but the publisher does not"
    " document, that *_full was trained on normalized pixels.\nfacebook/vit-mae-* on the Hub have"
    f" the visualize weights, and timm's *.mae have the pretrain weights.\n\nLicence of the files"
    f" of the image MAE: {LICENSE}, {LICENSE_URL}",
)


CARD = Card(
    introduction=("Masked Autoencoder (MAE, [He et al. 2021](https://arxiv.org/abs/2111.06377))"),
    citation="""@article{he2021masked,
  title   = {Masked Autoencoders Are Scalable Vision Learners},
  author  = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\\'a}r, Piotr
             and Girshick, Ross},
  journal = {arXiv:2111.06377},
  year    = {2021}
}""",
    tags=("vit_mae",),
    pipeline_tags={
        "pretrain": "image-feature-extraction",
        "encoder": "image-feature-extraction",
        "classify": "image-classification",
    },
    addresses=(f"{BASE_URL}/",),
)
