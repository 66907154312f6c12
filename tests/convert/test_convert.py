"""Conversions: bit-exact through any chain of layouts, strict, and refused if not possible."""

import json
import shutil
import signal

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from small_models import (
    arrays,
    assert_same_file,
    can_hold,
    fields_of_task,
    target_for,
    write_original,
)

from mae_convert import load_model, save_model
from mae_convert.checkpoint.diff import diff
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.cli.main import cli
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.convert.target import container_kind
from mae_convert.errors import (
    CheckpointError,
    ConfigurationError,
    LayoutError,
    MaeConvertError,
    OutputError,
)
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.mae.layouts import LAYOUTS
from mae_convert.formats import open_container
from mae_convert.formats.registry import FILE_SUFFIXES, SUFFIX_FORMATS
from reference_models.configuration import ViTMAEConfig

CASES = ["pretrain_tiny", "encoder_tiny", "finetune_cls_tiny", "finetune_gap_tiny"]


def flags_of(case):
    facts = case.facts
    return Flags(
        num_attention_heads=facts["num_heads"],
        decoder_num_attention_heads=facts.get("decoder_num_heads"),
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "facebook"])
def test_round_trip_gives_the_same_bits_in_the_same_order(case, tmp_path, name, layout):
    source = open_checkpoint(case(name).checkpoint, flags_of(case(name)))
    if not can_hold(layout, source):
        pytest.skip(f"{layout} cannot store {name}, which is refused below")
    there, back = target_for(layout, tmp_path), tmp_path / "back.pth"
    execute(plan_conversion(source, there, layout))
    # No flags the second time: the file stores what its tensors do not determine.
    again = open_checkpoint(there)
    execute(plan_conversion(again, back, "facebook"))
    assert_same_file(arrays(case(name).checkpoint), arrays(back))
    assert again.configuration.model == source.configuration.model
    assert open_checkpoint(back).configuration.model == source.configuration.model


@st.composite
def models(draw):
    task = draw(st.sampled_from(["pretrain", "encoder", "classify"]))
    patch = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    grid = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    heads = draw(st.sampled_from([1, 2, 4]))
    config = ViTMAEConfig(
        hidden_size=8,
        num_hidden_layers=draw(st.integers(1, 11)),
        num_attention_heads=heads,
        intermediate_size=draw(st.integers(1, 9)),
        image_size=(grid[0] * patch[0], grid[1] * patch[1]),
        patch_size=patch,
        num_channels=draw(st.integers(1, 4)),
        qkv_bias=draw(st.booleans()),
        layer_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-12])),
        decoder_hidden_size=4,
        decoder_num_hidden_layers=draw(st.integers(1, 2)),
        decoder_num_attention_heads=draw(st.sampled_from([1, 2])),
        decoder_intermediate_size=5,
        mask_ratio=draw(st.sampled_from([0.75, 0.5])) if task != "classify" else 0.75,
        norm_pix_loss=draw(st.booleans()) if task == "pretrain" else False,
        num_labels=draw(st.integers(1, 4)) if task == "classify" else 1000,
        global_pool=draw(st.sampled_from(["token", "avg"])) if task == "classify" else "token",
    )
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    way = draw(st.lists(st.sampled_from(sorted(LAYOUTS)), min_size=1, max_size=4))
    return task, config, dtype, way


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(model=models())
def test_any_chain_of_layouts_preserves_bits_and_configuration(tmp_path, model):
    task, config, dtype, way = model
    folder = tmp_path / "way"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    start = folder / "start.pth"
    write_original(start, config, task, dtype)
    current = open_checkpoint(start)
    for number, layout in enumerate(way):
        if not can_hold(layout, current):
            continue
        target = target_for(layout, folder, number)
        execute(plan_conversion(current, target, layout))
        current = open_checkpoint(target)
    execute(plan_conversion(current, folder / "end.pth", "facebook"))
    assert_same_file(arrays(start), arrays(folder / "end.pth"))
    end = open_checkpoint(folder / "end.pth").configuration
    assert fields_of_task(end.model, task) == fields_of_task(config, task)


def test_decoder_is_dropped_only_on_request_and_reported(case, tmp_path):
    source = open_checkpoint(case("pretrain_tiny").checkpoint, flags_of(case("pretrain_tiny")))
    plan = plan_conversion(source, tmp_path / "encoder", "transformers", task="encoder")
    report = execute(plan)
    assert report["steps"] == [{"step": "task", "from": "pretrain", "to": "encoder"}]
    assert "decoder_pred.weight" in report["dropped"]
    assert open_checkpoint(tmp_path / "encoder").task == "encoder"
    stored = set(open_container(tmp_path / "encoder").tensors)
    assert not any(name.startswith(("decoder", "vit.")) for name in stored)


