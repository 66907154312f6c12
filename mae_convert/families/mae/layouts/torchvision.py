"""torchvision's ``vit_*`` models; older MLP names ``linear_1`` and ``linear_2`` are also read."""

from mae_convert.errors import Option, Text
from mae_convert.formats.registry import PTH, SAFETENSORS
from mae_convert.layouts.layout import IMAGENET, Layout
from mae_convert.layouts.table import Repeat, Row, Table
from mae_convert.layouts.transforms import Fuse
from reference_models.configuration import ViTMAEConfig

EPSILON = 1e-6


def _table(name: str, fc1: str, fc2: str) -> Table:
    """Return the mapping table in which the two layers of the MLP have these names."""
    block = (
        Row(".norm1.{weight,bias}", ".ln_1.{weight,bias}"),
        Row(
            ".attention.{q,k,v}.{weight,bias}",
            ".self_attention.{in_proj_weight,in_proj_bias}",
            Fuse(3),
        ),
        Row(".attention.output.{weight,bias}", ".self_attention.out_proj.{weight,bias}"),
        Row(".norm2.{weight,bias}", ".ln_2.{weight,bias}"),
        Row(".mlp.fc1.{weight,bias}", f".mlp.{fc1}" + ".{weight,bias}"),
        Row(".mlp.fc2.{weight,bias}", f".mlp.{fc2}" + ".{weight,bias}"),
    )
    return Table(
        name,
        ("encoder", "classify"),
        (
            Row("encoder.cls_token", "class_token"),
            Row("encoder.patch_embedding.{weight,bias}", "conv_proj.{weight,bias}"),
            Row("encoder.position_embedding", "encoder.pos_embedding"),
            Repeat("encoder.blocks.#", "encoder.layers.encoder_layer_#", block),
            Row("encoder.norm.{weight,bias}", "encoder.ln.{weight,bias}"),
            Row("head.{weight,bias}", "heads.head.{weight,bias}"),
        ),
    )


def refusal(config: ViTMAEConfig, task: str) -> Text | None:
    """Return why torchvision's class does not support a model for a task; None if it does."""
    if task == "pretrain":
        return "torchvision has no decoder; convert the encoder with ", Option("task", "encoder")
    if task == "classify" and config.global_pool == "avg":
        return (
            "torchvision's classifier reads the class token and does not support a globally pooled "
            "model (global_pool avg); convert to timm"
        )
    if config.image_hw[0] != config.image_hw[1] or config.patch_hw[0] != config.patch_hw[1]:
        return "torchvision's ViT supports only square images and patches; convert to timm"
    if not config.qkv_bias or config.num_channels != 3 or config.hidden_act != "gelu":
        return (
            "torchvision's ViT supports only three channels, GELU, and q, k and v with biases; "
            "convert to timm"
        )
    if config.layer_norm_eps != EPSILON:
        return (
            f"torchvision's ViT has a layer norm epsilon of {EPSILON}, but this model has"
            f" {config.layer_norm_eps}; transformers and keras support it"
        )
    return None


TORCHVISION = Layout(
    name="torchvision",
    family="mae",
    title="torchvision's vit_* models (PyTorch)",
    tables=(
        _table("torchvision", "0", "3"),
        _table("torchvision, older names", "linear_1", "linear_2"),
    ),
    containers=(PTH, SAFETENSORS),
    conventions={"layer_norm_eps": EPSILON, "hidden_act": "gelu", "mask_ratio": 0.75, **IMAGENET},
    fixed=("layer_norm_eps", "hidden_act"),
    refusal=refusal,
)
