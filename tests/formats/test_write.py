"""Written files have the same bits when they are read by mae-convert and by other libraries."""

import hashlib
import json
import math
import tempfile
import time
import zipfile
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import GOLDEN

from mae_convert.errors import OutputError
from mae_convert.formats import LazyTensor, open_container, tensor, write_directory, write_file

KINDS = ("pth", "safetensors", "tf_h5", "keras_h5", "npz")
DTYPES = [np.dtype(code) for code in "?bhilBHILefdF"]
SMALL_FLOATS = [
    np.dtype(kind) for kind in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
]
CONFIG = {
    "hidden_size": 4,
    "eps": 1e-6,
    "pool": None,
    "sizes": [1, -(2**40)],
    "näme": "\U0001f5bc\0é",
}
CONVERSION = {"source": "a.pth", "account": {f"tensor {n}": "kept" for n in range(5000)}}


def sequence(shape: tuple[int, ...], dtype: np.dtype, seed: int = 0) -> np.ndarray:
    """Return an array of random bits, which for floats includes NaN, infinities and -0."""
    count = math.prod(shape)
    if dtype.kind == "b":
        return np.random.default_rng(seed).integers(0, 2, shape).astype(bool)
    bits = np.random.default_rng(seed).bytes(count * dtype.itemsize)
    return np.frombuffer(bits, dtype, count).reshape(shape)


def lazily(arrays: dict[str, np.ndarray]) -> list[LazyTensor]:
    return [LazyTensor.from_array(name, array) for name, array in arrays.items()]


def supported(kind: str) -> list[np.dtype]:
    return DTYPES + (SMALL_FLOATS if kind in ("pth", "safetensors") else [])


PART = st.text("abzé._:-0 ", min_size=1, max_size=8).filter(lambda part: part.strip(".") != "")
NAMES = st.lists(PART, min_size=1, max_size=3).map("/".join)


@st.composite
def many_tensors(draw: st.DrawFn) -> tuple[str, dict[str, np.ndarray]]:
    kind = draw(st.sampled_from(KINDS))
    names = draw(st.lists(NAMES, max_size=6, unique=True))
    # `.../leaf` keeps a name from being a group of another, which HDF5 cannot store.
    shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
    arrays = {
        f"{name}/leaf:{number}": sequence(
            draw(shapes), draw(st.sampled_from(supported(kind))), number
        )
        for number, name in enumerate(names)
    }
    arrays["last/weight:0"] = np.arange(3.0)
    return kind, arrays