def test_rounding_to_a_dtype_is_declared(case, tmp_path):
    source = open_checkpoint(case("pretrain_tiny").checkpoint, flags_of(case("pretrain_tiny")))
    report = execute(plan_conversion(source, tmp_path / "half", "transformers", dtype="bfloat16"))
    assert report["steps"] == [{"step": "dtype", "from": ["float32"], "to": "bfloat16"}]
    stored = json.loads((tmp_path / "half" / "conversion.json").read_text())
    assert stored["steps"] == report["steps"]
    import torch
    from safetensors.torch import load_file as load_torch

    half = load_torch(tmp_path / "half" / "model.safetensors")
    original = torch.from_numpy(arrays(case("pretrain_tiny").checkpoint)["norm.weight"])
    assert torch.equal(half["vit.layernorm.weight"], original.bfloat16())


def test_report_names_every_tensor_once(case, tmp_path):
    source = open_checkpoint(case("pretrain_tiny").checkpoint, flags_of(case("pretrain_tiny")))
    report = execute(plan_conversion(source, tmp_path / "model", "transformers"))
    assert set(report["tensors"]) == set(open_container(tmp_path / "model").tensors)
    used = {name for entry in report["tensors"].values() for name in entry["from"]}
    assert used == set(arrays(case("pretrain_tiny").checkpoint))
    made = [name for entry in report["tensors"].values() for name in entry["canonical"]]
    assert sorted(made) == sorted(source.tensors)


def test_training_state_is_reported_as_unused(case, tmp_path):
    gap = case("finetune_gap_tiny")
    source = open_checkpoint(gap.checkpoint, Flags(num_attention_heads=4))
    report = execute(plan_conversion(source, tmp_path / "model.weights.h5", "keras"))
    assert {"optimizer", "scaler", "epoch"} <= set(report["dropped"])


