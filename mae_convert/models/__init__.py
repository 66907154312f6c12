"""Drop-in classes for scripts that were written for transformers 4: only the import changes.

They are the reference models with the interface of transformers' ViTMAE classes. The names of the
PyTorch classes begin with ``ViT``, and the names of the Keras 3 classes with ``TFViT``. Each
framework is imported on first use, so that only one framework needs to be installed.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mae_convert.families.mae.model_classes import PYTORCH_CLASSES, TENSORFLOW_CLASSES

if TYPE_CHECKING:
    from mae_convert.models.image_processor import (
        AutoImageProcessor,
        MaeImageProcessor,
        ViTImageProcessor,
    )
    from mae_convert.models.keras import (
        KerasModel,
        TFViTForImageClassification,
        TFViTMAEForPreTraining,
        TFViTMAEModel,
    )
    from mae_convert.models.pytorch import (
        TorchModel,
        ViTForImageClassification,
        ViTMAEForPreTraining,
        ViTMAEModel,
    )
    from mae_convert.models.transformers_config import ViTMAEConfig

    AutoConfig = ViTConfig = ViTMAEConfig
    AutoFeatureExtractor = ViTFeatureExtractor = ViTImageProcessorFast = ViTImageProcessor
    AutoModelForImageClassification = ViTForImageClassification
    AutoModelForPreTraining = ViTMAEForPreTraining
    TFAutoModelForImageClassification = TFViTForImageClassification
    TFAutoModelForPreTraining = TFViTMAEForPreTraining
    ViTPreTrainedModel = ViTMAEPreTrainedModel = TorchModel
    TFViTPreTrainedModel = TFViTMAEPreTrainedModel = KerasModel

MODULES = {
    "AutoImageProcessor": "image_processor",
    "MaeImageProcessor": "image_processor",
    "ViTImageProcessor": "image_processor",
    "ViTMAEConfig": "transformers_config",
    "TorchModel": "pytorch",
    "KerasModel": "keras",
    **dict.fromkeys(PYTORCH_CLASSES.values(), "pytorch"),
    **dict.fromkeys(TENSORFLOW_CLASSES.values(), "keras"),
}
# Further names of transformers' classes, and the class here that replaces them.
ALIASES = {
    "AutoConfig": "ViTMAEConfig",
    "ViTConfig": "ViTMAEConfig",
    "AutoFeatureExtractor": "ViTImageProcessor",
    "ViTFeatureExtractor": "ViTImageProcessor",
    "ViTImageProcessorFast": "ViTImageProcessor",
    "AutoModelForImageClassification": "ViTForImageClassification",
    "AutoModelForPreTraining": "ViTMAEForPreTraining",
    "TFAutoModelForImageClassification": "TFViTForImageClassification",
    "TFAutoModelForPreTraining": "TFViTMAEForPreTraining",
    "ViTPreTrainedModel": "TorchModel",
    "ViTMAEPreTrainedModel": "TorchModel",
    "TFViTPreTrainedModel": "KerasModel",
    "TFViTMAEPreTrainedModel": "KerasModel",
}
# Names in transformers whose equivalent here would depend on the checkpoint (masking, pooling).
ABSENT = {
    "AutoModel": "ViTMAEModel",
    "ViTModel": "ViTMAEModel",
    "TFAutoModel": "TFViTMAEModel",
    "TFViTModel": "TFViTMAEModel",
}
EXTRAS = {"pytorch": ("torch", ("torch",)), "keras": ("tensorflow", ("keras",))}

__all__ = [
    "AutoConfig",
    "AutoFeatureExtractor",
    "AutoImageProcessor",
    "AutoModelForImageClassification",
    "AutoModelForPreTraining",
    "MaeImageProcessor",
    "TFAutoModelForImageClassification",
    "TFAutoModelForPreTraining",
    "TFViTForImageClassification",
    "TFViTMAEForPreTraining",
    "TFViTMAEModel",
    "TFViTMAEPreTrainedModel",
    "TFViTPreTrainedModel",
    "ViTConfig",
    "ViTFeatureExtractor",
    "ViTForImageClassification",
    "ViTImageProcessor",
    "ViTImageProcessorFast",
    "ViTMAEConfig",
    "ViTMAEForPreTraining",
    "ViTMAEModel",
    "ViTMAEPreTrainedModel",
    "ViTPreTrainedModel",
]


def __getattr__(name: str) -> Any:
    if name in ABSENT:
        raise ImportError(
            f"mae_convert.models has no {name}; for the features of all patches in order, use"
            f" {ABSENT[name]}.from_pretrained(..., mask_ratio=0.0), which has no pooling layer"
        )
    name_here = ALIASES.get(name, name)
    if name_here not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = MODULES[name_here]
    extra, needed = EXTRAS.get(module, ("", ()))
    for package in needed:
        if find_spec(package) is None:
            raise ImportError(
                f"{name} needs {package}, which is not installed here; pip install"
                f" 'mae-convert[{extra}]'"
            )
    return getattr(import_module(f"{__name__}.{module}"), name_here)
