"""The class names of transformers for each task, which the reference models use too.

This module imports nothing, because child processes with few packages use it.
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
