"""VideoMAE: read in every layout, converted, run and compared."""

import json
from dataclasses import replace

import numpy as np
import pytest
from paths import GOLDEN
from safetensors.numpy import load_file, save_file

from mae_convert.checkpoint.checkpoint import as_task
from mae_convert.checkpoint.diff import diff
from mae_convert.checkpoint.inspect import inspect
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.changes import Geometry
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import ConfigurationError, LayoutError
from mae_convert.families import families
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.videomae.family import VIDEOMAE
from mae_convert.formats.tensor import LazyTensor
from mae_convert.formats.write import write_file
from mae_convert.layouts.table import external_shapes
from mae_convert.runtime import load_model, save_model
from mae_convert.runtime.inputs import random_inputs
from reference_models.configuration import VideoMAEConfig

PRETRAIN, FINE_TUNED = "videomae_pretrain_tiny", "videomae_finetune_tiny"
FLAGS = Flags(num_attention_heads=4, decoder_num_attention_heads=3, image_size=32, mask_ratio=0.75)
HEADS = Flags(num_attention_heads=4, image_size=32)
OPTIONS = ("--num-heads", 4, "--source-image-size", 32)
PRETRAIN_OPTIONS = (*OPTIONS, "--decoder-num-heads", 3, "--mask-ratio", 0.75)
TARGETS = {"original": "a.pth", "transformers": "directory", "keras": "a.weights.h5"}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "decoder_hidden_size": 12,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 20,
    "num_labels": 5,
}


def original(name):
    flags = FLAGS if "pretrain" in name else HEADS
    return open_checkpoint(GOLDEN / name / "checkpoint.pth", flags)


def converted(source, layout, folder, **options):
    target = folder / TARGETS[layout]
    execute(plan_conversion(source, target, layout, **options))
    return target


def write_random(path, config, task):
    """Write a random model of the authors' layout, with its configuration inside the file."""
    rng = np.random.default_rng(0)
    table = VIDEOMAE.layout("original").table_for(task)
    shapes = VIDEOMAE.schema(config, task)
    external = external_shapes(table.expand(shapes), shapes)
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in external.items()}
    write_file(
        path,
        "safetensors",
        [LazyTensor.from_array(name, array) for name, array in arrays.items()],
        config={**config.to_dict(), "task": task, "layout": "original"},
    )
    return arrays


def test_a_damaged_file_is_explained_by_the_nearest_layout(tmp_path):
    arrays = write_random(tmp_path / "a.safetensors", VideoMAEConfig(**SMALL), "pretrain")
    del arrays["encoder.blocks.1.attn.v_bias"]
    save_file(arrays, tmp_path / "damaged.safetensors")
    words = r"nearest layout is videomae.*v_bias; check how .*`mae-convert layouts original`"
    with pytest.raises(LayoutError, match=words):
        open_checkpoint(tmp_path / "damaged.safetensors", FLAGS)


@pytest.mark.parametrize("name", [PRETRAIN, FINE_TUNED])
@pytest.mark.parametrize("version", ["v4", "v5"])
def test_files_of_transformers_contain_the_same_model(name, version):
    reference = open_checkpoint(GOLDEN / f"{name}_{version}")
    assert (reference.family.name, reference.layout.name) == ("videomae", "transformers")
    assert reference.unread == ()
    difference = diff(replace_mask(original(name)), reference)
    assert (difference.tensors, difference.configuration) == ((), {})


def replace_mask(checkpoint):
    """Return a checkpoint with the mask ratio that transformers' configuration cannot store."""
    return checkpoint.specified({"mask_ratio": 0.9}, "test")


@pytest.mark.parametrize("name", [PRETRAIN, FINE_TUNED])
@pytest.mark.parametrize("layout", TARGETS)
def test_golden_model_round_trip_is_bit_exact(tmp_path, name, layout):
    source = original(name)
    there = converted(source, layout, tmp_path)
    back = tmp_path / "back.pth"
    execute(plan_conversion(open_checkpoint(there), back, "original"))
    for path in (there, back):
        difference = diff(source, open_checkpoint(path))
        assert (difference.tensors, difference.configuration) == ((), {})
    stored = open_checkpoint(back).container.tensors
    before = source.container.tensors
    assert list(stored) == list(before)  # in the order in which the authors' program has them
    assert all(np.array_equal(stored[n].load(), before[n].load()) for n in before)


