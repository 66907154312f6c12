"""Hugging Face transformers, PyTorch: ViTMAEModel, ViTMAEForPreTraining, ViTForImageClassification.

Three naming variants are read: the names of version 4, which are also written because every version
loads them; the names in files saved by version 5, in which the decoder's blocks are
``decoder.decoder_encoder.layer`` (version 4 does not load tensors with these names and initializes
the blocks at random); and the names in the ``state_dict()`` of version 5.
"""

from collections.abc import Mapping
from typing import Any

from mae_convert.errors import Option, Text
from mae_convert.families.mae.model_classes import PYTORCH_CLASSES
from mae_convert.families.transformers_fields import labels_as_written, without_default_labels
from mae_convert.formats.registry import PTH, SAFETENSORS
from mae_convert.layouts.layout import IMAGENET, Layout
from mae_convert.layouts.table import Repeat, Row, Table
from reference_models.configuration import ViTMAEConfig

DISK_BLOCK = (
    Row(
        ".attention.{q,k,v}.{weight,bias}",
        ".attention.attention.{query,key,value}.{weight,bias}",
    ),
    Row(".attention.output.{weight,bias}", ".attention.output.dense.{weight,bias}"),
    Row(".mlp.fc1.{weight,bias}", ".intermediate.dense.{weight,bias}"),
    Row(".mlp.fc2.{weight,bias}", ".output.dense.{weight,bias}"),
    Row(".norm1.{weight,bias}", ".layernorm_before.{weight,bias}"),
    Row(".norm2.{weight,bias}", ".layernorm_after.{weight,bias}"),
)
MEMORY_BLOCK = (
    Row(
        ".attention.{q,k,v,output}.{weight,bias}",
        ".attention.{q_proj,k_proj,v_proj,o_proj}.{weight,bias}",
    ),
    Row(".mlp.{fc1,fc2}.{weight,bias}", ".mlp.{fc1,fc2}.{weight,bias}"),
    Row(".norm1.{weight,bias}", ".layernorm_before.{weight,bias}"),
    Row(".norm2.{weight,bias}", ".layernorm_after.{weight,bias}"),
)

Rows = tuple[Row | Repeat, ...]


def _encoder(prefix: str, blocks: str, block: tuple[Row, ...]) -> Rows:
    return (
        Row("encoder.cls_token", f"{prefix}embeddings.cls_token"),
        Row("encoder.position_embedding", f"{prefix}embeddings.position_embeddings"),
        Row(
            "encoder.patch_embedding.{weight,bias}",
            prefix + "embeddings.patch_embeddings.projection.{weight,bias}",
        ),
        Repeat("encoder.blocks.#", f"{prefix}{blocks}.#", block),
        Row("encoder.norm.{weight,bias}", prefix + "layernorm.{weight,bias}"),
    )


def _decoder(blocks: str, block: tuple[Row, ...]) -> Rows:
    return (
        Row("decoder.mask_token", "decoder.mask_token"),
        Row("decoder.position_embedding", "decoder.decoder_pos_embed"),
        Row("decoder.embed.{weight,bias}", "decoder.decoder_embed.{weight,bias}"),
        Repeat("decoder.blocks.#", f"decoder.{blocks}.#", block),
        Row("decoder.norm.{weight,bias}", "decoder.decoder_norm.{weight,bias}"),
        Row("decoder.prediction.{weight,bias}", "decoder.decoder_pred.{weight,bias}"),
    )


def _naming_variant(
    version: str, encoder_blocks: str, decoder_blocks: str, block: tuple[Row, ...]
) -> tuple[Table, ...]:
    """Return the mapping tables of one naming variant.

    The tables are for the pre-training model, the encoder and the classifier.

    Args:
        version: a phrase that names the variant.
        encoder_blocks: the prefix of the encoder's blocks.
        decoder_blocks: the prefix of the decoder's blocks.
        block: the mapping rows of a block.
    """
    encoder = _encoder("vit.", encoder_blocks, block)
    head = Row("head.{weight,bias}", "classifier.{weight,bias}")
    name = f"transformers, {version}"
    return (
        Table(name, ("pretrain",), (*encoder, *_decoder(decoder_blocks, block))),
        Table(name, ("encoder",), _encoder("", encoder_blocks, block)),
        Table(name, ("classify", "encoder"), (*encoder, head)),
    )


