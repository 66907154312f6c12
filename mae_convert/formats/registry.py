"""The table of file formats: how each format is recognised, read and written.

Code that depends on the format of a file looks the format up in this table. The modules that read
and write a format are imported when a file of this format is read or written, so that, for example,
h5py is not imported for other formats.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from mae_convert.text import listing

PTH, BIN, SAFETENSORS, NPZ, DCP = "pth", "bin", "safetensors", "npz", "dcp"
TF_H5, KERAS_H5, KERAS_ARCHIVE = "tf_h5", "keras_h5", "keras_archive"

ZIP = re.compile(rb"PK\x03\x04|PK\x05\x06")
HDF5 = re.compile(rb"\x89HDF\r\n\x1a\n")
SAFETENSORS_HEADER = re.compile(rb"(?s).{4}\0{4}\{")  # a length, then a JSON object
PICKLE = re.compile(rb"\x80[\x00-\x05]|[(\]}]{0,2}c[A-Za-z_][\w.]*\n[A-Za-z_]\w*\n")

NUMPY_DTYPES = (
    *("float64", "float32", "float16", "complex64", "complex128", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
)
TORCH_DTYPES = (*NUMPY_DTYPES, "bfloat16", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True)
class Signature:
    """A rule that recognises a file format, and the function that reads the format."""

    begins: re.Pattern[bytes]
    """A pattern of the file's first bytes."""

    reader: str
    """The function that reads the format, as "module:function". Its arguments are the open file
    (or the open archive if `members` is given) and, if the tensors of the format may be under a key
    (see `Format.has_keys`), this key or None. It returns `Contents`."""

    members: Callable[[str, Collection[str]], bool] | None = None
    """A function that returns whether a zip archive with this name and these members has the
    format; None if the format is not a zip archive."""

    def read(self, *arguments: Any) -> Any:
        """Import and call the reader, and return the contents of the file."""
        return _function(self.reader)(*arguments)


@dataclass(frozen=True)
class Format:
    """A file format for weights."""

    name: str
    """The name, as in `Container.kind`."""

    suffixes: tuple[str, ...] = ()
    """The suffixes of files in the format."""

    written: tuple[str, ...] = ()
    """The suffixes that select the format when a file is written."""

    signatures: tuple[Signature, ...] = ()
    """The rules that recognise the format. Empty if the format is recognised by a file's name, or
    by the reader of another format whose files begin with the same bytes."""

    writer: str = ""
    """The name, "module:function", of the function that returns the layout of a file in the
    format. The arguments of the function are the tensors, the configuration, the conversion record
    and, if `has_keys` is true, the key under which the weights are stored. Empty if the format is
    only read."""

    dtypes: tuple[str, ...] = NUMPY_DTYPES
    """The names of the dtypes that the format can store."""

    reserved: tuple[str, ...] = ()
    """Names that tensors in the format cannot have."""

    has_keys: bool = False
    """Whether the tensors may be under a key, as in a training checkpoint."""

    has_groups: bool = False
    """Whether tensor names are paths of groups and datasets; the file then stores the order of the
    members of each group, but not the order of all tensors."""

    weights_name: str = ""
    """The conventional name of the weights in a model directory; empty if there is none."""

    has_index: bool = False
    """Whether several files with an index file can be read as one checkpoint."""

    sharded: bool = False
    """Whether the format can be written as several files with an index."""

    pickled: bool = False
    """Whether a file in the format is a pickle or may contain one."""

    in_directories: bool = True
    """Whether a directory that contains one file in the format is a checkpoint."""

    def lay_out(self, *arguments: Any) -> Any:
        """Import and call the writer, which returns the layout of the file to be written."""
        return _function(self.writer)(*arguments)


def _function(reference: str) -> Callable[..., Any]:
    module, _, name = reference.partition(":")
    function: Callable[..., Any] = getattr(import_module(f"mae_convert.formats.{module}"), name)
    return function


def _has_pickle(_name: str, members: Collection[str]) -> bool:
    return any(member.lower().rpartition("/")[2] == "data.pkl" for member in members)


def _is_of_keras(name: str, members: Collection[str]) -> bool:
    """Return whether an archive is a Keras model, even if one of its members is missing."""
    named = {"metadata.json", "model.weights.h5", "model.weights.npz"}
    return not _has_pickle(name, members) and (
        name.endswith(".keras") or not named.isdisjoint(members)
    )


def _is_other_archive(name: str, members: Collection[str]) -> bool:
    return not _has_pickle(name, members) and not _is_of_keras(name, members)


