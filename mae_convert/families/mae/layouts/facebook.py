"""The layout of the original code: timm's names, with query, key and value in one tensor."""

from functools import partial

from mae_convert.errors import Text
from mae_convert.formats.registry import NPZ, PTH, SAFETENSORS
from mae_convert.layouts.layout import CODE_EPSILON, IMAGENET, Layout, code_differences
from mae_convert.layouts.table import Repeat, Row, Table
from mae_convert.layouts.transforms import Fuse
from reference_models.configuration import ViTMAEConfig

PARTS_OF_BLOCK = (
    Row(".attention.output.{weight,bias}", ".attn.proj.{weight,bias}"),
    Row(".norm2.{weight,bias}", ".norm2.{weight,bias}"),
    Row(".mlp.{fc1,fc2}.{weight,bias}", ".mlp.{fc1,fc2}.{weight,bias}"),
)
NORM1 = Row(".norm1.{weight,bias}", ".norm1.{weight,bias}")
BLOCK = (
    NORM1,
    Row(".attention.{q,k,v}.{weight,bias}", ".attn.qkv.{weight,bias}", Fuse(3)),
    *PARTS_OF_BLOCK,
)
# As in BEiT, the query and value biases are separate tensors, and there is no key bias.
BLOCK_WITHOUT_KEY_BIAS = (
    NORM1,
    Row(".attention.{q,v}.bias", ".attn.{q_bias,v_bias}"),
    Row(".attention.{q,k,v}.weight", ".attn.qkv.weight", Fuse(3)),
    *PARTS_OF_BLOCK,
)
Rows = tuple[Row | Repeat, ...]
TOKENS = (
    Row("encoder.cls_token", "cls_token"),
    Row("encoder.position_embedding", "pos_embed"),
)
NORM = Row("encoder.norm.{weight,bias}", "norm.{weight,bias}")
POOLED_NORM = Row("head.norm.{weight,bias}", "fc_norm.{weight,bias}")


def _patches_and_blocks(block: tuple[Row, ...]) -> Rows:
    return (
        Row("encoder.patch_embedding.{weight,bias}", "patch_embed.proj.{weight,bias}"),
        Repeat("encoder.blocks.#", "blocks.#", block),
    )


PATCHES_AND_BLOCKS = _patches_and_blocks(BLOCK)


def _probe(batch_norm: str, head: str, block: tuple[Row, ...]) -> Rows:
    """Return the mapping rows of a linear probe.

    Args:
        batch_norm: the stored name of the batch norm before the head.
        head: the stored name of the head.
        block: the mapping rows of a block.
    """
    return (
        *TOKENS,
        *_patches_and_blocks(block),
        NORM,
        POOLED_NORM,
        Row(
            "head.batch_norm.{mean,variance,count}",
            batch_norm + ".{running_mean,running_var,num_batches_tracked}",
        ),
        Row("head.{weight,bias}", head + ".{weight,bias}"),
    )


def _tables(name: str, block: tuple[Row, ...]) -> tuple[Table, ...]:
    """Return the mapping tables `name` of all tasks, given the mapping rows of a block."""
    patches_and_blocks = _patches_and_blocks(block)
    return (
        Table(
            name,
            ("pretrain",),
            (
                *TOKENS,
                Row("decoder.mask_token", "mask_token"),
                Row("decoder.position_embedding", "decoder_pos_embed"),
                *patches_and_blocks,
                NORM,
                Row("decoder.embed.{weight,bias}", "decoder_embed.{weight,bias}"),
                Repeat("decoder.blocks.#", "decoder_blocks.#", block),
                Row("decoder.norm.{weight,bias}", "decoder_norm.{weight,bias}"),
                Row("decoder.prediction.{weight,bias}", "decoder_pred.{weight,bias}"),
            ),
        ),
        Table(
            name,
            ("encoder", "classify"),
            (
                *TOKENS,
                *patches_and_blocks,
                NORM,
                POOLED_NORM,
                Row("head.{weight,bias}", "head.{weight,bias}"),
            ),
        ),
        # main_linprobe.py, with or without --global_pool.
        Table(f"{name}, linear probe", ("classify",), _probe("head.0", "head.1", block)),
        # test_time_training_mae stores the probe beside the MAE and not in it.
        Table(
            f"{name}, linear probe in a separate module", ("classify",), _probe("bn", "head", block)
        ),
    )


TABLES = _tables("facebook", BLOCK)
ENCODER_AND_CLASSIFIER = TABLES[1]
WITHOUT_KEY_BIAS = _tables("facebook, no key bias", BLOCK_WITHOUT_KEY_BIAS)


def refusal(config: ViTMAEConfig, task: str) -> Text | None:
    """Return why facebookresearch/mae does not support a model for a task; None if it does."""
    if task == "classify" and config.global_pool == "avg" and not config.normalizes_mean:
        return (
            "facebookresearch/mae's classifier applies the last layer norm to the mean of the "
            "patches, but this model applies it to each token (fc_norm False); convert to timm or "
            "keras"
        )
    return None


FACEBOOK = Layout(
    name="facebook",
    family="mae",
    title="facebookresearch/mae, the original code (PyTorch)",
    tables=TABLES + WITHOUT_KEY_BIAS,
    containers=(PTH, SAFETENSORS, NPZ),
    state_key="model",
    conventions={
        "layer_norm_eps": CODE_EPSILON,
        "hidden_act": "gelu",
        "mask_ratio": 0.75,
        "norm_pix_loss": False,
        **IMAGENET,
    },
    fixed=("layer_norm_eps", "hidden_act"),
    pooling_in_names=False,
    refusal=refusal,
    differences=partial(code_differences, "facebookresearch/mae"),
)