class TestRefusals:
    @pytest.fixture
    def pretrain(self, case):
        return open_checkpoint(case("pretrain_tiny").checkpoint, flags_of(case("pretrain_tiny")))

    def test_a_pooled_classifier_does_not_become_a_transformers_model(self, case, tmp_path):
        gap = open_checkpoint(case("finetune_gap_tiny").checkpoint, Flags(num_attention_heads=4))
        for layout in ("transformers", "transformers-tf"):
            with pytest.raises(LayoutError, match="timm"):
                plan_conversion(gap, tmp_path / "model", layout)

    def test_a_rectangular_model_does_not_become_a_transformers_pretraining_model(self, tmp_path):
        config = ViTMAEConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            image_size=(16, 32),
            patch_size=8,
            decoder_hidden_size=4,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=1,
            decoder_intermediate_size=4,
        )
        write_original(tmp_path / "wide.pth", config, "pretrain", np.float32)
        source = open_checkpoint(tmp_path / "wide.pth")
        with pytest.raises(LayoutError, match="only square images"):
            plan_conversion(source, tmp_path / "model", "transformers")
        plan_conversion(source, tmp_path / "model", "transformers", task="encoder")
        plan_conversion(source, tmp_path / "model.weights.h5", "keras")

    def test_missing_decoder_is_not_created(self, case, tmp_path):
        encoder = open_checkpoint(case("encoder_tiny").checkpoint, Flags(num_attention_heads=4))
        with pytest.raises(ConfigurationError, match="full checkpoints with the decoder"):
            plan_conversion(encoder, tmp_path / "model", "transformers", task="pretrain")

    def test_weights_that_are_not_numbers_are_not_written(self, case, tmp_path):
        stored = arrays(case("encoder_tiny").checkpoint)
        stored["blocks.1.mlp.fc1.bias"][3] = np.nan
        save_file(stored, tmp_path / "nan.safetensors")
        source = open_checkpoint(tmp_path / "nan.safetensors", Flags(num_attention_heads=4))
        with pytest.raises(MaeConvertError, match=r"intermediate\.dense\.bias.*NaN.*1 value"):
            execute(plan_conversion(source, tmp_path / "model", "transformers"))
        assert not (tmp_path / "model").exists()

    def test_float16_that_overflows_is_not_written(self, case, tmp_path):
        stored = arrays(case("encoder_tiny").checkpoint)
        stored["norm.weight"][0] = 1e6
        save_file(stored, tmp_path / "large.safetensors")
        source = open_checkpoint(tmp_path / "large.safetensors", Flags(num_attention_heads=4))
        with pytest.raises(MaeConvertError, match="overflow"):
            execute(plan_conversion(source, tmp_path / "model", "transformers", dtype="float16"))

    def test_existing_target_is_not_changed(self, pretrain, tmp_path):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "thesis.txt").write_text("years of work")
        for overwrite in (False, True):
            plan = plan_conversion(pretrain, tmp_path / "model", "transformers")
            with pytest.raises(OutputError):
                execute(plan, overwrite=overwrite)
        assert (tmp_path / "model" / "thesis.txt").read_text() == "years of work"

    def test_a_file_name_that_does_not_fit_the_layout_is_refused(self, pretrain, tmp_path):
        for layout, name in [
            ("facebook", "model.h5"),
            ("facebook", "model"),
            ("keras", "model.h5"),
            ("transformers", "model.safetensors"),
        ]:
            with pytest.raises(OutputError):
                plan_conversion(pretrain, tmp_path / name, layout)

    def test_a_configuration_of_other_weights_is_refused(self, golden, tmp_path):
        folder = tmp_path / "model"
        shutil.copytree(golden / "transformers_tf_pretrain_tiny_v4pt", folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
        with pytest.raises(ConfigurationError, match="hidden_size as 64, but the tensors have 32"):
            open_checkpoint(folder)


@pytest.mark.parametrize("name", ["model", "state_dict_in_memory"])
@pytest.mark.parametrize("task", ["pretrain", "encoder", "classifier"])
def test_every_naming_variant_of_transformers_5_is_read(golden, case, tmp_path, task, name):
    """Golden: ``save_pretrained`` and ``state_dict()`` of 5.23, from the original's weights."""
    folder = golden / f"transformers_v5_{task}"
    shutil.copy(folder / "config.json", tmp_path)
    shutil.copy(folder / f"{name}.safetensors", tmp_path / "model.safetensors")
    source = open_checkpoint(tmp_path)
    execute(plan_conversion(source, tmp_path / "back.pth", "facebook"))
    origin = {"classifier": "finetune_cls_tiny"}.get(task, "pretrain_tiny")
    before, after = arrays(case(origin).checkpoint), arrays(tmp_path / "back.pth")
    expected_names = before if task != "encoder" else {n: before[n] for n in before if n in after}
    assert_same_file(expected_names, after)
    assert task != "encoder" or not any("decoder" in n or "mask" in n for n in after)


@pytest.mark.parametrize("task", ["pretrain", "encoder", "classifier"])
def test_files_for_transformers_equal_those_of_version_4(golden, tmp_path, task):
    """Golden: the files of the TensorFlow and PyTorch classes of 4.57.6, from the same weights."""
    source = open_checkpoint(golden / f"transformers_tf_{task}_tiny")
    execute(plan_conversion(source, tmp_path / "pt", "transformers"))
    execute(plan_conversion(source, tmp_path / "tf", "transformers-tf"))
    reference = load_file(golden / f"transformers_tf_{task}_tiny_v4pt" / "model.safetensors")
    ours = load_file(tmp_path / "pt" / "model.safetensors")
    assert set(reference) == set(ours)
    for name, array in reference.items():
        assert array.tobytes() == ours[name].tobytes(), name
    assert_same_file(
        arrays(golden / f"transformers_tf_{task}_tiny" / "tf_model.h5"),
        arrays(tmp_path / "tf" / "tf_model.h5"),
    )
    assert_same_config(golden / f"transformers_tf_{task}_tiny_v4pt", tmp_path / "pt")


def assert_same_config(reference, ours):
    """Check every written field; other fields of the reference do not affect the function."""
    reference, ours = (json.loads((p / "config.json").read_text()) for p in (reference, ours))
    surplus = {k: v for k, v in reference.items() if k not in ours}
    assert {k: reference[k] for k in ours if k in reference} == {
        k: ours[k] for k in ours if k in reference
    }
    assert set(ours) <= set(reference)
    assert set(surplus) <= {
        "dtype",
        "transformers_version",
        "encoder_stride",
        "pooler_act",
        "pooler_output_size",
    }


@pytest.mark.parametrize("steps", [None, "x", [1], [{}], [{"step": 3}]])
def test_damaged_conversion_record_is_refused_in_one_sentence(golden, tmp_path, steps):
    folder = tmp_path / "model"
    shutil.copytree(golden / "transformers_tf_pretrain_tiny_v4pt", folder)
    (folder / "conversion.json").write_text(json.dumps({"steps": steps}))
    with pytest.raises(CheckpointError, match="steps"):
        open_checkpoint(folder)


@pytest.mark.parametrize("layout", ["transformers-tf", "timm", "keras", "torchvision"])
def test_class_names_and_preprocessing_survive_conversion(golden, tmp_path, layout):
    folder = tmp_path / "model"
    shutil.copytree(golden / "transformers_tf_classifier_tiny_v4pt", folder)
    names = ["tench", "goldfish", "shark", "ray", "cock", "hen", "ostrich", "finch", "junco", "jay"]
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(number): name for number, name in enumerate(names)}
    config["label2id"] = {name: number for number, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))
    reference = {"do_normalize": False, "rescale_factor": 1 / 127.5, "size": {"shortest_edge": 36}}
    if layout == "timm":  # which always divides by 255 and normalizes; others are refused
        cropped = {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
        reference = {"resample": 2, "size": {"shortest_edge": 36}, **cropped}
    (folder / "preprocessor_config.json").write_text(json.dumps(reference))
    source, there = open_checkpoint(folder), target_for(layout, tmp_path)
    execute(plan_conversion(source, there, layout))
    execute(plan_conversion(open_checkpoint(there), tmp_path / "back", "transformers"))
    after = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (after["id2label"], after["label2id"]) == (config["id2label"], config["label2id"])
    processing = json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())
    assert reference.items() <= processing.items()
    assert diff(source, open_checkpoint(tmp_path / "back")).same


