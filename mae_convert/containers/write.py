"""Writes files and model directories: whole, flushed, and read again before they get their name."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mae_convert.containers.atomic import replacing_directory, replacing_file
from mae_convert.containers.checkpoint import JSON_NAMES
from mae_convert.containers.directory import WEIGHTS_NAMES
from mae_convert.containers.identify import read_contents
from mae_convert.containers.limits import HDF5_KINDS, check_limits
from mae_convert.containers.npz import write_npz
from mae_convert.containers.pth_write import write_bin, write_pth
from mae_convert.containers.safetensors_file import write_safetensors
from mae_convert.containers.shards import (
    INDEX_NAMES,
    INDEX_SUFFIX,
    SHARD,
    index_of,
    shard_names,
    split,
)
from mae_convert.containers.tensor import LazyTensor, sha256
from mae_convert.errors import OutputError

JsonFile = Mapping | Callable[[Mapping[str, str]], Mapping]
Writer = Callable[[Path, Sequence[LazyTensor], Mapping | None, Mapping | None], dict[str, str]]

CERTIFICATE_NAMES = ("verification.json", "verification.safetensors")
OUR_NAMES = frozenset((*JSON_NAMES, *WEIGHTS_NAMES, *INDEX_NAMES, *CERTIFICATE_NAMES, "README.md"))
SHARDED_KINDS = ("safetensors", "bin")
RECORD = "conversion.json"


def write_file(
    path: Path | str,
    kind: str,
    tensors: Iterable[LazyTensor],
    *,
    config: Mapping | None = None,
    conversion: Mapping | None = None,
    overwrite: bool = False,
    state_key: str | None = "model",
) -> dict[str, str]:
    """Write tensors to one file, one at a time, and read it again before it gets its name.

    Args:
        path: where the file is to stand.
        kind: "pth", "bin" (as "pth", the tensors alone), "safetensors", "tf_h5", "keras_h5",
            "keras_archive" (a `.keras` file) or "npz".
        tensors: in the order in which they are to stand in the file.
        config: the model configuration, kept inside the file; what JSON can hold.
        conversion: the record of the conversion, likewise.
        overwrite: replace an existing file.
        state_key: the key of the tensors in a "pth"; None makes it a plain state dict.

    Returns:
        The SHA-256 of each tensor's bytes, little-endian and in C order, by name.

    Raises:
        OutputError: the target exists, cannot be written, or did not read back as written; or the
            container cannot hold a name or a dtype. Nothing is left behind.
    """
    path = Path(path)
    with replacing_file(path, overwrite=overwrite) as temporary:
        return _write_weights(temporary, path, kind, tensors, config, conversion, state_key)


def write_directory(
    path: Path | str,
    weights_name: str,
    kind: str,
    tensors: Iterable[LazyTensor],
    json_files: Mapping[str, JsonFile],
    *,
    config: Mapping | None = None,
    overwrite: bool = False,
    max_shard_size: int | None = None,
) -> dict[str, str]:
    """Write a model directory: the weights, and JSON files beside them, as in `write_file`.

    A JSON file may be given as a function of what is returned here. `config` is kept inside the
    weights too, where they have a place for it, so that the file keeps its function when it is
    taken out of the directory. Weights of more than `max_shard_size` bytes are written in parts of
    at most so many, with an index.

    An existing directory is replaced only if we wrote it: it has a `conversion.json`, and nothing
    but files of conventional names and those that its `conversion.json` names under `outputs`.

    Raises:
        OutputError: as `write_file`; or the directory holds files that are not ours.
    """
    path = Path(path)
    with replacing_directory(path, overwrite=overwrite, may_replace=require_ours) as temporary:
        listed = list(tensors)
        config = None if kind == "bin" else config
        parts = [listed] if max_shard_size is None else split(listed, max_shard_size)
        if len(parts) > 1:
            digests = _write_shards(temporary, path, weights_name, kind, parts, config)
        else:
            weights = temporary / weights_name
            digests = _write_weights(weights, path / weights_name, kind, listed, config, None)
        for name, given in json_files.items():
            value = given(digests) if callable(given) else given
            text = json.dumps(value, indent=2) + "\n"
            (temporary / name).write_text(text, encoding="utf-8")
        return digests


def require_ours(directory: Path) -> None:
    """Raise OutputError if a directory holds anything that this program did not write."""
    names = sorted(path.name for path in directory.iterdir())
    try:
        record = json.loads((directory / RECORD).read_bytes())
        outputs = record.get("outputs", ())
    except (OSError, ValueError, AttributeError):
        record, outputs = None, ()
    ours = OUR_NAMES | set(outputs if isinstance(outputs, dict | list) else ())
    foreign = [n for n in names if record is None or not (n in ours or SHARD.fullmatch(n))]
    foreign += [name for name in names if (directory / name).is_dir()]
    if foreign:
        raise OutputError(
            f"{directory} holds {foreign[0]}, which this program did not write; "
            "choose another name or remove the directory yourself"
        )


def _write_shards(
    temporary: Path,
    target: Path,
    weights_name: str,
    kind: str,
    parts: Sequence[Sequence[LazyTensor]],
    config: Mapping | None,
) -> dict[str, str]:
    """Write each part to a file of its own, and the index; read all of it again."""
    if kind not in SHARDED_KINDS:
        raise OutputError(f"{weights_name} is only written whole; leave --max-shard-size out")
    shards = dict(zip(shard_names(weights_name, len(parts)), parts, strict=True))
    digests: dict[str, str] = {}
    for name, part in shards.items():
        digests |= _write_weights(temporary / name, target / name, kind, part, config, None)
    index = temporary / f"{weights_name}{INDEX_SUFFIX}"
    text = json.dumps(index_of(shards), indent=2, sort_keys=True) + "\n"
    index.write_text(text, encoding="utf-8")
    if list(read_contents(index).tensors) != [tensor.name for part in parts for tensor in part]:
        raise OutputError(f"{target} did not read back as it was written; check the disk")
    return digests


def _write_weights(
    temporary: Path,
    target: Path,
    kind: str,
    tensors: Iterable[LazyTensor],
    config: Mapping | None,
    conversion: Mapping | None,
    state_key: str | None = "model",
) -> dict[str, str]:
    listed = list(tensors)
    check_limits(target, kind, listed)
    config, conversion = _through_json(config), _through_json(conversion)
    digests = _writer(kind, state_key)(temporary, listed, config, conversion)
    _require_read_back(
        temporary, target, listed, digests, {"config": config, "conversion": conversion}
    )
    return digests


def _through_json(value: Mapping | None) -> Any:
    """Return settings as every container gives them back: tuples as lists, keys as text."""
    return None if value is None else json.loads(json.dumps(value))


def _writer(kind: str, state_key: str | None) -> Writer:
    if kind in HDF5_KINDS:
        # Imported here, so that what needs no HDF5 does not wait for it.
        from mae_convert.containers import hdf5_write, keras_archive

        return {
            "tf_h5": hdf5_write.write_tf_h5,
            "keras_h5": hdf5_write.write_keras_h5,
            "keras_archive": keras_archive.write_keras_archive,
        }[kind]
    writers: Mapping[str, Writer] = {
        "pth": partial(write_pth, state_key=state_key),
        "bin": write_bin,
        "safetensors": write_safetensors,
        "npz": write_npz,
    }
    return writers[kind]


def _require_read_back(
    temporary: Path,
    target: Path,
    written: Sequence[LazyTensor],
    digests: Mapping[str, str],
    settings: Mapping[str, Mapping | None],
) -> None:
    """Read a file through the reader that everyone uses, and compare everything in it.

    Raises:
        OutputError: it differs from what was to be written.
    """
    read = read_contents(temporary)
    names = [tensor.name for tensor in written]
    # HDF5 keeps the order within each group only.
    ordered = read.kind not in HDF5_KINDS
    same = (
        (list(read.tensors) == names if ordered else set(read.tensors) == set(names))
        and {"config": read.config, "conversion": read.conversion} == settings
        and all(_same(read.tensors[item.name], item, digests[item.name]) for item in written)
    )
    if not same:
        raise OutputError(f"{target} did not read back as it was written; check the disk")


def _same(read: LazyTensor, written: LazyTensor, digest: str) -> bool:
    return (read.shape, read.dtype) == (written.shape, written.dtype) and (
        sha256(read.load()) == digest
    )
