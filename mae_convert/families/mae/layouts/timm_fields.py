"""The fields of timm's ``config.json``: architecture names, model arguments and preprocessing.

timm creates a model with the arguments that the function named by ``architecture`` sets;
``model_args`` override them.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from mae_convert.errors import ConfigurationError, LayoutError
from mae_convert.layouts.config_fields import (
    HARMLESS,
    NOTHING,
    READ,
    Fields,
    Only,
    Treatment,
    unknown_fields,
)
from mae_convert.text import shown

# Architectures by width, depth and heads; for other sizes, the base architecture is written with
# arguments.
SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12),
         "large": (1024, 24, 16), "huge": (1280, 32, 16)}  # fmt: skip
PLAIN = re.compile(
    r"vit_(?P<size>tiny|small|base|large|huge)_patch(?P<patch>\d+)_\d+(_(in21k|sam|dino))?(\.\w+)?"
)
"""Architectures for which timm sets only width, depth, heads and patch size.

A tag after a dot identifies the weights.
"""

# The names of activations in transformers, by their names in timm.
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "quick_gelu": "quick_gelu",
               "relu": "relu", "silu": "silu", "swish": "silu"}  # fmt: skip
INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
"""Pillow's numbers of the resampling filters, by the names of the filters in timm."""

NO_PLACE = "no supported layout can represent a model with this value; run it with timm"
OFF = Only(NOTHING, NO_PLACE)
BIAS = Only((None, True, 1), NO_PLACE)
ARGUMENTS: Mapping[str, Treatment] = {
    # Fields that also follow from the tensors' shapes and are compared with them.
    **dict.fromkeys(
        (
            "act_layer",
            "depth",
            "embed_dim",
            "fc_norm",
            "global_pool",
            "img_size",
            "in_chans",
            "mlp_ratio",
            "no_embed_class",
            "num_classes",
            "num_heads",
            "patch_size",
            "qkv_bias",
        ),
        READ,
    ),
    # Options that affect only training or the initialization before the weights are loaded.
    **dict.fromkeys(
        (
            "attn_drop_rate",
            "drop_path_rate",
            "drop_rate",
            "fix_init",
            "patch_drop_rate",
            "pos_drop_rate",
            "proj_drop_rate",
            "weight_init",
            "dynamic_img_size",
            "dynamic_img_pad",
            "strict_img_size",
        ),
        HARMLESS,
    ),
    "class_token": Only((None, True, 1), NO_PLACE),
    "attn_layer": Only((None, "", "attn"), NO_PLACE),
    "block_fn": OFF,
    "embed_layer": OFF,
    "embed_norm_layer": OFF,
    "final_norm": BIAS,
    "init_values": OFF,
    "mlp_layer": OFF,
    "norm_layer": Only(
        NOTHING,
        "only timm's own layer norm with an epsilon of 1e-6 is supported; run the model with timm",
    ),
    "pool_include_prefix": OFF,
    "pos_embed": Only((None, "learn"), NO_PLACE),
    "pre_norm": OFF,
    "proj_bias": BIAS,
    "qk_norm": OFF,
    "reg_tokens": OFF,
    "scale_attn_norm": OFF,
    "scale_mlp_norm": OFF,
    "use_naflex": OFF,
}
DATA: Mapping[str, Treatment] = {
    **dict.fromkeys(
        (
            "crop_mode",
            "crop_pct",
            "input_size",
            "interpolation",
            "label_names",
            "mean",
            "num_classes",
            "std",
        ),
        READ,
    ),
    **dict.fromkeys(
        (
            "architecture",
            "classifier",
            "custom_load",
            "description",
            "file",
            "first_conv",
            "fixed_input_size",
            "hf_hub_filename",
            "hf_hub_id",
            "label_descriptions",
            "license",
            "min_input_size",
            "notes",
            "origin_url",
            "paper_ids",
            "paper_name",
            "pool_size",
            "source",
            "tag",
            "test_crop_pct",
            "test_input_size",
            "test_pool_size",
            "url",
        ),
        HARMLESS,
    ),
    "label_offset": Only(
        NOTHING,
        "timm then drops the first classes of the head; save the model with timm's save_for_hf "
        "and use that directory",
    ),
}
FIELDS: Mapping[str, Treatment] = {
    **dict.fromkeys(("architecture", "global_pool", "label_names", "num_classes"), READ),
    **dict.fromkeys(("key_bias", "mask_ratio"), READ),  # fields of this project, which timm ignores
    **dict.fromkeys(
        ("label_descriptions", "num_features", "timm_version", "library_name"), HARMLESS
    ),
    "model_args": Fields(ARGUMENTS),
    "pretrained_cfg": Fields(DATA),
}
LEGACY = {**DATA, **FIELDS, "labels": READ}
"""The fields of the flat mapping that timm wrote before version 0.9."""


