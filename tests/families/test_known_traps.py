"""Known problems of VideoMAE and Prithvi-EO in other programs are reported where they occur."""

import json
import shutil

import numpy as np
import pytest
from paths import GOLDEN
from safetensors.numpy import load_file, save_file

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.changes import Geometry
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.mae.relatives import name_relative
from mae_convert.families.videomae.family import VIDEOMAE
from mae_convert.runtime.sides import Side
from mae_convert.verify.verification import verify

PRITHVI = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
OPTIONS = ("--num-heads", 4, "--decoder-num-heads", 3)


def test_sixteen_heads_of_the_small_videomae_are_named():
    class Stub:
        model = VIDEOMAE.configuration_class(hidden_size=384, num_attention_heads=16)

    assert any("authors' small model has 6" in line for line in VIDEOMAE.warnings(Stub, "keras"))
    Stub.model = VIDEOMAE.configuration_class(hidden_size=384, num_attention_heads=6)
    assert not list(VIDEOMAE.warnings(Stub, "keras"))


def without_biases(folder):
    """Return the directory of a VideoMAE whose biases of queries and values are lost."""
    shutil.copytree(GOLDEN / "videomae_finetune_tiny_v5", folder)
    arrays = load_file(folder / "model.safetensors")
    assert any(name.endswith(("q_bias", "v_bias")) for name in arrays)
    changed = {n: a * 0 if n.endswith(("q_bias", "v_bias")) else a for n, a in arrays.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_zero_biases_are_reported(command, tmp_path):
    result = command("inspect", without_biases(tmp_path / "lost"), "--stats", "--json")
    assert result.status == 0, result.err
    assert any("48675" in line for line in result.json["odd"])
    result = command("inspect", GOLDEN / "videomae_finetune_tiny_v5", "--stats", "--json")
    assert not any("48675" in line for line in result.json["odd"])


def test_library_that_loses_biases_is_not_used_for_comparison():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from mae_convert.runtime.job import StoredWeights
    from mae_convert.runtime.loaders import LoadError
    from mae_convert.runtime.run_transformers_video import require_biases

    weights = StoredWeights((str(GOLDEN / "videomae_finetune_tiny_v5"),), "safetensors")
    model = torch.nn.ModuleDict({"query": torch.nn.Linear(2, 2)})
    require_biases(model, weights)
    torch.nn.init.zeros_(model["query"].bias)
    with pytest.raises(LoadError, match="48675"):
        require_biases(model, weights)


def test_epsilon_of_terratorch_and_missing_bands_are_reported(command, tmp_path):
    path = GOLDEN / "prithvi_v2_tiny" / "checkpoint.pth"
    result = command("inspect", path, *OPTIONS, "--json")
    assert any("TerraTorch has used 1e-5" in line for line in result.json["odd"])
    document = command("inspect", path, *OPTIONS, "--layer-norm-eps", 1e-5, "--json")
    assert not any("TerraTorch" in line for line in document.json["odd"])
    stored = open_checkpoint(path, PRITHVI).container.tensors
    arrays = {n: t.load() for n, t in stored.items() if n.startswith("encoder.")}
    arrays = {n.removeprefix("encoder."): a for n, a in arrays.items()}
    kernel = arrays["patch_embed.proj.weight"][:, :3]
    arrays["patch_embed.proj.weight"] = np.ascontiguousarray(kernel)
    save_file(arrays, tmp_path / "rgb.safetensors")
    means = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(means))
    result = command("inspect", tmp_path / "rgb.safetensors", "--num-heads", 4, "--json")
    assert result.status == 0, result.err
    assert any("3 bands" in line and "at random" in line for line in result.json["odd"])


@pytest.mark.usefixtures("forked_children")
@pytest.mark.parametrize("count", [1, 8])
def test_other_numbers_of_bands_are_declared_and_verified(tmp_path, count):
    source = open_checkpoint(GOLDEN / "prithvi_v2_tiny" / "checkpoint.pth", PRITHVI)
    path = tmp_path / "a.pth"
    geometry = Geometry(in_channels=count)
    execute(plan_conversion(source, path, "original", task="encoder", geometry=geometry))
    target = open_checkpoint(path)
    before, after = (c.tensors["encoder.patch_embedding.weight"].load() for c in (source, target))
    if count == 1:
        np.testing.assert_allclose(after[:, 0], before.sum(1), rtol=1e-5, atol=1e-6)
    else:
        turns = np.concatenate([before, before], axis=1)[:, :count] * (6 / count)
        np.testing.assert_allclose(after, turns, rtol=1e-6)
    assert verify(source, target, Side("torch"), Side("torch")).passed


@pytest.mark.parametrize("bands", [13, 2])
@pytest.mark.parametrize(
    ("task", "name"), [("encoder", "FG-MAE"), ("pretrain", "SSL4EO-S12 (MAE)")]
)
def test_encoders_of_sentinel_images_are_named_by_their_shapes(bands, task, name):
    fields = {
        "hidden_size": 384, "num_hidden_layers": 12, "intermediate_size": 1536, "patch_size": 16,
        "num_channels": bands, "decoder_hidden_size": 512, "decoder_num_hidden_layers": 8,
        "task": task,
    }  # fmt: skip
    result = name_relative(None, {}, None, fields)
    assert name in (result.relative.name, *result.also)
    assert "Sentinel" in result.relative.caveat
