"""PyTorch files are read as by `torch.load(weights_only=True)`, or both readers refuse them.

The files in `data/torch_formats` were written by `torch_formats.py` with other PyTorch versions.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import DATA
from pytorch_readers import bits_of, by_mae_convert, by_pytorch
from torch.utils import serialization
from torch_formats import of_every_view, save_all

OLD = sorted((DATA / "torch_formats").glob("*.pth"))


def assert_both_read(path: Path) -> None:
    expected = by_pytorch(path)
    assert expected
    assert by_mae_convert(path) == expected


def test_every_kind_of_tensor_in_every_format_of_this_version(tmp_path: Path) -> None:
    refused = []
    for path, state in save_all(tmp_path).items():
        tensors = state.get("model", state)
        assert by_mae_convert(path) == {name: bits_of(tensor) for name, tensor in tensors.items()}
        expected = by_pytorch(path)
        assert expected in (None, by_mae_convert(path))
        refused += [path.name.partition("-")[2]] if expected is None else []
    # torch.load refuses some files of torch.save: new dtypes in the old format, pickle protocol 4.
    assert all("legacy" in name or name.endswith("-4.pth") for name in refused)


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.name)
def test_files_of_other_pytorch_versions_are_read(path: Path) -> None:
    if path.stem.endswith("-4"):  # PyTorch refuses this protocol
        assert by_mae_convert(path) == by_mae_convert(
            path.with_stem(path.stem.removesuffix("4") + "2")
        )
    else:
        assert_both_read(path)


@pytest.mark.parametrize("alignment", [1, 2, 16, 64, 512, 4096])
def test_storages_with_any_alignment_are_read(tmp_path: Path, alignment: int) -> None:
    with serialization.config.patch({"save.storage_alignment": alignment}):
        torch.save(of_every_view(), tmp_path / "x.pth")
    assert_both_read(tmp_path / "x.pth")


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Return a copy of a zip checkpoint with its records changed, or left out where None."""
    copy = path.with_name("changed.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return copy


def swapped(name: str, data: bytes) -> bytes:
    if name.endswith("byteorder"):
        return b"big"
    return np.frombuffer(data, "u4").byteswap().tobytes() if "/data/" in name else data


MARKS: dict[str, Callable[[str, bytes], bytes | None]] = {
    "big": swapped,
    "no byte order": lambda name, data: None if name.endswith("byteorder") else data,
    "another byte order": lambda name, data: b"middle" if name.endswith("byteorder") else data,
    "an empty byte order": lambda name, data: b"" if name.endswith("byteorder") else data,
    "no version": lambda name, data: None if name.endswith("/version") else data,
    "another version": lambda name, data: b"9\n" if name.endswith("/version") else data,
    "no storage": lambda name, data: None if name.endswith("/data/0") else data,
    "a short storage": lambda name, data: data[:-4] if name.endswith("/data/0") else data,
    "no pickle": lambda name, data: None if name.endswith("data.pkl") else data,
}


@pytest.mark.parametrize("mark", MARKS)
def test_flags_in_a_zip_file(tmp_path: Path, mark: str) -> None:
    torch.save({"a": torch.randn(3, 5), "b": torch.randn(7)}, tmp_path / "x.pth")
    path = rewritten(tmp_path / "x.pth", MARKS[mark])
    if mark == "a short storage":  # PyTorch may read beyond the end of the storage
        assert by_mae_convert(path) is None
    else:
        assert by_mae_convert(path) == by_pytorch(path)


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    base = torch.arange(64.0).to(draw(st.sampled_from([torch.float32, torch.int8, torch.bool])))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    strides = [draw(st.integers(0, 5)) for _ in shape]
    return base.as_strided(shape, strides, draw(st.integers(0, 15)))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(views(), min_size=1, max_size=5), st.booleans())
def test_any_view_is_read(tmp_path: Path, tensors: list[torch.Tensor], zipped: bool) -> None:
    state = {str(number): tensor for number, tensor in enumerate(tensors)}
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert_both_read(tmp_path / "x.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_never_read_in_two_ways(tmp_path: Path, zipped: bool) -> None:
    torch.save(of_every_view(), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    whole = np.frombuffer((tmp_path / "x.pth").read_bytes(), np.uint8)
    random = np.random.default_rng(0)
    both = 0
    for _ in range(400):
        damaged = whole.copy()
        damaged[random.integers(0, len(whole), 2)] = random.integers(0, 256, 2)
        (tmp_path / "damaged.pth").write_bytes(damaged.tobytes())
        if (result := by_mae_convert(tmp_path / "damaged.pth")) is not None:
            expected = by_pytorch(tmp_path / "damaged.pth")
            assert expected in (None, result)
            both += expected is not None
    assert both > 20