def unknown_in_config(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fields of ``config.json`` whose effect on timm's outputs is unknown.

    Raises:
        ConfigurationError: a field changes the model in a way that no supported layout can
            represent.
    """
    table = FIELDS if "pretrained_cfg" in config else LEGACY
    return unknown_fields(config, table, "config.json")


def sizes_named(architecture: Any) -> dict[str, int]:
    """Return the configuration fields that an architecture's name implies.

    Raises:
        ConfigurationError: the architecture differs from a plain ViT in its layers, epsilon or
            activation, and not only in its sizes.
    """
    plain = PLAIN.fullmatch(str(architecture))
    if plain is None:
        raise ConfigurationError(
            f"architecture in config.json is {shown(architecture)}, which is not supported, "
            "because it differs from a plain vit_* model in more than its sizes (in its layers, "
            "epsilon or activation)",
            hint="if the model is a plain ViT, specify a plain architecture in config.json, such as"
            " vit_base_patch16_224, and the sizes of the model in model_args",
        )
    width, depth, heads = SIZES[plain["size"]]
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "patch_size": int(plain["patch"]),
    }


def activation(name: Any) -> str:
    """Return the canonical name of a timm activation.

    Raises:
        ConfigurationError: the activation is not supported.
    """
    known_activation = ACTIVATIONS.get("gelu" if name is None else str(name).lower())
    if known_activation is None:
        raise ConfigurationError(
            f"model_args.act_layer in config.json is {shown(name)}, which is not supported",
            hint=f"supported are {', '.join(ACTIVATIONS)}",
        )
    return known_activation


def preprocessing(data: Mapping[str, Any], image_size: Any) -> dict[str, Any]:
    """Return timm's preprocessing in evaluation as fields of ``preprocessor_config.json``.

    Args:
        data: ``pretrained_cfg``.
        image_size: height and width of the model's input.

    Returns:
        The fields; empty if ``pretrained_cfg`` does not specify them.

    Raises:
        ConfigurationError: a value is not supported.
    """
    sides = list(image_size) if isinstance(image_size, list | tuple) else [image_size] * 2
    if len(sides) != 2 or not {"crop_pct", "crop_mode", "interpolation"} & data.keys():
        return {}
    height, width = sides
    mode, share = data.get("crop_mode") or "center", data.get("crop_pct") or 0.875
    numbered = INTERPOLATIONS.get(str(data.get("interpolation") or "bicubic"))
    is_share = type(share) in (int, float) and 0.01 < share <= 4
    if numbered is None or mode not in ("center", "squash") or not is_share:
        raise ConfigurationError(
            "pretrained_cfg in config.json has interpolation "
            f"{shown(data.get('interpolation'))}, crop_mode {shown(mode)} and crop_pct "
            f"{shown(share)}, which is not supported",
            hint=f"the supported values are {', '.join(INTERPOLATIONS)} for interpolation; center "
            "and squash for crop_mode; and for crop_pct, numbers above 0.01 and up to 4",
        )
    scaled = math.floor(height / share), math.floor(width / share)
    size = {"height": scaled[0], "width": scaled[1]}
    if mode == "center":
        if height != width:
            raise ConfigurationError(
                "crop_mode in config.json is center, which is not supported for images that are "
                f"not square ({height}x{width} pixels)",
                hint="write crop_mode squash",
            )
        size = {"shortest_edge": scaled[0]}
    cropped = mode == "center" or scaled != (height, width)
    return {
        "do_resize": True,
        "size": size,
        "resample": numbered,
        "do_center_crop": cropped,
        **({"crop_size": {"height": height, "width": width}} if cropped else {}),
    }


def data_config(config: Mapping[str, Any], image_hw: tuple[int, int]) -> dict[str, Any]:
    """Return the preprocessing of images as fields of timm's ``pretrained_cfg``.

    Args:
        config: the fields of ``preprocessor_config.json``; empty if they are not specified.
        image_hw: height and width of the model's input.

    Raises:
        LayoutError: timm's fields cannot represent the preprocessing.
    """
    height, width = image_hw
    rescale = config.get("rescale_factor")
    scaled = config.get("do_rescale") is not False and (
        rescale is None or math.isclose(rescale, 1 / 255)
    )
    if not scaled or config.get("do_normalize") is False:
        raise LayoutError(
            "cannot write timm: timm always divides pixels by 255 and normalizes them, and the "
            "source's preprocessor_config.json specifies otherwise (do_rescale, rescale_factor, "
            "do_normalize)",
            hint="correct preprocessor_config.json, or convert to transformers or keras",
        )
    names = {number: name for name, number in INTERPOLATIONS.items()}
    number = config.get("resample", 2 if config else 3)
    settings = {"interpolation": names.get(number), "crop_mode": "squash", "crop_pct": 1.0}
    size, edge = config.get("size") or {"height": height, "width": width}, None
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        size = [size.get("height"), size.get("width")]
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    if edge is not None:
        settings["crop_mode"], sides = "center", [edge, edge]
    if config.get("do_resize") is False:
        return {**settings, "crop_mode": "squash"}  # no resizing
    settings["crop_pct"] = _share(height, sides[0]) if sides else None
    stored = (
        preprocessing(settings, image_hw)
        if settings["crop_pct"] and settings["interpolation"]
        else {}
    )
    cropped = bool(config.get("do_center_crop"))
    inner = config.get("crop_size") if cropped else None
    inner = inner if isinstance(inner, Mapping) else {"height": inner, "width": inner}
    as_model = not cropped or (inner.get("height"), inner.get("width")) == image_hw
    sides = sides if len(sides) == 2 else [None, None]
    ours = {"height": sides[0], "width": sides[1]} if edge is None else {"shortest_edge": edge}
    if not stored or stored["size"] != ours or not as_model or stored["do_center_crop"] > cropped:
        raise LayoutError(
            "cannot write timm: timm's config.json cannot represent how the source's "
            f"preprocessor_config.json resizes and crops images to {height}x{width} (size"
            f" {shown(config.get('size'))}, crop_size {shown(config.get('crop_size'))}, resample"
            f" {shown(number)})",
            hint="correct preprocessor_config.json, or convert to transformers or keras",
        )
    return settings


def _share(inner: int, outer: Any) -> float | None:
    """Return the ``crop_pct`` with which timm resizes to `outer` and crops to `inner`.

    The result is None if no value of ``crop_pct`` gives exactly these sizes.
    """
    if type(outer) is not int or outer < 1:
        return None
    exact = inner / outer
    shares = (round(exact, 3), exact, math.nextafter(exact, 0.0))
    return next((x for x in shares if x and math.floor(inner / x) == outer), None)
