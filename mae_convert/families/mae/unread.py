"""Fields of a configuration that a library may act on and that nobody here reads, for the MAE."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mae_convert.families import keras_fields, transformers_fields
from mae_convert.families.mae.layouts import timm_fields
from mae_convert.families.mae.model_classes import PYTORCH_CLASSES
from mae_convert.families.transformers_fields import Classes
from mae_convert.formats import Container
from mae_convert.formats.contents import KERAS
from reference_models.configuration import ViTMAEConfig

OF_TRANSFORMERS = ("transformers", "transformers-tf")
# An encoder may be read from a model of another task.
CLASSES = {
    "pretrain": Classes(("vit_mae",), (PYTORCH_CLASSES["pretrain"],)),
    "encoder": Classes(
        ("vit_mae", "vit"), (*PYTORCH_CLASSES.values(), "ViTModel", "ViTForMaskedImageModeling")
    ),
    "classify": Classes(("vit",), (PYTORCH_CLASSES["classify"],)),
}
"""The classes of transformers that compute a task's model, by task."""


def unread(
    container: Container, layout: str, task: str, dtypes: Iterable[np.dtype]
) -> Iterable[str]:
    """Return such fields of ``config.json``.

    Raises:
        ConfigurationError: a library that reads the configuration would compute something else
            than what the tensors give here.
    """
    config: Mapping[str, Any] = container.config or {}
    if KERAS in config:
        return keras_fields.unknown_in_config(config[KERAS], ViTMAEConfig)
    if container.config_source != "config.json":
        return ()  # inside a file, where only this project looks for one
    if layout == "timm" and "architecture" in config:
        return timm_fields.unknown_in_config(config)
    if layout in OF_TRANSFORMERS:
        transformers_fields.check_config(config, container.weights_file, dtypes)
        return transformers_fields.unknown_in_config(config, CLASSES[task])
    return ()