@settings(max_examples=120, deadline=None)
@given(many_tensors(), st.booleans())
def test_written_tensors_are_read_back(
    drawn: tuple[str, dict[str, np.ndarray]], with_settings: bool
) -> None:
    kind, arrays = drawn
    config, conversion = (CONFIG, CONVERSION) if with_settings else (None, None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out"
        hashes = write_file(path, kind, lazily(arrays), config=config, conversion=conversion)
        opened = open_container(path)
        assert opened.kind == kind
        assert (opened.config, opened.conversion) == (config, conversion)
        assert opened.ignored == {}
        assert [*Path(folder).iterdir()] == [path]
        assert list(hashes) == list(arrays)
        if kind in ("pth", "safetensors", "npz"):
            assert list(opened.tensors) == list(arrays)
        for name, array in arrays.items():
            read = opened.tensors[name].load()
            assert (read.shape, read.dtype) == (array.shape, array.dtype)
            assert read.tobytes() == array.tobytes()
            assert hashes[name] == hashlib.sha256(array.tobytes()).hexdigest()


def all_dtypes(kind: str) -> dict[str, np.ndarray]:
    arrays = {f"m/{d}": sequence((3, 5), d, n) for n, d in enumerate(supported(kind))}
    return {**arrays, "m/scalar": np.float32(2.5)[()].reshape(()), "m/empty": np.zeros((0, 4))}


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_the_pth_safely(tmp_path: Path, mmap: bool) -> None:
    arrays = all_dtypes("pth")
    write_file(tmp_path / "x.pth", "pth", lazily(arrays), config=CONFIG, conversion=CONVERSION)
    loaded = torch.load(tmp_path / "x.pth", weights_only=True, mmap=mmap)
    assert (loaded["config"], loaded["conversion"]) == (CONFIG, CONVERSION)
    assert list(loaded["model"]) == list(arrays)
    for name, array in arrays.items():
        result = loaded["model"][name]
        assert str(result.dtype).removeprefix("torch.") == str(array.dtype)
        assert tuple(result.shape) == array.shape
        assert result.is_contiguous()
        flat = result.reshape(-1).view(torch.uint8) if result.numel() else torch.zeros(0)
        assert flat.numpy().tobytes() == array.tobytes()


def test_pth_has_the_file_structure_of_torch_save(tmp_path: Path) -> None:
    write_file(tmp_path / "x.pth", "pth", lazily(all_dtypes("pth")))
    data = (tmp_path / "x.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        assert archive.testzip() is None  # every CRC is right
        assert archive.read("checkpoint/version") == b"3\n"
        assert archive.read("checkpoint/byteorder") == b"little"
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            name_and_extra = data[entry.header_offset + 26 : entry.header_offset + 30]
            head = 30 + sum(np.frombuffer(name_and_extra, "<u2").tolist())
            assert (entry.header_offset + head) % 64 == 0


def test_written_file_is_read_by_the_safetensors_library(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    arrays = all_dtypes("safetensors")
    write_file(path, "safetensors", lazily(arrays), config=CONFIG)
    with safetensors.safe_open(path, "pt") as file:
        assert set(file.keys()) == set(arrays)
        metadata = file.metadata()
        assert metadata["format"] == "pt"
        assert json.loads(metadata["config"]) == CONFIG
        for name, array in arrays.items():
            result = file.get_tensor(name)
            assert tuple(result.shape) == array.shape
            flat = result.reshape(-1).view(torch.uint8) if result.numel() else torch.zeros(0)
            assert flat.numpy().tobytes() == array.tobytes()
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert length % 8 == 0
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert list(header) == ["__metadata__", *arrays]


def test_written_file_is_read_by_numpy(tmp_path: Path) -> None:
    arrays = all_dtypes("npz")
    write_file(tmp_path / "x.npz", "npz", lazily(arrays), config=CONFIG)
    with np.load(tmp_path / "x.npz") as file:
        assert json.loads(str(file["__config__"])) == CONFIG
        for name, array in arrays.items():
            assert file[name].tobytes() == array.tobytes()
            assert (file[name].shape, file[name].dtype) == (array.shape, array.dtype)


@pytest.mark.parametrize("kind", ["tf_h5", "keras_h5"])
def test_written_file_is_read_by_h5py(tmp_path: Path, kind: str) -> None:
    arrays = all_dtypes(kind)
    write_file(tmp_path / "x.h5", kind, lazily(arrays), config=CONFIG, conversion=CONVERSION)
    with h5py.File(tmp_path / "x.h5") as file:
        assert json.loads(file.attrs["config"]) == CONFIG
        assert json.loads(file.attrs["conversion"]) == CONVERSION
        for name, array in arrays.items():
            assert (file[name].shape, file[name].dtype) == (array.shape, array.dtype)
            assert file[name][()].tobytes() == array.tobytes()
            assert file[name].chunks is None


def structure(path: Path) -> dict:
    """Return everything in an HDF5 file that a reader can access, except the numbers."""
    with h5py.File(path) as file:
        seen: dict = {"/": {name: list(np.ravel(file.attrs[name])) for name in file.attrs}}

        def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
            attributes = {
                key: (list(value), value.dtype)
                for key, value in ((key, np.asarray(item.attrs[key])) for key in item.attrs)
            }
            seen[name] = (getattr(item, "shape", None), getattr(item, "dtype", None), attributes)

        file.visititems(visit)
        return seen


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*/tf_model.h5")), ids=lambda p: p.parent.name)
def test_a_tf_h5_has_the_structure_of_the_real_one(tmp_path: Path, path: Path) -> None:
    write_file(tmp_path / "x.h5", "tf_h5", open_container(path).tensors.values())
    ours, real = structure(tmp_path / "x.h5"), structure(path)
    assert ours["/"].pop("keras_version")
    assert real["/"].pop("keras_version")
    assert ours == real
    with h5py.File(tmp_path / "x.h5") as file, h5py.File(path) as original:
        for group, name in (("/", "layer_names"), ("/", "backend"), ("vit", "weight_names")):
            attributes = [result[group].attrs.get_id(name) for result in (file, original)]
            assert attributes[0].dtype == attributes[1].dtype
            assert attributes[0].shape == attributes[1].shape
    assert list(open_container(tmp_path / "x.h5").tensors) == list(open_container(path).tensors)


def test_long_lists_of_weights_are_split_as_keras_reads_them(tmp_path: Path) -> None:
    names = [f"vit/{'x' * 90}/{number}:0" for number in range(1500)]
    write_file(tmp_path / "x.h5", "tf_h5", [LazyTensor.from_array(n, np.zeros(1)) for n in names])
    with h5py.File(tmp_path / "x.h5") as file:
        assert set(file["vit"].attrs) == {"weight_names0", "weight_names1", "weight_names2"}
    assert list(open_container(tmp_path / "x.h5").tensors) == names


def test_the_names_of_the_largest_model_need_no_split(tmp_path: Path) -> None:
    """ViT-H has 32 blocks of 16 tensors, with the longest names of the TensorFlow classes."""
    names = [
        f"vit/tf_vi_tmae_for_pre_training/vit/encoder/layer_._{block}/attention/attention/query/{n}"
        for block in range(32)
        for n in range(16)
    ]
    write_file(tmp_path / "x.h5", "tf_h5", [LazyTensor.from_array(n, np.zeros(1)) for n in names])
    with h5py.File(tmp_path / "x.h5") as file:
        assert list(file["vit"].attrs) == ["weight_names"]


@pytest.mark.parametrize("kind", ["tf_h5", "keras_h5", "npz"])
def test_formats_without_bfloat16_refuse_it(tmp_path: Path, kind: str) -> None:
    half = LazyTensor.from_array("a/b", np.zeros(2, ml_dtypes.bfloat16))
    with pytest.raises(OutputError, match=r'cannot store a/b as bfloat16.*dtype="float32"'):
        write_file(tmp_path / "x", kind, [half])
    assert not any(tmp_path.iterdir())


IMPOSSIBLE = [
    ("safetensors", ["__metadata__"]), ("npz", ["__config__"]), ("pth", ["a", "a"]), ("pth", [""]),
    ("pth", ["a\0b"]), ("npz", ["\ud800"]), ("keras_h5", ["a//b"]), ("keras_h5", ["/a"]),
    ("keras_h5", ["a", "a/b"]), ("keras_h5", ["./a"]), ("tf_h5", ["a"]), ("pth", ["a" * 5000]),
    ("tf_h5", ["top_level_model_weights/a"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "names"), IMPOSSIBLE)
def test_names_that_a_container_cannot_store_are_refused(
    tmp_path: Path, kind: str, names: list[str]
) -> None:
    with pytest.raises(OutputError) as caught:
        write_file(tmp_path / "x", kind, [LazyTensor.from_array(n, np.zeros(2)) for n in names])
    assert len(str(caught.value).splitlines()) == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_transposed_views_are_written_block_by_block(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor, "BLOCK_BYTES", 256)
    base = np.arange(7 * 9 * 11, dtype=np.float32).reshape(7, 9, 11)
    views = {
        "m/t": base.T,
        "m/p": base.transpose(1, 0, 2),
        "m/row": base.transpose(2, 0, 1)[None],
        "m/strided": base[::2, ::-1, 1:],
        "m/broadcast": np.broadcast_to(base[0], (5, 9, 11)),
    }
    write_file(tmp_path / "x", kind, lazily(views))
    for name, result in open_container(tmp_path / "x").tensors.items():
        np.testing.assert_array_equal(result.load(), views[name], strict=True)


def test_writing_in_blocks_copies_at_most_one_block() -> None:
    view = np.zeros((4096, 4096), np.float32).T
    sizes = [block.nbytes for block in tensor.blocks(view)]
    assert sum(sizes) == view.nbytes
    assert max(sizes) <= tensor.BLOCK_BYTES


def test_big_endian_arrays_are_written_natively(tmp_path: Path) -> None:
    write_file(tmp_path / "x.npz", "npz", lazily({"a": np.arange(3, dtype=">f4")}))
    np.testing.assert_array_equal(
        open_container(tmp_path / "x.npz").tensors["a"].load(),
        np.arange(3, dtype=np.float32),
        strict=True,
    )


def test_tensor_with_an_unexpected_dtype_is_refused(tmp_path: Path) -> None:
    false = LazyTensor("a", (3,), np.dtype(np.float32), lambda: np.zeros(3))
    with pytest.raises(OutputError, match="a should be float32"):
        write_file(tmp_path / "x.pth", "pth", [false])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_the_same_whenever_it_is_written(tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        write_file(tmp_path / name, kind, lazily({"m/a": np.arange(9.0)}), config={"x": 1})
        time.sleep(1.1 if kind.endswith("h5") else 0)  # HDF5 keeps times in seconds
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_directory(tmp_path: Path) -> None:
    arrays = {"a": np.arange(3.0)}
    files = {"config.json": {"hidden_size": 3}, "conversion.json": {"outputs": {}}}
    hashes = write_directory(
        tmp_path / "m", "model.safetensors", "safetensors", lazily(arrays), files
    )
    assert hashes == {"a": hashlib.sha256(arrays["a"].tobytes()).hexdigest()}
    opened = open_container(tmp_path / "m")
    assert (opened.config, opened.conversion) == tuple(files.values())
    np.testing.assert_array_equal(opened.tensors["a"].load(), arrays["a"])


@pytest.mark.parametrize("transposed", [False, True])
def test_values_are_checked_when_they_are_written_but_not_when_they_are_compared(
    tmp_path: Path, transposed: bool
) -> None:
    array, checked = np.arange(6.0).reshape(2, 3), []
    loaded = open_container(_written(tmp_path / "a.npz", array)).tensors["a"]
    if transposed:
        loaded = LazyTensor("a", (3, 2), array.dtype, lambda load=loaded.load: load().T)
    hashes = write_file(
        tmp_path / "b.npz", "npz", [loaded.checked(lambda part: checked.append(part.size) or part)]
    )
    expected = np.ascontiguousarray(array.T if transposed else array)
    assert checked == [6]
    assert hashes == {"a": hashlib.sha256(expected.tobytes()).hexdigest()}
    assert loaded.checked(np.negative).mapped(np.square, array.dtype).unchecked is None


def _written(path: Path, array: np.ndarray) -> Path:
    write_file(path, "npz", [LazyTensor.from_array("a", array)])
    return path


def test_lazy_tensor_can_be_renamed_and_has_a_size() -> None:
    lazy = LazyTensor.from_array("a", np.zeros((2, 3), np.float32))
    assert (lazy.renamed("b").name, lazy.name, lazy.nbytes) == ("b", "a", 24)
    assert lazy.renamed("b").load() is not None
