"""OpenMMLab's mmpretrain, MAE: the encoder as ``backbone``, the decoder as ``neck``."""

from mae_convert.layouts.facebook import FACEBOOK
from mae_convert.layouts.layout import Layout
from mae_convert.mapping import Fuse, Repeat, Row, Table

BLOCK = (
    Row(".norm1.{weight,bias}", ".ln1.{weight,bias}"),
    Row(".attention.{q,k,v}.{weight,bias}", ".attn.qkv.{weight,bias}", Fuse(3)),
    Row(".attention.output.{weight,bias}", ".attn.proj.{weight,bias}"),
    Row(".norm2.{weight,bias}", ".ln2.{weight,bias}"),
    Row(".mlp.fc1.{weight,bias}", ".ffn.layers.0.0.{weight,bias}"),
    Row(".mlp.fc2.{weight,bias}", ".ffn.layers.1.{weight,bias}"),
)
ENCODER = (
    Row("encoder.cls_token", "backbone.cls_token"),
    Row("encoder.position_embedding", "backbone.pos_embed"),
    Row("encoder.patch_embedding.{weight,bias}", "backbone.patch_embed.projection.{weight,bias}"),
    Repeat("encoder.blocks.#", "backbone.layers.#", BLOCK),
    Row("encoder.norm.{weight,bias}", "backbone.ln1.{weight,bias}"),
)
DECODER = (
    Row("decoder.mask_token", "neck.mask_token"),
    Row("decoder.position_embedding", "neck.decoder_pos_embed"),
    Row("decoder.embed.{weight,bias}", "neck.decoder_embed.{weight,bias}"),
    Repeat("decoder.blocks.#", "neck.decoder_blocks.#", BLOCK),
    Row("decoder.norm.{weight,bias}", "neck.ln1.{weight,bias}"),
    Row("decoder.prediction.{weight,bias}", "neck.decoder_pred.{weight,bias}"),
)

MMPRETRAIN = Layout(
    name="mmpretrain",
    title="OpenMMLab mmpretrain, MAE (PyTorch)",
    tables=(
        Table("mmpretrain", ("pretrain",), ENCODER + DECODER),
        Table("mmpretrain", ("encoder",), ENCODER),
    ),
    containers=("pth", "safetensors"),
    conventions=FACEBOOK.conventions,
)
