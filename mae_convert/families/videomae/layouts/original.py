"""The layout of the authors' code, MCG-NJU/VideoMAE and OpenGVLab/VideoMAEv2."""

from mae_convert.formats.registry import NPZ, PTH, SAFETENSORS
from mae_convert.layouts.layout import CODE_EPSILON, IMAGENET, Difference, Layout, code_differences
from mae_convert.layouts.table import Repeat, Row, Table
from mae_convert.layouts.transforms import Fuse
from reference_models.configuration import VideoMAEConfig

BLOCK = (
    Row(".{attention,mlp}.scale", ".{gamma_1,gamma_2}"),
    Row(".norm1.{weight,bias}", ".norm1.{weight,bias}"),
    Row(".attention.{q,v}.bias", ".attn.{q_bias,v_bias}"),
    Row(".attention.{q,k,v}.weight", ".attn.qkv.weight", Fuse(3)),
    Row(".attention.output.{weight,bias}", ".attn.proj.{weight,bias}"),
    Row(".norm2.{weight,bias}", ".norm2.{weight,bias}"),
    Row(".mlp.{fc1,fc2}.{weight,bias}", ".mlp.{fc1,fc2}.{weight,bias}"),
)
PRETRAIN = Table(
    "videomae",
    ("pretrain",),
    (
        Row("decoder.mask_token", "mask_token"),
        Row("encoder.patch_embedding.{weight,bias}", "encoder.patch_embed.proj.{weight,bias}"),
        Repeat("encoder.blocks.#", "encoder.blocks.#", BLOCK),
        Row("encoder.norm.{weight,bias}", "encoder.norm.{weight,bias}"),
        Repeat("decoder.blocks.#", "decoder.blocks.#", BLOCK),
        Row("decoder.norm.{weight,bias}", "decoder.norm.{weight,bias}"),
        Row("decoder.prediction.{weight,bias}", "decoder.head.{weight,bias}"),
        Row("decoder.embed.weight", "encoder_to_decoder.weight"),
    ),
)
FINE_TUNED = Table(
    "videomae, fine-tuned",
    ("encoder", "classify"),
    (
        Row("encoder.patch_embedding.{weight,bias}", "patch_embed.proj.{weight,bias}"),
        Repeat("encoder.blocks.#", "blocks.#", BLOCK),
        Row("encoder.norm.{weight,bias}", "norm.{weight,bias}"),
        Row("head.norm.{weight,bias}", "fc_norm.{weight,bias}"),
        Row("head.{weight,bias}", "head.{weight,bias}"),
    ),
)
CONVENTIONS = {
    "layer_norm_eps": CODE_EPSILON,
    "hidden_act": "gelu",
    "image_size": 224,
    "num_frames": 16,
    "mask_ratio": 0.9,
    "norm_pix_loss": True,
    **IMAGENET,
}


def differences(config: VideoMAEConfig, task: str) -> tuple[Difference, ...]:
    """Return a `Difference` if field values in the authors' code differ from the model's values.

    The result is empty if all values are equal.
    """
    norms = {"pretrain": ("decoder_norm_eps", config.decoder_norm_eps)}
    if config.use_mean_pooling:
        norms["classify"] = ("fc_norm_eps", config.fc_norm_eps)
    final = dict([norms[task]]) if task in norms else {}
    return code_differences("the authors' code", config, task, final)


ORIGINAL = Layout(
    name="original",
    family="videomae",
    title="MCG-NJU/VideoMAE and VideoMAEv2, the authors' code (PyTorch)",
    tables=(PRETRAIN, FINE_TUNED),
    containers=(PTH, SAFETENSORS, NPZ),
    state_key="model",
    conventions=CONVENTIONS,
    fixed=("layer_norm_eps", "hidden_act"),
    differences=differences,
)
