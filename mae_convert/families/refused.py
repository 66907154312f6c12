"""Models that are near to MAE or often taken for it, known by a tensor that only they have.

They are refused by name, with the key that gave them away and what to use instead: a message that a
hundred names do not fit helps nobody.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mae_convert.canonical import Shape


@dataclass(frozen=True)
class Refused:
    """A family of models that this project does not convert.

    Attributes:
        name: as people call it.
        key: pattern of a tensor's name that gives it away.
        instead: what to use.
        rank: number of dimensions that the tensor must have, where the name alone is no proof.
    """

    name: str
    key: str
    instead: str
    rank: int | None = None


# Where two patterns meet, the more special one stands first.
REFUSED = (
    Refused(
        "Swin Transformer",
        r"(.*\.)?layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table",
        "transformers has SwinModel, timm has swin_*",
    ),
    Refused(
        "BEiT",
        r"(.*\.)?(rel_pos_bias|attn)\.relative_position_bias_table|(.*\.)?blocks\.0\.gamma_1",
        "transformers has BeitModel, timm has beit_*",
    ),
    Refused(
        "VideoMAE",
        r"(encoder\.)?blocks\.0\.attn\.q_bias|videomae\..*",
        "transformers has VideoMAEModel and VideoMAEForPreTraining",
    ),
    Refused(
        "MAE-ST (video)",
        r"(decoder_)?pos_embed_(spatial|temporal|class)",
        "the authors' code, facebookresearch/mae_st",
    ),
    Refused(
        "MultiMAE",
        r"(input|output)_adapters\..*|global_tokens",
        "the authors publish a converter to ViT names, which this project reads",
    ),
    Refused(
        "SatMAE with grouped channels",
        r"patch_embed\.0\.proj\.weight|(decoder_)?channel_embed",
        "the authors' code, sustainlab-group/SatMAE",
    ),
    Refused(
        "Hiera",
        r"multi_scale_fusion_heads\..*|hiera\..*|encoder_norm\.weight",
        "transformers has HieraForPreTraining, timm has hiera_*",
    ),
    Refused(
        "ConvMAE",
        r"patch_embed1\.proj\.weight|stage1_output_decode\.weight",
        "the authors' code, Alpha-VL/ConvMAE",
    ),
    Refused(
        "DINOv2",
        r"(.*\.)?blocks\.(\d+\.)?\d+\.ls1\.gamma|register_tokens|.*layer_scale1\.lambda1",
        "transformers has Dinov2Model, timm has vit_*_dinov2",
    ),
    Refused(
        "Prithvi or another model on several frames",
        r"(.*\.)?patch_embed\.proj\.weight",
        "its own code: its patches have a third axis, time",
        rank=5,
    ),
    Refused(
        "a language model",
        r"(transformer\.)?h\.0\.(attn|ln_1)\..*|(model\.)?layers\.0\.self_attn\.[qkv]_proj\..*"
        r"|(bert\.)?embeddings\.word_embeddings\.weight|(model\.)?embed_tokens\.weight",
        "transformers' AutoModel",
    ),
    Refused(
        "an optimizer's state",
        r"(optimizer\.)?(state\.)?\d+\.(exp_avg|exp_avg_sq|momentum_buffer)|param_groups.*",
        "the file with the model's weights",
    ),
)


def recognise_family(shapes: Mapping[str, Shape]) -> tuple[Refused, str] | None:
    """Return the family that a tensor's name gives away, and that name, or None."""
    for family in REFUSED:
        pattern = re.compile(family.key)
        for name, shape in shapes.items():
            if pattern.fullmatch(name) and family.rank in (None, len(shape)):
                return family, name
    return None


def explain(shapes: Mapping[str, Shape]) -> str | None:
    """Return a sentence that names the family and what to use instead, or None."""
    found = recognise_family(shapes)
    if found is None:
        return None
    family, key = found
    return (
        f"this is {family.name} (it has {key}), which is not a MAE that this project converts;"
        f" use instead: {family.instead}"
    )