FORMATS: Mapping[str, Format] = {
    row.name: row
    for row in (
        Format(
            KERAS_H5,  # Keras 3
            suffixes=(".weights.h5",),
            written=(".weights.h5",),
            writer="hdf5_write:keras_h5_layout",
            has_groups=True,
            weights_name="model.weights.h5",
        ),
        Format(
            KERAS_ARCHIVE,
            suffixes=(".keras",),
            written=(".keras",),
            signatures=(Signature(ZIP, "keras_archive:read_keras_archive", _is_of_keras),),
            writer="keras_archive:keras_archive_layout",
            has_groups=True,
        ),
        Format(
            SAFETENSORS,
            suffixes=(".safetensors",),
            written=(".safetensors",),
            signatures=(Signature(SAFETENSORS_HEADER, "safetensors_file:read_safetensors"),),
            writer="safetensors_file:safetensors_layout",
            dtypes=tuple(name for name in TORCH_DTYPES if name != "complex128"),
            reserved=("__metadata__",),
            weights_name="model.safetensors",
            has_index=True,
            sharded=True,
        ),
        Format(
            PTH,  # torch.save
            suffixes=(".pth", ".pt", ".ckpt", ".bin"),
            written=(".pth", ".pt", ".bin"),
            signatures=(
                Signature(ZIP, "pth_read:read_pth", _has_pickle),
                Signature(PICKLE, "pth_read:read_legacy_pth"),
            ),
            writer="pth_write:pth_layout",
            dtypes=TORCH_DTYPES,
            has_keys=True,
            pickled=True,
        ),
        Format(
            NPZ,
            suffixes=(".npz",),
            written=(".npz",),
            signatures=(Signature(ZIP, "npz:read_npz", _is_other_archive),),
            writer="npz:npz_layout",
            reserved=("__config__", "__conversion__"),
            in_directories=False,  # a .npz file often contains arrays that are not weights
        ),
        Format(
            TF_H5,  # the legacy format of Keras, which transformers 4 wrote
            suffixes=(".h5",),
            signatures=(Signature(HDF5, "hdf5:read_hdf5"),),
            writer="hdf5_write:tf_h5_layout",
            has_groups=True,
            weights_name="tf_model.h5",
            has_index=True,
        ),
        Format(
            BIN,  # torch.save of a state dict, as pytorch_model.bin; read as PTH
            writer="pth_write:bin_layout",
            dtypes=TORCH_DTYPES,
            weights_name="pytorch_model.bin",
            has_index=True,
            sharded=True,
            pickled=True,
        ),
        Format(DCP, has_keys=True, dtypes=TORCH_DTYPES, pickled=True),  # torch.distributed
    )
}
SUFFIX_FORMATS = {suffix: row.name for row in FORMATS.values() for suffix in row.written}
"""The name of the format that is written, by the suffix of the output's name."""

DIRECTORY_SUFFIXES = tuple(
    suffix for row in FORMATS.values() if row.in_directories for suffix in row.suffixes
)
"""The suffixes of files that are read as the weights of a directory."""

# Most libraries prefer the first format if a directory has weights in several of these formats.
_OF_DIRECTORIES = tuple(FORMATS[kind] for kind in (SAFETENSORS, BIN, TF_H5, KERAS_H5))
INDEX_SUFFIX = ".index.json"
METADATA = ".metadata"  # of a distributed checkpoint
CERTIFICATE_NAMES = ("verification.json", "verification.safetensors")
"""The file names of a certificate in a model directory. The certificate of a single file such as
`model.pth` has the names `model.pth.verification.json` and `model.pth.verification.safetensors`."""

WEIGHTS_NAMES = tuple(row.weights_name for row in _OF_DIRECTORIES)
"""The conventional names of the weights in a model directory, in order of preference."""

INDEX_NAMES = tuple(f"{row.weights_name}{INDEX_SUFFIX}" for row in _OF_DIRECTORIES if row.has_index)
"""The conventional names of the index of sharded weights."""

FILE_SUFFIXES = tuple(
    dict.fromkeys(
        (
            *(suffix for row in FORMATS.values() for suffix in row.suffixes),
            *(".hdf5", ".tar", ".tgz", ".gz", ".zip", ".pkl", ".pickle", ".npy", ".msgpack"),
            *(".onnx", ".tflite", ".pb", ".gguf", ".distcp", ".index", ".json"),
        )
    )
)
"""Suffixes of weight files in lower case, including files in unsupported formats. An output
directory cannot have one of these suffixes, because its name would look like a file name."""

SUFFIXES_IN_WORDS = listing(row.suffixes[0] for row in FORMATS.values() if row.suffixes)
SPECIFY = f"specify a {SUFFIXES_IN_WORDS} file, or a model directory"
"""Advice for a path that is not a checkpoint."""


def with_groups() -> tuple[str, ...]:
    """Return the names of the formats that are based on HDF5."""
    return tuple(row.name for row in FORMATS.values() if row.has_groups)
