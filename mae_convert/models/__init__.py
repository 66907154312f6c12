"""Classes for scripts that were written for transformers 4: change the import, and they run.

They are the reference models with the habits of transformers' ViTMAE classes around them: PyTorch
under ``ViT...``, Keras 3 under ``TFViT...``. Each is imported with its framework when it is first
asked for, so that whoever has only one of them can use it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_convert.models.configuration import ViTMAEConfig
    from mae_convert.models.images import (
        AutoImageProcessor,
        MaeImageProcessor,
        ViTImageProcessor,
    )
    from mae_convert.models.keras import (
        TFViTForImageClassification,
        TFViTMAEForPreTraining,
        TFViTMAEModel,
    )
    from mae_convert.models.pytorch import (
        ViTForImageClassification,
        ViTMAEForPreTraining,
        ViTMAEModel,
    )

MODULES = {
    "AutoImageProcessor": "images",
    "MaeImageProcessor": "images",
    "ViTImageProcessor": "images",
    "ViTMAEConfig": "configuration",
    "ViTMAEForPreTraining": "pytorch",
    "ViTMAEModel": "pytorch",
    "ViTForImageClassification": "pytorch",
    "TFViTMAEForPreTraining": "keras",
    "TFViTMAEModel": "keras",
    "TFViTForImageClassification": "keras",
}

__all__ = [
    "AutoImageProcessor",
    "MaeImageProcessor",
    "TFViTForImageClassification",
    "TFViTMAEForPreTraining",
    "TFViTMAEModel",
    "ViTForImageClassification",
    "ViTImageProcessor",
    "ViTMAEConfig",
    "ViTMAEForPreTraining",
    "ViTMAEModel",
]


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
