"""Parameters that are views of a private mapping of a file behave exactly like copies."""

import copy
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import GOLDEN
from safetensors.torch import load_file, save_file

from mae_convert import load_model, save_model
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import MaeConvertError
from mae_convert.models import ViTMAEForPreTraining
from mae_convert.runtime import torch_model
from mae_convert.visualize.reconstruction import Reconstructor

HEADS = {"num_attention_heads": 4, "decoder_num_attention_heads": 3}
ORIGINAL = GOLDEN / "pretrain_tiny" / "checkpoint.pth"


def mapped_from(value: torch.Tensor) -> str | None:
    """Return the path of the file whose mapping contains a tensor, or None."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, _, *path = line.split(maxsplit=5)
        begin, end = (int(text, 16) for text in addresses.split("-"))
        if begin <= value.data_ptr() < end:
            return path[0] if path and path[0].startswith("/") else None
    return None


@pytest.fixture(scope="session")
def original_weights() -> dict[str, torch.Tensor]:
    return torch.load(ORIGINAL, weights_only=False)["model"]


@pytest.fixture
def weights(tmp_path, original_weights) -> Path:
    """The original's tensors in a safetensors file, in which nothing has to be computed."""
    save_file(original_weights, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def same(state: dict, expected: dict) -> bool:
    return list(state) == list(expected) and all(torch.equal(state[n], expected[n]) for n in state)


def test_tensors_stored_unchanged_are_memory_mapped(weights, tmp_path, original_weights):
    mapped, copied = load_model(weights, **HEADS), load_model(weights, mmap=False, **HEADS)
    assert {mapped_from(value) for value in mapped.state_dict().values()} == {str(weights)}
    assert {mapped_from(value) for value in copied.state_dict().values()} == {None}
    # torch.save writes to the file in place; as for torch.load, mapping has to be requested.
    checkpoint = shutil.copy(ORIGINAL, tmp_path / "checkpoint.pth")
    unasked, asked = load_model(checkpoint, **HEADS), load_model(checkpoint, mmap=True, **HEADS)
    assert mapped_from(unasked.cls_token) is None
    assert {mapped_from(value) for value in asked.state_dict().values()} == {str(checkpoint)}
    for model in (mapped, copied, unasked, asked):
        assert same(dict(model.state_dict()), dict(original_weights))


def test_commands_do_not_memory_map_files(tmp_path):
    """A file that changes while a command runs must not end it without a message."""
    folder = shutil.copytree(GOLDEN / "transformers_tf_pretrain_tiny_v4pt", tmp_path / "model")
    model = Reconstructor(open_checkpoint(folder), "torch")._model
    assert mapped_from(model.cls_token) is None


def test_computed_tensors_are_copied(tmp_path, original_weights):
    folder = shutil.copytree(GOLDEN / "transformers_tf_pretrain_tiny_v4pt", tmp_path / "model")
    model = ViTMAEForPreTraining.from_pretrained(folder)
    of_file = str(folder / "model.safetensors")
    mapped = {name for name, value in model.state_dict().items() if mapped_from(value) == of_file}
    assert model.state_dict().keys() - mapped == {n for n in original_weights if ".qkv." in n}
    assert same(dict(model.state_dict()), dict(original_weights))
    assert mapped_from(ViTMAEForPreTraining.from_pretrained(folder, mmap=False).cls_token) is None
    rounded = ViTMAEForPreTraining.from_pretrained(folder, dtype="float16")
    assert mapped_from(rounded.cls_token) is None
    assert torch.equal(rounded.norm.weight, original_weights["norm.weight"].half())


def test_training_changes_the_model_and_not_the_file(weights, original_weights):
    before = weights.read_bytes()
    model = load_model(weights, **HEADS).train()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    model(torch.randn(1, 3, 32, 32)).loss.backward()
    optimizer.step()
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    changed = {
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, original_weights[name])
    }
    assert changed == trained
    assert mapped_from(model.norm.weight) == str(weights)  # the step was made in place
    assert weights.read_bytes() == before


