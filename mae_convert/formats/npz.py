"""NumPy archives (`.npz`): a zip of arrays, each with a short header."""

import ast
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mae_convert.errors import CheckpointError
from mae_convert.files.byte_ranges import damaged
from mae_convert.formats.archive import DAMAGE, Archive
from mae_convert.formats.archive_write import Record, zip_layout
from mae_convert.formats.contents import Contents, embedded_json, reading
from mae_convert.formats.output_file import FileLayout
from mae_convert.formats.registry import NPZ
from mae_convert.formats.tensor import LazyTensor, possible_shape
from mae_convert.formats.torch_types import NUMPY_DTYPES
from mae_convert.text import shown

SUFFIX = ".npy"
SETTINGS = {"config": "__config__", "conversion": "__conversion__"}
MAGIC = b"\x93NUMPY"
HEADS = (b"\1\0", b"\2\0", b"\3\0")
"""Versions of the .npy header. Version 3 is in UTF-8, which matters for field names only."""

FIELDS = ("descr", "fortran_order", "shape")
DESCR = re.compile(r"[<>|=][biufcU][0-9]{1,9}")
LARGEST_HEAD = 10_000
LARGEST_TEXT = 1 << 26


@dataclass(frozen=True)
class _Head:
    """The header of an array, and the offset of its values in the member of the zip archive."""

    shape: tuple[int, ...]
    columns_first: bool
    dtype: np.dtype
    begins: int


def read_npz(archive: Archive) -> Contents:
    """Read a NumPy archive; arrays of Python objects, which are pickles, are refused.

    Raises:
        CheckpointError: the archive is damaged, or contains something other than arrays of numbers.
    """
    names = [record.removesuffix(SUFFIX) for record in archive.records if record.endswith(SUFFIX)]
    if not names:
        raise CheckpointError(
            archive.path,
            " is a zip archive with neither a PyTorch checkpoint nor NumPy arrays",
            hint="specify a .pth, .safetensors, .h5 or .npz file",
        )
    if twice := next((name for name in names if name in archive.records), None):
        raise CheckpointError(
            archive.path,
            f" has the members {shown(twice)} and {shown(twice)}{SUFFIX}; NumPy reads the first"
            " member, and other programs read the second member",
            hint="write the archive with numpy.savez",
        )
    texts = {name: _text(archive, member) for name, member in SETTINGS.items() if member in names}
    return Contents(
        kind=NPZ,
        tensors={name: _lazy(archive, name) for name in names if name not in SETTINGS.values()},
        files=(archive.file,),
        config=embedded_json(texts.get("config"), archive.path),
        config_location=SETTINGS["config"],
        conversion=embedded_json(texts.get("conversion"), archive.path),
        ignored={
            record: f"{archive.size(record)} bytes"
            for record in archive.records
            if not record.endswith(SUFFIX)
        },
    )


def arrays_in(archive: Archive, names: Sequence[str]) -> dict[str, LazyTensor]:
    """Return the requested arrays that a NumPy archive contains; other arrays are not read.

    Raises:
        CheckpointError: a requested array is corrupt, or is not an array of numbers.
    """
    return {n: _lazy(archive, n) for n in names if f"{n}{SUFFIX}" in archive.records}


def npz_layout(
    tensors: Sequence[LazyTensor], config: Mapping | None, conversion: Mapping | None
) -> FileLayout:
    """Return the layout of an uncompressed archive.

    Additional arrays contain `config` and `conversion` as JSON text; a value of None is not stored.
    """
    settings = {SETTINGS["config"]: config, SETTINGS["conversion"]: conversion}
    texts = {n: np.array(json.dumps(value)) for n, value in settings.items() if value is not None}
    return zip_layout(
        [
            *(Record(f"{t.name}{SUFFIX}", _head(t.shape, t.dtype), t.nbytes) for t in tensors),
            *(Record(f"{n}{SUFFIX}", _head((), t.dtype) + t.tobytes()) for n, t in texts.items()),
        ]
    )


def _head(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    stream = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(stream, fields)
    return stream.getvalue()


def _read_head(archive: Archive, name: str) -> _Head:
    """Return the header of an array: magic, version, length, and a Python literal."""
    with reading(archive.path, *DAMAGE, SyntaxError, TypeError):
        start = archive.raw(f"{name}{SUFFIX}", LARGEST_HEAD)
        if start[:6] != MAGIC:
            raise ValueError(f"{name} is not a NumPy array")
        width = 2 if start[6] == 1 else 4
        begins = 8 + width + int.from_bytes(start[8 : 8 + width], "little")
        fields = ast.literal_eval(start[8 + width : begins].decode("latin-1").strip())
        descr, columns_first, shape = (fields[key] for key in FIELDS)
        if len(fields) != len(FIELDS) or type(columns_first) is not bool or start[6:8] not in HEADS:
            raise ValueError(f"{name} has a header that NumPy does not write")
        if not possible_shape(shape) or begins > LARGEST_HEAD:
            raise ValueError(f"{name} has an invalid shape")
        if not isinstance(descr, str) or not DESCR.fullmatch(descr):
            raise CheckpointError(
                archive.path,
                f" contains {shown(name)} as {shown(descr)}, which is not an array of numbers (.npz"
                " does not keep the dtype bfloat16, and stores object arrays as pickles)",
                hint="write it as float32",
            )
        return _Head(tuple(shape), columns_first, np.dtype(descr), begins)


def _lazy(archive: Archive, name: str) -> LazyTensor:
    head = _read_head(archive, name)
    shape, dtype = head.shape, head.dtype
    native = dtype.newbyteorder("=")
    if native not in NUMPY_DTYPES:
        raise CheckpointError(
            archive.path,
            f" contains {shown(name)} as {dtype}, which is not supported",
            hint="write it as float32",
        )
    size = head.begins + math.prod(shape) * dtype.itemsize
    if archive.size(f"{name}{SUFFIX}") != size:
        raise damaged(archive.path, f"{shown(name)} should have {size} bytes")

    stored = shape[::-1] if head.columns_first else shape
    load = archive.array(f"{name}{SUFFIX}", head.begins, stored, dtype)
    if not head.columns_first and dtype.isnative:
        return LazyTensor(name, shape, native, load)

    def turned() -> np.ndarray:
        array = load()
        return (array.T if head.columns_first else array).astype(native, copy=False)

    return LazyTensor(name, shape, native, turned)


def _text(archive: Archive, name: str) -> str | None:
    head = _read_head(archive, name)
    if head.shape != () or head.dtype.kind != "U" or not 0 < head.dtype.itemsize < LARGEST_TEXT:
        return None
    count = head.dtype.itemsize
    raw = archive.array(f"{name}{SUFFIX}", head.begins, (count,), np.dtype(np.uint8))()
    order = "be" if head.dtype.byteorder == ">" else "le"
    try:  # decoded by Python, which checks it; NumPy accepts any number as a character
        return raw.tobytes().decode(f"utf-32-{order}").rstrip("\0")
    except UnicodeDecodeError:
        return None
