"""The safetensors format: a length, a JSON header, and the bytes of the tensors."""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.errors import CheckpointError
from mae_convert.files.byte_ranges import ByteFile, damaged
from mae_convert.files.strict_json import JsonError, parse_json
from mae_convert.formats.contents import Contents, embedded_json
from mae_convert.formats.output_file import FileLayout
from mae_convert.formats.registry import SAFETENSORS
from mae_convert.formats.settings import describe
from mae_convert.formats.tensor import LazyTensor, possible_shape
from mae_convert.formats.torch_types import TORCH_DTYPES
from mae_convert.text import shown

LARGEST_HEADER = 4_000_000
"""The maximum size of the header in bytes: ten times the size of the header of the largest MAE. The
format allows 25 times this maximum, but parsed JSON takes much more memory than its text."""

METADATA = "__metadata__"
SETTINGS = ("config", "conversion")
FIELDS = ("dtype", "shape", "data_offsets")

CODES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
_CODE_OF: Mapping[str, str] = {dtype: code for code, dtype in CODES.items()}


def read_safetensors(file: ByteFile) -> Contents:
    """Read a safetensors file.

    Raises:
        CheckpointError: the header violates the format, or data is missing.
    """
    path = file.path
    header, begins = _read_header(file)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise damaged(path, "its metadata is not text")
    entries = {name: _checked_entry(path, name, entry) for name, entry in header.items()}
    _check_places(path, entries, file.size - begins)
    settings = {name: embedded_json(metadata.get(name), path) for name in SETTINGS}
    return Contents(
        kind=SAFETENSORS,
        tensors={
            name: LazyTensor(name, shape, dtype, file.array(begins + start, shape, dtype))
            for name, (dtype, shape, start, _) in entries.items()
        },
        files=(file,),
        config=settings["config"],
        config_location="metadata",
        conversion=settings["conversion"],
        ignored={
            f"metadata {shown(name)}": describe(text)
            for name, text in metadata.items()
            if name != "format" and settings.get(name) is None
        },
    )


def safetensors_layout(
    tensors: Sequence[LazyTensor], config: Mapping | None, conversion: Mapping | None
) -> FileLayout:
    """Return the layout of a safetensors file, with header and data in the order of the tensors.

    `config` and `conversion` are stored as JSON text in the metadata of the header; a value of None
    is not stored.
    """
    settings = {"config": config, "conversion": conversion}
    texts = {name: json.dumps(value) for name, value in settings.items() if value is not None}
    header: dict[str, Any] = {METADATA: {"format": "pt", **texts}}
    position = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _CODE_OF[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    head = struct.pack("<Q", len(text)) + text
    return FileLayout(
        size=len(head) + position,
        offsets=[len(head) + header[tensor.name]["data_offsets"][0] for tensor in tensors],
        finalize=lambda _: [(0, head)],
    )


Entry = tuple[np.dtype, tuple[int, ...], int, int]


def _read_header(file: ByteFile) -> tuple[dict[str, Any], int]:
    (length,) = struct.unpack("<Q", file.raw(0, 8))
    if length > LARGEST_HEADER:
        raise damaged(file.path, f"its header would have {length} bytes")
    try:
        header = parse_json(file.raw(8, length))
    except JsonError as error:
        raise damaged(file.path, f"its header cannot be read ({error})") from error
    if not isinstance(header, dict):
        raise damaged(file.path, "its header is not a JSON object")
    return header, 8 + length


def _checked_entry(path: Path, name: str, entry: Any) -> Entry:
    match entry:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            complete = len(entry) == len(FIELDS) and type(start) is type(end) is int
        case _:
            complete = False
    if not complete:
        raise damaged(
            path, f"the entry for {shown(name)} must have valid values for {', '.join(FIELDS)}"
        )
    if code not in CODES:
        raise CheckpointError(
            path,
            f" contains {shown(name)} as {shown(code)}, which is not supported",
            hint="cast it to float32 first",
        )
    dtype = TORCH_DTYPES[CODES[code]]
    if not possible_shape(shape) or end - start != math.prod(shape) * dtype.itemsize:
        raise damaged(path, f"shape and size of {shown(name)} are inconsistent")
    return dtype, tuple(shape), start, end


def _check_places(path: Path, entries: Mapping[str, Entry], size: int) -> None:
    """Require that the tensors fill the file without gaps, overlaps or trailing bytes."""
    position = 0
    for start, end, name in sorted(
        (start, end, name) for name, (*_, start, end) in entries.items()
    ):
        if start != position:
            raise damaged(path, f"the data of {shown(name)} begin at {start} and not at {position}")
        position = end
    if position != size:
        raise damaged(path, f"it has {size} bytes of data, but its tensors need {position}")
