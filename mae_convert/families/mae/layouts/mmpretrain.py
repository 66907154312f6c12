"""OpenMMLab's mmpretrain, MAE: the encoder as ``backbone``, the decoder as ``neck``."""

from mae_convert.errors import Option, Text
from mae_convert.families.mae.layouts.facebook import FACEBOOK
from mae_convert.formats.registry import PTH, SAFETENSORS
from mae_convert.layouts.layout import Layout
from mae_convert.layouts.table import Repeat, Row, Table
from mae_convert.layouts.transforms import Fuse
from reference_models.configuration import ViTMAEConfig

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
# Fine-tuned classifiers: with `out_type="avg_featmap", final_norm=False`, a norm `ln2` follows the
# mean of the patches; with `out_type="cls_token"`, the norm is `ln1`. The head is a LinearClsHead.
CLASSIFIER = (
    *ENCODER,
    Row("head.norm.{weight,bias}", "backbone.ln2.{weight,bias}"),
    Row("head.{weight,bias}", "head.fc.{weight,bias}"),
)
# Classifiers with a VisionTransformerClsHead that has no hidden layer.
TOKEN_CLASSIFIER = (*ENCODER, Row("head.{weight,bias}", "head.layers.head.{weight,bias}"))


def _probe(head: str) -> tuple[Row | Repeat, ...]:
    """Return the mapping rows of a linear probe, which has a ClsBatchNormNeck before the head.

    `head` is the stored name of the head.
    """
    return (
        *ENCODER,
        Row(
            "head.batch_norm.{mean,variance,count}",
            "neck.bn.{running_mean,running_var,num_batches_tracked}",
        ),
        Row("head.{weight,bias}", head + ".{weight,bias}"),
    )


DECODER = (
    Row("decoder.mask_token", "neck.mask_token"),
    Row("decoder.position_embedding", "neck.decoder_pos_embed"),
    Row("decoder.embed.{weight,bias}", "neck.decoder_embed.{weight,bias}"),
    Repeat("decoder.blocks.#", "neck.decoder_blocks.#", BLOCK),
    Row("decoder.norm.{weight,bias}", "neck.ln1.{weight,bias}"),
    Row("decoder.prediction.{weight,bias}", "neck.decoder_pred.{weight,bias}"),
)


def refusal(config: ViTMAEConfig, task: str) -> Text | None:
    """Return why mmpretrain's classes do not support a model for a task; None if they do.

    The class of the encoder supports images of any shape. The class of the decoder supports only
    square patches, GELU, and q, k and v with biases; the class of the pre-training head supports
    only square images with three channels. The classifier with global pooling applies its last norm
    to the mean of the patches, so it does not support models that normalize each token.
    """
    if task == "classify" and config.global_pool == "avg" and not config.normalizes_mean:
        return (
            "mmpretrain's classifier applies the last layer norm to the mean of the patches, but "
            "this model applies it to each token (fc_norm False); convert to timm or keras"
        )
    if task != "pretrain":
        return None
    square = config.image_hw[0] == config.image_hw[1] and config.patch_hw[0] == config.patch_hw[1]
    if not square or config.num_channels != 3:
        return (
            "mmpretrain's MAE supports only square images with three channels and square patches; "
            "convert to keras, or pass ",
            Option("task", "encoder"),
        )
    if not config.qkv_bias or config.hidden_act != "gelu":
        return (
            "mmpretrain's decoder supports only the activation GELU and attention with biases for "
            "q, k and v; convert to keras"
        )
    return None


MMPRETRAIN = Layout(
    name="mmpretrain",
    family="mae",
    title="OpenMMLab mmpretrain, MAE (PyTorch)",
    tables=(
        Table("mmpretrain", ("pretrain",), ENCODER + DECODER),
        Table("mmpretrain", ("encoder",), ENCODER),
        Table("mmpretrain", ("classify",), CLASSIFIER),
        Table("mmpretrain, VisionTransformerClsHead", ("classify",), TOKEN_CLASSIFIER),
        Table("mmpretrain, linear probe", ("classify",), _probe("head.layers.head")),
        Table("mmpretrain, linear probe with LinearClsHead", ("classify",), _probe("head.fc")),
    ),
    containers=(PTH, SAFETENSORS),
    state_key="state_dict",
    # All configurations of MAE in mmpretrain predict normalized patches.
    conventions={**FACEBOOK.conventions, "norm_pix_loss": True},
    refusal=refusal,
)
