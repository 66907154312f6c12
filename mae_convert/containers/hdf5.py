"""HDF5 files: the legacy Keras form (`tf_model.h5`) and Keras 3's (`.weights.h5`)."""

import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np

from mae_convert.containers.contents import Contents, embedded_json, loading, reading
from mae_convert.containers.mapped import MappedFile, Window
from mae_convert.containers.messages import damaged, shown
from mae_convert.containers.tensor import LazyTensor, possible_shape
from mae_convert.containers.torch_types import TORCH_DTYPES
from mae_convert.errors import CheckpointError

SETTINGS = ("config", "conversion")
LAYERS, WEIGHTS = "layer_names", "weight_names"

DAMAGE = (KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError, UnicodeError)

READABLE = frozenset(TORCH_DTYPES.values())


def read_hdf5(mapped: MappedFile) -> Contents:
    """Read the weights of an HDF5 file, or of one in an archive; no link out of it is followed.

    A file whose root says `layer_names` is of the legacy form, and its tensors come in the order
    that the file states. Otherwise each dataset is a tensor. Names are the paths of the datasets.

    Raises:
        CheckpointError: it is damaged, or a tensor lies in another file or is not of numbers.
    """
    path = mapped.path
    with reading(path, *DAMAGE), _opened(mapped) as file:
        present = list(_dataset_paths(file, path))
        legacy = _has_names(file, LAYERS)
        names = _listed_names(file, path, present) if legacy else present
        if not names:
            raise CheckpointError(
                f"{path} is an HDF5 file without weights; name a file that was written by "
                "save_weights"
            )
        settings = {name: embedded_json(_text(file.attrs.get(name))) for name in SETTINGS}
        return Contents(
            kind="tf_h5" if legacy else "keras_h5",
            tensors={name: _lazy(mapped, name, file[name]) for name in names},
            config=settings["config"],
            config_place="attribute config",
            conversion=settings["conversion"],
            ignored=dict.fromkeys(
                (name for name in present if name not in set(names)),
                "a dataset that no weight_names lists",
            ),
        )


def _opened(mapped: MappedFile) -> h5py.File:
    """Open the file by its path, which is faster, or a part of one as a stream."""
    if mapped.is_whole:
        return h5py.File(mapped.path, "r", locking=False)
    return h5py.File(io.BufferedReader(Window(mapped)), "r")


def _dataset_paths(file: h5py.File, path: Path) -> Iterator[str]:
    """Yield the paths of all datasets, depth first, in the order in which the file keeps them."""
    seen = {file["/"]}

    def walk(group: h5py.Group, prefix: str) -> Iterator[str]:
        for key in group:
            name = f"{prefix}{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise CheckpointError(
                    f"{path} holds {shown(name)} as a link to elsewhere, which is not followed; "
                    "write the file with the weights themselves"
                )
            item = group[key]
            if isinstance(item, h5py.Dataset):
                yield name
            elif isinstance(item, h5py.Group):
                if item in seen:  # a short file whose paths have no end
                    raise ValueError(f"the group {name} has two names")
                seen.add(item)
                yield from walk(item, f"{name}/")

    return walk(file, "")


def _listed_names(file: h5py.File, path: Path, present: Iterable[str]) -> list[str]:
    names = [
        f"{layer}/{weight}"
        for layer in _read_names(file, LAYERS)
        for weight in _read_names(file[layer], WEIGHTS)
    ]
    missing = set(names) - set(present)
    if missing or len(set(names)) != len(names):
        what = f"{shown(min(missing))} is missing" if missing else "a weight is listed twice"
        raise damaged(path, what)
    return names


def _has_names(group: h5py.Group, name: str) -> bool:
    return name in group.attrs or f"{name}0" in group.attrs


def _read_names(group: h5py.Group, name: str) -> list[str]:
    """Return a list of names; Keras splits a long one into attributes that are numbered."""
    if name in group.attrs:
        parts = [group.attrs[name]]
    else:
        numbers = range(len(group.attrs))
        parts = [group.attrs[f"{name}{n}"] for n in numbers if f"{name}{n}" in group.attrs]
    return [_text(item) or "" for part in parts for item in part]


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value if isinstance(value, str) else None


def _lazy(mapped: MappedFile, name: str, dataset: h5py.Dataset) -> LazyTensor:
    if dataset.external or dataset.is_virtual:
        raise CheckpointError(
            f"{mapped.path} keeps {shown(name)} in another file, which is not read; "
            "write the file with the weights themselves"
        )
    shape, dtype = dataset.shape, _dtype_of(dataset)
    if dtype not in READABLE or not possible_shape(shape):
        raise CheckpointError(
            f"{mapped.path} holds {shown(name)} as {dataset.dtype} of shape {shape}, which is "
            "not a tensor that is read; write it as float32 before"
        )
    offset = dataset.id.get_offset()
    if offset is not None and dataset.dtype.isnative and not dataset.file.userblock_size:
        mapped.check(offset, math.prod(shape) * dtype.itemsize)
        return LazyTensor(name, shape, dtype, lambda: mapped.array(offset, shape, dtype))

    def load() -> np.ndarray:
        with _opened(mapped) as file:
            array = np.asarray(file[name][()])
            return array.view(dtype) if array.dtype.kind == "V" else array.astype(dtype)

    return LazyTensor(name, shape, dtype, loading(mapped.path, load, *DAMAGE))


def _dtype_of(dataset: h5py.Dataset) -> np.dtype:
    """Return the native dtype; Keras writes bfloat16 as two bytes and names it in an attribute."""
    if dataset.dtype.kind == "V" and _text(dataset.attrs.get("dtype")) == "bfloat16":
        return TORCH_DTYPES["bfloat16"]
    return dataset.dtype.newbyteorder("=")
