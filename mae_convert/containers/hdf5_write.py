"""Writes HDF5 files that Keras 3 and the TensorFlow classes of transformers read."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mae_convert.containers.hdf5 import LAYERS, WEIGHTS
from mae_convert.containers.tensor import Digests, LazyTensor
from mae_convert.errors import OutputError

LARGEST_ATTRIBUTE = 64512
"""Keras's limit: HDF5 holds an attribute in an object header of at most 64 KiB."""

KERAS_VERSION = "2.15.0"


def write_tf_h5(
    path: Path,
    tensors: Sequence[LazyTensor],
    config: Mapping | None,
    conversion: Mapping | None,
) -> dict[str, str]:
    """Write the legacy Keras form: a group per layer, with the list of its weights in order.

    The first part of a tensor's name is its layer.

    Returns:
        The SHA-256 of each tensor.
    """
    layers: dict[str, list[str]] = {}
    for tensor in tensors:
        layer, _, weight = tensor.name.partition("/")
        layers.setdefault(layer, []).append(weight)

    def describe(file: h5py.File) -> None:
        _write_names(file, LAYERS, list(layers))
        file.attrs["backend"] = "tensorflow"
        file.attrs["keras_version"] = KERAS_VERSION
        for layer, weights in layers.items():
            _write_names(file[layer], WEIGHTS, weights)
        _write_names(_create_group(file, "top_level_model_weights", False), WEIGHTS, [])

    settings = {"config": config, "conversion": conversion}
    return _write(path, tensors, settings, describe, track_order=False)


def write_keras_h5(
    path: Path,
    tensors: Sequence[LazyTensor],
    config: Mapping | None,
    conversion: Mapping | None,
) -> dict[str, str]:
    """Write the form of Keras 3: groups, and a dataset for each tensor.

    Returns:
        The SHA-256 of each tensor.
    """
    settings = {"config": config, "conversion": conversion}
    return _write(path, tensors, settings, lambda _: None, track_order=True)


def _write(
    path: Path,
    tensors: Sequence[LazyTensor],
    settings: Mapping[str, Mapping | None],
    describe: Callable[[h5py.File], None],
    *,
    track_order: bool,
) -> dict[str, str]:
    """Let HDF5 lay out the file, then write the data where it has put each dataset.

    So the data are written without passing through the library, which reports a full disk only
    when it closes the file, and then cannot close it.
    """
    with _system_errors(path), _create(path, track_order) as file:
        places = {tensor.name: _allocate(file, tensor, track_order) for tensor in tensors}
        for name, value in settings.items():
            if value is not None:
                file.attrs[name] = json.dumps(value)
        describe(file)
    digests = Digests()
    with path.open("rb+") as stream:
        for tensor in tensors:
            stream.seek(places[tensor.name])
            for piece in digests.pieces(tensor):
                stream.write(piece)
    return digests.by_name


def _create(path: Path, track_order: bool) -> h5py.File:
    """Create a file that holds no times, so that the same tensors make the same file."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    properties = _without_times(h5py.h5p.FILE_CREATE, track_order)
    file = h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_EXCL, properties, access)
    return h5py.File(file)


def _create_group(parent: h5py.Group, name: str, track_order: bool) -> h5py.Group:
    properties = _without_times(h5py.h5p.GROUP_CREATE, track_order)
    link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    link.set_char_encoding(h5py.h5t.CSET_ASCII if name.isascii() else h5py.h5t.CSET_UTF8)
    return h5py.Group(h5py.h5g.create(parent.id, name.encode(), lcpl=link, gcpl=properties))


def _without_times(kind: Any, track_order: bool) -> Any:
    properties = h5py.h5p.create(kind)
    properties.set_obj_track_times(False)
    if track_order:
        order = h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED
        properties.set_link_creation_order(order)
        properties.set_attr_creation_order(order)
    return properties


def _allocate(file: h5py.File, tensor: LazyTensor, track_order: bool) -> int:
    """Make room for a tensor and return where its data begin."""
    *parents, leaf = tensor.name.split("/")
    group = file
    for parent in parents:
        group = group.get(parent) or _create_group(group, parent, track_order)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    # The library's lower level: the upper one drops the properties of a scalar.
    kind = h5py.h5t.py_create(tensor.dtype, logical=True)
    scalar = tensor.shape == ()
    space = h5py.h5s.create(h5py.h5s.SCALAR) if scalar else h5py.h5s.create_simple(tensor.shape)
    dataset = h5py.h5d.create(group.id, None, kind, space, properties)
    group[leaf] = h5py.Dataset(dataset)
    return dataset.get_offset() or 0  # an empty dataset has no place, and needs none


def _write_names(group: h5py.Group, name: str, names: Sequence[str]) -> None:
    """Write a list of names as Keras does, in as many attributes as it needs."""
    encoded = np.array([text.encode() for text in names])
    count = 1
    while any(part.nbytes > LARGEST_ATTRIBUTE for part in np.array_split(encoded, count)):
        count += 1
    if not names:
        group.attrs[name] = encoded  # an empty array of float64: so does Keras
        return
    kind = h5py.string_dtype("ascii" if all(map(str.isascii, names)) else "utf-8")
    for number, part in enumerate(np.array_split(np.array(names, dtype=object), count)):
        group.attrs.create(name if count == 1 else f"{name}{number}", part, dtype=kind)


@contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    """Give the library's errors the number that the system gave them, which stands in their text.

    Raises:
        OSError: the system refused, for instance because the disk is full.
        OutputError: the library refused.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        number = re.search(r"errno = (\d+)", str(error))
        if number:
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        if isinstance(error, OSError) and error.errno:
            raise
        raise OutputError(f"{path} cannot be written as HDF5: {error}") from error
