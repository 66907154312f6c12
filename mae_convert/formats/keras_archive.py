"""Keras 3's `.keras` files: zip archives that contain a configuration and the weights as HDF5.

Keras creates a model from a `.keras` file by importing the classes that `config.json` names. Here
no model is created: the configuration is read as JSON, and the weights as tensors. Only models of
this project and of KerasHub are accepted.
"""

import bisect
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mae_convert.errors import CheckpointError, OutputError
from mae_convert.files.byte_ranges import ByteFile, damaged
from mae_convert.files.strict_json import JsonError, parse_json
from mae_convert.formats.archive import Archive
from mae_convert.formats.archive_write import Record, combined_crc32, zip_layout
from mae_convert.formats.contents import KERAS, Contents
from mae_convert.formats.hdf5 import read_hdf5
from mae_convert.formats.hdf5_write import keras_h5_layout
from mae_convert.formats.output_file import BytesAt, FileLayout
from mae_convert.formats.registry import KERAS_ARCHIVE
from mae_convert.formats.tensor import LazyTensor
from mae_convert.formats.tensorflow_files import whole_model
from mae_convert.text import shown

METADATA, CONFIG, WEIGHTS = "metadata.json", "config.json", "model.weights.h5"
LARGEST_CONFIG = 1 << 24
FUNCTIONAL = ("Functional", "Sequential")
PACKAGES = ("reference_models>", "mae_convert>", "keras_hub>")
"""Prefixes of the registered names of Keras classes whose configuration can be read."""


def read_keras_archive(archive: Archive) -> Contents:
    """Read a `.keras` file of a model of this project or of KerasHub.

    The result's `config` contains the fields that mae-convert stores with the weights, if there are
    any, and an item "keras", the content of Keras's `config.json`.

    Raises:
        CheckpointError: a member is missing, is too large, or is not in Keras's format; or the
            model is not from this project or KerasHub.
    """
    _check_members(archive)
    config = _read_config(archive)
    weights = read_hdf5(_weights(archive))
    besides = [name for name in archive.records if name not in (METADATA, CONFIG, WEIGHTS)]
    training = {"compile_config": "training settings"} if config.get("compile_config") else {}
    return replace(
        weights,
        kind=KERAS_ARCHIVE,
        files=(archive.file,),
        config={**(weights.config or {}), KERAS: config},
        config_location=CONFIG,
        ignored={**weights.ignored, **dict.fromkeys(besides, "a file in the archive"), **training},
    )


def _check_members(archive: Archive) -> None:
    for name in (CONFIG, WEIGHTS):
        if name not in archive.records:
            raise CheckpointError(
                archive.path,
                f" is a Keras archive without {name}",
                hint="write it again with model.save('model.keras')",
            )


def _weights(archive: Archive) -> ByteFile:
    """Return the weights as a file."""
    part = archive.part(WEIGHTS)
    if part is None:
        raise CheckpointError(
            archive.path,
            f" contains {WEIGHTS} in compressed form, which Keras does not write",
            hint="unpack the archive and pack it again with `zip -0`",
        )
    return part


def _read_config(archive: Archive) -> dict[str, Any]:
    if archive.size(CONFIG) > LARGEST_CONFIG:
        raise damaged(archive.path, f"{CONFIG} would have {archive.size(CONFIG)} bytes")
    try:
        config = parse_json(archive.raw(CONFIG, LARGEST_CONFIG))
    except JsonError as error:
        raise damaged(archive.path, f"{CONFIG} is not JSON: {error}") from error
    name = config.get("registered_name") if isinstance(config, dict) else None
    if not isinstance(name, str) or not name.startswith(PACKAGES):
        of = config.get("class_name") if isinstance(config, dict) else None
        if of in FUNCTIONAL:
            raise whole_model(archive.path, json.dumps(config), None)
        raise CheckpointError(
            archive.path,
            f" contains a Keras model of class {shown(of)}, but only .keras files with models of "
            "reference_models or KerasHub can be read",
            hint="write its weights with model.save_weights('model.weights.h5')",
        )
    return config


KERAS_VERSION = "3.15.1"
"""The Keras version whose file format is written; see `tests/formats/test_keras_archive.py`."""


def keras_archive_layout(
    tensors: Sequence[LazyTensor], config: Mapping | None, conversion: Mapping | None
) -> FileLayout:
    """Return the layout of a `.keras` file.

    Args:
        tensors: the tensors.
        config: the model configuration. Its item "keras" is the content of Keras's own
            `config.json`.
        conversion: the conversion record; None if no record is stored.

    Raises:
        OutputError: the configuration of the Keras model is missing.
    """
    if config is None or KERAS not in config:
        raise OutputError(
            "a .keras file needs the configuration of a Keras model",
            hint="write a .weights.h5 file, or save the model with Keras",
        )
    stored = {name: value for name, value in config.items() if name != KERAS}
    weights = keras_h5_layout(tensors, stored or None, conversion)
    config_json = json.dumps(config[KERAS]).encode()
    archive = zip_layout(
        [
            Record(METADATA, json.dumps({"keras_version": KERAS_VERSION}).encode()),
            Record(CONFIG, config_json),
            Record(WEIGHTS, b"", weights.size),
        ]
    )
    (begins,) = archive.offsets
    sizes = [tensor.nbytes for tensor in tensors]
    between = list(_between(weights, sizes))

    def finalize(checksums: Sequence[int]) -> Iterator[BytesAt]:
        parts = [(at, zlib.crc32(data), len(data)) for at, data in between]
        parts += zip(weights.offsets, checksums, sizes, strict=True)
        whole = combined_crc32((checksum, size) for _, checksum, size in sorted(parts))
        yield from archive.finalize([whole])
        yield from ((begins + at, data) for at, data in between)

    return FileLayout(
        size=archive.size,
        offsets=[begins + offset for offset in weights.offsets],
        finalize=finalize,
        checksums=[0] * len(tensors),
    )


def _between(weights: FileLayout, sizes: Iterable[int]) -> Iterator[BytesAt]:
    """Yield the bytes of the weights file that do not belong to tensors; unwritten bytes are zero.

    Args:
        weights: the layout of the weights file.
        sizes: the number of bytes of each tensor, in the order of ``weights.offsets``.
    """
    taken = sorted((at, at + size) for at, size in zip(weights.offsets, sizes, strict=True) if size)
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
