"""This project's Keras 3 models: ``.weights.h5``, and the archives ``.keras`` of ``model.save``.

The name of a dataset consists of the path of attributes that leads to its layer, and the index of
the variable in the order of creation. Indices 0 and 1 are the kernel and bias of a dense layer, the
gamma and beta of a norm, the class token and position embedding of the encoder, and the mask token
and position embedding of the decoder.
"""

from collections.abc import Mapping
from typing import Any

from mae_convert.families.keras_layouts import (
    BLOCK,
    KERNEL_2D,
    OPTIMIZER,
    PACKAGE,
    archived_model,
    dense,
    norm,
    read_config,
)
from mae_convert.families.mae.model_classes import TENSORFLOW_CLASSES
from mae_convert.formats.registry import KERAS_ARCHIVE, KERAS_H5
from mae_convert.layouts.layout import IMAGENET, Layout
from mae_convert.layouts.table import Repeat, Row, Table
from reference_models.configuration import ViTMAEConfig

# The class for each task; a test compares these names with the names that Keras writes.
MODULE = f"{PACKAGE}.keras.mae"


def write_config(complete: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``config.json`` of a ``.keras`` file for a model.

    Args:
        complete: the stored configuration; see `mae_convert.layouts.layout.Layout.write_config`.
    """
    class_path = f"{MODULE}:{TENSORFLOW_CLASSES[complete['task']]}"
    return archived_model(class_path, ViTMAEConfig.from_dict(complete).to_dict(), complete["dtype"])


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
                    KERNEL_2D,
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
    containers=(KERAS_H5, KERAS_ARCHIVE),
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
