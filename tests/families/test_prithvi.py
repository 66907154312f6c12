"""Prithvi-EO: read with every naming variant, converted, run and compared."""

import importlib.util

import numpy as np
import pytest
from paths import GOLDEN
from safetensors.numpy import save_file

from mae_convert.checkpoint.checkpoint import as_task
from mae_convert.checkpoint.diff import diff
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import ConfigurationError, LayoutError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.formats.dtypes import DTYPES
from mae_convert.runtime import load_model, save_model
from mae_convert.runtime.inputs import random_inputs
from mae_convert.runtime.sides import Side
from mae_convert.verify.verification import verify

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
def test_golden_model_round_trip_is_bit_exact(tmp_path, name, layout):
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
def test_prefixes_are_removed(tmp_path, prefix):
    tensors = {n: t.load() for n, t in original("prithvi_v1_tiny").container.tensors.items()}
    save_file({prefix + name: array for name, array in tensors.items()}, tmp_path / "a.safetensors")
    result = open_checkpoint(tmp_path / "a.safetensors", FLAGS)
    assert (result.family.name, result.task) == ("prithvi", "pretrain")
    assert diff(original("prithvi_v1_tiny"), result).tensors == ()


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
    with pytest.raises(ConfigurationError, match="position embeddings for"):
        open_checkpoint(GOLDEN / CASES[0] / "checkpoint.pth", flags)


def arrays_of(name):
    return {n: t.load() for n, t in original(name).container.tensors.items()}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_rounded_table_gives_size_and_frames(tmp_path, dtype):
    path = tmp_path / "rounded.safetensors"
    save_file({n: a.astype(DTYPES[dtype]) for n, a in arrays_of(CASES[2]).items()}, path)
    model = open_checkpoint(path, FLAGS).configuration.model
    assert (model.num_frames, model.image_size) == (4, 32)


def test_size_and_frames_of_another_table_are_not_guessed(command, tmp_path):
    path, arrays = tmp_path / "trained.safetensors", arrays_of(CASES[2])
    save_file({**arrays, "encoder.pos_embed": arrays["encoder.pos_embed"] * 1.5}, path)
    report = command("inspect", path).out  # 64 patches: 4 x 4 of 4 times, or 8 x 8 of one
    assert "specify it with --source-num-frames (64 patches in total)" in report
    for options in (("--source-num-frames", 4), ("--source-image-size", 32)):
        report = command("inspect", path, *options).out
        assert "4 frames of 32 x 32" in report


def test_pixel_statistics_are_those_of_the_version():
    assert original(CASES[0]).configuration.image_mean[0] == 775
    assert original(CASES[1]).configuration.image_mean[0] == 1087


def test_encoder_is_extracted(tmp_path):
    for name in CASES[1:]:
        folder = tmp_path / name
        folder.mkdir()
        there = open_checkpoint(converted(original(name), "keras", folder, task="encoder"))
        assert diff(as_task(original(name), "encoder"), there).tensors == ()


def test_unsupported_conversions_are_refused(tmp_path):
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
    assert not [part for part in verdict["not_compared"] if "coords" in part]


def test_drawn_inputs_have_the_coordinates_that_a_model_embeds():
    for name, shapes in ((CASES[1], {}), (CASES[2], {"temporal_coords": (3, 4, 2),
                                                     "location_coords": (3, 2)})):  # fmt: skip
        source = original(name)
        model = source.configuration.model
        inputs = random_inputs(source.family, model, batch=3, seed=5)
        result = {n: a.shape for n, a in inputs.items() if n.endswith("_coords")}
        assert result == shapes
        assert all(array.dtype == np.float32 for array in inputs.values())
    years, days = inputs["temporal_coords"][..., 0], inputs["temporal_coords"][..., 1]
    assert (years >= 2015).all()
    assert (days < 366).all()
    assert len(np.unique(inputs["location_coords"])) > 4


SCALES = [
    f"{part}.{name}_scale" for part in ("encoder", "decoder") for name in ("time", "location")
]


