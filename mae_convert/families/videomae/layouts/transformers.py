"""Hugging Face transformers: VideoMAEModel, VideoMAEForPreTraining, VideoMAEForVideoClassification.

Files saved by any version have the same tensor names, and these names are written. The
``state_dict()`` of version 5 has different names for the query and value biases; these names are
read too.
"""

from collections.abc import Mapping
from typing import Any

from mae_convert.families.transformers_fields import labels_as_written, without_default_labels
from mae_convert.formats.registry import PTH, SAFETENSORS
from mae_convert.layouts.layout import IMAGENET, Difference, Layout
from mae_convert.layouts.table import Repeat, Row, Table
from reference_models.configuration import VideoMAEConfig

FINAL_EPS = 1e-5
"""Epsilon of the decoder's final norm and of fc_norm, regardless of config.json."""

REST_OF_BLOCK = (
    Row(".attention.{q,k,v}.weight", ".attention.attention.{query,key,value}.weight"),
    Row(".attention.output.{weight,bias}", ".attention.output.dense.{weight,bias}"),
    Row(".mlp.fc1.{weight,bias}", ".intermediate.dense.{weight,bias}"),
    Row(".mlp.fc2.{weight,bias}", ".output.dense.{weight,bias}"),
    Row(".norm1.{weight,bias}", ".layernorm_before.{weight,bias}"),
    Row(".norm2.{weight,bias}", ".layernorm_after.{weight,bias}"),
)
ON_DISK = (Row(".attention.{q,v}.bias", ".attention.attention.{q_bias,v_bias}"), *REST_OF_BLOCK)
IN_MEMORY = (
    Row(".attention.{q,v}.bias", ".attention.attention.{query,value}.bias"),
    *REST_OF_BLOCK,
)

Rows = tuple[Row | Repeat, ...]


def _encoder(prefix: str, block: tuple[Row, ...]) -> Rows:
    return (
        Row(
            "encoder.patch_embedding.{weight,bias}",
            prefix + "embeddings.patch_embeddings.projection.{weight,bias}",
        ),
        Repeat("encoder.blocks.#", f"{prefix}encoder.layer.#", block),
        Row("encoder.norm.{weight,bias}", prefix + "layernorm.{weight,bias}"),
    )


def _tables(name: str, block: tuple[Row, ...]) -> tuple[Table, ...]:
    """Return the mapping tables of a naming variant, for pre-training, encoder and classifiers.

    Args:
        name: the name of the variant.
        block: the mapping rows of a transformer block.
    """
    encoder = _encoder("videomae.", block)
    decoder = (
        Row("decoder.embed.weight", "encoder_to_decoder.weight"),
        Repeat("decoder.blocks.#", "decoder.decoder_layers.#", block),
        Row("decoder.norm.{weight,bias}", "decoder.norm.{weight,bias}"),
        Row("decoder.prediction.{weight,bias}", "decoder.head.{weight,bias}"),
    )
    head = (
        Row("head.norm.{weight,bias}", "fc_norm.{weight,bias}"),
        Row("head.{weight,bias}", "classifier.{weight,bias}"),
    )
    mask_token = Row("decoder.mask_token", "mask_token")
    return (
        Table(name, ("pretrain",), (mask_token, *encoder, *decoder)),
        Table(name, ("encoder",), _encoder("", block)),
        Table(name, ("classify", "encoder"), (*encoder, *head)),
    )


ARCHITECTURES = {
    "pretrain": "VideoMAEForPreTraining",
    "encoder": "VideoMAEModel",
    "classify": "VideoMAEForVideoClassification",
}
FIELDS = (
    "attention_probs_dropout_prob",
    "decoder_hidden_size",
    "decoder_intermediate_size",
    "decoder_num_attention_heads",
    "decoder_num_hidden_layers",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "image_size",
    "initializer_range",
    "intermediate_size",
    "layer_norm_eps",
    "norm_pix_loss",
    "num_attention_heads",
    "num_channels",
    "num_frames",
    "num_hidden_layers",
    "patch_size",
    "qkv_bias",
    "tubelet_size",
    "use_mean_pooling",
    # Fields of this project, which transformers ignores.
    "final_layer_norm_eps",
    "mask_ratio",
)


