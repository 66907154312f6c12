"""Models that are not MAE are refused by name, with the key that gave them away."""

import pytest

from mae_convert.errors import LayoutError
from mae_convert.recognition import recognise

WIDTH = 768


def vit(prefix=""):
    """The names that every ViT of timm's kind has."""
    shapes = {f"{prefix}cls_token": (1, 1, WIDTH), f"{prefix}pos_embed": (1, 197, WIDTH)}
    for index in range(2):
        block = f"{prefix}blocks.{index}"
        for part in ("norm1", "norm2"):
            shapes |= {f"{block}.{part}.weight": (WIDTH,), f"{block}.{part}.bias": (WIDTH,)}
        shapes |= {
            f"{block}.attn.qkv.weight": (3 * WIDTH, WIDTH),
            f"{block}.attn.qkv.bias": (3 * WIDTH,),
            f"{block}.attn.proj.weight": (WIDTH, WIDTH),
            f"{block}.attn.proj.bias": (WIDTH,),
            f"{block}.mlp.fc1.weight": (4 * WIDTH, WIDTH),
            f"{block}.mlp.fc1.bias": (4 * WIDTH,),
            f"{block}.mlp.fc2.weight": (WIDTH, 4 * WIDTH),
            f"{block}.mlp.fc2.bias": (WIDTH,),
        }
    return shapes | {f"{prefix}norm.weight": (WIDTH,), f"{prefix}norm.bias": (WIDTH,)}


PATCH = {"patch_embed.proj.weight": (WIDTH, 3, 16, 16), "patch_embed.proj.bias": (WIDTH,)}
VIDEO = {"patch_embed.proj.weight": (WIDTH, 3, 2, 16, 16), "patch_embed.proj.bias": (WIDTH,)}
FAMILIES = {
    "VideoMAE": {
        "encoder.patch_embed.proj.weight": (WIDTH, 3, 2, 16, 16),
        "encoder.blocks.0.attn.q_bias": (WIDTH,),
        "encoder.blocks.0.attn.v_bias": (WIDTH,),
        "encoder.blocks.0.attn.qkv.weight": (3 * WIDTH, WIDTH),
        "encoder_to_decoder.weight": (384, WIDTH),
        "mask_token": (1, 1, 384),
    },
    "MAE-ST": {**vit(), **VIDEO, "pos_embed_spatial": (1, 196, WIDTH)},
    "MultiMAE": {"global_tokens": (1, 1, WIDTH), "input_adapters.rgb.pos_emb": (1, WIDTH, 14, 14)},
    "SatMAE": {**vit(), "patch_embed.0.proj.weight": (WIDTH, 4, 8, 8), "channel_embed": (1, 3, 9)},
    "Hiera": {"multi_scale_fusion_heads.0.weight": (WIDTH, 96, 4, 4), "mask_token": (1, 1, 512)},
    "ConvMAE": {"patch_embed1.proj.weight": (256, 3, 4, 4), "stage1_output_decode.weight": (1,)},
    "DINOv2": {**vit(), **PATCH, "mask_token": (1, WIDTH), "blocks.0.ls1.gamma": (WIDTH,)},
    "Swin": {"layers.0.blocks.0.attn.relative_position_bias_table": (169, 4)},
    "BEiT": {**vit(), **PATCH, "blocks.0.attn.relative_position_bias_table": (732, 12),
             "blocks.0.attn.q_bias": (WIDTH,)},
    "Prithvi": {**vit(), **VIDEO},
    "language model": {f"transformer.h.{i}.attn.c_attn.weight": (WIDTH, 3) for i in range(3)},
    "optimizer": {f"state.{i}.exp_avg": (WIDTH,) for i in range(9)},
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_is_refused_by_name_and_key(name):
    with pytest.raises(LayoutError) as caught:
        recognise(FAMILIES[name])
    message = str(caught.value)
    assert name in message
    assert "use instead" in message
    assert any(key in message for key in FAMILIES[name])


def test_a_mae_is_none_of_them():
    reading, _ = recognise({**vit(), **PATCH})
    assert reading.task == "encoder"
