"""The common parts of all families' ``keras`` layouts: configurations and mapping rows.

Keras's ``config.json`` is in a ``.keras`` archive or in a preset of KerasHub. In an HDF5 file of
Keras, the name of a dataset consists of the path of attributes that leads to its layer, and the
index of the variable in the order of creation: 0 is the kernel of a dense layer and 1 its bias; for
a norm, 0 is gamma and 1 is beta.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from mae_convert.errors import ConfigurationError
from mae_convert.layouts.config_fields import (
    HARMLESS,
    READ,
    Fields,
    Only,
    Treatment,
    unknown_fields,
)
from mae_convert.layouts.table import Drop, Row
from mae_convert.layouts.transforms import TRANSPOSE, Permute
from mae_convert.text import shown

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
NOT_HERE = "no supported layout can represent a model with this value; run it with KerasHub"
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
    "use_mha_bias": READ,  # this field and the next field follow from the tensors
    "use_mlp_bias": READ,
    "use_patch_bias": READ,
    "data_format": Only((None, "channels_last"), "only channels_last is supported"),
}
TASK: Mapping[str, Treatment] = {
    **OF_LAYER,
    **dict.fromkeys(("dtype", "num_classes", "pooling"), READ),
    "activation": Only(
        (None, "linear"),
        "the outputs are then not logits; create the classifier with activation=None",
    ),
    "dropout": HARMLESS,
    "intermediate_dim": Only((None,), NOT_HERE),
    "preprocessor": HARMLESS,  # images are preprocessed outside the model
}


def unknown_in_config(settings: Any, configuration: type[Any]) -> tuple[str, ...]:
    """Return the fields of Keras's ``config.json`` whose effect on the model's outputs is unknown.

    Args:
        settings: the content of ``config.json``.
        configuration: the configuration class of the model family.

    Raises:
        ConfigurationError: no layout supports models with this configuration.
    """
    if not isinstance(settings, Mapping):
        return ()
    table = {**OBJECT, "config": Fields(_table(settings, configuration))}
    unknown = list(unknown_fields(settings, table, "Keras's config.json"))
    config = settings.get("config")
    policies = [config.get("dtype")] if isinstance(config, Mapping) else []
    if isinstance(config, Mapping) and isinstance(config.get("backbone"), Mapping):
        inner = config["backbone"].get("config")
        policies += [inner.get("dtype")] if isinstance(inner, Mapping) else []
    for policy in policies:
        name = _policy(policy)
        if name not in (None, *FLOATS):
            unknown.append(f"dtype {shown(name)}")
    return tuple(unknown)


def _table(settings: Mapping[str, Any], configuration: type[Any]) -> Mapping[str, Treatment]:
    """Return how each field in the item "config" of Keras's ``config.json`` is treated.

    For example, a field is read, or its effect is reported as unknown.

    Args:
        settings: the content of ``config.json``.
        configuration: the configuration class of the model family.
    """
    if not str(settings.get("registered_name")).startswith("keras_hub>"):
        return {**OURS, "config": Fields({f.name: READ for f in fields(configuration)})}
    config = settings.get("config")
    if isinstance(config, Mapping) and "backbone" in config:
        backbone = {**OBJECT, "config": Fields(BACKBONE)}
        return {**TASK, "backbone": Fields(backbone)}
    return BACKBONE


def _policy(policy: Any) -> str | None:
    """Return the name of a dtype policy, or None if no policy is specified.

    Raises:
        ConfigurationError: layers have separate dtype policies or quantized weights.
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
            f"dtype in Keras's config.json is a {shown(kind)} ({shown(name)}), with which Keras"
            " quantizes weights or computes layers in other dtypes",
            hint="load the model, save it with a single float dtype, and use that file",
        )
    if name.partition("_")[0] not in (*FLOATS, "mixed"):
        raise ConfigurationError(
            f"dtype in Keras's config.json is {shown(name)}, with which Keras quantizes weights",
            hint="save the model before it is quantized, and use that file",
        )
    return name


PACKAGE = "reference_models"
KERNEL_2D = Permute((2, 3, 1, 0))  # the axes of a convolution kernel
KERNEL_3D = Permute((2, 3, 4, 1, 0))
STATE = "the optimizer's state"
OPTIMIZER = (
    Drop("optimizer/vars/*", STATE),
    # An optimizer that contains another optimizer, as for training in mixed float16.
    Drop("optimizer/inner_optimizer/vars/*", STATE),
)


def dense(canonical: str, external: str) -> tuple[Row, Row]:
    """Return the mapping rows of a dense layer, whose kernel is the transposed weight."""
    return (
        Row(f"{canonical}.weight", f"{external}/vars/0", TRANSPOSE),
        Row(f"{canonical}.bias", f"{external}/vars/1"),
    )


def norm(canonical: str, external: str) -> Row:
    """Return the mapping row of a layer normalization."""
    return Row(canonical + ".{weight,bias}", external + "/vars/{0,1}")


BLOCK = (
    *dense(".attention.q", "/attention/query"),
    *dense(".attention.k", "/attention/key"),
    *dense(".attention.v", "/attention/value"),
    *dense(".attention.output", "/attention/projection"),
    *dense(".mlp.fc1", "/fc1"),
    *dense(".mlp.fc2", "/fc2"),
    norm(".norm1", "/norm1"),
    norm(".norm2", "/norm2"),
)


def archived_model(class_path: str, config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the ``config.json`` of a ``.keras`` file, from which Keras creates the model.

    Keras 3 writes the same content for a model that was not compiled.

    Args:
        class_path: "module:Class" of the model.
        config: the fields of its configuration.
        dtype: the dtype of the weights.
    """
    module, _, name = class_path.partition(":")
    return {
        "module": module,
        "class_name": name,
        "config": {
            "config": dict(config),
            "name": _snake_case(name),
            "dtype": {
                "module": "keras",
                "class_name": "DTypePolicy",
                "config": {"name": dtype},
                "registered_name": None,
            },
        },
        "registered_name": f"{PACKAGE}>{name}",
        "build_config": {"shapes_dict": {}},
        "compile_config": {},
    }


def _snake_case(name: str) -> str:
    """Return the default name of a layer in Keras, given the name of its class."""
    words = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


def read_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration fields in the stored configuration of a file.

    For a ``.keras`` file, these are the fields in Keras's ``config.json``, and the fields in the
    metadata that mae-convert stores with the weights (among them image mean, image std and class
    names).

    Raises:
        ConfigurationError: Keras's ``config.json`` does not describe a model of this project, or
            contradicts the metadata.
    """
    if "keras" not in config:
        return dict(config)
    theirs = archived(config["keras"], "config", "config")
    ours = {name: value for name, value in config.items() if name != "keras"}
    for name, value in theirs.items():
        if name in ours and ours[name] != value:
            raise ConfigurationError(
                f"{name} in Keras's config.json is {value}, but {ours[name]} in the metadata "
                "of the weights",
                hint="write the file again with model.save",
            )
    return {**ours, **theirs}


def archived(config: Any, *keys: str) -> Mapping[str, Any]:
    """Return the mapping at nested keys of Keras's ``config.json``.

    Raises:
        ConfigurationError: there is no mapping at these keys.
    """
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    if not isinstance(config, Mapping):
        raise ConfigurationError(
            f"Keras's config.json has no entry {'.'.join(keys)}",
            hint="write the file again with model.save",
        )
    return config
