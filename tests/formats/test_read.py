"""Opening checkpoints: the same bits as the libraries that wrote them, and clear refusals."""

import io
import json
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from paths import DEMO, GOLDEN

from mae_convert.errors import CheckpointError
from mae_convert.formats import LazyTensor, open_container, write_file

PTH = sorted(GOLDEN.glob("*/checkpoint.pth"))
SAFETENSORS = sorted(GOLDEN.glob("*/*.safetensors"))
TF_H5 = sorted(GOLDEN.glob("*/tf_model.h5"))

TORCH_DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
    torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def case_name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def torch_bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def assert_same_as_torch(path: Path, expected: dict[str, torch.Tensor]) -> None:
    opened = open_container(path)
    assert list(opened.tensors) == list(expected)
    for name, tensor in expected.items():
        array = opened.tensors[name].load()
        assert array.shape == tuple(tensor.shape) == opened.tensors[name].shape
        assert array.dtype == opened.tensors[name].dtype
        assert str(array.dtype) == str(tensor.dtype).removeprefix("torch.")
        assert array.tobytes() == torch_bytes(tensor), name


@pytest.mark.parametrize("path", PTH, ids=case_name)
def test_golden_pth_equals_torch_load(path: Path) -> None:
    expected = torch.load(path, weights_only=False)
    wrapper = next((key for key in ("model", "module", "model_state") if key in expected), None)
    assert_same_as_torch(path, expected[wrapper] if wrapper else expected)
    opened = open_container(path)
    assert (opened.kind, opened.wrapper, opened.weights_file) == ("pth", wrapper, path)
    assert opened.config is None
    assert not opened.is_directory


def test_training_checkpoint_keeps_its_arguments_and_reports_the_rest() -> None:
    path = GOLDEN / "finetune_gap_tiny" / "checkpoint.pth"
    expected = torch.load(path, weights_only=False)
    opened = open_container(path)
    assert opened.training_args == vars(expected["args"])
    assert opened.ignored == {
        "optimizer": "132 tensors and settings",
        "epoch": "49",
        "scaler": "5 settings",
    }


@pytest.mark.parametrize("path", SAFETENSORS, ids=case_name)
def test_golden_safetensors_equal_the_library(path: Path) -> None:
    opened = open_container(path)
    expected = safetensors.numpy.load_file(path)
    assert set(opened.tensors) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(opened.tensors[name].load(), array, strict=True)


@pytest.mark.parametrize("path", TF_H5, ids=case_name)
def test_golden_tf_h5_equals_h5py_in_the_stored_order(path: Path) -> None:
    opened = open_container(path)
    assert opened.kind == "tf_h5"
    with h5py.File(path) as file:
        names = [
            f"{layer}/{weight}"
            for layer in file.attrs["layer_names"]
            for weight in file[layer].attrs["weight_names"]
        ]
        assert list(opened.tensors) == names
        for name in names:
            np.testing.assert_array_equal(opened.tensors[name].load(), file[name][()], strict=True)


