"""Loads and saves `.keras` files with Keras itself: python keras_archive_worker.py FOLDER.

Each `FOLDER/NAME.keras` is loaded; its variables are written to `NAME.npz`, and the model is saved
as `again-NAME.keras`. Another model is saved as `trained.keras` after a training step.
"""

import sys
from pathlib import Path

import keras
import numpy as np

import reference_models.keras  # registers the classes


def main(folder: Path) -> None:
    for path in sorted(folder.glob("*.keras")):
        model = keras.models.load_model(path)
        variables = {v.path.split("/", 1)[1]: np.asarray(v) for v in model.weights}
        np.savez(folder / f"{path.stem}.npz", **variables)
        model.save(folder / f"again-{path.name}")
    model = keras.models.load_model(folder / "pretrain.keras")
    assert isinstance(model, reference_models.keras.TFViTMAEForPreTraining)
    model.compile("adam")
    model.optimizer.build(model.trainable_variables)
    model.save(folder / "trained.keras")
    model.save_weights(folder / "trained.weights.h5")


main(Path(sys.argv[1]))
