"""Runs KerasHub's classes in a separate process: python keras_hub_worker.py FOLDER.

``encoder.weights.h5`` and ``classify.weights.h5`` in FOLDER are loaded into ViTBackbone and
ViTImageClassifier; their outputs for ``images.npy`` (N, C, H, W) are written to ``outputs.npz``,
and the models are saved as ``again-*.weights.h5`` and ``again-*.keras``. A backbone for other
images is saved as ``preset``, and a classifier that pools as ``pooled.keras``.
"""

import sys
from pathlib import Path

import keras_hub
import numpy as np


def backbone(**changes):
    settings = {
        "image_shape": (32, 32, 3),
        "patch_size": 8,
        "num_layers": 3,
        "num_heads": 4,
        "hidden_dim": 32,
        "mlp_dim": 128,
    }
    return keras_hub.models.ViTBackbone(**settings | changes)


def main(folder: Path) -> None:
    images = np.load(folder / "images.npy").transpose(0, 2, 3, 1)
    models = {
        "encoder": backbone(),
        "classify": keras_hub.models.ViTImageClassifier(
            backbone=backbone(), num_classes=10, preprocessor=None
        ),
    }
    outputs = {}
    for name, model in models.items():
        model.load_weights(folder / f"{name}.weights.h5")
        outputs[name] = np.asarray(model(images))
        model.save_weights(folder / f"again-{name}.weights.h5")
        model.save(folder / f"again-{name}.keras")
    backbone(image_shape=(16, 48, 3), layer_norm_epsilon=1e-4).save_to_preset(folder / "preset")
    keras_hub.models.ViTImageClassifier(
        backbone=backbone(), num_classes=10, preprocessor=None, pooling="gap"
    ).save(folder / "pooled.keras")
    np.savez(folder / "outputs.npz", **outputs)


main(Path(sys.argv[1]))