@pytest.mark.usefixtures("forked_children")
@pytest.mark.parametrize("name", SCALES)
def test_changed_scale_of_coordinates_changes_the_results(tmp_path, name):
    source = original(CASES[2])
    stored = dict(source.container.tensors)
    external = next(rule.external for rule in source.rules if name in rule.canonicals)
    tensors = {n: t.load() * (1.001 if n == external else 1) for n, t in stored.items()}
    save_file(tensors, tmp_path / "b.safetensors")
    changed = open_checkpoint(tmp_path / "b.safetensors", FLAGS)
    verdict = verify(source, changed, Side("torch"), Side("torch"))
    failed = {check.name for check in verdict.failed()}
    assert "function/logits" in failed
    assert name in verdict.suspects
    assert ("function/last_hidden_state" in failed) == name.startswith("encoder.")


@pytest.mark.usefixtures("forked_children")
def test_inputs_without_coordinates_leave_their_embeddings_unproven(command, tmp_path):
    golden = np.load(GOLDEN / CASES[2] / "golden.npz")
    pixels = {"pixel_values": golden["videos"], "noise": golden["noise"]}
    np.savez(tmp_path / "in.npz", **pixels)
    path = GOLDEN / CASES[2] / "checkpoint.pth"
    sides = ("--framework-a", "torch", "--framework-b", "torch")
    result = command(
        "verify", path, path, *OPTIONS, *sides, "--inputs", tmp_path / "in.npz", "--json"
    )
    assert result.status == 0, result.err
    assert any("temporal_coords and location_coords" in p for p in result.json["not_compared"])
    for wrong, message in (
        ({"location_coords": golden["location_coords"][:1]}, r"has shape (1, 2); (2, 2)"),
        ({"location_coords": np.full((2, 2), np.nan, np.float32)}, "NaN"),
        ({"location_coords": np.zeros((2, 2))}, "must be float32"),
    ):
        np.savez(tmp_path / "in.npz", **pixels, **wrong)
        result = command("trace", path, tmp_path / "o", *OPTIONS, "--inputs", tmp_path / "in.npz")
        assert (result.status, message in result.err) == (2, True), result.err
    plain = np.load(GOLDEN / CASES[1] / "golden.npz")
    pixels = {"pixel_values": plain["videos"], "location_coords": golden["location_coords"]}
    np.savez(tmp_path / "in.npz", **pixels)
    path = GOLDEN / CASES[1] / "checkpoint.pth"
    result = command("trace", path, tmp_path / "o", *OPTIONS, "--inputs", tmp_path / "in.npz")
    assert (result.status, "does not take" in result.err) == (2, True), result.err


@pytest.mark.usefixtures("forked_children")
@pytest.mark.parametrize("name", CASES)
def test_terratorch_gives_the_same_results(command, tmp_path, name):
    """Run manually: TerraTorch is not installed in the test environments."""
    pytest.importorskip("terratorch")
    path = GOLDEN / name / "checkpoint.pth"
    more = ("--framework-a", "torch", "--framework-b", "torch", "--against", "terratorch")
    result = command("verify", path, converted(original(name), "keras", tmp_path), *OPTIONS, *more)
    assert result.status == 0, result.out


@pytest.mark.skipif(importlib.util.find_spec("terratorch") is not None, reason="it is installed")
def test_a_missing_terratorch_is_named_before_anything_runs(command):
    path = GOLDEN / CASES[1] / "checkpoint.pth"
    result = command("verify", path, path, *OPTIONS, "--against", "terratorch")
    assert result.status == 3
    assert "pip install terratorch" in result.err


@pytest.mark.usefixtures("forked_children")
def test_certificate_contains_the_coordinates(command, tmp_path):
    target = converted(original(CASES[2]), "original", tmp_path)
    sides = ("--framework-a", "torch", "--framework-b", "torch")
    source = GOLDEN / CASES[2] / "checkpoint.pth"
    assert command("verify", source, target, *OPTIONS, *sides, "--certify").status == 0
    result = command("verify", target, "--framework-a", "torch", "--json")
    assert (result.status, result.json["passed"]) == (0, True), result.err
    assert not [part for part in result.json["not_compared"] if "coords" in part]