def write_config(complete: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config.json`` as transformers writes it for the task's class.

    Version 4 reads ``qkv_bias``, and version 5 reads ``qv_bias``; both are written.

    Args:
        complete: the stored configuration; see `mae_convert.layouts.layout.Layout.write_config`.
    """
    task = complete["task"]
    written = {name: complete[name] for name in FIELDS}
    written |= {
        "architectures": [ARCHITECTURES[task]],
        "model_type": "videomae",
        "qv_bias": complete["qkv_bias"],
    }
    if task == "pretrain":
        written["use_mean_pooling"] = False  # if True, the encoder has no final norm
    if task == "classify":
        written |= labels_as_written(complete)
    return dict(sorted(written.items()))


def read_config(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ``config.json``, without default labels such as ``LABEL_0``."""
    fields = without_default_labels(stored)
    if "qv_bias" in fields:  # the name of qkv_bias in version 5
        fields["qkv_bias"] = fields["qv_bias"]
    return fields


def refusal(config: VideoMAEConfig, task: str) -> str | None:
    """Return why the transformers classes do not support a model for a task; None if they do."""
    if config.layer_scale_init_value:
        return (
            "transformers' VideoMAE has no layer scale (gamma_1, gamma_2); convert the model to"
            " the layout original or keras"
        )
    if task == "pretrain" and config.decoder_eps != config.layer_norm_eps:
        return (
            "transformers has one layer norm epsilon for encoder and decoder, but this model has "
            f"{config.layer_norm_eps} and {config.decoder_eps}; convert the model to the layout"
            " original or keras"
        )
    height, width = config.image_hw
    if height != width or config.patch_hw[0] != config.patch_hw[1]:
        return (
            f"transformers' VideoMAE supports only square images, but this model takes"
            f" {height}x{width};"
            " convert the model to the layout original or keras"
        )
    return None


def differences(config: VideoMAEConfig, task: str) -> tuple[Difference, ...]:
    """Return a `Difference` if transformers' final norm has another epsilon than the model.

    The result is empty if the epsilons are equal.
    """
    norm, eps = {
        "pretrain": ("the decoder's final norm (decoder.norm)", config.decoder_norm_eps),
        "classify": ("the norm before the head (fc_norm)", config.fc_norm_eps),
    }.get(task, ("", FINAL_EPS))
    if eps == FINAL_EPS or (task == "classify" and not config.use_mean_pooling):
        return ()
    sentence = (
        f"transformers uses the epsilon {FINAL_EPS:g} in {norm}, regardless of config.json,"
        f" but this model has {eps:g}, so transformers computes slightly different outputs than"
        " the authors' code"
    )
    return (Difference("decoder.norm" if task == "pretrain" else "head.norm", sentence),)


TRANSFORMERS = Layout(
    name="transformers",
    family="videomae",
    title="Hugging Face transformers, PyTorch (VideoMAE classes)",
    tables=_tables("videomae, transformers", ON_DISK)
    + _tables("videomae, transformers, in-memory names of version 5", IN_MEMORY),
    containers=(SAFETENSORS, PTH),
    weights_name="model.safetensors",
    conventions={
        # Defaults of the classes for fields that config.json lacks.
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "image_size": 224,
        "num_frames": 16,
        "mask_ratio": 0.9,
        "norm_pix_loss": True,
        **IMAGENET,
    },
    class_defaults=("layer_norm_eps", "hidden_act", "image_size", "num_frames", "norm_pix_loss"),
    read_config=read_config,
    write_config=write_config,
    refusal=refusal,
    differences=differences,
)
