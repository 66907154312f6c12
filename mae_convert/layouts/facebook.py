"""The layout of the original code, facebookresearch/mae (timm's names, query, key, value fused)."""

from mae_convert.layouts.layout import IMAGENET, Layout
from mae_convert.mapping import Repeat, Row, Table
from mae_convert.transforms import Fuse

BLOCK = (
    Row(".norm1.{weight,bias}", ".norm1.{weight,bias}"),
    Row(".attention.{q,k,v}.{weight,bias}", ".attn.qkv.{weight,bias}", Fuse(3)),
    Row(".attention.output.{weight,bias}", ".attn.proj.{weight,bias}"),
    Row(".norm2.{weight,bias}", ".norm2.{weight,bias}"),
    Row(".mlp.{fc1,fc2}.{weight,bias}", ".mlp.{fc1,fc2}.{weight,bias}"),
)

PATCHES_AND_BLOCKS = (
    Row("encoder.patch_embedding.{weight,bias}", "patch_embed.proj.{weight,bias}"),
    Repeat("encoder.blocks.#", "blocks.#", BLOCK),
)
TOKENS = (
    Row("encoder.cls_token", "cls_token"),
    Row("encoder.position_embedding", "pos_embed"),
)

PRETRAIN = Table(
    "facebook",
    ("pretrain",),
    (
        *TOKENS,
        Row("decoder.mask_token", "mask_token"),
        Row("decoder.position_embedding", "decoder_pos_embed"),
        *PATCHES_AND_BLOCKS,
        Row("encoder.norm.{weight,bias}", "norm.{weight,bias}"),
        Row("decoder.embed.{weight,bias}", "decoder_embed.{weight,bias}"),
        Repeat("decoder.blocks.#", "decoder_blocks.#", BLOCK),
        Row("decoder.norm.{weight,bias}", "decoder_norm.{weight,bias}"),
        Row("decoder.prediction.{weight,bias}", "decoder_pred.{weight,bias}"),
    ),
)

ENCODER_AND_CLASSIFIER = Table(
    "facebook",
    ("encoder", "classify"),
    (
        *TOKENS,
        *PATCHES_AND_BLOCKS,
        Row("encoder.norm.{weight,bias}", "norm.{weight,bias}"),
        Row("head.norm.{weight,bias}", "fc_norm.{weight,bias}"),
        Row("head.{weight,bias}", "head.{weight,bias}"),
    ),
)

LINEAR_PROBE = Table(
    "facebook, linear probe",
    ("classify",),
    (
        *TOKENS,
        *PATCHES_AND_BLOCKS,
        Row("encoder.norm.{weight,bias}", "norm.{weight,bias}"),
        Row(
            "head.batch_norm.{mean,variance,count}",
            "head.0.{running_mean,running_var,num_batches_tracked}",
        ),
        Row("head.{weight,bias}", "head.1.{weight,bias}"),
    ),
)

FACEBOOK = Layout(
    name="facebook",
    title="facebookresearch/mae, the original code (PyTorch)",
    tables=(PRETRAIN, ENCODER_AND_CLASSIFIER, LINEAR_PROBE),
    containers=("pth", "safetensors", "npz"),
    state_key="model",
    conventions={
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "mask_ratio": 0.75,
        "norm_pix_loss": False,
        **IMAGENET,
    },
    fixed=("layer_norm_eps", "hidden_act"),
    pooling_in_names=False,
)
