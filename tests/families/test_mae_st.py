"""MAE-ST: read, converted with every option, run and compared."""

import numpy as np
import pytest
from paths import GOLDEN
from safetensors.numpy import load_file, save_file

from mae_convert.checkpoint.checkpoint import as_task
from mae_convert.checkpoint.diff import diff
from mae_convert.checkpoint.inspect import inspect
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import ConfigurationError, LayoutError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.mae_st.family import MAE_ST
from mae_convert.formats.tensor import LazyTensor
from mae_convert.formats.write import write_file
from mae_convert.layouts.table import external_shapes
from mae_convert.runtime import load_model, save_model
from reference_models.configuration import MAESTConfig

PRETRAIN, FINE_TUNED = "mae_st_pretrain_tiny", "mae_st_finetune_tiny"
FLAGS = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
OPTIONS = ("--num-heads", 4, "--decoder-num-heads", 3)
TARGETS = {"original": "a.pth", "keras": "a.weights.h5"}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 8,
    "decoder_hidden_size": 12,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 20,
    "num_labels": 5,
}


def original(name):
    flags = FLAGS if "pretrain" in name else Flags(num_attention_heads=4)
    return open_checkpoint(GOLDEN / name / "checkpoint.pth", flags)


def converted(source, layout, folder, **options):
    target = folder / TARGETS[layout]
    execute(plan_conversion(source, target, layout, **options))
    return target


@pytest.mark.parametrize("name", [PRETRAIN, FINE_TUNED])
@pytest.mark.parametrize("layout", TARGETS)
def test_golden_model_round_trip_is_bit_exact(tmp_path, name, layout):
    source = original(name)
    assert source.family.name == "mae_st"
    there = converted(source, layout, tmp_path)
    back = tmp_path / "back.pth"
    execute(plan_conversion(open_checkpoint(there), back, "original"))
    for path in (there, back):
        difference = diff(source, open_checkpoint(path))
        assert (difference.tensors, difference.configuration) == ((), {})
    stored, before = open_checkpoint(back).container.tensors, source.container.tensors
    assert list(stored) == list(before)
    assert all(np.array_equal(stored[n].load(), before[n].load()) for n in before)
    assert open_checkpoint(back).container.wrapper == "model_state"


MODELS = {
    "joint positions": ("pretrain", {"sep_pos_embed": False}),
    "no class token": ("pretrain", {"cls_embed": False}),
    "joint positions, no class token": ("pretrain", {"sep_pos_embed": False, "cls_embed": False}),
    "no biases": ("pretrain", {"qkv_bias": False}),
    "half of the frames": ("pretrain", {"pred_t_dim": 4}),
    "encoder": ("encoder", {}),
    "classifier without class token": ("classify", {"cls_embed": False}),
    "wide": ("classify", {"image_size": (16, 32)}),
}


@pytest.mark.parametrize("model", MODELS)
def test_round_trip_with_every_option(tmp_path, model):
    task, changes = MODELS[model]
    config = MAESTConfig(**{**SMALL, **changes})
    rng = np.random.default_rng(0)
    shapes = MAE_ST.schema(config, task)
    external = external_shapes(MAE_ST.layout("original").table_for(task).expand(shapes), shapes)
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in external.items()}
    path = tmp_path / "model.safetensors"
    write_file(
        path,
        "safetensors",
        [LazyTensor.from_array(name, array) for name, array in arrays.items()],
        config={**config.to_dict(), "task": task, "layout": "original"},
    )
    source = open_checkpoint(path)
    assert (source.family.name, source.task) == ("mae_st", task)
    for name in (*changes, "num_frames"):
        assert getattr(source.configuration.model, name) == getattr(config, name)
    for layout in TARGETS:
        folder = tmp_path / layout
        folder.mkdir()
        there = open_checkpoint(converted(source, layout, folder))
        execute(plan_conversion(there, folder / "back.safetensors", "original"))
        tensors_back = load_file(folder / "back.safetensors")
        assert set(tensors_back) == set(arrays)
        assert all(np.array_equal(tensors_back[name], arrays[name]) for name in arrays)


def test_encoder_is_extracted_from_a_pretraining_model(tmp_path):
    source = original(PRETRAIN)
    there = open_checkpoint(converted(source, "keras", tmp_path, task="encoder"))
    assert diff(as_task(source, "encoder"), there).tensors == ()


