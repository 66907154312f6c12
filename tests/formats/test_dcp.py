"""PyTorch's distributed checkpoints: real ones, of one process and of two, and damaged ones."""

import argparse
import contextlib
import copy
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from fork_server import finish
from paths import GOLDEN, HELPERS
from torch.distributed._shard.sharded_tensor import metadata as sharded_tensor

from mae_convert.errors import CheckpointError
from mae_convert.formats import open_container

WORKER = HELPERS / "dcp_worker.py"
ORIGINAL = GOLDEN / "pretrain_tiny" / "checkpoint.pth"
TENSORS = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.bias": torch.arange(3).to(torch.bfloat16),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.zeros(0, 3),
}


@pytest.fixture(scope="module")
def two(fork_servers, tmp_path_factory):
    """Return a folder with the checkpoints that two processes of `dcp_worker.py` have written."""
    folder = tmp_path_factory.mktemp("two")
    module = "mae_convert.runtime.run_pytorch"
    processes = [
        fork_servers.start(module, WORKER, folder, rank, 2, ORIGINAL, environment=os.environ)
        for rank in range(2)
    ]
    for process in processes:
        finish(process)
    return folder


@pytest.fixture
def one(tmp_path):
    """Return a checkpoint of one process, created for each test that damages it."""
    args = argparse.Namespace(model="mae_vit_base_patch16")
    state = {"model": TENSORS, "optim": {"lr": 0.1, "m": torch.ones(2)}, "epoch": 5, "args": args}
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(state, checkpoint_id=tmp_path / "one")
    return tmp_path / "one"


def original() -> dict[str, torch.Tensor]:
    return torch.load(ORIGINAL, weights_only=True)["model"]


def assert_same(opened, expected: dict[str, torch.Tensor]) -> None:
    assert set(opened.tensors) == set(expected)
    for name, tensor in expected.items():
        lazy = opened.tensors[name]
        array = lazy.load()
        assert lazy.shape == array.shape == tuple(tensor.shape)
        assert str(array.dtype) == str(lazy.dtype) == str(tensor.dtype).removeprefix("torch.")
        exact = tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor
        assert array.tobytes() == exact.numpy().tobytes(), name


