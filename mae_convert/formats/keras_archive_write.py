"""File layout of `.keras` files: a zip archive of a configuration, and the weights as HDF5."""

import bisect
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mae_convert.errors import OutputError
from mae_convert.files.hashes import combined_crc32
from mae_convert.formats.archive_write import Record, zip_layout
from mae_convert.formats.contents import KERAS
from mae_convert.formats.file_layout import BytesAt, FileLayout
from mae_convert.formats.hdf5_write import keras_h5_layout
from mae_convert.formats.keras_archive import CONFIG, METADATA, WEIGHTS
from mae_convert.formats.tensor import LazyTensor

KERAS_VERSION = "3.15.1"
"""The Keras version whose file format is written; see `tests/formats/test_keras_archive.py`."""


def keras_archive_layout(
    tensors: Sequence[LazyTensor], config: Mapping | None, conversion: Mapping | None
) -> FileLayout:
    """Return the layout of a `.keras` file; the configuration has Keras's own under "keras".

    Raises:
        OutputError: the configuration of the Keras model is missing.
    """
    if config is None or KERAS not in config:
        raise OutputError("a .keras file needs the configuration of a Keras model")
    stored = {name: value for name, value in config.items() if name != KERAS}
    weights = keras_h5_layout(tensors, stored or None, conversion)
    stated = json.dumps(config[KERAS]).encode()
    archive = zip_layout(
        [
            Record(METADATA, json.dumps({"keras_version": KERAS_VERSION}).encode()),
            Record(CONFIG, stated),
            Record(WEIGHTS, b"", weights.size),
        ]
    )
    (begins,) = archive.places
    sizes = [tensor.nbytes for tensor in tensors]
    between = list(_between(weights, sizes))

    def finalize(checksums: Sequence[int]) -> Iterator[BytesAt]:
        parts = [(at, zlib.crc32(data), len(data)) for at, data in between]
        parts += zip(weights.places, checksums, sizes, strict=True)
        whole = combined_crc32((checksum, size) for _, checksum, size in sorted(parts))
        yield from archive.finalize([whole])
        yield from ((begins + at, data) for at, data in between)

    return FileLayout(
        size=archive.size,
        places=[begins + place for place in weights.places],
        finalize=finalize,
        checksums=[0] * len(tensors),
    )


def _between(weights: FileLayout, sizes: Iterable[int]) -> Iterator[BytesAt]:
    """Yield the bytes before, between and after the tensors, with zeros in gaps."""
    taken = sorted((at, at + size) for at, size in zip(weights.places, sizes, strict=True) if size)
    begins = [0, *(end for _, end in taken)]
    gaps = [
        (start, bytearray(end - start))
        for start, end in zip(begins, [*(start for start, _ in taken), weights.size], strict=True)
        if start < end
    ]
    starts = [start for start, _ in gaps]
    for at, data in weights.finalize(()):
        start, gap = gaps[bisect.bisect_right(starts, at) - 1]
        if at + len(data) > start + len(gap):
            raise OutputError("h5py wrote the weights with an unexpected layout")
        gap[at - start : at - start + len(data)] = data
    yield from ((start, bytes(gap)) for start, gap in gaps)
