"""HDF5 without its library: what h5py writes is read as h5py reads it, in the same order."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_convert.errors import CheckpointError
from mae_convert.formats import open_container

VERSIONS = ("earliest", "v108", "v110", "v112", "latest")
DTYPES = [np.dtype(code) for code in "?bhilBHILefdFD"] + [
    np.dtype(c) for c in (">f4", ">i2", ">c8")
]


def datasets(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield all datasets, depth first, in the order in which h5py iterates."""
    for key in group:
        item = group[key]
        if isinstance(item, h5py.Group):
            yield from datasets(item, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", item


def assert_same_as_h5py(path: Path) -> None:
    opened = open_container(path)
    with h5py.File(path) as file:
        expected = dict(datasets(file))
        assert list(opened.tensors) == list(expected)
        for name, dataset in expected.items():
            array = np.asarray(dataset[()])
            read = opened.tensors[name].load()
            assert (read.shape, read.dtype) == (array.shape, array.dtype.newbyteorder("="))
            assert read.tobytes() == array.astype(read.dtype).tobytes(), name


def numbers(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return (np.arange(np.prod(shape, dtype=int)) % 100).reshape(shape).astype(dtype)


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_of_the_hdf5_format_is_read(
    tmp_path: Path, version: str, in_order: bool
) -> None:
    with h5py.File(tmp_path / "x.h5", "w", libver=version, track_order=in_order) as file:
        for number in range(40, 0, -1):  # more than a small group has room for
            group = file.create_group(f"layer {number}/vars", track_order=in_order)
            for index, dtype in enumerate(DTYPES[:: number % 3 + 1]):
                group[str(index)] = numbers((number, 3), dtype)
        file["scalar"], file["empty"] = np.float64(3), np.zeros((0, 4), np.float32)
        file["näme/weight:0"] = numbers((2, 3, 4), np.dtype("f4"))
        file.create_dataset("small", data=numbers((5,), np.dtype("f4")), track_times=False)
    assert_same_as_h5py(tmp_path / "x.h5")


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_group_with_thousands_of_members_is_read(
    tmp_path: Path, version: str, in_order: bool
) -> None:
    with h5py.File(tmp_path / "x.h5", "w", libver=version, track_order=in_order) as file:
        for number in range(3000):
            file[f"name of tensor {number * 7919 % 3000}"] = np.int64(number)
    assert_same_as_h5py(tmp_path / "x.h5")


@pytest.mark.parametrize("count", [1, 9, 200])
@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_attributes_of_every_kind_are_read(tmp_path: Path, version: str, count: int) -> None:
    with h5py.File(tmp_path / "x.h5", "w", libver=version) as file:
        file["g/a"] = np.zeros(2)
        for number in range(count):
            file.attrs[f"number {number}"] = number
            file["g/a"].attrs[f"text {number}"] = "x" * number
        file.attrs["config"] = '{"hidden_size": 3, "näme": "é"}'
        file.attrs["layer_names"] = [b"g"]
        file["g"].attrs["weight_names"] = ["a"]  # of variable length
        file.attrs["empty"] = h5py.Empty("f4")
        file.attrs["reference"] = file["g"].ref
    opened = open_container(tmp_path / "x.h5")
    assert (opened.kind, list(opened.tensors)) == ("tf_h5", ["g/a"])
    assert opened.config == {"hidden_size": 3, "näme": "é"}


PACKINGS = {
    "plain": {},
    "gzip": {"compression": "gzip"},
    "shuffled": {"compression": "gzip", "shuffle": True},
    "with checksums": {"fletcher32": True},
    "all": {"compression": 9, "shuffle": True, "fletcher32": True},
}


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    data=st.data(),
    packing=st.sampled_from(sorted(PACKINGS)),
    dtype=st.sampled_from(DTYPES),
)
def test_chunked_dataset_is_read(
    tmp_path_factory, shape, data, packing: str, dtype: np.dtype
) -> None:
    path = tmp_path_factory.mktemp("chunks") / "x.h5"
    chunks = tuple(data.draw(st.integers(1, extent)) for extent in shape)
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=numbers(shape, dtype), chunks=chunks, **PACKINGS[packing])
        file.create_dataset("b", (3, *shape), dtype, maxshape=(None, *shape), chunks=(1, *chunks))
        file["b"][:] = numbers((3, *shape), dtype)
    assert_same_as_h5py(path)


def test_dataset_with_many_chunks_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("a", data=numbers((300, 70), np.dtype("f4")), chunks=(2, 7))
    assert_same_as_h5py(tmp_path / "x.h5")


def test_compact_dataset_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((3,))
        created = h5py.h5d.create(file.id, b"a", h5py.h5t.IEEE_F32LE, space, properties)
        h5py.Dataset(created)[:] = [1, 2, 3]
    assert_same_as_h5py(tmp_path / "x.h5")


def test_bfloat16_as_written_by_keras_is_read(tmp_path: Path) -> None:
    array = np.arange(5).astype(ml_dtypes.bfloat16)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("plain", data=array).attrs["dtype"] = "bfloat16"
        chunked = file.create_dataset("packed", data=array, chunks=(2,), compression="gzip")
        chunked.attrs["dtype"] = "bfloat16"
    for tensor in open_container(tmp_path / "x.h5").tensors.values():
        np.testing.assert_array_equal(tensor.load(), array, strict=True)


def test_chunk_index_of_the_new_format_is_refused_by_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        file.create_dataset("a", data=np.zeros(100), chunks=(10,), compression="gzip")
    with pytest.raises(CheckpointError, match=r"stores a with a version 4 chunk index.*h5repack"):
        open_container(tmp_path / "x.h5")


@pytest.mark.parametrize("end", range(0, 3000, 97))
def test_truncated_hdf5_file_is_refused(tmp_path: Path, end: int) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for number in range(20):
            file[f"g/{number}"] = np.arange(number)
    whole = (tmp_path / "x.h5").read_bytes()
    (tmp_path / "x.h5").write_bytes(whole[: end + 9])
    with pytest.raises(CheckpointError):
        open_container(tmp_path / "x.h5")


def test_damaged_chunk_is_detected_when_it_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        created = file.create_dataset("a", data=np.arange(1000.0), chunks=(100,), compression=9)
        offset = created.id.get_chunk_info(3).byte_offset
    with (tmp_path / "x.h5").open("r+b") as stream:
        stream.seek(offset + 20)
        stream.write(b"\xff" * 20)
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        open_container(tmp_path / "x.h5").tensors["a"].load()
