"""This project's Keras 3 models of MAE-ST.

There is a mapping table for each combination of position embeddings (separate or joint) and class
token (present or absent).
"""

from collections.abc import Iterator, Mapping
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
from mae_convert.families.mae_st.layouts.original import CONVENTIONS
from mae_convert.formats.registry import KERAS_ARCHIVE, KERAS_H5
from mae_convert.layouts.layout import Layout
from mae_convert.layouts.table import Repeat, Row, Table
from reference_models.configuration import MAESTConfig

CLASSES = {
    "pretrain": "reference_models.keras.mae_st:MAESTForPreTraining",
    "encoder": "reference_models.keras.mae_st:MAESTModel",
    "classify": "reference_models.keras.mae_st:MAESTForVideoClassification",
}


def _tokens(part: str, *, separate: bool, with_class: bool) -> Iterator[Row]:
    """Yield the mapping rows of the tokens and position embeddings of the encoder or decoder.

    The name of a variable in the file is its index in the order of creation.

    Args:
        part: "encoder" or "decoder".
        separate: whether patches and time steps have separate position embeddings.
        with_class: whether there is a class token.
    """
    names = ["mask_token"] * (part == "decoder")
    names += ["cls_token"] * with_class
    if separate:
        names += ["spatial_position_embedding", "temporal_position_embedding"]
        names += ["class_position_embedding"] * with_class
    else:
        names += ["joint_position_embedding"]
    for number, name in enumerate(names):
        yield Row(f"{part}.{name}", f"{part}/vars/{number}")


def _table(*, separate: bool, with_class: bool) -> Table:
    name = "mae_st, keras" + " joint positions" * (not separate) + " no class" * (not with_class)
    return Table(
        name,
        ("pretrain", "encoder", "classify"),
        (
            *_tokens("encoder", separate=separate, with_class=with_class),
            Row("encoder.patch_embedding.weight", "encoder/projection/vars/0", KERNEL_3D),
            Row("encoder.patch_embedding.bias", "encoder/projection/vars/1"),
            Repeat("encoder.blocks.#", "encoder/block_#", BLOCK),
            norm("encoder.norm", "encoder/norm"),
            *_tokens("decoder", separate=separate, with_class=with_class),
            *dense("decoder.embed", "decoder/embed"),
            Repeat("decoder.blocks.#", "decoder/block_#", BLOCK),
            norm("decoder.norm", "decoder/norm"),
            *dense("decoder.prediction", "decoder/prediction"),
            norm("head.norm", "fc_norm"),
            *dense("head", "classifier"),
        ),
        OPTIMIZER,
    )


def write_config(complete: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``config.json`` of a ``.keras`` file for a model.

    Args:
        complete: the stored configuration; see `mae_convert.layouts.layout.Layout.write_config`.
    """
    config = MAESTConfig.from_dict(complete).to_dict()
    return archived_model(CLASSES[complete["task"]], config, complete["dtype"])


KERAS = Layout(
    name="keras",
    family="mae_st",
    title="this project's Keras 3 models of MAE-ST, for TensorFlow and JAX",
    tables=tuple(
        _table(separate=separate, with_class=with_class)
        for separate in (True, False)
        for with_class in (True, False)
    ),
    containers=(KERAS_H5, KERAS_ARCHIVE),
    read_config=read_config,
    write_config=write_config,
    conventions=CONVENTIONS,
)
