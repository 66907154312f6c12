"""A run is native if the library of a format reads the original bytes; else it reports why not."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from paths import DATA

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.convert.target import Packing
from mae_convert.families.checkpoint_options import Flags
from mae_convert.runtime.child_files import stage
from mae_convert.runtime.inputs import InputChoice, make_inputs
from mae_convert.runtime.job import Job, StoredWeights
from mae_convert.runtime.loaders import (
    LoadError,
    UnreadError,
    confirm,
    numpy_arrays,
    pytorch_state_dict,
    renamed,
    require_safe_torch_load,
    tensorflow_arrays,
)
from mae_convert.runtime.read_ahead import (
    ALIGNMENT,
    MAPPED_BYTES,
    aligned_array,
    stored_arrays,
)
from mae_convert.runtime.running import Request, Run, run_together
from mae_convert.runtime.sides import Side, loader_for
from mae_convert.verify.declared_changes import apply_steps

pytestmark = pytest.mark.usefixtures("forked_children")

FLAGS = Flags(num_attention_heads=4, decoder_num_attention_heads=3)


@pytest.fixture(scope="module")
def state(case):
    return torch.load(case("pretrain_tiny").checkpoint, weights_only=True)["model"]


@pytest.fixture(scope="module")
def plain(case):
    return open_checkpoint(case("pretrain_tiny").checkpoint, FLAGS)


def saved(path, value, **settings):
    torch.save(value, path, **settings)
    return path


def staged(path, framework, folder, **settings):
    return stage(open_checkpoint(path, FLAGS), framework, folder, **settings)


def test_names_are_mapped_after_the_library_has_read_the_file(tmp_path, state):
    """A prefix, an optimizer beside the model and an unused tensor: the file itself is loaded."""
    model = {f"module.{name}": tensor for name, tensor in state.items()}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}}
    path = saved(tmp_path / "x.pth", {"state": {"model": model}, "optimizer": optimizer})
    chosen = staged(path, "torch", tmp_path)
    assert (chosen.converted_by, chosen.weights.files) == (None, (str(path),))
    assert (chosen.weights.key, chosen.weights.prefixes) == ("state.model", ("module.",))
    loaded = pytorch_state_dict(chosen.weights)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_job_is_unchanged_by_saving_and_loading(tmp_path, state):
    path = saved(tmp_path / "x.pth", {"model": state})
    half = {"step": "dtype", "to": "float16"}
    source = open_checkpoint(path, FLAGS)
    chosen = stage(apply_steps(source, [half], source), "torch", tmp_path, as_stored=False)
    fields = dict.fromkeys(Job.__dataclass_fields__, "") | {"dtypes": ("float64",)}
    job = Job(**{**fields, "weights": chosen.weights, "confirmed": chosen.confirmed})
    job.save(tmp_path / "job.json")
    assert Job.load(tmp_path / "job.json") == job


def test_source_of_a_declared_step_is_read_by_the_library(tmp_path, state):
    path = saved(tmp_path / "x.pth", {"model": state})
    source = open_checkpoint(path, FLAGS)
    half = {"step": "dtype", "to": "float16"}
    chosen = stage(apply_steps(source, [half], source), "torch", tmp_path, as_stored=False)
    assert chosen.converted_by is None
    assert pytorch_state_dict(chosen.weights)["cls_token"].dtype == torch.float16
    confirm(chosen.confirmed, by_torch=True)
    saved(path, {"model": {**state, "cls_token": state["cls_token"] + 1}})
    with pytest.raises(LoadError, match="reads cls_token differently"):
        confirm(chosen.confirmed, by_torch=True)
    saved(path, {"model": {n: t for n, t in state.items() if n != "cls_token"}})
    with pytest.raises(LoadError, match="do not read the same tensors"):
        confirm(chosen.confirmed, by_torch=True)


@pytest.mark.parametrize("layout", ["transformers-tf", "keras", "transformers"])
def test_keras_confirms_names_and_dtypes(tmp_path, plain, layout):
    target = tmp_path / ("x.weights.h5" if layout == "keras" else "m")
    execute(plan_conversion(plain, target, layout))
    source = open_checkpoint(target)
    half = {"step": "dtype", "to": "float16"}
    chosen = stage(apply_steps(source, [half], source), "tensorflow", tmp_path, as_stored=False)
    assert chosen.converted_by is None
    confirm(chosen.confirmed, by_torch=False)
    tensors = dict(chosen.confirmed.tensors)
    tensors[next(iter(tensors))] = ["float32", [1], ""]
    with pytest.raises(LoadError, match="differently from mae-convert"):
        confirm(replace(chosen.confirmed, tensors=tensors), by_torch=False)


def test_shards_are_merged_by_their_tensor_names(tmp_path, plain, state):
    packing = Packing(max_shard_size=100_000)
    execute(plan_conversion(plain, tmp_path / "m", "transformers", packing=packing))
    chosen = staged(tmp_path / "m", "tensorflow", tmp_path)
    assert chosen.converted_by is None
    assert len(chosen.weights.files) > 2
    with pytest.raises(LoadError, match="is in two files"):
        numpy_arrays(replace(chosen.weights, files=chosen.weights.files * 2))


@pytest.mark.parametrize("case_of", ["tf_sharded", "tf_safetensors"])
def test_shards_of_the_tensorflow_classes_are_read_by_h5py(tmp_path, case_of):
    source = open_checkpoint(DATA / "cases" / case_of)
    chosen = stage(source, "tensorflow", tmp_path)
    assert (chosen.converted_by, chosen.loader) == (None, "transformers-tf, shards")
    loaded = tensorflow_arrays(numpy_arrays(chosen.weights), scoped=False)
    for name, tensor in source.container.tensors.items():
        assert loaded[name.removesuffix(":0")].load().tobytes() == tensor.load().tobytes()


def test_arrays_are_read_ahead_in_float64_into_aligned_memory(tmp_path, plain):
    execute(plan_conversion(plain, tmp_path / "m", "transformers-tf"))
    chosen = staged(tmp_path / "m", "tensorflow", tmp_path)
    expected = {n: stored.load() for n, stored in numpy_arrays(chosen.weights).items()}
    fields = dict.fromkeys(Job.__dataclass_fields__, "") | {"weights": chosen.weights}
    for dtypes, kind in ((("float64", "float32"), "float64"), (("float32", "float64"), "float32")):
        with stored_arrays(Job(**{**fields, "dtypes": dtypes})) as arrays:
            assert arrays.keys() == expected.keys()
            for name, array in expected.items():
                for _ in range(2):  # the second time, the file is read again
                    read = arrays[name].load()
                    assert (read.dtype, read.shape) == (kind, array.shape)
                    assert np.array_equal(read, array)
                    assert read.ctypes.data % ALIGNMENT == 0
    mapped = aligned_array((3, MAPPED_BYTES), np.dtype("float32"))
    assert (mapped.shape, mapped.dtype) == ((3, MAPPED_BYTES), "float32")
    assert mapped.flags.writeable


def test_arrays_of_numpy_are_read_by_numpy(tmp_path, state):
    np.savez(tmp_path / "x.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    chosen = staged(tmp_path / "x.npz", "torch", tmp_path)
    assert (chosen.converted_by, chosen.weights.format) == (None, "npz")
    loaded = pytorch_state_dict(chosen.weights)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_bfloat16_is_read_by_the_library(tmp_path, plain):
    execute(plan_conversion(plain, tmp_path / "m", "transformers", dtype="bfloat16"))
    chosen = staged(tmp_path / "m", "tensorflow", tmp_path)
    assert chosen.converted_by is None
    source = open_checkpoint(tmp_path / "m")
    loaded = numpy_arrays(chosen.weights)
    for name, tensor in source.container.tensors.items():
        assert loaded[name].load().tobytes() == tensor.load().tobytes()


def test_compressed_storages_are_not_mapped(tmp_path, state):
    whole = saved(tmp_path / "x.pth", {"model": state})
    with zipfile.ZipFile(whole) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    loaded = pytorch_state_dict(staged(whole, "torch", tmp_path).weights)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_pytorch_files_are_not_read_by_pytorch_in_a_process_of_tensorflow(tmp_path, plain):
    packing = Packing(pickled=True)
    execute(plan_conversion(plain, tmp_path / "m", "transformers", packing=packing))
    source = open_checkpoint(tmp_path / "m")
    assert loader_for(source, "tensorflow") is None
    assert loader_for(source, "transformers") == "transformers"
    chosen = stage(source, "tensorflow", tmp_path)
    assert chosen.loader == "transformers"
    assert (
        chosen.converted_by
        == "mae-convert's own reader, because no library in a tensorflow process reads pth files"
    )


def test_directories_that_transformers_would_read_differently_are_not_passed_to_it(tmp_path, plain):
    packing = Packing(pickled=True)
    execute(plan_conversion(plain, tmp_path / "m", "transformers", packing=packing))
    (tmp_path / "m" / "pytorch_model.bin").rename(tmp_path / "m" / "weights.bin")
    assert loader_for(open_checkpoint(tmp_path / "m"), "transformers") is None
    model = torch.load(tmp_path / "m" / "weights.bin", weights_only=True)
    (tmp_path / "m" / "weights.bin").unlink()
    saved(tmp_path / "m" / "pytorch_model.bin", {"model": model, "n": 1})
    assert loader_for(open_checkpoint(tmp_path / "m"), "transformers") is None


def test_prefix_removal_that_merges_names_is_refused():
    with pytest.raises(LoadError, match="without the prefix module"):
        renamed({"module.a": 1, "a": 2}, ["module."])


def test_state_key_may_contain_dots(tmp_path):
    path = saved(tmp_path / "x.pth", {"a.b": {"c": {"w": torch.ones(1)}}, "a": {"b": 1}})
    assert set(pytorch_state_dict(StoredWeights((str(path),), "pth", "a.b.c"))) == {"w"}
    saved(path, {"a.b": {"c": {"w": torch.ones(1)}}, "a": {"b.c": {"w": torch.ones(1)}}})
    with pytest.raises(LoadError, match="not have a single dictionary"):
        pytorch_state_dict(StoredWeights((str(path),), "pth", "a.b.c"))


@pytest.mark.parametrize("version", ["2.4.1", "2.5.1+cu121", "1.13.0", "nightly"])
def test_versions_of_pytorch_that_would_run_code_are_refused(tmp_path, monkeypatch, version):
    with pytest.raises(ImportError, match=r"install torch>=2\.6"):
        require_safe_torch_load(version)
    path = saved(tmp_path / "x.pth", {"w": torch.ones(1)})
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ImportError, match="CVE-2025-32434"):
        pytorch_state_dict(StoredWeights((str(path),), "pth"))


@pytest.mark.parametrize("version", ["2.6.0", "2.13.0+cpu", "3.0.1", "2.10.0a0+git1234"])
def test_safe_versions_of_pytorch_are_accepted(version):
    require_safe_torch_load(version)


class Unknown:
    pass


def test_a_file_that_pytorch_refuses_is_run_and_not_native(tmp_path, state):
    """PyTorch does not read pickles of protocol 4 with ``weights_only``; mae-convert does."""
    path = saved(tmp_path / "x.pth", {"model": state}, pickle_protocol=4)
    checkpoint = open_checkpoint(path, FLAGS)
    with pytest.raises(UnreadError, match=r"torch\.load cannot read"):
        pytorch_state_dict(stage(checkpoint, "torch", tmp_path).weights)
    inputs = make_inputs(InputChoice(), checkpoint)
    run = Run(checkpoint, Side("torch"), Request(("float64",), taps=False))
    (trace,) = run_together([run], inputs)
    assert not trace.description["native"]
    assert trace.description["ours"].startswith(
        "mae-convert's own reader, because torch.load cannot read"
    )
    assert "float64/logits" in trace.arrays
