"""lightly's MAE: a timm encoder as ``backbone.vit`` and a decoder, in two naming variants.

Both variants are read. Conversions write the names of lightly up to version 1.5 (of the class
``MAEDecoderTIMM``, which is deprecated since 1.6). The backbone also has a mask token (of the
encoder's width), which MAE does not use.
"""

from functools import partial

from mae_convert.families.mae.layouts.facebook import BLOCK, FACEBOOK, PATCHES_AND_BLOCKS, TOKENS
from mae_convert.formats.registry import PTH, SAFETENSORS
from mae_convert.layouts.layout import Layout, code_differences
from mae_convert.layouts.table import Drop, Repeat, Row, Table
from reference_models.configuration import ViTMAEConfig

Rows = tuple[Row | Repeat, ...]


def _under(prefix: str, rows: Rows) -> Rows:
    return tuple(
        Repeat(row.canonical, prefix + row.external, row.rows)
        if isinstance(row, Repeat)
        else Row(row.canonical, prefix + row.external, row.transform)
        for row in rows
    )


ENCODER = _under(
    "backbone.vit.",
    (*TOKENS, *PATCHES_AND_BLOCKS, Row("encoder.norm.{weight,bias}", "norm.{weight,bias}")),
)
UNUSED = (
    Drop(
        "backbone.mask_token",
        "lightly's encoder has a mask token that MAE does not use",
        zeros_like="encoder.cls_token",
    ),
)

UP_TO_1_5 = Table(
    "lightly",
    ("pretrain",),
    (
        *ENCODER,
        Row("decoder.mask_token", "decoder.mask_token"),
        Row("decoder.position_embedding", "decoder.decoder_pos_embed"),
        Row("decoder.embed.{weight,bias}", "decoder.decoder_embed.{weight,bias}"),
        Repeat("decoder.blocks.#", "decoder.decoder_blocks.#", BLOCK),
        Row("decoder.norm.{weight,bias}", "decoder.decoder_norm.{weight,bias}"),
        Row("decoder.prediction.{weight,bias}", "decoder.decoder_pred.{weight,bias}"),
    ),
    UNUSED,
)
SINCE_1_6 = Table(
    "lightly, names since 1.6",
    ("pretrain",),
    (
        *ENCODER,
        Row("decoder.embed.{weight,bias}", "decoder_embed.{weight,bias}"),
        Row("decoder.mask_token", "decoder.mask_token"),
        Row("decoder.position_embedding", "decoder.pos_embed"),
        Repeat("decoder.blocks.#", "decoder.blocks.#", BLOCK),
        Row("decoder.norm.{weight,bias}", "decoder.norm.{weight,bias}"),
        Row("decoder.prediction.{weight,bias}", "prediction_head.{weight,bias}"),
    ),
    UNUSED,
)


def refusal(config: ViTMAEConfig, task: str) -> str | None:
    """Return why lightly's classes do not support a model for a task; None if they do.

    Models with rectangular images can be loaded if the classes do not initialize the positions
    (``pos_embed_initialization="skip"``, ``initialize_weights=False``).
    """
    square = config.patch_hw[0] == config.patch_hw[1]
    if task == "pretrain" and not (square and config.qkv_bias and config.hidden_act == "gelu"):
        return (
            "lightly's decoder supports only square patches, the activation GELU, and attention "
            "with biases for q, k and v; convert to keras"
        )
    return None


LIGHTLY = Layout(
    name="lightly",
    family="mae",
    title="lightly's MAE modules (PyTorch)",
    tables=(UP_TO_1_5, Table("lightly", ("encoder",), ENCODER, UNUSED), SINCE_1_6),
    containers=(PTH, SAFETENSORS),
    conventions=FACEBOOK.conventions,
    fixed=FACEBOOK.fixed,
    refusal=refusal,
    differences=partial(code_differences, "lightly"),
)
