"""The classes of transformers that hold each task's model; the reference models have their names.

This module imports nothing: child processes, which have a framework and little else, use it too.
"""

from collections.abc import Mapping

PYTORCH_CLASSES: Mapping[str, str] = {
    "pretrain": "ViTMAEForPreTraining",
    "encoder": "ViTMAEModel",
    "classify": "ViTForImageClassification",
}
TENSORFLOW_CLASSES: Mapping[str, str] = {
    task: f"TF{name}" for task, name in PYTORCH_CLASSES.items()
}
