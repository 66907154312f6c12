"""The fields of Keras's ``config.json``, in a ``.keras`` archive or in a preset of KerasHub."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from mae_convert.errors import ConfigurationError
from mae_convert.files.messages import shown
from mae_convert.layouts.fields import HARMLESS, READ, Fields, Only, Treatment, unknown_fields

FLOATS = ("bfloat16", "float16", "float32", "float64")
OBJECT: Mapping[str, Treatment] = {
    **dict.fromkeys(("build_config", "compile_config", "class_name", "module"), HARMLESS),
    "registered_name": READ,
}
OF_LAYER: Mapping[str, Treatment] = dict.fromkeys(("name", "trainable"), HARMLESS)
OURS: Mapping[str, Treatment] = {
    **OF_LAYER,
    "dtype": READ,  # see `_policy`
}
NOT_HERE = "no supported layout can hold such a model; run it with KerasHub"
BACKBONE: Mapping[str, Treatment] = {
    **OF_LAYER,
    **dict.fromkeys(
        (
            "attention_dropout",
            "dropout_rate",
            "dtype",
            "hidden_dim",
            "image_shape",
            "layer_norm_epsilon",
            "mlp_dim",
            "num_heads",
            "num_layers",
            "patch_size",
        ),
        READ,
    ),
    "use_class_token": Only((None, True), NOT_HERE),
    "use_mha_bias": READ,  # the tensors tell it, and the next
    "use_mlp_bias": READ,
    "use_patch_bias": READ,
    "data_format": Only((None, "channels_last"), "only channels_last is supported"),
}
TASK: Mapping[str, Treatment] = {
    **OF_LAYER,
    **dict.fromkeys(("dtype", "num_classes", "pooling"), READ),
    "activation": Only(
        (None, "linear"),
        "the classifier's outputs are then not logits; create it with activation=None",
    ),
    "dropout": HARMLESS,
    "intermediate_dim": Only((None,), NOT_HERE),
    "preprocessor": HARMLESS,  # images are prepared outside the model
}


def unknown_in_config(stated: Any, configuration: type[Any]) -> tuple[str, ...]:
    """Return the fields of Keras's ``config.json`` of which nobody here knows what Keras does.

    Args:
        stated: ``config.json``.
        configuration: the class of the configurations of this project's models.

    Raises:
        ConfigurationError: a field makes the model another one than a layout here can hold.
    """
    if not isinstance(stated, Mapping):
        return ()
    table = {**OBJECT, "config": Fields(_table(stated, configuration))}
    unknown = list(unknown_fields(stated, table, "Keras's config.json"))
    config = stated.get("config")
    policies = [config.get("dtype")] if isinstance(config, Mapping) else []
    if isinstance(config, Mapping) and isinstance(config.get("backbone"), Mapping):
        inner = config["backbone"].get("config")
        policies += [inner.get("dtype")] if isinstance(inner, Mapping) else []
    for policy in policies:
        name = _policy(policy)
        if name not in (None, *FLOATS):
            unknown.append(f"dtype {shown(name)}")
    return tuple(unknown)


def _table(stated: Mapping[str, Any], configuration: type[Any]) -> Mapping[str, Treatment]:
    """Return the table of the class's own fields."""
    if not str(stated.get("registered_name")).startswith("keras_hub>"):
        return {**OURS, "config": Fields({f.name: READ for f in fields(configuration)})}
    config = stated.get("config")
    if isinstance(config, Mapping) and "backbone" in config:
        backbone = {**OBJECT, "config": Fields(BACKBONE)}
        return {**TASK, "backbone": Fields(backbone)}
    return BACKBONE


def _policy(policy: Any) -> str | None:
    """Return the name of a dtype policy.

    Raises:
        ConfigurationError: layers have policies of their own, or quantized weights.
    """
    kind: Any = "DTypePolicy"
    name = policy
    if isinstance(policy, Mapping):
        kind, inner = policy.get("class_name"), policy.get("config")
        name = inner.get("name") if isinstance(inner, Mapping) else None
    if name is None and kind == "DTypePolicy":
        return None
    if kind not in ("DTypePolicy", "FloatDTypePolicy") or not isinstance(name, str):
        raise ConfigurationError(
            f"Keras's config.json says dtype is a {shown(kind)} ({shown(name)}), with which Keras"
            " quantizes weights or computes layers in other dtypes",
            hint="load the model, save it with a single float dtype, and use that file",
        )
    if name.partition("_")[0] not in (*FLOATS, "mixed"):
        raise ConfigurationError(
            f"Keras's config.json says dtype is {shown(name)}, with which Keras quantizes weights",
            hint="load and save the model before quantization",
        )
    return name
