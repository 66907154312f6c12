"""Models that are not MAE are refused by name, with the key that identifies them."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.checkpoint.recognition import recognise
from mae_convert.errors import LayoutError
from mae_convert.families.mae.relatives import explain

WIDTH = 768


def vit(prefix=""):
    """Return the names that every ViT in timm's layout has."""
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
FAMILIES = {
    "MultiMAE": {"global_tokens": (1, 1, WIDTH), "input_adapters.rgb.pos_emb": (1, WIDTH, 14, 14)},
    "SatMAE": {**vit(), "patch_embed.0.proj.weight": (WIDTH, 4, 8, 8), "channel_embed": (1, 3, 9)},
    "Hiera": {"multi_scale_fusion_heads.0.weight": (WIDTH, 96, 4, 4), "mask_token": (1, 1, 512)},
    "PVT": {"patch_embed1.proj.weight": (64, 3, 4, 4), "block1.0.attn.q.weight": (64, 64)},
    "ConvMAE": {"patch_embed1.proj.weight": (256, 3, 4, 4), "stage1_output_decode.weight": (1,)},
    "DINOv2": {**vit(), **PATCH, "mask_token": (1, WIDTH), "blocks.0.ls1.gamma": (WIDTH,)},
    "Swin": {"layers.0.blocks.0.attn.relative_position_bias_table": (169, 4)},
    "BEiT": {**vit(), **PATCH, "blocks.0.attn.relative_position_bias_table": (732, 12),
             "blocks.0.attn.q_bias": (WIDTH,)},
    "MAE-pytorch": {**vit("encoder."), "encoder.patch_embed.proj.weight": (WIDTH, 3, 16, 16),
                    "encoder.blocks.0.attn.q_bias": (WIDTH,),
                    "encoder_to_decoder.weight": (384, WIDTH), "mask_token": (1, 1, 384)},
    "SAM": {"image_encoder.pos_embed": (1, 64, 64, WIDTH), "mask_decoder.iou_token.weight": (1, 9),
            "image_encoder.blocks.0.attn.rel_pos_h": (27, 64)},
    "ViTDet": {"backbone.net.blocks.0.attn.rel_pos_h": (27, 64)},
    "SimMIM": {**vit("encoder."), "encoder.mask_token": (1, 1, WIDTH),
               "encoder.rel_pos_bias.relative_position_bias_table": (732, 12),
               "decoder.0.weight": (768, WIDTH, 1, 1)},
    "DINOv3": {**vit(), **PATCH, "storage_tokens": (1, 4, WIDTH), "blocks.0.ls1.gamma": (WIDTH,)},
    "DeiT": {**vit(), **PATCH, "dist_token": (1, 1, WIDTH), "head_dist.weight": (9, WIDTH)},
    "YOLOS": {"vit.embeddings.detection_tokens": (1, 100, WIDTH)},
    "vit-pytorch": {"pos_embedding": (1, 197, WIDTH), "cls_token": (1, 1, WIDTH),
                    "to_patch_embedding.2.weight": (WIDTH, WIDTH),
                    "transformer.layers.0.0.to_qkv.weight": (3 * WIDTH, WIDTH)},
    "MONAI": {"blocks.0.mlp.linear1.weight": (4 * WIDTH, WIDTH),
              "patch_embedding.position_embeddings": (1, 196, WIDTH)},
    "torchmultimodal": {"patch_embed.conv_projection.weight": (WIDTH, 3, 16, 16),
                        "patch_embed.cls_token": (1, 1, WIDTH)},
    "AdaptFormer": {**vit(), **PATCH, "blocks.0.adaptmlp.down_proj.weight": (64, WIDTH)},
    "LoRA": {"base_model.model.vit.encoder.layer.0.output.dense.lora_A.weight": (8, 9)},
    "OpenAI's CLIP": {"visual.transformer.resblocks.0.ln_1.weight": (WIDTH,)},
    "SigLIP": {"vision_model.head.probe": (1, 1, WIDTH), "logit_bias": (1,)},
    "CLIP": {"vision_model.embeddings.class_embedding": (WIDTH,)},
    "EVA": {"blocks.0.mlp.w12.weight": (9, WIDTH)},
    "ResNet": {"layer1.0.conv1.weight": (64, 64, 3, 3)},
    "ConvNeXt": {"stages.0.blocks.0.conv_dw.weight": (96, 1, 7, 7)},
    "language model": {f"transformer.h.{i}.attn.c_attn.weight": (WIDTH, 3) for i in range(3)},
    "optimizer": {f"state.{i}.exp_avg": (WIDTH,) for i in range(9)},
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_is_refused_by_name_and_key(name):
    with pytest.raises(LayoutError) as caught:
        recognise(FAMILIES[name])
    message = str(caught.value)
    assert name.split(" (")[0] in message
    assert "use instead" in message
    assert any(key in message for key in FAMILIES[name])


CONFIGS = {
    "DINOv2": {"model_type": "dinov2", "architectures": ["Dinov2Model"]},
    "SigLIP": {"model_type": "siglip_vision_model", "architectures": ["SiglipVisionModel"]},
    "a model of type new_vit": {"model_type": "new_vit"},
    "convnext_base": {"architecture": "convnext_base"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_model_is_identified_by_its_configuration(name):
    message = explain({"some.weight": (3, 3)}, CONFIGS[name])
    assert f"this is {name}" in message or f"timm's {name}" in message
    for word in ("model_type", "architectures", "architecture"):
        value = CONFIGS[name].get(word, "")
        assert (value if isinstance(value, str) else value[0]) in message
    assert "use instead" in message


@pytest.mark.parametrize("kind", ["vit", "vit_mae", "vit_msn", None])
def test_our_own_configurations_name_no_other_model(kind):
    assert explain({"some.weight": (3, 3)}, {"model_type": kind}) is None


def test_base_model_of_an_adapter_is_named(tmp_path):
    adapter = {"peft_type": "IA3", "base_model_name_or_path": "facebook/vit-mae-base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    save_file({"x.ia3_l": np.ones(3, np.float32)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(LayoutError, match=r"adapter of facebook/vit-mae-base .*IA3.*merge"):
        open_checkpoint(tmp_path)


def test_layer_scale_is_not_dinov2_and_a_flat_kernel_is_not_videomae():
    scaled = {**vit(), **PATCH, "blocks.0.ls1.gamma": (WIDTH,), "mask_token": (1, 1, 512)}
    assert explain(scaled) is None
    assert explain({**vit(), **PATCH, "blocks.0.attn.q_bias": (WIDTH,)}) is None


def test_mae_is_not_recognised_as_another_family():
    reading, _ = recognise({**vit(), **PATCH})
    assert reading.task == "encoder"
