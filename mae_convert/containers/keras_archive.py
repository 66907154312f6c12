"""Keras 3's `.keras` files: a zip archive of a configuration, and the weights as HDF5.

Keras makes a model of such a file by importing what `config.json` names. Here nothing is made:
the configuration is read as JSON, the weights as tensors, and only files of this project's models
and KerasHub's are taken, whose configuration is understood.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from mae_convert.containers.archive import Archive, ArchiveWriter
from mae_convert.containers.contents import KERAS, Contents
from mae_convert.containers.hdf5 import read_hdf5
from mae_convert.containers.hdf5_write import write_keras_h5
from mae_convert.containers.messages import damaged, shown
from mae_convert.containers.tensor import BLOCK_BYTES, LazyTensor
from mae_convert.errors import CheckpointError, OutputError

METADATA, CONFIG, WEIGHTS = "metadata.json", "config.json", "model.weights.h5"
LARGEST_CONFIG = 1 << 24
PACKAGES = ("reference_models>", "keras_hub>")
"""How the names begin under which models are registered whose configuration is understood."""

KERAS_VERSION = "3.15.1"
"""The version whose form is written; see `tests/test_keras_archive.py`."""


def read_keras_archive(archive: Archive) -> Contents:
    """Read a `.keras` file of one of this project's models, or of KerasHub's.

    The configuration is the one that we keep in the weights, if we wrote them, and under "keras"
    what Keras's `config.json` says.

    Raises:
        CheckpointError: a member is missing, too large, or of a name or form that Keras does not
            write; or it is another's model.
    """
    _check_members(archive)
    stated = _read_config(archive)
    weights = read_hdf5(archive.part(WEIGHTS))
    besides = [name for name in archive.records if name not in (METADATA, CONFIG, WEIGHTS)]
    training = {"compile_config": "how it was trained"} if stated.get("compile_config") else {}
    return replace(
        weights,
        kind="keras_archive",
        config={**(weights.config or {}), KERAS: stated},
        config_place=CONFIG,
        ignored={**weights.ignored, **dict.fromkeys(besides, "a file in the archive"), **training},
    )


def _check_members(archive: Archive) -> None:
    for name in archive.records:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise CheckpointError(
                f"{archive.path} has a member named {shown(name)}, which reaches out of the"
                " archive; Keras writes no such file: get it again from where it comes from"
            )
    for name in (CONFIG, WEIGHTS):
        if name not in archive.records:
            raise CheckpointError(
                f"{archive.path} is a Keras archive without {name}; write it again with"
                " model.save('model.keras')"
            )


def _read_config(archive: Archive) -> dict[str, Any]:
    if archive.size(CONFIG) > LARGEST_CONFIG:
        raise damaged(archive.path, f"{CONFIG} would have {archive.size(CONFIG)} bytes")
    try:
        stated = json.loads(archive.raw(CONFIG, LARGEST_CONFIG))
    except (ValueError, RecursionError) as error:
        raise damaged(archive.path, f"{CONFIG} is not JSON") from error
    name = stated.get("registered_name") if isinstance(stated, dict) else None
    if not isinstance(name, str) or not name.startswith(PACKAGES):
        of = stated.get("class_name") if isinstance(stated, dict) else None
        raise CheckpointError(
            f"{archive.path} holds a Keras model of class {shown(of)}, and of .keras files only"
            " those of reference_models and KerasHub are read; write its weights with"
            " model.save_weights('model.weights.h5')"
        )
    return stated


def write_keras_archive(
    path: Path,
    tensors: Sequence[LazyTensor],
    config: Mapping | None,
    conversion: Mapping | None,
) -> dict[str, str]:
    """Write a `.keras` file; the configuration has Keras's own under "keras".

    Returns:
        The SHA-256 of each tensor.

    Raises:
        OutputError: it is not told what Keras is to make of the weights.
    """
    if config is None or KERAS not in config:
        raise OutputError(f"{path.name} needs the configuration of a Keras model")
    kept = {name: value for name, value in config.items() if name != KERAS}
    # HDF5 is laid out by its library, in a file of its own.
    weights = path.with_name(f"{path.name}.h5")
    try:
        digests = write_keras_h5(weights, tensors, kept or None, conversion)
        with ArchiveWriter(path) as archive:
            _add_json(archive, METADATA, {"keras_version": KERAS_VERSION})
            _add_json(archive, CONFIG, config[KERAS])
            archive.add(WEIGHTS, weights.stat().st_size, _blocks_of(weights))
    finally:
        weights.unlink(missing_ok=True)
    return digests


def _add_json(archive: ArchiveWriter, name: str, value: Any) -> None:
    text = json.dumps(value).encode()
    archive.add(name, len(text), [text])


def _blocks_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block
