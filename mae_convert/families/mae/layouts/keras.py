"""This project's Keras 3 models: ``.weights.h5``, and the archives ``.keras`` of ``model.save``.

Keras names a dataset by the attributes that lead to its layer and numbers the layer's variables in
the order of their creation: a dense layer has its kernel at 0 and its bias at 1, a norm gamma and
beta, the embeddings class token and positions, the decoder mask token and positions.
"""

import re
from collections.abc import Mapping
from typing import Any

from mae_convert.errors import ConfigurationError
from mae_convert.families.mae.layouts.transformers_tf import KERNEL
from mae_convert.families.mae.model_classes import TENSORFLOW_CLASSES
from mae_convert.layouts.layout import IMAGENET, Layout
from mae_convert.layouts.table import Drop, Repeat, Row, Table
from mae_convert.layouts.transforms import TRANSPOSE
from reference_models.configuration import ViTMAEConfig

# The class that holds a task; a test compares them with what Keras writes for the classes.
PACKAGE = "reference_models"
MODULE = f"{PACKAGE}.keras.mae"


STATE = "the optimizer's state"
OPTIMIZER = (
    Drop("optimizer/vars/*", STATE),
    # Around another one, as for training in mixed float16.
    Drop("optimizer/inner_optimizer/vars/*", STATE),
)


def dense(canonical: str, external: str) -> tuple[Row, Row]:
    """Return the rows of one dense layer: the kernel is the transposed weight."""
    return (
        Row(f"{canonical}.weight", f"{external}/vars/0", TRANSPOSE),
        Row(f"{canonical}.bias", f"{external}/vars/1"),
    )


def norm(canonical: str, external: str) -> Row:
    """Return the row of one layer normalisation."""
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


def write_config(carried: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config.json`` of a ``.keras`` file, of which Keras makes the model.

    It is what Keras 3 writes for a model that was not compiled; ``dtype`` is that of the weights.
    """
    name = TENSORFLOW_CLASSES[carried["task"]]
    return {
        "module": MODULE,
        "class_name": name,
        "config": {
            "config": ViTMAEConfig.from_dict(carried).to_dict(),
            "name": _snake_case(name),
            "dtype": {
                "module": "keras",
                "class_name": "DTypePolicy",
                "config": {"name": carried["dtype"]},
                "registered_name": None,
            },
        },
        "registered_name": f"{PACKAGE}>{name}",
        "build_config": {"shapes_dict": {}},
        "compile_config": {},
    }


def _snake_case(name: str) -> str:
    """Return the name that Keras gives to a layer of a class."""
    words = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


def read_config(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration tells; of a ``.keras`` file, what Keras makes the model of.

    What we keep beside it (image mean and deviation, names of classes) is added.

    Raises:
        ConfigurationError: ``config.json`` is not of our models' form, or the two disagree.
    """
    if "keras" not in stated:
        return dict(stated)
    theirs = archived(stated["keras"], "config", "config")
    ours = {name: value for name, value in stated.items() if name != "keras"}
    for name, value in theirs.items():
        if name in ours and ours[name] != value:
            raise ConfigurationError(
                f"Keras's config.json says {name} is {value}, but its weights carry"
                f" {ours[name]}; write the file again with model.save"
            )
    return {**ours, **theirs}


def archived(stated: Any, *keys: str) -> Mapping[str, Any]:
    """Return the mapping at some keys of what Keras wrote as ``config.json``.

    Raises:
        ConfigurationError: there is none.
    """
    for key in keys:
        stated = stated.get(key) if isinstance(stated, Mapping) else None
    if not isinstance(stated, Mapping):
        raise ConfigurationError(
            f"Keras's config.json has nothing at {'.'.join(keys)}; write the file again with"
            " model.save"
        )
    return stated


KERAS = Layout(
    name="keras",
    family="mae",
    title="this project's Keras 3 models, for TensorFlow and JAX",
    tables=(
        Table(
            "keras",
            ("pretrain", "encoder", "classify"),
            (
                Row("encoder.cls_token", "encoder/embeddings/vars/0"),
                Row("encoder.position_embedding", "encoder/embeddings/vars/1"),
                Row(
                    "encoder.patch_embedding.weight",
                    "encoder/embeddings/projection/vars/0",
                    KERNEL,
                ),
                Row("encoder.patch_embedding.bias", "encoder/embeddings/projection/vars/1"),
                Repeat("encoder.blocks.#", "encoder/block_#", BLOCK),
                norm("encoder.norm", "encoder/norm"),
                Row("decoder.mask_token", "decoder/vars/0"),
                Row("decoder.position_embedding", "decoder/vars/1"),
                *dense("decoder.embed", "decoder/embed"),
                Repeat("decoder.blocks.#", "decoder/block_#", BLOCK),
                norm("decoder.norm", "decoder/norm"),
                *dense("decoder.prediction", "decoder/prediction"),
                norm("head.norm", "fc_norm"),
                *dense("head", "classifier"),
            ),
            OPTIMIZER,
        ),
    ),
    containers=("keras_h5", "keras_archive"),
    read_config=read_config,
    write_config=write_config,
    conventions={
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "mask_ratio": 0.75,
        "norm_pix_loss": False,
        **IMAGENET,
    },
    pooling_in_names=False,
)
