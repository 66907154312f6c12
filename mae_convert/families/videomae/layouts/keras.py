"""This project's Keras 3 models of VideoMAE, in ``.weights.h5`` files and ``.keras`` archives."""

from collections.abc import Mapping
from typing import Any

from mae_convert.families.keras_layouts import (
    BLOCK,
    KERNEL_3D,
    OPTIMIZER,
    archived_model,
    dense,
    norm,
    read_config,
)
from mae_convert.families.videomae.layouts.original import CONVENTIONS
from mae_convert.formats.registry import KERAS_ARCHIVE, KERAS_H5
from mae_convert.layouts.layout import Layout
from mae_convert.layouts.table import Repeat, Row, Table
from mae_convert.layouts.transforms import TRANSPOSE
from reference_models.configuration import VideoMAEConfig

CLASSES = {
    "pretrain": "reference_models.keras.videomae:VideoMAEForPreTraining",
    "encoder": "reference_models.keras.videomae:VideoMAEModel",
    "classify": "reference_models.keras.videomae:VideoMAEForVideoClassification",
}
SCALED_BLOCK = (Row(".{attention,mlp}.scale", "/vars/{0,1}"), *BLOCK)


def write_config(complete: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``config.json`` of a ``.keras`` file for a model.

    Args:
        complete: the stored configuration; see `mae_convert.layouts.layout.Layout.write_config`.
    """
    config = VideoMAEConfig.from_dict(complete).to_dict()
    return archived_model(CLASSES[complete["task"]], config, complete["dtype"])


KERAS = Layout(
    name="keras",
    family="videomae",
    title="this project's Keras 3 models of VideoMAE, for TensorFlow and JAX",
    tables=(
        Table(
            "videomae, keras",
            ("pretrain", "encoder", "classify"),
            (
                Row("encoder.patch_embedding.weight", "encoder/projection/vars/0", KERNEL_3D),
                Row("encoder.patch_embedding.bias", "encoder/projection/vars/1"),
                Repeat("encoder.blocks.#", "encoder/block_#", SCALED_BLOCK),
                norm("encoder.norm", "encoder/norm"),
                Row("decoder.mask_token", "decoder/vars/0"),
                Row("decoder.embed.weight", "decoder/embed/vars/0", TRANSPOSE),
                Repeat("decoder.blocks.#", "decoder/block_#", SCALED_BLOCK),
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
    conventions=CONVENTIONS,
)
