"""timm's ``vit_*`` models: tensor names as in facebookresearch/mae, and timm's ``config.json``."""

from collections.abc import Mapping
from typing import Any

from mae_convert.errors import Option, Text
from mae_convert.families.mae.layouts.facebook import ENCODER_AND_CLASSIFIER
from mae_convert.families.mae.layouts.timm_fields import (
    ACTIVATIONS,
    SIZES,
    activation,
    data_config,
    preprocessing,
    sizes_named,
)
from mae_convert.formats.registry import PTH, SAFETENSORS
from mae_convert.layouts.layout import IMAGENET, Layout
from mae_convert.layouts.table import Table
from reference_models.configuration import ViTMAEConfig

ACTIVATION_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())} | {
    "gelu_pytorch_tanh": "gelu_tanh",
    "swish": "silu",
}
EPSILON = 1e-6  # the epsilon of timm's layer norm, for which its ViT has no argument


ARGUMENTS = {
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "patch_size": "patch_size",
    "num_channels": "in_chans",
    "qkv_bias": "qkv_bias",
}
"""The names of timm's model arguments by the names of the corresponding configuration fields."""


def read_config(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of timm's ``config.json`` as configuration fields.

    Raises:
        ConfigurationError: the architecture or the activation is not supported.
    """
    if "architecture" not in stored:
        return dict(stored)
    arguments = stored.get("model_args") or {}
    # timm before version 0.9 wrote all fields in one flat mapping.
    pretrained = (stored.get("pretrained_cfg") or {}) if "pretrained_cfg" in stored else stored
    inputs = pretrained.get("input_size")
    inputs = list(inputs) if isinstance(inputs, list | tuple) else []
    values = {
        # The number of heads of an architecture applies only to its width.
        **sizes_named(stored["architecture"]),
        **{ours: arguments[theirs] for ours, theirs in ARGUMENTS.items() if theirs in arguments},
        "image_size": arguments.get("img_size") or inputs[1:],
        "hidden_act": activation(arguments.get("act_layer")),
        "layer_norm_eps": EPSILON,
        "mask_ratio": stored.get("mask_ratio"),
        "image_mean": pretrained.get("mean"),
        "image_std": pretrained.get("std"),
    }
    if values["image_size"]:
        values["preprocessor"] = preprocessing(pretrained, values["image_size"]) or None
    if stored.get("num_classes"):
        # A pooled model without fc_norm has the same tensors as a class-token model.
        values["global_pool"] = arguments.get("global_pool", stored.get("global_pool"))
        values["fc_norm"] = arguments.get("fc_norm")
    if isinstance(names := stored.get("label_names"), list):
        values["id2label"] = dict(enumerate(names))
    return {name: value for name, value in values.items() if value is not None and value != []}


def write_config(complete: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``config.json`` for ``timm.create_model("local-dir:...")``.

    Args:
        complete: the configuration with all fields; see
            `mae_convert.layouts.layout.Layout.write_config`.
    """
    config = ViTMAEConfig.from_dict(complete)
    height, width = config.image_hw
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    size = next((name for name, known_sizes in SIZES.items() if known_sizes == sizes), "base")
    classifies = complete["task"] == "classify"
    labels = config.num_labels if classifies else 0
    named = complete.get("id2label")
    return {
        **({"label_names": list(named.values())} if named else {}),
        "architecture": f"vit_{size}_patch{14 if size == 'huge' else 16}_224",
        "num_classes": labels,
        "num_features": config.hidden_size,
        # timm ignores these fields, because it never masks patches; a conversion back needs them.
        **({"key_bias": complete["key_bias"]} if "key_bias" in complete else {}),
        "mask_ratio": config.mask_ratio,
        "global_pool": config.global_pool if classifies else "token",
        "model_args": {
            "img_size": [height, width],
            "patch_size": list(config.patch_hw),
            "in_chans": config.num_channels,
            "embed_dim": config.hidden_size,
            "depth": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "mlp_ratio": config.intermediate_size / config.hidden_size,
            "qkv_bias": config.qkv_bias,
            "act_layer": ACTIVATION_NAMES[config.hidden_act],
            # timm ignores the field of this name above when it creates the model.
            "global_pool": config.global_pool if classifies else "token",
            **({"fc_norm": False} if classifies and config.fc_norm is False else {}),
        },
        "pretrained_cfg": {
            "input_size": [config.num_channels, height, width],
            "fixed_input_size": True,
            **data_config(complete.get("preprocessor") or {}, (height, width)),
            "mean": complete["image_mean"],
            "std": complete["image_std"],
            "num_classes": labels,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def refusal(config: ViTMAEConfig, task: str) -> Text | None:
    """Return why timm does not support a model for a task; None if it does."""
    if task == "pretrain":
        return "timm has no decoder; convert the encoder with ", Option("task", "encoder")
    if config.layer_norm_eps != EPSILON:
        return (
            f"timm's ViT has a layer norm epsilon of {EPSILON}, but this model has"
            f" {config.layer_norm_eps}; transformers and keras support it"
        )
    return None


TIMM = Layout(
    name="timm",
    family="mae",
    title="timm's vit_* models (PyTorch), as on the Hub",
    tables=(Table("timm", ("encoder", "classify"), ENCODER_AND_CLASSIFIER.rows),),
    containers=(SAFETENSORS, PTH),
    weights_name="model.safetensors",
    also_file=True,
    conventions={"layer_norm_eps": EPSILON, "hidden_act": "gelu", "mask_ratio": 0.75, **IMAGENET},
    fixed=("layer_norm_eps", "hidden_act"),
    pooling_in_names=False,
    read_config=read_config,
    write_config=write_config,
    owns_config=lambda stored: "architecture" in stored,
    refusal=refusal,
)
