"""The table of file formats agrees with the modules that read and write them."""

import re
from pathlib import Path

import numpy as np
import pytest

import mae_convert
from mae_convert.errors import CheckpointError, OutputError
from mae_convert.formats import LazyTensor, npz, safetensors_file, torch_types, write_file
from mae_convert.formats.container import read_file
from mae_convert.formats.registry import FORMATS, KERAS_H5, NPZ, PTH, SAFETENSORS, _function


@pytest.mark.parametrize("row", FORMATS.values(), ids=lambda row: row.name)
def test_every_format_has_a_reader_and_a_writer(row):
    references = [*(signature.reader for signature in row.signatures), row.writer]
    assert all(callable(_function(reference)) for reference in references if reference)
    assert set(row.written) <= set(row.suffixes)


def test_dtypes_and_reserved_names_are_those_of_the_modules():
    assert set(FORMATS[PTH].dtypes) == {str(dtype) for dtype in torch_types.TORCH_DTYPES.values()}
    assert set(FORMATS[NPZ].dtypes) == {str(dtype) for dtype in torch_types.NUMPY_DTYPES}
    assert set(FORMATS[SAFETENSORS].dtypes) == set(safetensors_file.CODES.values())
    assert FORMATS[SAFETENSORS].reserved == (safetensors_file.METADATA,)
    assert set(FORMATS[NPZ].reserved) == set(npz.SETTINGS.values())


@pytest.mark.parametrize("kind", [NPZ, KERAS_H5])
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_dtypes_without_numpy_support_are_refused_by_numpy_formats(tmp_path, kind, dtype):
    """The kind of one of these dtypes is "f", as if NumPy supported it."""
    tensor = LazyTensor.from_array("a", np.zeros(2, torch_types.TORCH_DTYPES[dtype]))
    with pytest.raises(OutputError, match=f"cannot store a as {dtype}"):
        write_file(tmp_path / "x", kind, [tensor])


def test_file_that_begins_like_an_archive_is_not_read_as_safetensors(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"PK\x03\x04\0\0\0\0{}" + b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"zip|archive|damaged"):
        read_file(tmp_path / "x")


def test_formats_are_named_in_the_table_only():
    """Only modules of child processes may, because these do not import the table."""
    package = Path(mae_convert.__file__).parent
    literal = re.compile(rf'(kind|format|containers) ?(==|=|!=) ?\(?"({"|".join(FORMATS)})"')
    files_with_names = {
        str(path.relative_to(package)) for path in package.rglob("*.py")
        if literal.search(path.read_text())
    }  # fmt: skip
    assert files_with_names <= {
        "runtime/loaders.py", "runtime/run_timm.py", "runtime/run_transformers.py",
    }  # fmt: skip
