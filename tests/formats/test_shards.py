"""Sharded weights: read strictly, and written as by transformers and huggingface_hub."""

import json
import math
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
import torch

from mae_convert.errors import CheckpointError, OutputError
from mae_convert.formats import LazyTensor, open_container, write_directory

INDEX = {
    "safetensors": "model.safetensors.index.json",
    "bin": "pytorch_model.bin.index.json",
}
WEIGHTS = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
ARRAYS = {
    "z": np.arange(6, dtype=np.float32),  # 24 bytes
    "b.weight": np.arange(12.0).reshape(3, 4),  # 96
    "c": np.array(3, dtype=np.int64),  # 8
    "a": np.arange(4, dtype=np.float16),  # 8
}


def lazily(arrays: dict[str, np.ndarray]) -> list[LazyTensor]:
    return [LazyTensor.from_array(name, array) for name, array in arrays.items()]


def written(path: Path, kind: str, largest: int | None = 40, **options) -> Path:
    write_directory(
        path,
        WEIGHTS[kind],
        kind,
        lazily(ARRAYS),
        {"conversion.json": {}},
        max_shard_size=largest,
        **options,
    )
    return path


@pytest.mark.parametrize("kind", INDEX)
@pytest.mark.parametrize("by", ["directory", "index"])
def test_sharded_files_are_read_as_one_model(tmp_path: Path, kind: str, by: str) -> None:
    folder = written(tmp_path / "model", kind)
    opened = open_container(folder if by == "directory" else folder / INDEX[kind])
    assert list(opened.tensors) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(opened.tensors[name].load(), array, strict=True)
    assert opened.kind == {"bin": "pth"}.get(kind, kind)
    stem, suffix = WEIGHTS[kind].rsplit(".", 1)
    parts = [f"{stem}-0000{n}-of-00003.{suffix}" for n in (1, 2, 3)]
    assert [path.name for path in opened.files] == [INDEX[kind], *parts]
    assert opened.weights_file == folder / INDEX[kind]


@pytest.mark.parametrize("largest", [1, 96, 104, 120, 136, 10**9])
def test_shards_equal_those_of_huggingface_hub(tmp_path: Path, largest: int) -> None:
    folder = written(tmp_path / "model", "safetensors", largest)
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in ARRAYS.items()}
    (tmp_path / "reference").mkdir()
    huggingface_hub.save_torch_state_dict(tensors, tmp_path / "reference", max_shard_size=largest)
    reference = {path.name: path for path in (tmp_path / "reference").iterdir()}
    ours = {path.name: path for path in folder.iterdir() if path.name != "conversion.json"}
    assert set(ours) == set(reference)
    for name, path in reference.items():
        if name.endswith(".json"):
            index, expected = (json.loads(p.read_text()) for p in (ours[name], path))
            assert index["weight_map"] == expected["weight_map"]
            assert index["metadata"]["total_size"] == expected["metadata"]["total_size"] == 136
            elements = sum(math.prod(array.shape) for array in ARRAYS.values())
            assert index["metadata"]["total_parameters"] == elements
            assert ours[name].read_text() == json.dumps(index, indent=2, sort_keys=True) + "\n"
        else:
            arrays, expected = (safetensors.numpy.load_file(p) for p in (ours[name], path))
            assert set(arrays) == set(expected)


