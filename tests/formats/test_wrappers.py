"""Wrappers around a model's tensors: read if they are unambiguous, else a key is required."""

import argparse
from pathlib import Path

import pytest
import torch

from mae_convert.errors import CheckpointError
from mae_convert.formats import LazyTensor, open_container, write_file
from mae_convert.formats.wrappers import OTHER_WEIGHTS, WRAPPERS, NoSuchKeyError

ONE = {"a": torch.arange(2.0)}
TWO = {"a": torch.arange(3.0)}


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def refused(path: Path, state_key: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_container(path, state_key)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("key", WRAPPERS)
def test_wrapper_is_removed_and_reported(tmp_path: Path, key: str) -> None:
    path = saved(tmp_path / "x.pth", {key: ONE, "epoch": 3, "optimizer": {"state": {0: TWO}}})
    opened = open_container(path)
    assert (opened.wrapper, list(opened.tensors)) == (key, ["a"])
    assert opened.ignored == {"epoch": "3", "optimizer": "1 tensor"}


@pytest.mark.parametrize("key", OTHER_WEIGHTS)
def test_other_weights_are_read_only_on_request(tmp_path: Path, key: str) -> None:
    alone = saved(tmp_path / "alone.pth", {key: ONE, "epoch": 3})
    assert f'it has {key}, epoch; choose with state_key="{key}"' in refused(alone)
    assert open_container(alone, key).wrapper == key
    beside = saved(tmp_path / "beside.pth", {"model": ONE, key: TWO})
    assert f'state_key="model" or state_key="{key}"' in refused(beside)
    assert open_container(beside, "model").tensors["a"].shape == (2,)
    assert open_container(beside, key).tensors["a"].shape == (3,)


def test_two_wrappers_are_ambiguous(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"model": ONE, "state_dict": TWO})
    assert 'state_key="model" or state_key="state_dict"' in refused(path)
    assert open_container(path, "state_dict").tensors["a"].shape == (3,)


def test_two_names_of_the_same_weights_are_not_ambiguous(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"model": ONE, "state_dict": ONE})
    assert open_container(path).tensors["a"].shape == (2,)


def test_settings_under_a_wrappers_name_are_not_weights(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"model": {"name": "vit"}, "state_dict": ONE})
    assert open_container(path).wrapper == "state_dict"


def test_nested_wrappers_are_read(tmp_path: Path) -> None:
    args = argparse.Namespace(model="mae")
    path = saved(tmp_path / "x.pth", {"state": {"model": ONE, "args": args, "step": 4}, "rng": {}})
    opened = open_container(path)
    assert (opened.wrapper, opened.training_args) == ("state.model", {"model": "mae"})
    assert opened.ignored == {"rng": "empty", "state.step": "4"}
    odd = saved(tmp_path / "odd.pth", {"run": {"weights": ONE}})
    assert 'it has run; specify the model\'s key with state_key="run.weights"' in refused(odd)
    assert open_container(odd, "run.weights").tensors["a"].shape == (2,)


def test_top_level_tensors_are_the_model_unless_a_wrapper_is_selected(tmp_path: Path) -> None:
    assert open_container(saved(tmp_path / "a.pth", ONE)).wrapper is None
    beside = saved(tmp_path / "b.pth", {"model": TWO, "loss": torch.tensor(0.5)})
    assert open_container(beside).tensors["a"].shape == (3,)
    dino = saved(tmp_path / "c.pth", {"teacher": TWO, "center": torch.zeros(4)})
    assert 'state_key="teacher"' in refused(dino)


def test_missing_state_key_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"model": ONE})
    assert 'it has model; specify the model\'s key with state_key="model"' in refused(
        path, "teacher"
    )
    write_file(tmp_path / "x.npz", "npz", [LazyTensor("a", (2,), *from_torch())])
    with pytest.raises(NoSuchKeyError, match="leave state_key= out"):
        open_container(tmp_path / "x.npz", "model")


def from_torch():
    array = ONE["a"].numpy()
    return array.dtype, lambda: array


@pytest.mark.parametrize("legacy", [False, True])
def test_pt_bin_and_the_legacy_pytorch_format_are_read(tmp_path: Path, legacy: bool) -> None:
    for name in ("x.pt", "x.bin"):
        whole = {"teacher": ONE, "student": TWO}
        torch.save(whole, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        opened = open_container(tmp_path / name, "student")
        assert (opened.kind, opened.wrapper) == ("pth", "student")
        assert opened.tensors["a"].load().tolist() == TWO["a"].tolist()


@pytest.mark.parametrize(
    "name", ["_flat_param", "flat_param", "_fsdp_wrapped_module._flat_param", "blocks.flat_param_0"]
)
def test_flat_parameters_are_refused_with_instructions_to_gather_them(
    tmp_path: Path, name: str
) -> None:
    message = refused(saved(tmp_path / "x.pth", {"model": {name: torch.zeros(9)}}))
    assert name in message
    assert "StateDictOptions(full_state_dict=True)" in message


def deepspeed(folder: Path, *names: str) -> Path:
    """Write a directory with the files and keys that DeepSpeed's `save_checkpoint` writes."""
    folder.mkdir(parents=True)
    state = {
        "module": ONE,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [{"a": torch.Size([2])}],
        "lr_scheduler": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 10,
        "dp_world_size": 2,
        "mp_world_size": 1,
        "ds_config": {"train_batch_size": 8},
        "ds_version": "0.14.0",
        "epoch": 7,
        "args": argparse.Namespace(model="mae_vit_base_patch16"),
    }
    for name in names:
        torch.save(state, folder / name)
    return folder


MODEL_STATES = "mp_rank_00_model_states.pt"


def test_deepspeed_checkpoint_is_read(tmp_path: Path) -> None:
    optimizer = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    folder = deepspeed(tmp_path / "run" / "checkpoint-7", MODEL_STATES, optimizer)
    for path in (folder, folder / MODEL_STATES):
        opened = open_container(path)
        assert opened.weights_file == folder / MODEL_STATES
        assert (opened.wrapper, list(opened.tensors)) == ("module", ["a"])
        assert opened.training_args == {"model": "mae_vit_base_patch16"}
        assert "zero_to_fp32.py" in opened.ignored["*_optim_states.pt"]
    (tmp_path / "run" / "latest").write_text("checkpoint-7")
    assert "specify one, for example" in refused(tmp_path / "run")


def test_sharded_deepspeed_checkpoint_is_refused_with_instructions(tmp_path: Path) -> None:
    parts = deepspeed(tmp_path / "parts", MODEL_STATES, "mp_rank_01_model_states.pt")
    for path in (parts, parts / MODEL_STATES):
        assert "split among 2 processes (mp_rank_00" in refused(path)
    zero = deepspeed(tmp_path / "zero", "zero_pp_rank_0_mp_rank_00_model_states.pt")
    assert f"python zero_to_fp32.py {tmp_path} OUT --tag zero" in refused(zero)
