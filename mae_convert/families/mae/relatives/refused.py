"""Models that are similar to MAE or mistaken for it, and the libraries that can read them.

The error message names the model and the tensor that identifies it, which is more helpful than a
list of unexpected names. If the name of one tensor does not identify a model, the names of several
tensors are required, or a tensor must have a certain number of dimensions. Some models are
identified by ``config.json`` or ``adapter_config.json``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mae_convert.families.transformers_fields import MERGE
from mae_convert.layouts.transforms import Shape

Key = str | tuple[str, int]


@dataclass(frozen=True)
class Refused:
    """A model that this project does not convert."""

    name: str
    """The name of the model in messages."""

    keys: tuple[Key, ...]
    """Patterns of tensor names. A checkpoint is recognised as this model if each pattern matches a
    tensor. If the name alone is not sufficient, the pattern is in a pair with the number of
    dimensions that the tensor must have."""

    instead: str
    """A program to use instead."""


def _refused(name: str, *keys: Key, instead: str) -> Refused:
    return Refused(name, keys, instead)


# If several models match, the first is reported, so the more specific model must come first.
REFUSED = (
    _refused(
        "a LoRA adapter, or a model with a LoRA adapter that is not merged",
        r".*[._](lora_(A|B|a|b|down|up|E|embedding_[AB]|magnitude_vector)|linear_[ab]_[qkv])(\..*)?"
        r"|.*\.w_[ab]_linear_[qv]\.weight",
        instead=(
            "the complete model, into which the adapter is merged (peft: PeftModel.from_pretrained("
            "base, adapter).merge_and_unload().save_pretrained(DIR))"
        ),
    ),
    _refused(
        "AdaptFormer, a ViT with adapters in its blocks",
        r"(.*\.)?adaptmlp\..*",
        instead=(
            "the authors' code (ShoufaChen/AdaptFormer), or the pre-trained MAE from which the "
            "model was fine-tuned (the file that was passed to the training program as --finetune)"
        ),
    ),
    _refused(
        "SAM (Segment Anything)",
        r"(.*\.)?(mask_decoder|prompt_encoder|shared_image_embedding)\..*",
        instead="segment-anything, or transformers' SamModel",
    ),
    _refused(
        "a ViT with decomposed relative positions, such as ViTDet or the image encoder of SAM",
        r"(.*\.)?rel_pos_[hw]",
        instead="segment-anything, transformers' SamModel or VitDetModel",
    ),
    _refused(
        "SimMIM",
        r"(.*\.)?relative_position_bias_table",
        r"(.*\.)?mask_token",
        r"(.*\.)?decoder\.0\.weight",
        instead="the authors' code, microsoft/SimMIM",
    ),
    _refused(
        "Swin Transformer",
        r"(.*\.)?layers\.\d+\.blocks\.\d+\.(attn|attention\.self)\.relative_position_bias_table",
        instead="transformers' SwinModel, or timm's swin_*",
    ),
    _refused(
        "BEiT or data2vec",
        r"(.*\.)?relative_position_bias_table",
        r"(.*\.)?(attn\.q_bias|blocks\.0\.gamma_1|layer\.0\.lambda_1)",
        instead="transformers' BeitModel or Data2VecVisionModel, or timm's beit_*",
    ),
    _refused(
        "BEiT",
        r"(.*\.)?(blocks\.0\.gamma_1|layer\.0\.lambda_1)",
        r"(.*\.)?(blocks\.0\.attn\.q_bias|layer\.0\.lambda_2)",
        instead="transformers' BeitModel, or timm's beit_*",
    ),
    _refused(
        "MAE-pytorch (pengzhiliang), an image MAE whose encoder has no class token and whose"
        " positions are not stored",
        r"(.*\.)?encoder_to_decoder\.weight",
        (r"(.*\.)?encoder\.patch_embed\.proj\.weight", 4),
        instead="the authors' code, pengzhiliang/MAE-pytorch",
    ),
    _refused(
        "MultiMAE",
        r"(.*\.)?((input|output)_adapters\..*|global_tokens)",
        instead="the authors' converter, which writes a file with the tensor names of a ViT",
    ),
    _refused(
        "SatMAE with grouped channels",
        r"(.*\.)?(patch_embed\.0\.proj\.weight|(decoder_)?channel_embed)",
        instead="the authors' code, sustainlab-group/SatMAE",
    ),
    _refused(
        "Hiera",
        r"multi_scale_fusion_heads\..*|hiera\..*|encoder_norm\.weight",
        instead="transformers' HieraForPreTraining, or timm's hiera_*",
    ),
    _refused(
        "ConvMAE",
        r"(.*\.)?(patch_embed1\.proj\.weight|stage1_output_decode\.weight)",
        r"(.*\.)?(blocks1\.\d+\..*|stage1_output_decode\.weight)",
        instead="the authors' code, Alpha-VL/ConvMAE",
    ),
    _refused(
        "PVT or SegFormer's encoder, whose stages differ in width (UM-MAE also pre-trains PVT)",
        r"(.*\.)?patch_embed1\.proj\.weight",
        r"(.*\.)?block1\.\d+\..*",
        instead="timm's pvt_v2_*, or transformers' PvtModel or SegformerModel",
    ),
    _refused(
        "DINOv3",
        r"(.*\.)?(layer\.0\.layer_scale1\.lambda1|blocks\.0\.ls1\.gamma)",
        r"(.*\.)?(storage_tokens|rope_embed.*|rope_embeddings.*)",
        instead="transformers' DINOv3ViTModel, or timm's vit_*_dinov3",
    ),
    _refused(
        "DINOv2",
        r"(.*\.)?blocks\.(\d+\.)?0\.ls1\.gamma",
        (r"(.*\.)?mask_token", 2),
        instead="transformers' Dinov2Model, or timm's vit_*_dinov2",
    ),
    _refused(
        "DINOv2",
        r"(.*\.)?layer\.0\.layer_scale1\.lambda1",
        instead="transformers' Dinov2Model or Dinov2WithRegistersModel",
    ),
    _refused(
        "YOLOS",
        r"(.*\.)?(detection_tokens|det_token)",
        instead="transformers' YolosModel",
    ),
    _refused(
        "DeiT with a distillation token, or the Audio Spectrogram Transformer",
        r"(.*\.)?(dist_token|distillation_token)",
        instead="transformers' DeiTModel or ASTModel, or timm's deit_*_distilled_*",
    ),
    _refused(
        "vit-pytorch (lucidrains)",
        r"(.*\.)?(to_patch_embedding(\.\d+)?\.(weight|bias)|layers\.\d+\.\d+\.(fn\.)?to_qkv\.weight)",
        instead="the package vit-pytorch; this project cannot read its tensor names",
    ),
    _refused(
        "MONAI's ViT, ViTAutoEnc or MaskedAutoEncoderViT",
        r"(.*\.)?blocks\.\d+\.mlp\.linear1\.weight",
        instead="the package monai (monai.networks.nets.ViT, MaskedAutoEncoderViT)",
    ),
    _refused(
        "torchmultimodal's MaskedAutoEncoder or VisionTransformer",
        r"(.*\.)?conv_projection\.(weight|bias)",
        instead="the package torchmultimodal (models.masked_auto_encoder)",
    ),
    _refused(
        "OpenAI's CLIP or OpenCLIP",
        r"(.*\.)?transformer\.resblocks\.0\..*",
        instead="open_clip, or timm's vit_*_clip_*",
    ),
    _refused(
        "CLIP",
        r"(.*\.)?embeddings\.class_embedding",
        instead="transformers' CLIPModel or CLIPVisionModel",
    ),
    _refused(
        "SigLIP",
        r"(.*\.)?(vision_model\.head\.probe|logit_bias)",
        r"(.*\.)?vision_model\..*",
        instead="transformers' SiglipModel or SiglipVisionModel",
    ),
    _refused(
        "the vision encoder of CLIP, SigLIP or a similar model",
        r"(.*\.)?vision_model\.encoder\.layers\.0\.self_attn\.q_proj\.weight",
        instead="transformers' CLIPVisionModel or SiglipVisionModel",
    ),
    _refused(
        "EVA",
        r"(.*\.)?blocks\.0\.mlp\.(w12|w1|fc1_g)\.weight",
        instead="timm's eva02_*",
    ),
    _refused(
        "a ResNet",
        r"(.*\.)?layer1\.0\.conv1\.weight",
        instead="torchvision's or timm's resnet*",
    ),
    _refused(
        "ConvNeXt or ConvNeXt V2",
        r"(.*\.)?(stages\.0\.(blocks\.|layers\.)?0\.(dwconv|conv_dw|depthwise_conv|dwconv)\.weight"
        r"|downsample_layers\.0\.0\.weight)",
        instead="transformers' ConvNextV2Model, or timm's convnextv2_*",
    ),
    _refused(
        "a language model",
        r"(transformer\.)?h\.0\.(attn|ln_1)\..*|(model\.)?layers\.0\.self_attn\.[qkv]_proj\..*"
        r"|(bert\.)?embeddings\.word_embeddings\.weight|(model\.)?embed_tokens\.weight",
        instead="transformers' AutoModel",
    ),
    _refused(
        "an optimizer's state",
        r"(optimizer\.)?(state\.)?\d+\.(exp_avg|exp_avg_sq|momentum_buffer)|param_groups.*",
        instead="the file with the model's weights",
    ),
)

OURS = ("vit", "vit_mae", "vit_msn")
"""The model types of transformers with the same encoder as MAE."""

MODEL_TYPES = {
    "audio-spectrogram-transformer": "AST, the Audio Spectrogram Transformer",
    "beit": "BEiT",
    "clip": "CLIP",
    "clip_vision_model": "CLIP",
    "convnext": "ConvNeXt",
    "convnextv2": "ConvNeXt V2",
    "data2vec-vision": "data2vec",
    "deit": "DeiT",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2 with registers",
    "dinov3_vit": "DINOv3",
    "dpt": "DPT",
    "hiera": "Hiera",
    "ijepa": "I-JEPA",
    "resnet": "ResNet",
    "sam": "SAM (Segment Anything)",
    "sam_vision_model": "SAM (Segment Anything)",
    "segformer": "SegFormer",
    "siglip": "SigLIP",
    "siglip_vision_model": "SigLIP",
    "siglip2": "SigLIP 2",
    "swin": "Swin Transformer",
    "swinv2": "Swin Transformer V2",
    "vit_hybrid": "ViT Hybrid",
    "vitdet": "ViTDet",
    "vjepa2": "V-JEPA 2",
    "yolos": "YOLOS",
}
"""Display names of the values of ``model_type`` in transformers' ``config.json``; other types are
shown unchanged."""


def recognise_family(shapes: Mapping[str, Shape]) -> tuple[Refused, str] | None:
    """Return the model that the tensor names identify, and the first of these names; or None."""
    for family in REFUSED:
        matches = [_first_match(key, shapes) for key in family.keys]
        if None not in matches:
            return family, str(matches[0])
    return None


def _first_match(key: Key, shapes: Mapping[str, Shape]) -> str | None:
    """Return the first tensor name that matches the pattern `key`, or None."""
    pattern, rank = (key, None) if isinstance(key, str) else key
    names = (n for n, shape in shapes.items() if rank in (None, len(shape)))
    return next(filter(re.compile(pattern).fullmatch, names), None)


def explain(
    shapes: Mapping[str, Shape],
    config: Mapping[str, Any] | None = None,
    adapter: Mapping[str, Any] | None = None,
) -> str | None:
    """Return a message that names an unsupported model and a program to use instead.

    The result is None if neither the tensors nor the files belong to a known unsupported model.

    Args:
        shapes: the names and shapes of the checkpoint's tensors.
        config: the checkpoint's ``config.json``, or None.
        adapter: the checkpoint's ``adapter_config.json``, or None.
    """
    if adapter is not None:
        kind, base = (
            adapter.get("peft_type", "an unknown type"),
            adapter.get("base_model_name_or_path"),
        )
        of = f" of {base}" if base else ""
        return (
            f"this is an adapter{of} (adapter_config.json: peft_type {kind}) and not a complete"
            f" model; {MERGE}"
        )
    reason = _reason_in_config(config or {})
    relative = recognise_family(shapes)
    if relative is not None:
        family, key = relative
        also = f"; its config.json has {reason[0]}" if reason else ""
        return (
            f"this is {family.name} (it has {key}{also}), which is not an MAE that this project"
            f" converts; use instead: {family.instead}"
        )
    if reason is not None:
        return (
            f"this is {reason[1]} (its config.json has {reason[0]}), which is not an MAE that this"
            f" project converts; use instead: {reason[2]}"
        )
    return None


def _reason_in_config(config: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return why a configuration belongs to an unsupported model; None if it does not.

    Returns:
        The identifying field and its value, the model's name, and a library that reads the model.
    """
    if isinstance(architecture := config.get("architecture"), str):  # timm's
        if not re.match(r"(vit|samvit)_", architecture):
            return f"architecture {architecture}", f"timm's {architecture}", "timm.create_model"
        return None
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind in OURS:
        return None
    classes = config.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else None
    reader = f"transformers' {first}" if isinstance(first, str) else "transformers' AutoModel"
    says = f"model_type {kind}" + (f", {first}" if isinstance(first, str) else "")
    return says, MODEL_TYPES.get(kind, f"a model of type {kind}"), reader