def test_torch_loads_each_bin_safely_as_a_plain_state_dict(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", "bin")
    state: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.bin")):
        state |= torch.load(path, weights_only=True)
    assert {name: tensor.tolist() for name, tensor in state.items()} == {
        name: array.tolist() for name, array in ARRAYS.items()
    }


def test_each_safetensors_shard_contains_the_configuration(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", "safetensors", config={"x": 1})
    opened = open_container(folder)
    assert opened.config == {"x": 1}
    assert opened.config_source == f"metadata of {INDEX['safetensors']}"
    written(tmp_path / "bin", "bin", config={"x": 1})  # which cannot store it


def test_model_below_the_shard_size_is_written_to_one_file(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", "bin", 136)
    assert sorted(path.name for path in folder.iterdir()) == [
        "conversion.json",
        "pytorch_model.bin",
    ]
    assert open_container(folder).wrapper is None


def test_hdf5_is_not_split(tmp_path: Path) -> None:
    tensors = [LazyTensor.from_array(f"vit/{name}", array) for name, array in ARRAYS.items()]
    with pytest.raises(OutputError, match="leave max_shard_size= out"):
        write_directory(tmp_path / "m", "tf_model.h5", "tf_h5", tensors, {}, max_shard_size=40)
    assert not any(tmp_path.iterdir())


def test_only_shards_written_by_us_may_be_replaced(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", "safetensors")
    written(folder, "bin", 136, overwrite=True)
    written(folder, "safetensors", overwrite=True)
    assert not list(folder.glob("*.bin"))
    (folder / "notes-00001-of-00002.txt").write_text("mine")
    with pytest.raises(OutputError, match="which mae-convert did not write"):
        written(folder, "safetensors", overwrite=True)


def test_tensor_above_the_shard_size_has_its_own_shard(tmp_path: Path) -> None:
    """huggingface_hub would continue the previous shard; mae-convert keeps the tensors in order."""
    folder = written(tmp_path / "model", "safetensors", 40)
    parts = [list(safetensors.numpy.load_file(p)) for p in sorted(folder.glob("*.safetensors"))]
    assert parts == [["z"], ["b.weight"], ["c", "a"]]


def change_index(change):
    def damage(folder: Path) -> None:
        path = folder / INDEX["safetensors"]
        index = json.loads(path.read_text())
        change(index)
        path.write_text(json.dumps(index))

    return damage


def change_part(change):
    def damage(folder: Path) -> None:
        path = folder / "model-00001-of-00003.safetensors"
        arrays = safetensors.numpy.load_file(path)
        change(arrays)
        safetensors.numpy.save_file(arrays, path)

    return damage


def moved_to(file: str):
    return change_index(lambda index: index["weight_map"].update(z=file))


def outside(folder: Path) -> None:
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder.parent / "x.safetensors")
    moved_to("../x.safetensors")(folder)


DAMAGED = {
    "a part is missing": (
        lambda folder: (folder / "model-00002-of-00003.safetensors").unlink(),
        "1 of 3 shards are missing",
    ),
    "a part is cut": (
        lambda folder: (folder / "model-00002-of-00003.safetensors").write_bytes(bytes(8)),
        "00002-of-00003",
    ),
    "a tensor is missing": (change_part(lambda arrays: arrays.pop("z")), "lacks z"),
    "an unlisted tensor": (change_part(lambda a: a.update(q=np.ones(2))), "contains q too"),
    "in another part": (moved_to("model-00002-of-00003.safetensors"), "do not belong together"),
    "out of the directory": (outside, "outside the directory"),
    "an absolute path": (moved_to("/etc/passwd"), "outside the directory"),
    "a folder": (moved_to("sub/x.safetensors"), "outside the directory"),
    "a path of Windows": (moved_to("..\\x.safetensors"), "outside the directory"),
    "the directory itself": (moved_to(".."), "outside the directory"),
    "a number": (moved_to(3), "must be string"),
    "no map": (change_index(lambda index: index.pop("weight_map")), "weight_map"),
    "an empty map": (change_index(lambda index: index["weight_map"].clear()), "weight_map"),
    "no JSON": (lambda folder: (folder / INDEX["safetensors"]).write_text("{"), "is not JSON"),
    "another kind": (
        lambda folder: np.savez((folder / "model-00003-of-00003.safetensors").open("wb"), c=1),
        "must all be",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_inconsistent_shards_are_refused(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGED[name]
    folder = written(tmp_path / "model", "safetensors")
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_container(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_a_part_alone_is_refused_with_the_directory(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", "safetensors")
    with pytest.raises(CheckpointError, match=f"is shard 2 of 3; specify its directory, {folder}"):
        open_container(folder / "model-00002-of-00003.safetensors")


def test_a_whole_file_beside_an_index_is_ambiguous(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", "safetensors")
    safetensors.numpy.save_file(ARRAYS, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="2 weight files"):
        open_container(folder)