VERSION_4 = _naming_variant("names of version 4", "encoder.layer", "decoder_layers", DISK_BLOCK)
VERSION_5_SAVED = _naming_variant(
    "names saved by version 5", "encoder.layer", "decoder_encoder.layer", DISK_BLOCK
)[:1]
VERSION_5_MEMORY = _naming_variant(
    "in-memory names of version 5", "layers", "decoder_layers", MEMORY_BLOCK
)


SHARED_FIELDS = (
    "attention_probs_dropout_prob",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "image_size",
    "initializer_range",
    "intermediate_size",
    "layer_norm_eps",
    "num_attention_heads",
    "num_channels",
    "num_hidden_layers",
    "patch_size",
    "qkv_bias",
)
MAE_FIELDS = (
    "decoder_hidden_size",
    "decoder_intermediate_size",
    "decoder_num_attention_heads",
    "decoder_num_hidden_layers",
    "mask_ratio",
    "norm_pix_loss",
)


def write_config(complete: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config.json`` as transformers writes it for the task's class.

    Args:
        complete: the stored configuration; see `mae_convert.layouts.layout.Layout.write_config`.
    """
    task = complete["task"]
    names = SHARED_FIELDS if task == "classify" else SHARED_FIELDS + MAE_FIELDS
    written = {name: complete[name] for name in names}
    if "key_bias" in complete:  # transformers ignores this field; a conversion back reads it
        written["key_bias"] = complete["key_bias"]
    written["architectures"] = [PYTORCH_CLASSES[task]]
    written["model_type"] = "vit" if task == "classify" else "vit_mae"
    if task == "classify":
        written |= labels_as_written(complete)
    return dict(sorted(written.items()))


def refusal(config: ViTMAEConfig, task: str) -> Text | None:
    """Return why the transformers classes do not support a model for a task; None if they do."""
    height, width = config.image_hw
    if task == "pretrain" and (height != width or config.patch_hw[0] != config.patch_hw[1]):
        return (
            "the transformers classes for pre-training support only square images and patches, but "
            f"this model has images of {height}x{width} and patches of "
            f"{config.patch_hw[0]}x{config.patch_hw[1]}; "
            "convert it to keras, or pass ",
            Option("task", "encoder"),
        )
    if task == "pretrain" and config.decoder_eps != config.layer_norm_eps:
        return (
            "transformers has one layer norm epsilon for encoder and decoder, and this model has "
            f"{config.layer_norm_eps} and {config.decoder_eps}; convert it to keras, "
            "or pass ",
            Option("task", "encoder"),
        )
    if task == "classify" and config.global_pool == "avg":
        return (
            "the transformers classes for classification read the class token and do not support a "
            "globally pooled model (global_pool avg); convert it to timm or keras"
        )
    return None


CONVENTIONS = {
    # Defaults of the classes for fields that config.json lacks.
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "mask_ratio": 0.75,
    "norm_pix_loss": False,
    **IMAGENET,
}

TRANSFORMERS = Layout(
    name="transformers",
    family="mae",
    title="Hugging Face transformers, PyTorch (ViTMAE and ViT classes)",
    tables=VERSION_4 + VERSION_5_SAVED + VERSION_5_MEMORY,
    containers=(SAFETENSORS, PTH),
    weights_name="model.safetensors",
    conventions=CONVENTIONS,
    class_defaults=("layer_norm_eps", "hidden_act"),
    read_config=without_default_labels,
    write_config=write_config,
    refusal=refusal,
)