MODELS = {
    "classifier, first token": ("classify", {"use_mean_pooling": False}),
    "classifier, layer scale": ("classify", {"layer_scale_init_value": 0.1}),
    "classifier without biases of q and v": ("classify", {"qkv_bias": False}),
    "encoder without final norm": ("encoder", {"use_mean_pooling": True}),
    "encoder": ("encoder", {"use_mean_pooling": False}),
    "pretrain, layer scale": ("pretrain", {"layer_scale_init_value": 0.1}),
    "pretrain, wide, other patches": (
        "pretrain",
        {"image_size": (16, 32), "tubelet_size": 1, "num_channels": 4},
    ),
}


@pytest.mark.parametrize("model", MODELS)
def test_round_trip_with_every_option_succeeds_or_is_refused_with_a_reason(tmp_path, model):
    task, changes = MODELS[model]
    config = VideoMAEConfig(**{**SMALL, **changes})
    path = tmp_path / "model.safetensors"
    arrays = write_random(path, config, task)
    source = open_checkpoint(path)
    assert (source.family.name, source.task) == ("videomae", task)
    assert source.configuration.model.use_mean_pooling == (
        config.use_mean_pooling and task != "pretrain"
    )
    for layout in TARGETS:
        folder = tmp_path / layout
        folder.mkdir()
        if reason := VIDEOMAE.layout(layout).refusal(config, task):
            assert layout == "transformers", reason
            with pytest.raises(LayoutError, match="convert"):
                converted(source, layout, folder)
            continue
        there = open_checkpoint(converted(source, layout, folder))
        back = folder / "back.safetensors"
        execute(plan_conversion(there, back, "original"))
        tensors_back = load_file(back)
        assert list(tensors_back) == list(arrays) or set(tensors_back) == set(arrays)
        assert all(np.array_equal(tensors_back[name], arrays[name]) for name in arrays)


def test_encoder_is_extracted_from_a_pretraining_model_and_from_a_classifier(tmp_path):
    for name, has_norm in ((PRETRAIN, True), (FINE_TUNED, False)):
        source = original(name)
        folder = tmp_path / name
        folder.mkdir()
        there = open_checkpoint(converted(source, "transformers", folder, task="encoder"))
        assert there.task == "encoder"
        assert ("encoder.norm.weight" in there.tensors) == has_norm
        assert there.configuration.model.use_mean_pooling != has_norm
        assert diff(as_task(source, "encoder"), there).tensors == ()
        config = json.loads((folder / "directory/config.json").read_text())
        assert config["architectures"] == ["VideoMAEModel"]


def test_fields_without_a_tensor_are_required_or_read_from_a_named_source():
    with pytest.raises(ConfigurationError, match="num_heads"):
        open_checkpoint(GOLDEN / PRETRAIN / "checkpoint.pth")
    source = original(PRETRAIN)
    sources = source.configuration.sources
    assert sources["image_size"] == "option source_image_size"
    assert sources["num_frames"] == "convention of the original layout"
    with pytest.raises(ConfigurationError, match="global_pool"):
        open_checkpoint(GOLDEN / FINE_TUNED / "checkpoint.pth", replace(HEADS, global_pool="token"))


@pytest.mark.parametrize(("size", "heads"), [("S", 6), ("B", 12), ("L", 16), ("H", 16), ("g", 16)])
def test_heads_of_published_sizes_are_those_of_the_paper(size, heads):
    official = next(o for o in VIDEOMAE.official if f"-{size}/" in o.model_name)
    assert official.model.num_attention_heads == heads  # transformers' script gives S 16
    if size == "B":
        shapes = VIDEOMAE.schema(official.model, official.task)
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == 94_210_944


def test_training_arguments_of_the_authors_programs_are_read(tmp_path):
    from argparse import Namespace

    torch = pytest.importorskip("torch")
    stored = torch.load(GOLDEN / PRETRAIN / "checkpoint.pth", weights_only=True)
    args = Namespace(input_size=32, num_frames=16, mask_ratio=0.5, normlize_target=False)
    torch.save({**stored, "args": args}, tmp_path / "a.pth")
    model = open_checkpoint(
        tmp_path / "a.pth", Flags(num_attention_heads=4, decoder_num_attention_heads=3)
    ).configuration.model
    assert (model.image_size, model.mask_ratio, model.norm_pix_loss) == (32, 0.5, False)