def test_names_of_more_classes_than_the_head_has_are_refused(golden, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(golden / "transformers_tf_classifier_tiny_v4pt", folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "cat", "1": "dog"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="names 2 classes"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["pretrain_tiny", "encoder_tiny"])
def test_new_head_is_created_only_on_request_and_is_zero(case, command, tmp_path, name):
    source = case(name).checkpoint
    target = tmp_path / "model"
    convert = ["convert", source, target, "--to", "transformers", *case(name).heads]
    report = command(*convert, "--num-labels", 7, "--json").json
    assert set(report["created"]) == {"classifier.weight", "classifier.bias"}
    assert [step["step"] for step in report["steps"]] == ["new_head"]
    stored = load_file(target / "model.safetensors")
    assert stored["classifier.weight"].shape == (7, 32)
    assert not stored["classifier.weight"].any()
    torch = ("--framework-a", "torch", "--framework-b", "torch")
    result = command("verify", source, target, *torch, *case(name).heads)
    assert result.status == 0, result.out + result.err
    assert "NOT declared" not in result.out


def test_a_new_head_on_a_classifier_is_refused(case, command, tmp_path):
    source = case("finetune_cls_tiny")
    result = command(
        "convert", source.checkpoint, tmp_path / "model", "--to", "transformers",
        "--num-labels", 7, *source.heads,
    )  # fmt: skip
    assert result.status == 2
    assert "already has a classifier head" in result.err


@pytest.mark.parametrize("layout", [n for n, entry in LAYOUTS.items() if entry.weights_name])
def test_directory_name_with_a_weights_suffix_is_refused(layout, tmp_path, case):
    written = [s for s in FILE_SUFFIXES if SUFFIX_FORMATS.get(s) in LAYOUTS[layout].containers]
    for suffix in FILE_SUFFIXES:
        if LAYOUTS[layout].also_file and suffix in written:
            continue
        for name in (f"x{suffix}", f"x{suffix.upper()}"):
            with pytest.raises(
                OutputError, match=r"suffix of another file format|written as a file"
            ):
                container_kind(LAYOUTS[layout], tmp_path / name)
    for name in ("mae", "mae-vit.b16", "v1.5", "h5"):
        container_kind(LAYOUTS[layout], tmp_path / name)
    source = open_checkpoint(case("encoder_tiny").checkpoint, flags_of(case("encoder_tiny")))
    with pytest.raises(OutputError, match=r"x\.h5 has the suffix of another file format"):
        plan_conversion(source, tmp_path / "x.h5", layout)


def test_saving_to_a_directory_name_with_a_weights_suffix_is_refused(tmp_path, case):
    source = case("encoder_tiny")
    model = load_model(
        source.checkpoint, framework="torch", num_attention_heads=source.facts["num_heads"]
    )
    for layout in ("transformers", "transformers-tf"):
        with pytest.raises(OutputError, match="suffix of another file format"):
            save_model(model, tmp_path / "x.h5", layout)
    assert list(tmp_path.iterdir()) == []


def test_every_target_of_several_is_checked_before_any_is_written(tmp_path, case):
    source = case("encoder_tiny")
    call = [
        *("convert", source.checkpoint, tmp_path / "a.npz", "--to", "facebook", "--to"),
        *(f"transformers={tmp_path}/b.safetensors", "--num-heads", source.facts["num_heads"]),
    ]
    result = CliRunner().invoke(cli, [str(argument) for argument in call])
    assert isinstance(result.exception, OutputError)
    assert "b.safetensors has the suffix of another file format" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_calls_the_command_keeps_its_signal_handlers(case, tmp_path):
    source = case("encoder_tiny")
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    arguments = [source.checkpoint, tmp_path / "model", "--to", "transformers", *source.heads]
    result = CliRunner().invoke(cli, ["convert", *map(str, arguments)])
    after = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert (result.exit_code, after) == (0, before), result.output
