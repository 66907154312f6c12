"""Write HDF5 files that Keras 3 and the TensorFlow classes of transformers read."""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np

from mae_convert.errors import OutputError
from mae_convert.formats.hdf5 import LAYERS, WEIGHTS
from mae_convert.formats.output_file import BytesAt, FileLayout
from mae_convert.formats.tensor import LazyTensor

LARGEST_ATTRIBUTE = 64512
"""Keras's limit on the bytes of an attribute: HDF5 stores it in a header of at most 64 KiB."""

KERAS_VERSION = "2.15.0"
PAGE = 1 << 12


def tf_h5_layout(
    tensors: Sequence[LazyTensor], config: Mapping | None, conversion: Mapping | None
) -> FileLayout:
    """Return the layout of a legacy Keras file: a group per layer, with a list of its weights.

    The first component of a tensor's name is the name of the layer. `config` and `conversion` are
    stored as attributes of the file unless they are None.
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
    return _file_layout(tensors, settings, describe, track_order=False)


def keras_h5_layout(
    tensors: Sequence[LazyTensor], config: Mapping | None, conversion: Mapping | None
) -> FileLayout:
    """Return the layout of a Keras 3 file: groups, and a dataset for each tensor.

    `config` and `conversion` are stored as attributes of the file unless they are None.
    """
    settings = {"config": config, "conversion": conversion}
    return _file_layout(tensors, settings, lambda _: None, track_order=True)


class _Written(io.RawIOBase):
    """A file object in memory for the HDF5 library; only written ranges take memory."""

    def __init__(self) -> None:
        self.pieces: list[BytesAt] = []
        self._pages: dict[int, bytearray] = {}
        self._position = self._size = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = base[whence] + offset
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Set the size, by default to the position, and return it."""
        self._size = self._position if size is None else size
        return self._size

    def write(self, data: Any) -> int:
        """Store bytes at the current position, advance the position, and return their number."""
        written = bytes(data)
        self.pieces.append((self._position, written))
        for at, byte_range in self._pages_of(len(written)):
            page, inside = byte_range
            page[inside] = written[at : at + inside.stop - inside.start]
        self._position += len(written)
        self._size = max(self._size, self._position)
        return len(written)

    def readinto(self, buffer: Any) -> int:
        """Copy the next bytes into a buffer; bytes that were never written are zero."""
        for at, byte_range in self._pages_of(len(buffer)):
            page, inside = byte_range
            buffer[at : at + inside.stop - inside.start] = page[inside]
        self._position += len(buffer)
        return len(buffer)

    def _pages_of(self, count: int) -> Iterator[tuple[int, tuple[bytearray, slice]]]:
        """Yield the pages that contain the next `count` bytes.

        Yields:
            An offset in the `count` bytes, and a pair: the page, and the slice of the page that
            contains the bytes from this offset on.
        """
        at = 0
        while at < count:
            number, start = divmod(self._position + at, PAGE)
            stop = min(PAGE, start + count - at)
            yield at, (self._pages.setdefault(number, bytearray(PAGE)), slice(start, stop))
            at += stop - start


def _file_layout(
    tensors: Sequence[LazyTensor],
    settings: Mapping[str, Mapping | None],
    describe: Callable[[h5py.File], None],
    *,
    track_order: bool,
) -> FileLayout:
    """Create a file in memory with the HDF5 library, without the tensors' data; return its layout.

    The data is later written without the library, which would report a full disk only when it
    closes the file, and then fail to close it.

    Args:
        tensors: the tensors.
        settings: the attributes of the file that are stored as JSON, by name. An attribute whose
            value is None is not written.
        describe: writes further attributes and groups.
        track_order: whether the file records the order in which its members were created.
    """
    written = _Written()
    with _refusals(), _create(written, track_order) as file:
        groups: dict[str, h5py.Group] = {"": file}
        offsets = [_allocate(groups, tensor, track_order) for tensor in tensors]
        for name, value in settings.items():
            if value is not None:
                file.attrs[name] = json.dumps(value)
        describe(file)
    return FileLayout(written.seek(0, io.SEEK_END), offsets, lambda _: written.pieces)


def _create(stream: io.RawIOBase, track_order: bool) -> h5py.File:
    """Create a file without time stamps, so that the same tensors give the same file."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, stream)
    properties = _without_times(h5py.h5p.FILE_CREATE, track_order)
    return h5py.File(h5py.h5f.create(b"in memory", h5py.h5f.ACC_EXCL, properties, access))


def _group(groups: dict[str, h5py.Group], path: str, track_order: bool) -> h5py.Group:
    """Return the group at a path; missing groups are created and added to `groups`."""
    if path not in groups:
        above, _, name = path.rpartition("/")
        groups[path] = _create_group(_group(groups, above, track_order), name, track_order)
    return groups[path]


def _create_group(parent: h5py.Group, name: str, track_order: bool) -> h5py.Group:
    properties = _without_times(h5py.h5p.GROUP_CREATE, track_order)
    created = h5py.h5g.create(parent.id, name.encode(), lcpl=_link(name), gcpl=properties)
    return h5py.Group(created)


def _link(name: str) -> Any:
    properties = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    properties.set_char_encoding(h5py.h5t.CSET_ASCII if name.isascii() else h5py.h5t.CSET_UTF8)
    return properties


def _without_times(kind: Any, track_order: bool) -> Any:
    properties = h5py.h5p.create(kind)
    properties.set_obj_track_times(False)
    if track_order:
        order = h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED
        properties.set_link_creation_order(order)
        properties.set_attr_creation_order(order)
    return properties


def _allocate(groups: dict[str, h5py.Group], tensor: LazyTensor, track_order: bool) -> int:
    """Allocate space for a tensor and return the offset of its data.

    Args:
        groups: the existing groups, by path; missing groups are created and added.
        tensor: the tensor; its name is the path of the dataset.
        track_order: whether a new group records the order in which its members are created.
    """
    path, _, leaf = tensor.name.rpartition("/")
    group = _group(groups, path, track_order)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    # The high-level API of h5py ignores the creation properties of a scalar.
    kind = h5py.h5t.py_create(tensor.dtype, logical=True)
    scalar = tensor.shape == ()
    space = h5py.h5s.create(h5py.h5s.SCALAR) if scalar else h5py.h5s.create_simple(tensor.shape)
    dataset = h5py.h5d.create(group.id, None, kind, space, properties)
    h5py.h5o.link(dataset, group.id, leaf.encode(), lcpl=_link(leaf))
    return dataset.get_offset() or 0  # an empty dataset has no offset


def _write_names(group: h5py.Group, name: str, names: Sequence[str]) -> None:
    """Write a list of names in Keras's format; a long list is divided into several attributes."""
    encoded = np.array([text.encode() for text in names])
    count = 1
    while any(part.nbytes > LARGEST_ATTRIBUTE for part in np.array_split(encoded, count)):
        count += 1
    if not names:
        group.attrs[name] = encoded  # an empty array of float64, as Keras writes it
        return
    kind = h5py.string_dtype("ascii" if all(map(str.isascii, names)) else "utf-8")
    for number, part in enumerate(np.array_split(np.array(names, dtype=object), count)):
        group.attrs.create(name if count == 1 else f"{name}{number}", part, dtype=kind)


@contextmanager
def _refusals() -> Iterator[None]:
    """Convert errors of the HDF5 library to an `OutputError`.

    Raises:
        OutputError: the library raised an error.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(f"the tensors cannot be written as HDF5: {error}") from error