def test_random_noise_masks_the_same_positions_in_all_frames():
    config = VideoMAEConfig(**SMALL)
    noise = random_inputs(VIDEOMAE, config, batch=3)["noise"]
    assert all(len(set(row)) == config.num_patches for row in noise.tolist())
    visible = np.argsort(noise, axis=1)[:, : config.num_kept]
    time, rows, columns = config.grid_shape
    for row in visible:
        by_time = [set(row[row // (rows * columns) == t] % (rows * columns)) for t in range(time)]
        assert all(places == by_time[0] for places in by_time)


def test_epsilon_that_transformers_cannot_store_is_reported_and_recorded(run, tmp_path):
    target = tmp_path / "directory"
    result = run(
        "convert", GOLDEN / PRETRAIN / "checkpoint.pth", target, "--to", "transformers",
        *PRETRAIN_OPTIONS,
    )  # fmt: skip
    assert "1e-05 in the decoder's final norm" in " ".join(result.out.split())
    record = json.loads((target / "conversion.json").read_text())
    assert len(record["differences"]) == 1
    report = inspect(open_checkpoint(target))["differences"]
    assert report == record["differences"]
    classifier = inspect(open_checkpoint(GOLDEN / f"{FINE_TUNED}_v5"))["differences"]
    assert "fc_norm" in classifier[0]
    assert inspect(original(PRETRAIN))["differences"] == []


def test_image_size_and_frames_change_no_tensor(tmp_path):
    source = original(PRETRAIN)
    target = tmp_path / "larger.weights.h5"
    execute(plan_conversion(source, target, "keras", geometry=Geometry((48, 64))))
    after = open_checkpoint(target)
    assert after.configuration.model.image_size == (48, 64)
    assert diff(source, after).tensors == ()
    step = after.container.conversion["steps"][0]
    assert (step["step"], step["positions"]) == ("image_size", "recomputed")


def test_recognition_never_confuses_families():
    """Every golden model of a family is read by tables of that family and of no other."""
    from mae_convert.checkpoint.recognition import read_as

    for name in (PRETRAIN, FINE_TUNED, f"{PRETRAIN}_v5", f"{FINE_TUNED}_v4"):
        path = GOLDEN / name
        path = path if (path / "config.json").exists() else path / "checkpoint.pth"
        shapes = {
            name: tensor.shape
            for name, tensor in open_checkpoint(path, incomplete=True).container.tensors.items()
        }
        for family in families().values():
            readings = [
                read_as(layout, table, shapes)
                for layout in family.layouts.values()
                for table in layout.tables
            ]
            fits = any(not reading.problems for reading in readings)
            assert fits == (family.name == "videomae"), (name, family.name)


@pytest.mark.parametrize("name", ["pretrain_tiny", "encoder_tiny", "finetune_gap_tiny"])
def test_no_table_of_videomae_reads_an_image_model(name):
    flags = Flags(num_attention_heads=4)
    checkpoint = open_checkpoint(GOLDEN / name / "checkpoint.pth", flags, incomplete=True)
    assert checkpoint.family.name == "mae"


def test_models_are_loaded_and_saved(tmp_path):
    torch = pytest.importorskip("torch")
    model = load_model(
        GOLDEN / PRETRAIN / "checkpoint.pth", num_heads=4, decoder_num_heads=3,
        source_image_size=32, mask_ratio=0.75, dtype="float64",
    )  # fmt: skip
    golden = np.load(GOLDEN / PRETRAIN / "golden.npz")
    pixels = torch.from_numpy(golden["videos"]).double()
    with torch.no_grad():
        logits = model(pixels, torch.from_numpy(golden["noise"])).logits.numpy()
    away = np.linalg.norm(logits - golden["f64/pred"]) / np.linalg.norm(golden["f64/pred"])
    assert away <= 1e-12
    save_model(model, tmp_path / "saved.pth", "original", dtype="float32")
    assert diff(original(PRETRAIN), open_checkpoint(tmp_path / "saved.pth")).tensors == ()
    classifier = load_model(GOLDEN / f"{FINE_TUNED}_v5")
    save_model(classifier, tmp_path / "classifier", "transformers")
    again = open_checkpoint(tmp_path / "classifier")
    assert diff(open_checkpoint(GOLDEN / f"{FINE_TUNED}_v5"), again).same


def traced(command, source, tmp_path, name, framework, *options):
    golden = np.load(GOLDEN / name / "golden.npz")
    inputs = {"pixel_values": golden["videos"]}
    if "noise" in golden:
        inputs["noise"] = golden["noise"]
    np.savez(tmp_path / "inputs.npz", **inputs)
    output = tmp_path / f"{framework}.safetensors"
    result = command(
        "trace", source, output, "--framework", framework, "--inputs", tmp_path / "inputs.npz",
        "--dtype", "float64", "--taps", *options,
    )  # fmt: skip
    assert result.status == 0, result.err
    return golden, load_file(output)


RESULTS = {
    "last_hidden_state": "latent",
    "logits": "pred",
    "loss": "loss",
    "loss_norm_pix": "loss_norm_pix",
}


@pytest.mark.slow
@pytest.mark.usefixtures("forked_children")
@pytest.mark.parametrize(("framework", "limit"), [("torch", 1e-12), ("tensorflow", 1e-10)])
def test_traces_equal_the_outputs_of_the_original(command, tmp_path, framework, limit):
    source = GOLDEN / PRETRAIN / "checkpoint.pth"
    golden, trace = traced(command, source, tmp_path, PRETRAIN, framework, *PRETRAIN_OPTIONS)
    assert np.array_equal(trace["mask"], golden["mask"])
    pairs = {f"float64/{ours}": f"f64/{reference}" for ours, reference in RESULTS.items()}
    taps = [name for name in golden if "/tap/" in name]
    pairs |= {f"float64/tap/{name.partition('/tap/')[2]}.output": name for name in taps}
    for ours, reference in pairs.items():
        away = np.linalg.norm(trace[ours] - golden[reference]) / np.linalg.norm(golden[reference])
        assert away <= limit, ours
    source = GOLDEN / f"{FINE_TUNED}_v5"
    golden, trace = traced(command, source, tmp_path, FINE_TUNED, framework, "--overwrite")
    away = trace["float64/logits"] - golden["f64/logits"]
    assert np.linalg.norm(away) <= limit * np.linalg.norm(golden["f64/logits"])


@pytest.mark.usefixtures("forked_children")
def test_both_frameworks_prove_a_conversion(command, tmp_path):
    target = converted(original(PRETRAIN), "keras", tmp_path)
    source = GOLDEN / PRETRAIN / "checkpoint.pth"
    result = command(
        "verify", source, target, *PRETRAIN_OPTIONS, "--require-proof", "--layer-norm-eps", 1e-6,
        "--json",
    )  # fmt: skip
    verdict = result.json
    assert (verdict["passed"], verdict["proven"]) == (True, True)
    assert {w["framework"] for w in verdict["witnesses"]} == {"torch", "tensorflow"}


@pytest.mark.usefixtures("forked_children")
def test_library_with_different_results_is_named_with_the_cause(command, tmp_path):
    target = converted(original(PRETRAIN), "transformers", tmp_path)
    source = GOLDEN / PRETRAIN / "checkpoint.pth"
    result = command(
        "verify", source, target, *PRETRAIN_OPTIONS, "--against", "transformers", "--json"
    )
    assert result.status == 1
    verdict = result.json
    failed = {check["name"] for check in verdict["checks"] if not check["passed"]}
    own = {f"against transformers/function/{name}" for name in
           ("decoder.norm", "logits", "reconstruction")}  # fmt: skip
    assert failed == own
    assert any("1e-05" in cause and "decoder.norm" in cause for cause in verdict["causes"])


@pytest.mark.usefixtures("forked_children")
def test_wrong_tensor_is_detected_and_named(command, tmp_path):
    target = converted(original(PRETRAIN), "transformers", tmp_path)
    tensors = load_file(target / "model.safetensors")
    tensors["mask_token"] = tensors["mask_token"] * np.float32(1.01)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    source = GOLDEN / PRETRAIN / "checkpoint.pth"
    verdict = command("verify", source, target, *PRETRAIN_OPTIONS, "--json").json
    assert verdict["first_divergence"] == "decoder.embedding"
    assert verdict["suspects"][0] == "decoder.mask_token"


def test_transformers_loads_the_written_files(tmp_path):
    transformers = pytest.importorskip("transformers")
    for name, kind in (
        (PRETRAIN, transformers.VideoMAEForPreTraining),
        (FINE_TUNED, transformers.VideoMAEForVideoClassification),
    ):
        folder = tmp_path / name
        folder.mkdir()
        target = converted(original(name), "transformers", folder)
        model, loading_info = kind.from_pretrained(target, output_loading_info=True)
        assert not any(
            loading_info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")
        )
        assert model.config.layer_norm_eps == 1e-6
