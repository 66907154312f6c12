"""This project's Keras 3 models of Prithvi-EO, in ``.weights.h5`` files and ``.keras`` archives."""

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
from mae_convert.families.prithvi.layouts.original import CONVENTIONS
from mae_convert.formats.registry import KERAS_ARCHIVE, KERAS_H5
from mae_convert.layouts.layout import Layout
from mae_convert.layouts.table import Repeat, Row, Table
from reference_models.configuration import PrithviConfig

CLASSES = {
    "pretrain": "reference_models.keras.prithvi:PrithviForPreTraining",
    "encoder": "reference_models.keras.prithvi:PrithviModel",
}


def write_config(complete: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``config.json`` of a ``.keras`` file for a model.

    Args:
        complete: the stored configuration; see `mae_convert.layouts.layout.Layout.write_config`.
    """
    config = PrithviConfig.from_dict(complete).to_dict()
    return archived_model(CLASSES[complete["task"]], config, complete["dtype"])


KERAS = Layout(
    name="keras",
    family="prithvi",
    title="this project's Keras 3 models of Prithvi-EO, for TensorFlow and JAX",
    tables=(
        Table(
            "prithvi, keras",
            ("pretrain", "encoder"),
            (
                Row("encoder.cls_token", "encoder/vars/0"),
                Row("encoder.position_embedding", "encoder/vars/1"),
                Row("encoder.patch_embedding.weight", "encoder/projection/vars/0", KERNEL_3D),
                Row("encoder.patch_embedding.bias", "encoder/projection/vars/1"),
                Row("encoder.time_scale", "encoder/embeds_time/vars/0"),
                Row("encoder.location_scale", "encoder/embeds_location/vars/0"),
                Repeat("encoder.blocks.#", "encoder/block_#", BLOCK),
                norm("encoder.norm", "encoder/norm"),
                Row("decoder.mask_token", "decoder/vars/0"),
                Row("decoder.position_embedding", "decoder/vars/1"),
                *dense("decoder.embed", "decoder/embed"),
                Row("decoder.time_scale", "decoder/embeds_time/vars/0"),
                Row("decoder.location_scale", "decoder/embeds_location/vars/0"),
                Repeat("decoder.blocks.#", "decoder/block_#", BLOCK),
                norm("decoder.norm", "decoder/norm"),
                *dense("decoder.prediction", "decoder/prediction"),
            ),
            OPTIMIZER,
        ),
    ),
    containers=(KERAS_H5, KERAS_ARCHIVE),
    read_config=read_config,
    write_config=write_config,
    conventions=CONVENTIONS,
)
