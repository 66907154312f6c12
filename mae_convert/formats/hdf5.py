"""HDF5 files in the legacy Keras format (`tf_model.h5`) and the Keras 3 format (`.weights.h5`)."""

import zlib
from collections.abc import Callable

import numpy as np

from mae_convert.errors import CheckpointError
from mae_convert.files.byte_ranges import ByteFile, damaged
from mae_convert.files.sequential import SequentialArray
from mae_convert.formats.contents import Contents, embedded_json, loading, reading
from mae_convert.formats.hdf5_reader import Tree, read_tree
from mae_convert.formats.registry import KERAS_H5, TF_H5
from mae_convert.formats.tensor import LazyTensor
from mae_convert.formats.tensorflow_files import functional_weights, whole_model
from mae_convert.formats.torch_types import TORCH_DTYPES
from mae_convert.text import shown

SETTINGS = ("config", "conversion")
LAYERS, WEIGHTS, MODEL = "layer_names", "weight_names", "model_config"

DAMAGE = (KeyError, ValueError, TypeError, RuntimeError, IndexError, zlib.error)

READABLE = frozenset(TORCH_DTYPES.values())


def read_hdf5(file: ByteFile) -> Contents:
    """Read the weights of an HDF5 file, which may be in an archive; links are not followed.

    A file whose root group has the attribute `layer_names` is in the legacy format, in which
    attributes list the tensors in order. In other files, each dataset is a tensor. The names of the
    tensors are the paths of the datasets.

    Raises:
        CheckpointError: the file is damaged or contains a complete Keras model, or a tensor is
            stored in another file or is not numeric.
    """
    with reading(file.path, *DAMAGE):
        tree = read_tree(file)
        if MODEL in tree.attributes[""]:
            raise whole_model(file.path, tree.text("", MODEL), tree.text("", "keras_version"))
        legacy = _has_names(tree, "", LAYERS)
        if legacy and (error := functional_weights(file.path, _read_names(tree, "", LAYERS))):
            raise error
        names = _listed_names(file, tree) if legacy else list(tree.datasets)
        if not names:
            raise CheckpointError(
                file.path,
                " is an HDF5 file without weights",
                hint="specify a file that was written by save_weights",
            )
        settings = {name: embedded_json(tree.text("", name), file.path) for name in SETTINGS}
        listed = set(names)
        return Contents(
            kind=TF_H5 if legacy else KERAS_H5,
            tensors={name: _lazy(file, tree, name) for name in names},
            files=(file,),
            config=settings["config"],
            config_location="attribute config",
            conversion=settings["conversion"],
            ignored=dict.fromkeys(
                (name for name in tree.datasets if name not in listed),
                "a dataset that is not listed in any attribute weight_names",
            ),
        )


def _has_names(tree: Tree, path: str, name: str) -> bool:
    return not {name, f"{name}0"}.isdisjoint(tree.attributes[path])


def _listed_names(file: ByteFile, tree: Tree) -> list[str]:
    names = [
        name for layer in _read_names(tree, "", LAYERS) for name in _names_of_layer(tree, layer)
    ]
    missing = set(names) - set(tree.datasets)
    if missing or len(set(names)) != len(names):
        what = f"{shown(min(missing))} is missing" if missing else "a weight is listed twice"
        raise damaged(file.path, what)
    return names


def _names_of_layer(tree: Tree, layer: str) -> list[str]:
    """Return the paths of a layer's weights.

    In a shard, the list of layers contains paths of weights instead of names of layers. If `layer`
    is the path of a weight, the result contains only this path.
    """
    if layer in tree.datasets:
        return [layer]
    return [f"{layer}/{weight}" for weight in _read_names(tree, layer, WEIGHTS)]


def _read_names(tree: Tree, path: str, name: str) -> list[str]:
    """Return the list of names in the attribute `name` of the group `path`.

    Keras divides a long list among several attributes, whose names are `name` and a number.
    """
    if name in tree.attributes[path]:
        return tree.texts(path, name)
    numbered = (f"{name}{number}" for number in range(len(tree.attributes[path])))
    return [text for part in numbered for text in tree.texts(path, part)]


def _lazy(file: ByteFile, tree: Tree, name: str) -> LazyTensor:
    dataset = tree.datasets[name]
    stored = dataset.type.dtype
    # Keras stores bfloat16 as two bytes, and the name of the dtype in an attribute.
    if stored is None and dataset.type.size == 2 and tree.text(name, "dtype") == "bfloat16":
        stored = TORCH_DTYPES["bfloat16"]
    dtype = stored if stored is None or stored.isnative else stored.newbyteorder("=")
    if stored is None or dtype not in READABLE:
        raise CheckpointError(
            file.path,
            f" contains {shown(name)} as {dtype or 'values that are not numbers'}, which cannot"
            " be read as a tensor",
            hint="write it as float32 first",
        )
    tensor = LazyTensor(name, dataset.shape, dtype, _careful(file, dataset.load))
    if stored == dtype == dataset.type.dtype:
        return tensor
    return tensor.mapped(lambda array: _native(array, stored), dtype)


def _careful(file: ByteFile, load: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    """Return a function that reads an array, and raises CheckpointError for a corrupt chunk."""
    return load if isinstance(load, SequentialArray) else loading(file.path, load, *DAMAGE)


def _native(array: np.ndarray, stored: np.dtype) -> np.ndarray:
    """View an array as the dtype `stored`, and return it in native byte order."""
    return array.view(stored).astype(stored.newbyteorder("="), copy=False)