def load_all(path: Path) -> None:
    for tensor in open_container(path).tensors.values():
        assert tensor.load().nbytes == tensor.nbytes


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_all(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_checkpoint_of_one_process_is_read(one: Path) -> None:
    for path in (one, one / ".metadata"):
        opened = open_container(path)
        assert_same(opened, TENSORS)
        assert (opened.kind, opened.wrapper) == ("dcp", "model")
        assert opened.training_args == {"model": "mae_vit_base_patch16"}
        assert opened.ignored == {"optim": "1 tensor and settings", "epoch": "a pickled value"}
        assert opened.epoch == 5
        assert opened.files == (one / ".metadata", one / "__0_0.distcp")


def test_another_entry_of_the_checkpoint_can_be_selected(one: Path) -> None:
    assert list(open_container(one, "optim").tensors) == ["m"]


@pytest.mark.parametrize("name", ["fsdp2", "sharded"])
def test_fully_sharded_models_of_two_processes_are_read(two: Path, name: str) -> None:
    opened = open_container(two / name)
    assert_same(opened, original())
    assert [path.name for path in opened.files] == [".metadata", "__0_0.distcp", "__1_0.distcp"]


def test_nested_wrappers_are_read(two: Path) -> None:
    opened = open_container(two / "app")
    assert opened.wrapper == "app.model"
    assert opened.training_args == {"model": "tiny", "mask_ratio": 0.6}
    assert_same(opened, original())


def test_tensors_split_by_columns_copied_and_of_other_dtypes(two: Path) -> None:
    expected = {
        "columns": torch.arange(35.0).reshape(5, 7),
        "copies": torch.arange(4, dtype=torch.int64),
        "half": torch.arange(6).to(torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "few": torch.arange(3.0).reshape(1, 3),
    }
    assert_same(open_container(two / "placed"), expected)


def test_flat_parameters_are_refused_and_the_command_gathers_them(two: Path) -> None:
    message = refused(two / "local")
    assert "_flat_param" in message
    # The worker has followed the instructions of the message.
    assert "get_model_state_dict(model, options=" in message
    assert "get_model_state_dict(old, options=" in WORKER.read_text()
    assert "StateDictOptions(full_state_dict=True)" in message
    assert "StateDictOptions(full_state_dict=True)" in WORKER.read_text()
    assert_same(open_container(two / "gathered.pth"), original())


def test_shard_of_a_single_process_is_refused(two: Path) -> None:
    assert "distributed over processes" in refused(two / "part0.pth")


def test_a_part_alone_is_refused_with_the_directory(one: Path) -> None:
    assert f"specify its directory, {one}" in refused(one / "__0_0.distcp")


def test_nothing_of_torch_is_imported(one: Path) -> None:
    program = (
        "import sys\nfrom mae_convert.formats import open_container\n"
        f"print([t.load().shape for t in open_container({str(one)!r}).tensors.values()])\n"
        "print('torch' in sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert process.stdout.splitlines() == ["[(3, 4), (3,), (), (0, 3)]", "False"]


def weight(metadata):
    return metadata.state_dict_metadata["model.a.weight"]


def in_chunks(*blocks):
    """Return a change that gives `a.weight` chunks (offsets, sizes), all stored at one offset."""

    def damage(metadata) -> None:
        entry = weight(metadata)
        whole = entry.chunks[0]
        index = next(i for i in metadata.storage_data if i.fqn == "model.a.weight")
        storage = metadata.storage_data.pop(index)
        chunks = []
        for offsets, sizes in blocks:
            chunks.append(replace(whole, offsets=torch.Size(offsets), sizes=torch.Size(sizes)))
            metadata.storage_data[type(index)("model.a.weight", offsets)] = copy.copy(storage)
        entry.chunks[:] = chunks

    return damage


def with_byte_range(**change):
    def damage(metadata) -> None:
        index = next(i for i in metadata.storage_data if i.fqn == "model.a.weight")
        metadata.storage_data[index] = replace(metadata.storage_data[index], **change)

    return damage


def drop_byte_range(metadata) -> None:
    index = next(i for i in metadata.storage_data if i.fqn == "model.a.weight")
    del metadata.storage_data[index]


def quantised(metadata) -> None:
    weight(metadata).properties.dtype = torch.qint8


def cast(metadata) -> None:
    weight(metadata).properties.dtype = torch.float16


def two_at_one_path(metadata) -> None:
    metadata.planner_data["model.a.bias"] = ("model", "a.weight")


DAMAGED = {
    "a hole": (in_chunks(((0, 0), (2, 4))), "not cover the whole tensor"),
    "a hole within": (in_chunks(((0, 0), (1, 4)), ((2, 0), (1, 4))), "not cover the whole tensor"),
    "no chunks": (in_chunks(), "not cover the whole tensor"),
    "an overlap": (in_chunks(((0, 0), (2, 4)), ((1, 0), (1, 4))), "overlap"),
    "an overlap in a corner": (
        in_chunks(((0, 0), (2, 3)), ((1, 2), (2, 2)), ((0, 3), (2, 1))),
        "overlap",
    ),
    "beyond the tensor": (in_chunks(((1, 0), (3, 4))), "not cover the whole tensor"),
    "another shape": (in_chunks(((0, 0), (3, 2)), ((0, 2), (3, 2))), "contradicts .metadata"),
    "another rank": (in_chunks(((0,), (12,))), "invalid shape"),
    "another dtype": (cast, "contradicts .metadata"),
    "an unknown dtype": (quantised, "refers to torch.qint8"),
    "no with_byte_range": (drop_byte_range, "truncated or corrupt"),
    "beyond the file": (with_byte_range(length=1 << 40), "truncated or corrupt"),
    "another with_byte_range": (with_byte_range(offset=0), "truncated or corrupt"),
    "out of the directory": (
        with_byte_range(relative_path="../one/__0_0.distcp"),
        "invalid offset",
    ),
    "an absolute path": (with_byte_range(relative_path="/etc/passwd"), "invalid offset"),
    "a missing file": (
        with_byte_range(relative_path="__1_0.distcp"),
        "lacks the file __1_0.distcp",
    ),
    "packed": (with_byte_range(transform_descriptors=["zstd"]), "written with an extension"),
    "two entries at one path": (two_at_one_path, "two entries"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_inconsistent_metadata_are_refused(one: Path, name: str) -> None:
    damage, message = DAMAGED[name]
    path = one / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    damage(metadata)
    path.write_bytes(pickle.dumps(metadata))
    assert message in refused(one)


def test_metadata_without_the_paths_are_read_by_their_flat_names(one: Path) -> None:
    path = one / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    metadata.planner_data = None
    path.write_bytes(pickle.dumps(metadata))
    flat = {f"model.{name}": tensor for name, tensor in TENSORS.items()}
    assert_same(open_container(one), {**flat, "optim.m": torch.ones(2)})


def test_metadata_of_earlier_torch_versions_are_read(one: Path) -> None:
    """In their metadata, the tensor properties have another class, which PyTorch still has."""
    path = one / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    for name, tensor in TENSORS.items():
        properties = sharded_tensor.TensorProperties(dtype=tensor.dtype)
        metadata.state_dict_metadata[f"model.{name}"].properties = properties
    path.write_bytes(pickle.dumps(metadata))
    assert b"_shard.sharded_tensor.metadata" in path.read_bytes()
    assert_same(open_container(one), TENSORS)


class Evil:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


def test_metadata_that_would_run_code_are_refused(one: Path, monkeypatch) -> None:
    monkeypatch.chdir(one)
    (one / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": Evil()}))
    assert "posix.system" in refused(one)
    assert not (one / "PWNED").exists()


def test_settings_that_would_run_code_are_left_out(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="single process"):
        dcp.save({"model": TENSORS, "args": np.random.Generator}, checkpoint_id=tmp_path / "x")
    opened = open_container(tmp_path / "x")
    assert (opened.training_args, opened.ignored) == (None, {"args": "a pickled value"})
    assert_same(opened, TENSORS)


def test_truncated_and_damaged_files_are_refused(one: Path) -> None:
    random = np.random.default_rng(0)
    metadata = pickle.loads((one / ".metadata").read_bytes())
    places = {index.fqn: info for index, info in metadata.storage_data.items()}
    last = max(places[f"model.{name}"].offset for name in TENSORS)
    for name in (".metadata", "__0_0.distcp"):
        whole = (one / name).read_bytes()
        longest = last if name.endswith(".distcp") else len(whole) - 1  # the rest is not read
        for end in {0, 1, 2, *np.linspace(3, longest, 20, dtype=int)}:
            (one / name).write_bytes(whole[:end])
            refused(one)
        for _ in range(100):
            damaged = np.frombuffer(whole, np.uint8).copy()
            damaged[random.integers(0, len(whole), 4)] = random.integers(0, 256, 4)
            (one / name).write_bytes(damaged.tobytes())
            with contextlib.suppress(CheckpointError):
                load_all(one)
        (one / name).write_bytes(whole)
    load_all(one)
