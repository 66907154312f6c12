"""Prithvi-EO as its users meet it: read under all its names, converted, run and compared."""

import numpy as np
import pytest
from paths import GOLDEN
from safetensors.numpy import save_file

from mae_convert.checkpoint.diff import diff
from mae_convert.checkpoint.open import as_task, open_checkpoint
from mae_convert.convert.changes import Geometry
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import ConfigurationError, LayoutError
from mae_convert.families.options import Flags
from mae_convert.runtime import load_model, save_model

CASES = ("prithvi_v1_tiny", "prithvi_v2_tiny", "prithvi_v2_tl_tiny")
FLAGS = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
OPTIONS = ("--num-heads", 4, "--decoder-num-heads", 3)
TARGETS = {"original": "a.pth", "keras": "a.weights.h5"}


def original(name):
    return open_checkpoint(GOLDEN / name / "checkpoint.pth", FLAGS)


def converted(source, layout, folder, **options):
    target = folder / TARGETS[layout]
    execute(plan_conversion(source, target, layout, **options))
    return target


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", TARGETS)
def test_a_golden_model_goes_there_and_back_bit_for_bit(tmp_path, name, layout):
    source = original(name)
    assert (source.family.name, source.task) == ("prithvi", "pretrain")
    there = converted(source, layout, tmp_path)
    back = tmp_path / "back.pth"
    execute(plan_conversion(open_checkpoint(there), back, "original"))
    for path in (there, back):
        difference = diff(source, open_checkpoint(path))
        assert (difference.tensors, difference.configuration) == ((), {})
    stored, before = open_checkpoint(back).container.tensors, source.container.tensors
    if name != "prithvi_v1_tiny":  # which is written with the names of version 2
        assert list(stored) == list(before)
        assert all(np.array_equal(stored[n].load(), before[n].load()) for n in before)


@pytest.mark.parametrize("prefix", ["_timm_module.", "backbone.", "model."])
def test_prefixes_are_taken_off(tmp_path, prefix):
    tensors = {n: t.load() for n, t in original("prithvi_v1_tiny").container.tensors.items()}
    save_file({prefix + name: array for name, array in tensors.items()}, tmp_path / "a.safetensors")
    found = open_checkpoint(tmp_path / "a.safetensors", FLAGS)
    assert (found.family.name, found.task) == ("prithvi", "pretrain")
    assert diff(original("prithvi_v1_tiny"), found).tensors == ()


def test_size_and_frames_are_those_of_the_fixed_table():
    for name, frames in zip(CASES, (3, 3, 4), strict=True):
        source = original(name)
        assert (source.configuration.model.num_frames, source.configuration.model.image_size) == (
            frames,
            32,
        )
        assert "fixed position table" in source.configuration.sources["num_frames"]
    coordinates = original(CASES[2]).configuration.model.coords_encoding
    assert coordinates == ("time", "location")
    flags = Flags(num_attention_heads=4, decoder_num_attention_heads=3, num_frames=7)
    with pytest.raises(ConfigurationError, match="positions"):
        open_checkpoint(GOLDEN / CASES[0] / "checkpoint.pth", flags)


def test_pixel_statistics_are_those_of_the_version():
    assert original(CASES[0]).configuration.image_mean[0] == 775
    assert original(CASES[1]).configuration.image_mean[0] == 1087


def test_an_encoder_is_taken_out(tmp_path):
    for name in CASES[1:]:
        folder = tmp_path / name
        folder.mkdir()
        there = open_checkpoint(converted(original(name), "keras", folder, task="encoder"))
        assert diff(as_task(original(name), "encoder"), there).tensors == ()


def test_what_cannot_be_done_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="image_size"):
        plan_conversion(
            original(CASES[0]), tmp_path / "a.pth", "original", geometry=Geometry((64, 64))
        )
    tensors = {n: t.load() for n, t in original(CASES[1]).container.tensors.items()}
    del tensors["encoder.blocks.1.attn.qkv.weight"]
    save_file(tensors, tmp_path / "damaged.safetensors")
    with pytest.raises(LayoutError, match=r"nearest layout is prithvi.*qkv\.weight"):
        open_checkpoint(tmp_path / "damaged.safetensors", FLAGS)


@pytest.mark.parametrize("name", CASES[:2])
def test_models_are_loaded_and_saved(tmp_path, name):
    torch = pytest.importorskip("torch")
    source = GOLDEN / name / "checkpoint.pth"
    model = load_model(source, num_heads=4, decoder_num_heads=3, dtype="float64")
    golden = np.load(GOLDEN / name / "golden.npz")
    with torch.no_grad():
        outputs = model(
            torch.from_numpy(golden["videos"]).double(), torch.from_numpy(golden["noise"])
        )
    away = np.linalg.norm(outputs.logits.numpy() - golden["f64/pred"])
    assert away <= 1e-12 * np.linalg.norm(golden["f64/pred"])
    save_model(model, tmp_path / "saved.pth", "original", dtype="float32")
    assert diff(original(name), open_checkpoint(tmp_path / "saved.pth")).tensors == ()


@pytest.mark.usefixtures("forked_children")
@pytest.mark.parametrize("name", CASES)
def test_both_frameworks_agree_on_a_conversion(command, tmp_path, name):
    target = converted(original(name), "keras", tmp_path)
    result = command("verify", GOLDEN / name / "checkpoint.pth", target, *OPTIONS, "--json")
    assert result.status == 0, result.err
    verdict = result.json
    # The reference model has the names of version 2, so that only these are read without tables.
    assert (verdict["passed"], verdict["proven"]) == (True, name != "prithvi_v1_tiny")
