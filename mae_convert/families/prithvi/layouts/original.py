"""The layout of the authors' files; names of version 1 are read, but not written."""

from collections.abc import Mapping
from typing import Any

from mae_convert.formats.registry import NPZ, PTH, SAFETENSORS
from mae_convert.layouts.layout import Layout
from mae_convert.layouts.table import Repeat, Row, Table
from mae_convert.layouts.transforms import Fuse

BLOCK = (
    Row(".norm1.{weight,bias}", ".norm1.{weight,bias}"),
    Row(".attention.{q,k,v}.{weight,bias}", ".attn.qkv.{weight,bias}", Fuse(3)),
    Row(".attention.output.{weight,bias}", ".attn.proj.{weight,bias}"),
    Row(".norm2.{weight,bias}", ".norm2.{weight,bias}"),
    Row(".mlp.{fc1,fc2}.{weight,bias}", ".mlp.{fc1,fc2}.{weight,bias}"),
)


def _encoder(prefix: str) -> tuple[Row | Repeat, ...]:
    return (
        Row("encoder.cls_token", f"{prefix}cls_token"),
        Row("encoder.position_embedding", f"{prefix}pos_embed"),
        Row("encoder.patch_embedding.{weight,bias}", prefix + "patch_embed.proj.{weight,bias}"),
        Row("encoder.time_scale", f"{prefix}temporal_embed_enc.scale"),
        Row("encoder.location_scale", f"{prefix}location_embed_enc.scale"),
        Repeat("encoder.blocks.#", f"{prefix}blocks.#", BLOCK),
        Row("encoder.norm.{weight,bias}", prefix + "norm.{weight,bias}"),
    )


def _decoder(prefix: str) -> tuple[Row | Repeat, ...]:
    return (
        Row("decoder.mask_token", f"{prefix}mask_token"),
        Row("decoder.position_embedding", f"{prefix}decoder_pos_embed"),
        Row("decoder.embed.{weight,bias}", prefix + "decoder_embed.{weight,bias}"),
        Row("decoder.time_scale", f"{prefix}temporal_embed_dec.scale"),
        Row("decoder.location_scale", f"{prefix}location_embed_dec.scale"),
        Repeat("decoder.blocks.#", f"{prefix}decoder_blocks.#", BLOCK),
        Row("decoder.norm.{weight,bias}", prefix + "decoder_norm.{weight,bias}"),
        Row("decoder.prediction.{weight,bias}", prefix + "decoder_pred.{weight,bias}"),
    )


TABLES = (
    Table("prithvi", ("pretrain",), (*_encoder("encoder."), *_decoder("decoder."))),
    Table("prithvi, flat names", ("pretrain",), (*_encoder(""), *_decoder(""))),
    Table("prithvi, encoder", ("encoder",), _encoder("")),
)
# Mean and deviation of the bands blue, green, red, narrow near infrared, and two of short-wave
# infrared in version 2.
MEAN = (1087.0, 1342.0, 1433.0, 2734.0, 1958.0, 1363.0)
STD = (2248.0, 2179.0, 2178.0, 1850.0, 1242.0, 1049.0)
MEAN_1 = (775.0, 1081.0, 1229.0, 2497.0, 2204.0, 1611.0)  # mean and deviation in version 1
STD_1 = (1282.0, 1270.0, 1399.0, 1368.0, 1292.0, 1155.0)
CONVENTIONS = {
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "mask_ratio": 0.75,
    "norm_pix_loss": False,
    "image_mean": MEAN,
    "image_std": STD,
}
# Configuration fields by the names of fields of ``pretrained_cfg`` in a config.json on the Hub.
NAMES = {
    "img_size": "image_size",
    "num_frames": "num_frames",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "in_chans": "num_channels",
    "decoder_embed_dim": "decoder_hidden_size",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_num_heads": "decoder_num_attention_heads",
    "mask_ratio": "mask_ratio",
    "norm_pix_loss": "norm_pix_loss",
    "mean": "image_mean",
    "std": "image_std",
}


def read_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration fields of a ``config.json``, under this project's names.

    The file was written by this project or by the authors, whose fields are in ``pretrained_cfg``.
    """
    theirs = config.get("pretrained_cfg")
    if not isinstance(theirs, Mapping):
        return dict(config)
    return {ours: theirs[name] for name, ours in NAMES.items() if name in theirs}


ORIGINAL = Layout(
    name="original",
    family="prithvi",
    title="Prithvi-EO, the authors' code and TerraTorch (PyTorch)",
    tables=TABLES,
    containers=(PTH, SAFETENSORS, NPZ),
    conventions=CONVENTIONS,
    fixed=("hidden_act",),
    read_config=read_config,
)
