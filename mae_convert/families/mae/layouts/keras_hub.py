"""KerasHub's ViT: ``ViTBackbone`` and ``ViTImageClassifier``, in the format of ``save_weights``.

Presets (``save_to_preset``) and ``.keras`` files are read too, with their configuration. The shapes
contain the number of heads. The name of the first block has no number.
"""

from collections.abc import Mapping
from typing import Any

from mae_convert.errors import ConfigurationError, Option, Text
from mae_convert.families.keras_layouts import OPTIMIZER, archived, dense, norm
from mae_convert.families.mae.layouts.transformers_tf import KERNEL
from mae_convert.formats.registry import KERAS_H5
from mae_convert.layouts.layout import IMAGENET, Layout
from mae_convert.layouts.table import Repeat, Row, Table
from mae_convert.layouts.transforms import SplitHeads, WithoutBatch
from reference_models.configuration import ViTMAEConfig


def _heads(canonical: str, external: str, kind: str) -> tuple[Row, Row]:
    bias = Row(f"{canonical}.bias", f"{external}/vars/1", SplitHeads("bias"))
    if kind == "output":
        bias = Row(f"{canonical}.bias", f"{external}/vars/1")
    return Row(f"{canonical}.weight", f"{external}/vars/0", SplitHeads(kind)), bias


BLOCK = (
    norm(".norm1", "/layer_norm_1"),
    norm(".norm2", "/layer_norm_2"),
    *_heads(".attention.q", "/mha/query_dense", "kernel"),
    *_heads(".attention.k", "/mha/key_dense", "kernel"),
    *_heads(".attention.v", "/mha/value_dense", "kernel"),
    *_heads(".attention.output", "/mha/output_dense", "output"),
    *dense(".mlp.fc1", "/mlp/dense_1"),
    *dense(".mlp.fc2", "/mlp/dense_2"),
)


def _backbone(prefix: str) -> tuple[Row | Repeat, ...]:
    embedding, encoder = f"{prefix}vi_t_patching_and_embedding", f"{prefix}vi_t_encoder"
    return (
        Row("encoder.cls_token", f"{embedding}/vars/0"),
        Row("encoder.patch_embedding.weight", f"{embedding}/patch_embedding/vars/0", KERNEL),
        Row("encoder.patch_embedding.bias", f"{embedding}/patch_embedding/vars/1"),
        Row("encoder.position_embedding", f"{embedding}/position_embedding/vars/0", WithoutBatch()),
        Repeat("encoder.blocks.#", f"{encoder}/encoder_layers/vi_t_encoder_block[_#]", BLOCK),
        norm("encoder.norm", f"{encoder}/layer_norm"),
    )


def read_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration fields in the configuration of a preset or a ``.keras`` file.

    Raises:
        ConfigurationError: the configuration does not belong to ``ViTBackbone`` or
            ``ViTImageClassifier``, or the pooling of the classifier is not "token".
    """
    if "keras" not in config:
        return dict(config)
    theirs = config["keras"]
    task = archived(theirs, "config")
    if "backbone" in task:
        if task.get("pooling") != "token":
            raise ConfigurationError(
                f"this classifier of KerasHub has pooling {task.get('pooling')!r}: its head reads "
                "the mean of all tokens, including the class token; this pooling is not supported",
                hint="only pooling 'token' can be read",
            )
        theirs = task["backbone"]
    backbone = archived(theirs, "config")
    shape = backbone.get("image_shape")
    values = {
        "num_attention_heads": backbone.get("num_heads"),
        "layer_norm_eps": backbone.get("layer_norm_epsilon"),
        "image_size": shape[:2] if isinstance(shape, list) else None,
        "hidden_dropout_prob": backbone.get("dropout_rate"),
        "attention_probs_dropout_prob": backbone.get("attention_dropout"),
    }
    return {name: value for name, value in values.items() if value is not None}


def refusal(config: ViTMAEConfig, task: str) -> Text | None:
    """Return why KerasHub's classes do not support a model for a task; None if they do."""
    if task == "pretrain":
        return (
            "KerasHub has no MAE decoder; convert to keras, or pass ",
            Option("task", "encoder"),
        )
    if task == "classify" and config.global_pool == "avg":
        return (
            "KerasHub's global pooling includes the class token, so KerasHub does not support the "
            "mean of the patches (global_pool avg); convert to keras or timm"
        )
    if not config.qkv_bias:
        return (
            "KerasHub's attention has biases either in all its linear layers or in none, but this "
            "model has none for q, k and v; convert to keras"
        )
    if config.hidden_act != "gelu":
        return "KerasHub's ViT supports only the exact GELU; convert to keras"
    return None


KERAS_HUB = Layout(
    name="keras-hub",
    family="mae",
    title="KerasHub's ViTBackbone and ViTImageClassifier",
    tables=(
        Table("keras-hub", ("encoder",), _backbone("layers/"), OPTIMIZER),
        Table(
            "keras-hub",
            ("classify",),
            (*_backbone("layers/vi_t_backbone/layers/"), *dense("head", "layers/dense")),
            OPTIMIZER,
        ),
    ),
    containers=(KERAS_H5,),
    conventions={"layer_norm_eps": 1e-6, "hidden_act": "gelu", "mask_ratio": 0.75, **IMAGENET},
    read_config=read_config,
    refusal=refusal,
)
