"""The layout of the authors' code, facebookresearch/mae_st."""

from functools import partial

from mae_convert.formats.registry import NPZ, PTH, SAFETENSORS
from mae_convert.layouts.layout import CODE_EPSILON, IMAGENET, Layout, code_differences
from mae_convert.layouts.table import Repeat, Row, Table

BLOCK = (
    Row(".norm1.{weight,bias}", ".norm1.{weight,bias}"),
    Row(".attention.q.{weight,bias}", ".attn.q.{weight,bias}"),
    Row(".attention.k.{weight,bias}", ".attn.k.{weight,bias}"),
    Row(".attention.v.{weight,bias}", ".attn.v.{weight,bias}"),
    Row(".attention.output.{weight,bias}", ".attn.proj.{weight,bias}"),
    Row(".norm2.{weight,bias}", ".norm2.{weight,bias}"),
    Row(".mlp.{fc1,fc2}.{weight,bias}", ".mlp.{fc1,fc2}.{weight,bias}"),
)


def _positions(part: str, prefix: str) -> tuple[Row, ...]:
    kinds = ".{spatial,temporal,class}_position_embedding"
    return (
        Row(part + kinds, prefix + "pos_embed_{spatial,temporal,class}"),
        Row(f"{part}.joint_position_embedding", f"{prefix}pos_embed"),
    )


PATCHES_AND_BLOCKS = (
    Row("encoder.patch_embedding.{weight,bias}", "patch_embed.proj.{weight,bias}"),
    Repeat("encoder.blocks.#", "blocks.#", BLOCK),
)
NORM = Row("encoder.norm.{weight,bias}", "norm.{weight,bias}")
TABLES = (
    Table(
        "mae_st",
        ("pretrain",),
        (
            Row("encoder.cls_token", "cls_token"),
            Row("decoder.cls_token", "decoder_cls_token"),
            *_positions("encoder", ""),
            Row("decoder.mask_token", "mask_token"),
            *_positions("decoder", "decoder_"),
            *PATCHES_AND_BLOCKS,
            NORM,
            Row("decoder.embed.{weight,bias}", "decoder_embed.{weight,bias}"),
            Repeat("decoder.blocks.#", "decoder_blocks.#", BLOCK),
            Row("decoder.norm.{weight,bias}", "decoder_norm.{weight,bias}"),
            Row("decoder.prediction.{weight,bias}", "decoder_pred.{weight,bias}"),
        ),
    ),
    Table(
        "mae_st, encoder",
        ("encoder",),
        (
            Row("encoder.cls_token", "cls_token"),
            *_positions("encoder", ""),
            *PATCHES_AND_BLOCKS,
            NORM,
        ),
    ),
    Table(
        "mae_st, fine-tuned",
        ("classify",),
        (
            Row("encoder.cls_token", "cls_token"),
            *_positions("encoder", ""),
            *PATCHES_AND_BLOCKS,
            Row("head.norm.{weight,bias}", "norm.{weight,bias}"),
            Row("head.{weight,bias}", "head.{weight,bias}"),
        ),
    ),
)
CONVENTIONS = {
    "layer_norm_eps": CODE_EPSILON,
    "hidden_act": "gelu",
    "num_frames": 16,
    "mask_ratio": 0.9,
    "norm_pix_loss": True,
    **IMAGENET,
    "image_mean": (0.45, 0.45, 0.45),
    "image_std": (0.225, 0.225, 0.225),
}

ORIGINAL = Layout(
    name="original",
    family="mae_st",
    title="facebookresearch/mae_st, the authors' code (PyTorch)",
    tables=TABLES,
    containers=(PTH, SAFETENSORS, NPZ),
    state_key="model_state",
    conventions=CONVENTIONS,
    fixed=("layer_norm_eps", "hidden_act"),
    differences=partial(code_differences, "facebookresearch/mae_st"),
)