def test_fields_without_a_tensor_are_assumed_required_or_refused(tmp_path):
    report = inspect(original(PRETRAIN))
    assert report["config"]["pred_t_dim"] == 4
    assert report["assumed"]["num_frames"]["source"] == "the tensors' shapes"
    assert report["assumed"]["image_size"]["source"] == "square grid"
    with pytest.raises(ConfigurationError, match="num_heads"):
        open_checkpoint(GOLDEN / PRETRAIN / "checkpoint.pth")
    flags = Flags(num_attention_heads=4, decoder_num_attention_heads=3, image_size=40)
    with pytest.raises(ConfigurationError, match="position embeddings for"):
        open_checkpoint(GOLDEN / PRETRAIN / "checkpoint.pth", flags)
    with pytest.raises(LayoutError, match="original, keras"):
        plan_conversion(original(PRETRAIN), tmp_path / "a", "transformers")


def test_a_damaged_file_is_explained_by_the_nearest_layout(tmp_path):
    tensors = {n: t.load() for n, t in original(PRETRAIN).container.tensors.items()}
    del tensors["pos_embed_temporal"]
    save_file(tensors, tmp_path / "damaged.safetensors")
    with pytest.raises(LayoutError, match=r"nearest layout is mae_st.*temporal_position"):
        open_checkpoint(tmp_path / "damaged.safetensors", FLAGS)


def test_models_are_loaded_and_saved(tmp_path):
    torch = pytest.importorskip("torch")
    source = GOLDEN / PRETRAIN / "checkpoint.pth"
    model = load_model(source, num_heads=4, decoder_num_heads=3, dtype="float64")
    golden = np.load(GOLDEN / PRETRAIN / "golden.npz")
    with torch.no_grad():
        outputs = model(
            torch.from_numpy(golden["videos"]).double(), torch.from_numpy(golden["noise"])
        )
    away = np.linalg.norm(outputs.logits.numpy() - golden["f64/pred"])
    assert away <= 1e-12 * np.linalg.norm(golden["f64/pred"])
    save_model(model, tmp_path / "saved.pth", "original", dtype="float32")
    assert diff(original(PRETRAIN), open_checkpoint(tmp_path / "saved.pth")).tensors == ()


@pytest.mark.usefixtures("forked_children")
@pytest.mark.parametrize("name", [PRETRAIN, pytest.param(FINE_TUNED, marks=pytest.mark.slow)])
def test_both_frameworks_prove_a_conversion(command, tmp_path, name):
    target = converted(original(name), "keras", tmp_path)
    options = OPTIONS if name == PRETRAIN else OPTIONS[:2]
    result = command(
        "verify", GOLDEN / name / "checkpoint.pth", target, *options, "--require-proof", "--json",
        "--layer-norm-eps", 1e-6, "--source-image-size", 32,
    )  # fmt: skip
    assert result.status == 0, result.err
    assert (result.json["passed"], result.json["proven"]) == (True, True)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_children")
@pytest.mark.parametrize(("framework", "limit"), [("torch", 1e-12), ("tensorflow", 1e-10)])
def test_trace_equals_the_output_of_the_original(command, tmp_path, framework, limit):
    golden = np.load(GOLDEN / PRETRAIN / "golden.npz")
    np.savez(tmp_path / "inputs.npz", pixel_values=golden["videos"], noise=golden["noise"])
    result = command(
        "trace", GOLDEN / PRETRAIN / "checkpoint.pth", tmp_path / "a.safetensors", "--framework",
        framework, "--inputs", tmp_path / "inputs.npz", "--dtype", "float64", *OPTIONS,
    )  # fmt: skip
    assert result.status == 0, result.err
    trace = load_file(tmp_path / "a.safetensors")
    assert np.array_equal(trace["mask"], golden["mask"])
    pairs = {"last_hidden_state": "latent", "logits": "pred"}
    pairs |= {name: name for name in ("loss", "loss_norm_pix", "reconstruction")}
    for ours, reference in pairs.items():
        exact = golden[f"f64/{reference}"]
        assert np.linalg.norm(trace[f"float64/{ours}"] - exact) <= limit * np.linalg.norm(exact)
