"""Identify unsupported TensorFlow and Keras files; errors contain Python code to convert them."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mae_convert.errors import CheckpointError
from mae_convert.text import shown

SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")
PART = re.compile(r"(.+)\.(index|data-\d{5}-of-\d{5})")
"""File names of a TensorFlow checkpoint: a prefix, a dot, and "index" or "data" with numbers."""

NUMBERED = re.compile(r".*-\d+")
"""Prefixes, such as "ckpt-3", that `tf.train.Checkpoint.save` and `CheckpointManager` write."""

MAE = re.compile(r"vit|mae", re.IGNORECASE)
LAYERS_SHOWN = 8


def refuse_tensorflow(path: Path) -> None:
    """Refuse a TensorFlow SavedModel or checkpoint: a directory, or one of its files.

    Raises:
        CheckpointError: the path is a SavedModel or checkpoint; the message contains Python code
            that writes a supported file.
    """
    if path.is_dir():
        names = sorted(item.name for item in path.iterdir())
        if any(name in names for name in SAVED_MODEL):
            raise _saved_model(path)
        checkpoints = [match[1] for match in map(PART.fullmatch, names) if match]
        if _is_in_saved_model(path):
            raise _saved_model(path.parent)
        if checkpoints:
            latest = max(checkpoints, key=lambda name: (len(name), name))
            raise _checkpoint(path, path / latest)
    elif path.name in SAVED_MODEL:
        raise _saved_model(path.parent)
    elif path.name == "checkpoint" and list(path.parent.glob("*.data-?????-of-?????")):
        refuse_tensorflow(path.parent)
    elif match := PART.fullmatch(path.name):
        if _is_in_saved_model(path.parent):
            raise _saved_model(path.parent.parent)
        prefix = path.with_name(match[1])
        parts = [part for part in path.parent.iterdir() if PART.fullmatch(part.name)]
        if len([part for part in parts if part.name.startswith(f"{prefix.name}.")]) > 1:
            raise _checkpoint(path, prefix)


def _is_in_saved_model(directory: Path) -> bool:
    beside = (directory.parent / name for name in SAVED_MODEL)
    return directory.name == "variables" and any(path.is_file() for path in beside)


def _saved_model(directory: Path) -> CheckpointError:
    return CheckpointError(
        directory,
        " is a TensorFlow SavedModel, which contains a program, and mae-convert does not run it;"
        " for a SavedModel that transformers wrote, two lines of Python create a supported file: "
        "`import numpy, tensorflow; found = "
        f"tensorflow.saved_model.load({str(directory)!r}).variables` and `numpy.savez('model.npz', "
        f"**{{v.name.partition('/')[2]: v.numpy() for v in found}})`; for any other "
        "SavedModel, call model.save_weights('model.weights.h5') in the program that creates the "
        "model",
    )


def _checkpoint(path: Path, prefix: Path) -> CheckpointError:
    restore = (
        f"tensorflow.train.Checkpoint(model=model).restore({str(prefix)!r})"
        if NUMBERED.fullmatch(prefix.name)
        else f"model.load_weights({str(prefix)!r})"
    )
    return CheckpointError(
        path,
        " is a TensorFlow checkpoint, which cannot be read; two lines of "
        f"Python in the program that creates the model write a file that can be read: `{restore}` "
        "and `model.save_weights('tf_model.h5')` (in Keras 3, with the name 'model.weights.h5')",
    )


def whole_model(path: Path, config: str | None, version: str | None) -> CheckpointError:
    """Return the error for a file that contains a whole Keras model (`model.save`).

    Args:
        path: the file.
        config: the model's configuration as JSON text: the attribute `model_config` of an `.h5`
            file, or `config.json` in a `.keras` file. None if it is missing.
        version: the attribute `keras_version` of an `.h5` file; None if it is missing.
    """
    name, layers = _layers_of(config)
    mae = next((layer for layer, kind in layers.items() if MAE.search(kind + layer)), "NAME")
    target = "tf_model.h5" if (version or "3").startswith("2") else "model.weights.h5"
    among = f" with the layers {_listed(layers)}" if layers else ""
    return CheckpointError(
        path,
        f" is a whole Keras model (class {shown(name)}{among}) and not the weights of a supported "
        "class; two lines of Python write the weights of the layer that is the MAE (run them only "
        "on files that you trust, because Keras runs code from the file): `model = "
        f"keras.models.load_model({str(path)!r})` and "
        f"`model.get_layer({mae!r}).save_weights({target!r})`",
    )


def functional_weights(path: Path, layers: Iterable[str]) -> CheckpointError | None:
    """Return an error if a layer of a functional Keras model is a transformers model, else None.

    Args:
        path: the file with the weights of the model.
        layers: the layer names in the attribute ``layer_names`` of the root group.
    """
    layers = list(layers)
    mae = next((layer for layer in layers if layer.startswith("tf_vi")), None)
    if mae is None:
        return None
    return CheckpointError(
        path,
        f" contains the weights of a functional Keras model (with the layers {_listed(layers)});"
        " two lines of Python, in the program that creates the model, write the weights of the"
        f" layer that is the MAE: `model.load_weights({str(path)!r})` and "
        f"`model.get_layer({shown(mae)!r}).save_weights('tf_model.h5')`",
    )


def _layers_of(config: str | None) -> tuple[str, Mapping[str, str]]:
    """Return the class of a model, and the class of each of its layers by name.

    If `config`, the model's configuration as JSON text, is None or has another structure, the class
    is "unknown" and there are no layers.
    """
    try:
        config_values: Any = json.loads(config or "")
        layers = config_values["config"]["layers"]
        named = {str(layer["config"]["name"]): str(layer["class_name"]) for layer in layers}
        return str(config_values["class_name"]), named
    except (ValueError, TypeError, KeyError, RecursionError):
        return "unknown", {}


def _listed(layers: Iterable[str]) -> str:
    names = [shown(layer) for layer in layers]
    return ", ".join(names[:LAYERS_SHOWN]) + ", …" * (len(names) > LAYERS_SHOWN)