def test_a_tensor_is_a_view_of_the_file() -> None:
    for path in (PTH[0], SAFETENSORS[0], TF_H5[0]):
        arrays = [tensor.load() for tensor in open_container(path).tensors.values()]
        assert not any(array.flags.owndata or array.flags.writeable for array in arrays)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_dtype_of_torch(tmp_path: Path, dtype: torch.dtype, zipped: bool) -> None:
    tensors = {
        "matrix": torch.arange(12).reshape(3, 4).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.zeros(0, 3).to(dtype),
    }
    torch.save(tensors, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert_same_as_torch(tmp_path / "x.pth", tensors)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_views_of_one_storage_are_read(tmp_path: Path, zipped: bool) -> None:
    base = torch.randn(4, 6)
    tensors = {
        "base": base,
        "transposed": base.T,
        "column": base[:, 2],
        "every_second": base[1::2, ::3],
        "expanded": base[0].expand(5, 6),
        "parameter": torch.nn.Parameter(base),
        "overlapping": base.as_strided((3, 3), (1, 1), 5),
    }
    torch.save(tensors, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert_same_as_torch(tmp_path / "x.pth", tensors)


def test_parameter_with_attributes_is_read(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.randn(3))
    parameter.note = "an attribute that mae-convert ignores"
    torch.save({"p": parameter}, tmp_path / "x.pth")
    assert_same_as_torch(tmp_path / "x.pth", {"p": parameter})


def test_big_endian_checkpoint_is_read(tmp_path: Path) -> None:
    tensors = {"f": torch.randn(3, 5), "c": torch.randn(4, dtype=torch.complex64)}
    tensors["h"] = torch.randn(7).to(torch.bfloat16)
    torch.save(tensors, tmp_path / "little.pth")
    with (
        zipfile.ZipFile(tmp_path / "little.pth") as little,
        zipfile.ZipFile(tmp_path / "big.pth", "w") as big,
    ):
        for name in little.namelist():
            data = little.read(name)
            if name.endswith("byteorder"):
                data = b"big"
            elif "/data/" in name:
                width = 2 if len(data) == 14 else 4
                data = np.frombuffer(data, f"u{width}").byteswap().tobytes()
            big.writestr(name, data)
    assert_same_as_torch(tmp_path / "big.pth", tensors)


def test_compressed_checkpoint_is_read(tmp_path: Path) -> None:
    path = tmp_path / "packed.pth"
    with zipfile.ZipFile(PTH[0]) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name in plain.namelist():
            out.writestr(name, plain.read(name))
    assert_same_as_torch(path, torch.load(PTH[0], weights_only=True)["model"])


@pytest.mark.parametrize("wrapper", ["model", "state_dict", None])
def test_wrappers_around_the_tensors(tmp_path: Path, wrapper: str | None) -> None:
    tensors = {"a": torch.randn(2), "b": torch.randn(3)}
    whole = {wrapper: tensors, "epoch": 3} if wrapper else {**tensors, "epoch": 3}
    torch.save(whole, tmp_path / "x.pth")
    assert_same_as_torch(tmp_path / "x.pth", tensors)
    opened = open_container(tmp_path / "x.pth")
    assert opened.wrapper == wrapper
    assert opened.ignored == {"epoch": "3"}


def test_another_wrapper_is_refused_with_the_keys(tmp_path: Path) -> None:
    torch.save({"teacher": {"a": torch.randn(2)}, "iteration": 3}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="it has teacher, iteration;"):
        open_container(tmp_path / "x.pth")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_equals_numpy(tmp_path: Path, save) -> None:
    arrays = {
        "plain": np.arange(12.0).reshape(3, 4),
        "columns_first": np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
        "big_endian": np.arange(5, dtype=">i4"),
        "a/path": np.array(True),
        "empty": np.zeros((0, 3), np.float16),
    }
    save(tmp_path / "x.npz", **arrays)
    opened = open_container(tmp_path / "x.npz")
    assert list(opened.tensors) == list(arrays)
    for name, array in arrays.items():
        read = opened.tensors[name].load()
        assert read.dtype.isnative
        np.testing.assert_array_equal(read, array.astype(read.dtype), strict=True)


def test_npz_with_objects_or_raw_bfloat16_bytes_is_refused(tmp_path: Path) -> None:
    for array in (np.array([{}], dtype=object), np.zeros(2, ml_dtypes.bfloat16)):
        np.savez(tmp_path / "x.npz", a=array)
        with pytest.raises(CheckpointError, match="not an array of numbers"):
            open_container(tmp_path / "x.npz")


def test_keras_h5_of_any_depth_and_storage_is_read(tmp_path: Path) -> None:
    arrays = {
        "layers/dense/vars/0": np.random.default_rng(0).normal(size=(300, 40)),
        "layers/dense/vars/1": np.arange(3, dtype=">f4"),
        "top": np.float32(3),
    }
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        file.create_dataset("layers/dense/vars/0", data=arrays["layers/dense/vars/0"],
                            chunks=(64, 8), compression="gzip")  # fmt: skip
        file["layers/dense/vars/1"] = arrays["layers/dense/vars/1"]
        file["top"] = arrays["top"]
        half = file.create_dataset("half", data=np.arange(3).astype(ml_dtypes.bfloat16))
        half.attrs["dtype"] = "bfloat16"  # the name of the dtype, as Keras stores it
    opened = open_container(tmp_path / "x.weights.h5")
    assert opened.kind == "keras_h5"
    half_read = opened.tensors["half"].load()
    np.testing.assert_array_equal(half_read, np.arange(3).astype(ml_dtypes.bfloat16), strict=True)
    assert set(opened.tensors) == {*arrays, "half"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(opened.tensors[name].load(), array)


def test_hdf5_weight_names_in_several_attributes_are_read(tmp_path: Path) -> None:
    shutil.copy(TF_H5[0], tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        layer = file[file.attrs["layer_names"][0]]
        names = list(layer.attrs["weight_names"])
        del layer.attrs["weight_names"]
        for number, part in enumerate((names[:20], names[20:40], names[40:])):
            layer.attrs[f"weight_names{number}"] = [name.encode() for name in part]
    whole, split = open_container(TF_H5[0]), open_container(tmp_path / "x.h5")
    assert list(whole.tensors) == list(split.tensors)


def link_outside(file: h5py.File) -> None:
    file["b"] = h5py.ExternalLink("other.h5", "/a")


def link_softly(file: h5py.File) -> None:
    file["b"] = h5py.SoftLink("/a")


def store_outside(file: h5py.File) -> None:
    file.create_dataset("b", (2,), "f4", external=[("/etc/hostname", 0, 8)])


def map_another_file(file: h5py.File) -> None:
    virtual = h5py.VirtualLayout((2,), "f4")
    virtual[:] = h5py.VirtualSource("other.h5", "a", (2,))
    file.create_virtual_dataset("b", virtual)


def never_end(file: h5py.File) -> None:
    file["g/b"] = np.zeros(2)
    file["g/again"] = file["g"]


def hold_text(file: h5py.File) -> None:
    file["b"] = "text"


HDF5_TRICKS = [
    link_outside, link_softly, store_outside, map_another_file, never_end, hold_text
]  # fmt: skip


@pytest.mark.parametrize("damage", HDF5_TRICKS)
def test_hdf5_with_external_references_is_refused(tmp_path: Path, damage) -> None:
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        file["a"] = np.zeros(2, np.float32)
        damage(file)
    with pytest.raises(CheckpointError, match=r"x\.weights\.h5"):
        open_container(tmp_path / "x.weights.h5")


def test_settings_stored_in_a_file_are_read(tmp_path: Path) -> None:
    config = {"hidden_size": 4, "image_mean": [0.5, 0.5, 0.5], "image_std": [1.0, 1.0, 1.0]}
    tensors = {"a": torch.randn(2)}
    torch.save({"model": tensors, "config": config, "conversion": {"x": 1}}, tmp_path / "x.pth")
    opened = open_container(tmp_path / "x.pth")
    assert (opened.config, opened.config_source) == (config, "config of x.pth")
    assert opened.conversion == {"x": 1}
    assert opened.preprocessor == {"image_mean": [0.5, 0.5, 0.5], "image_std": [1.0, 1.0, 1.0]}
    assert opened.ignored == {}


def directory_with(tmp_path: Path, *names: str) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    for name in names:
        shutil.copy(SAFETENSORS[0], directory / name)
    for name in ("config.json", "preprocessor_config.json", "conversion.json"):
        (directory / name).write_text(json.dumps({"of": name}))
    return directory


def test_a_model_directory(tmp_path: Path) -> None:
    directory = directory_with(tmp_path, "model.safetensors", "other.safetensors")
    opened = open_container(directory)
    assert (opened.path, opened.is_directory) == (directory, True)
    assert opened.weights_file == directory / "model.safetensors"
    assert (opened.config, opened.config_source) == ({"of": "config.json"}, "config.json")
    assert opened.preprocessor == {"of": "preprocessor_config.json"}
    assert opened.conversion == {"of": "conversion.json"}


def test_only_a_file_with_a_conventional_name_uses_the_adjacent_configuration(
    tmp_path: Path,
) -> None:
    directory = directory_with(tmp_path, "model.safetensors", "other.safetensors")
    inside = open_container(directory / "model.safetensors")
    assert (inside.config, inside.is_directory) == ({"of": "config.json"}, False)
    assert open_container(directory / "other.safetensors").config is None


@pytest.mark.parametrize("count", [1, 2])
def test_single_keras_file_uses_the_adjacent_configuration(tmp_path: Path, count: int) -> None:
    directory = directory_with(tmp_path)
    for name in ["a.weights.h5", "b.weights.h5"][:count]:
        write_file(directory / name, "keras_h5", [LazyTensor.from_array("a", np.zeros(2))])
    assert (open_container(directory / "a.weights.h5").config is not None) == (count == 1)


def test_two_weight_files_in_a_directory_are_ambiguous(tmp_path: Path) -> None:
    directory = directory_with(tmp_path, "model.safetensors", "tf_model.h5")
    with pytest.raises(
        CheckpointError, match=r"\(model.safetensors, tf_model.h5\); specify the file"
    ):
        open_container(directory)


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"looked for model.safetensors, pytorch_model.bin, "):
        open_container(directory_with(tmp_path))


def test_configuration_that_is_not_json_is_refused(tmp_path: Path) -> None:
    directory = directory_with(tmp_path, "model.safetensors")
    (directory / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json is not JSON"):
        open_container(directory)


def packed_keras_model() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model.weights.h5", b"")
    return stream.getvalue()


NOT_CHECKPOINTS = {
    "empty": (b"", "is empty"),
    "junk": (b"\x07junk" * 100, "is not a checkpoint"),
    "short": (b"PK", "is not a checkpoint"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer"),
    "page": (b"\n<!DOCTYPE html><html>", "web page"),
    "refusal": (b'<?xml version="1.0"?><Error><Code>AccessDenied', "web page"),
    "json": (b'{\n "hidden_size": 4}', "JSON file"),
    "gzip": (b"\x1f\x8b\x08\x00", "gunzip"),
    "tar": (b"\0" * 257 + b"ustar", "tar archive"),
    "keras": (packed_keras_model(), "Keras archive without config.json"),
    "no_header": (b"\x00" * 4 + b"\x00" * 4 + b"{", "header"),
}


@pytest.mark.parametrize("name", NOT_CHECKPOINTS)
def test_file_that_is_not_a_checkpoint_is_identified(tmp_path: Path, name: str) -> None:
    content, message = NOT_CHECKPOINTS[name]
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_container(path)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth does not exist; check the path"):
        open_container(tmp_path / "none.pth")


def whole_files(folder: Path) -> list[Path]:
    torch.save({"model": {"a": torch.randn(30)}}, folder / "legacy.pth",
               _use_new_zipfile_serialization=False)  # fmt: skip
    np.savez_compressed(folder / "packed.npz", a=np.arange(30.0), b=np.arange(3))
    np.savez(folder / "stored.npz", a=np.arange(30.0), b=np.arange(3))
    made = [folder / name for name in ("legacy.pth", "packed.npz", "stored.npz")]
    return [PTH[0], PTH[2], SAFETENSORS[0], TF_H5[0], *made]


def test_truncated_file_is_refused_at_every_length(tmp_path: Path) -> None:
    for path in whole_files(tmp_path):
        whole = path.read_bytes()
        ends = np.linspace(0, len(whole) - 1, 60, dtype=int).tolist()
        for end in {*ends, 1, 2, 4, 8, 9, 60, 100, len(whole) - 2}:
            cut = tmp_path / f"cut{path.suffix}"
            cut.write_bytes(whole[:end])
            with pytest.raises(CheckpointError) as caught:
                open_container(cut)
            assert len(str(caught.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pickletools")
def test_a_damaged_file_is_read_or_refused_but_never_crashes(tmp_path: Path) -> None:
    # Changed HDF5 files are compared with h5py in `test_differential_constructed.py`.
    random = np.random.default_rng(0)
    for path in whole_files(tmp_path):
        if path.suffix == ".h5":
            continue
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(150):
            damaged = whole.copy()
            places = random.integers(0, min(len(whole), 6000), 3)
            damaged[places] = random.integers(0, 256, 3)
            damaged[-random.integers(1, min(len(whole), 3000))] ^= 255
            (tmp_path / "damaged").write_bytes(damaged.tobytes())
            try:
                opened = open_container(tmp_path / "damaged")
                for tensor in opened.tensors.values():
                    assert tensor.load().nbytes == tensor.nbytes
            except CheckpointError:
                pass


def safetensors_file(header: str | bytes, data: bytes) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text)) + text + data


ENTRY = '"{}":{{"dtype":"F32","shape":[{}],"data_offsets":[{},{}]}}'
INCONSISTENT_SAFETENSORS = {
    "a size that is not the shape's": (f"{{{ENTRY.format('a', 3, 0, 8)}}}", 8),
    "a hole": (f"{{{ENTRY.format('a', 1, 0, 4)},{ENTRY.format('b', 1, 8, 12)}}}", 12),
    "an overlap": (f"{{{ENTRY.format('a', 2, 0, 8)},{ENTRY.format('b', 2, 4, 12)}}}", 12),
    "a rest": (f"{{{ENTRY.format('a', 1, 0, 4)}}}", 8),
    "a negative offset": (f"{{{ENTRY.format('a', 1, -4, 0)}}}", 0),
    "a name twice": (f"{{{ENTRY.format('a', 1, 0, 4)},{ENTRY.format('a', 1, 0, 4)}}}", 4),
    "a negative extent": (f"{{{ENTRY.format('a', '-1,-1', 0, 4)}}}", 4),
    "an endless extent": (f"{{{ENTRY.format('a', f'0,{10**30}', 0, 0)}}}", 0),
    "an unknown type": (f"{{{ENTRY.format('a', 1, 0, 4).replace('F32', 'X9')}}}", 4),
    "no type": ('{"a":{"shape":[1],"data_offsets":[0,4]}}', 4),
    "metadata that are not text": ('{"__metadata__":{"a":1}}', 0),
    "deep nesting": ("{" + '"a":[' * 100_000, 0),
    "no mapping": ("{} []", 0),
    "no text": (b"{\xff\xfe}", 0),
}


@pytest.mark.parametrize("name", INCONSISTENT_SAFETENSORS)
def test_inconsistent_safetensors_header_is_refused(tmp_path: Path, name: str) -> None:
    header, size = INCONSISTENT_SAFETENSORS[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_file(header, bytes(size)))
    with pytest.raises(CheckpointError):
        open_container(path)
    if name != "a name twice":  # the library refuses all other cases too
        with pytest.raises(safetensors.SafetensorError):
            safetensors.numpy.load_file(path)


def test_only_numpy_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from mae_convert.formats import open_container, write_file\n"
        "assert 'h5py' not in sys.modules\n"
        f"opened = open_container({str(PTH[0])!r})\n"
        "for kind in ('pth', 'safetensors', 'npz', 'keras_h5', 'tf_h5'):\n"
        "    tensors = [t.renamed('m/' + n) for n, t in opened.tensors.items()]\n"
        f"    write_file({str(tmp_path)!r} + '/' + kind, kind, tensors, config={{}})\n"
        "print({'torch', 'tensorflow', 'keras', 'jax'} & set(sys.modules))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert process.stdout == "set()\n"


def test_pth_to_safetensors_imports_only_the_modules_it_needs(tmp_path):
    program = (
        "import sys\n"
        "from mae_convert.cli.main import main\n"
        "try:\n"
        f"    main(['convert', {str(DEMO / 'checkpoint.pth')!r}, {str(tmp_path / 'out')!r}, '--to',"
        " 'transformers', '--json'])\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "formats = {'mae_convert.formats.npz', 'mae_convert.formats.dcp'}\n"
        "unneeded = {'h5py', 'numpy.random', *formats}\n"
        "print(unneeded & set(sys.modules), file=sys.stderr)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert process.stderr == "set()\n"