def test_the_file_may_be_replaced_by_the_model_itself(weights, tmp_path, original_weights):
    model = load_model(weights, **HEADS)
    with torch.no_grad():
        model.norm.weight.add_(1)
    expected = {**original_weights, "norm.weight": original_weights["norm.weight"] + 1}
    save_file(model.state_dict(), weights)  # which copies the tensors before it opens the file
    assert same(load_file(weights), dict(sorted(expected.items())))
    model = load_model(weights, **HEADS)
    save_model(model, tmp_path / "model", "transformers")
    loaded = ViTMAEForPreTraining.from_pretrained(tmp_path / "model")
    loaded.save_pretrained(tmp_path / "model")  # by a rename, which leaves the mapped file as it is
    again = ViTMAEForPreTraining.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    for each in (loaded, again):
        assert same(dict(each.state_dict()), expected)


def test_copies_and_pickles_contain_only_their_own_values(weights):
    model = load_model(weights, **HEADS)
    value = model.blocks[0].attn.qkv.weight
    assert value.untyped_storage().nbytes() == value.nbytes
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert mapped_from(copied.cls_token) is None
        assert same(dict(copied.state_dict()), dict(model.state_dict()))
    assert mapped_from(value) == str(weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_is_mapped(dtype, weights, original_weights):
    state = {name: value.to(dtype) for name, value in original_weights.items()}
    save_file(state, weights)
    model = load_model(weights, **HEADS)
    assert {mapped_from(value) for value in model.state_dict().values()} == {str(weights)}
    assert same(dict(model.state_dict()), state)


def test_tensors_that_share_bytes_of_a_file_are_separate_parameters(tmp_path, original_weights):
    first, second = "blocks.0.norm1.weight", "blocks.0.norm2.weight"
    torch.save({**original_weights, second: original_weights[first]}, tmp_path / "tied.pth")
    model = load_model(tmp_path / "tied.pth", mmap=True, **HEADS)
    with torch.no_grad():
        model.blocks[0].norm1.weight.zero_()
    assert torch.equal(model.blocks[0].norm2.weight, original_weights[first])


def test_tensors_that_are_not_aligned_for_their_dtype_are_copied(weights, original_weights):
    stored = weights.read_bytes()
    (length,) = struct.unpack("<Q", stored[:8])
    header = stored[8 : 8 + length].rstrip()
    header += b" " * (3 - len(header) % 4)
    weights.write_bytes(struct.pack("<Q", len(header)) + header + stored[8 + length :])
    model = load_model(weights, **HEADS)
    assert {mapped_from(value) for value in model.state_dict().values()} == {None}
    assert same(dict(model.state_dict()), dict(original_weights))


def test_a_file_that_cannot_be_mapped_is_read(weights, original_weights, monkeypatch):
    def refuse(*_, **__):
        raise OSError("cannot allocate memory")

    monkeypatch.setattr("mae_convert.files.byte_ranges.mmap.mmap", refuse)
    assert same(dict(load_model(weights, **HEADS).state_dict()), dict(original_weights))


CHANGES = {
    "becomes shorter": lambda path: os.truncate(path, path.stat().st_size - 100),
    "is rewritten": lambda path: path.write_bytes(path.read_bytes()),
}


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_loaded_is_an_error(change, mapped, weights, monkeypatch):
    make = torch_model.make

    def make_meanwhile(*arguments, **named):
        CHANGES[change](weights)
        return make(*arguments, **named)

    monkeypatch.setattr(torch_model, "make", make_meanwhile)
    with pytest.raises(MaeConvertError, match="was changed while it was being read"):
        load_model(weights, mmap=mapped, **HEADS)


@pytest.mark.parametrize("mapped", [True, False])
def test_values_that_are_not_finite_are_refused(mapped, weights, original_weights):
    broken = original_weights["norm.weight"].clone()
    broken[-1] = np.nan
    save_file({**original_weights, "norm.weight": broken}, weights)
    with pytest.raises(
        MaeConvertError, match=r"norm.weight would have NaN or infinity in .* 1 value"
    ):
        load_model(weights, mmap=mapped, **HEADS)
