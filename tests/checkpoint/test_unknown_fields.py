"""Fields that affect a library are read, ignored if harmless, refused, or named in the verdict."""

import json
import shutil
from contextlib import suppress
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import transformers
from PIL import Image
from transformers import GenerationConfig, ViTConfig, ViTImageProcessorPil, ViTMAEConfig

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.checkpoint.preprocessing import as_pixels, described, preprocessing_from_settings
from mae_convert.checkpoint.unknown_fields import PREPROCESSOR
from mae_convert.convert.changes import Geometry
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import ConfigurationError, LayoutError, MaeConvertError
from mae_convert.families import transformers_fields
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.keras_layouts import unknown_in_config
from mae_convert.families.mae.family import TRANSFORMERS_CLASSES as CLASSES
from mae_convert.families.mae.layouts import LAYOUTS, timm_fields
from mae_convert.families.transformers_fields import FIELDS
from mae_convert.files.strict_json import check_document
from mae_convert.formats.directory import is_read_beside
from mae_convert.models.image_processor import MaeImageProcessor
from mae_convert.reports.junit import verdict_junit
from mae_convert.reports.verdict_files import markdown, verdict_json
from mae_convert.verify.image_checks import compare_preprocessing
from mae_convert.verify.judge import Verdict, proof
from mae_convert.verify.summary import verdict_in_words
from mae_convert.verify.verification import Verification
from reference_models.configuration import ViTMAEConfig as OurConfig

pytestmark = pytest.mark.usefixtures("forked_children")

FLAGS = Flags(num_attention_heads=4, decoder_num_attention_heads=3)


@pytest.fixture(scope="module")
def models(case, tmp_path_factory):
    """One directory of transformers, and one of timm."""
    folder = tmp_path_factory.mktemp("fields")
    for name, task, layout in (
        ("pretrain_tiny", "pretrain", "transformers"),
        ("encoder_tiny", "encoder", "timm"),
    ):
        source = open_checkpoint(case(name).checkpoint, FLAGS)
        execute(plan_conversion(source, folder / layout, layout, task=task))
    return folder


@pytest.fixture
def edited(models, tmp_path):
    """Return a function that copies a model and changes a JSON file of it."""

    def edit(layout, change, file="config.json"):
        copy = tmp_path / "model"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(models / layout, copy)
        path = copy / file
        config = json.loads(path.read_text()) if path.exists() else {}
        change(config)
        path.write_text(json.dumps(config))
        return copy

    return edit


class TestTransformers:
    def test_every_field_of_the_installed_version_is_classified(self):
        """This test fails if a new version of transformers has a new field."""
        classified = {
            *(field.name for kind in (ViTMAEConfig, ViTConfig) for field in fields(kind)),
            *ViTMAEConfig().to_dict(),
            *ViTConfig().to_dict(),
            *GenerationConfig._get_default_generation_params(),
            # Further arguments of __post_init__, which are not fields.
            *("attn_implementation", "name_or_path", "num_labels", "output_attentions"),
            *("per_layer_config", "torch_dtype", "_commit_hash"),
        }
        assert not classified - FIELDS.keys(), transformers.__version__

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            (
                "transformers_weights",
                "other.safetensors",
                "in config.json is other.safetensors: transformers loads",
            ),
            ("dtype", "float16", "to which transformers 5 rounds the weights"),
            ("torch_dtype", "torch.bfloat16", "rounds the weights"),
            ("dtype", "float8_e4m3fn", "which is not supported"),
            ("quantization_config", {"quant_method": "gptq"}, "model.dequantize"),
            ("compression_config", {"format": "int"}, "quantized"),
            ("per_layer_config", {"0": {"hidden_act": "relu"}}, "single layers"),
            ("pruned_heads", {"0": [1]}, "removes these attention heads"),
            ("hidden_act", "mish", "hidden_act must be one of"),
        ],
    )
    def test_value_that_changes_the_model_is_refused(self, edited, field, value, message):
        with pytest.raises(ConfigurationError, match=message) as caught:
            open_checkpoint(edited("transformers", lambda config: config.update({field: value})))
        assert field in str(caught.value)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("transformers_weights", "model.safetensors"),
            ("dtype", "float32"),
            ("torch_dtype", "float64"),
            ("quantization_config", None),
            ("_attn_implementation", "sdpa"),
            ("attn_implementation", "flash_attention_2"),
            ("pooler_act", "tanh"),
            ("encoder_stride", 16),
            ("pruned_heads", {}),
            ("max_length", 20),
            ("output_attentions", True),
        ],
    )
    def test_field_without_effect_is_ignored_without_a_warning(self, edited, field, value):
        path = edited("transformers", lambda config: config.update({field: value}))
        assert open_checkpoint(path).unread == ()

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("fusion_config", {"qkv": True}),
            ("head_dim", 4),
            ("attribute_map", {"layer_norm_eps": "eps"}),
            ("auto_map", {"AutoModel": "modeling.MyViT"}),
            ("attn_implementation", "someone/kernels"),
            ("a_field_of_a_later_version", 1),
            ("model_type", "vit_msn"),
            ("architectures", ["MyViT"]),
        ],
    )
    def test_unknown_field_is_named(self, edited, field, value):
        path = edited("transformers", lambda config: config.update({field: value}))
        (named,) = open_checkpoint(path).unread
        assert named.startswith(f"config.json: {field}")

    def test_adapter_beside_the_weights_has_to_be_merged_first(self, edited):
        path = edited("transformers", lambda s: s.update(peft_type="LORA"), "adapter_config.json")
        with pytest.raises(ConfigurationError, match="merge_and_unload"):
            open_checkpoint(path)

    def test_a_distributed_checkpoint_beside_the_weights_is_refused(self, models, tmp_path):
        """Version 5 of transformers loads the distributed checkpoint and not model.safetensors."""
        shutil.copytree(models / "transformers", tmp_path / "model")
        part = "shard-00001-model-00001-of-00001.safetensors"
        shutil.copy(tmp_path / "model" / "model.safetensors", tmp_path / "model" / part)
        assert is_read_beside(part)
        with pytest.raises(ConfigurationError, match="loads only the shards"):
            open_checkpoint(tmp_path / "model")

    def test_a_field_twice_is_refused(self, command, models, tmp_path):
        shutil.copytree(models / "transformers", tmp_path / "model")
        path = tmp_path / "model" / "config.json"
        path.write_text(path.read_text().replace("{", '{"hidden_act": "relu",', 1))
        result = command("convert", tmp_path / "model", tmp_path / "out.pth", "--to", "facebook")
        assert (result.status, len(result.err.strip().splitlines())) == (2, 1)
        assert "'hidden_act' twice" in result.err


class TestTimm:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("act_layer", "hard_swish"),
            ("init_values", 1e-5),
            ("qk_norm", True),
            ("pre_norm", True),
            ("norm_layer", "rmsnorm"),
            ("class_token", False),
            ("pos_embed", "none"),
            ("reg_tokens", 4),
            ("mlp_layer", "swiglu"),
            ("block_fn", "parallel"),
            ("attn_layer", "diff"),
            ("proj_bias", False),
            ("final_norm", False),
            ("scale_attn_norm", True),
        ],
    )
    def test_argument_that_changes_the_model_is_refused(self, edited, name, value):
        path = edited("timm", lambda config: config["model_args"].update({name: value}))
        with pytest.raises(ConfigurationError, match=f"model_args.{name}"):
            open_checkpoint(path)

    @pytest.mark.parametrize(
        "name",
        [
            "vit_base_patch16_clip_quickgelu_224",
            "vit_base_patch16_clip_224",
            "flexivit_base",
            "vit_base_patch16_siglip_224",
            "vit_base_patch16_rope_224",
            "eva_large_patch14_196",
            "vit_base_patch16_reg4_gap_256",
            "beit3_base_patch16_224",
            "vit_base_patch16_gap_224",
        ],
    )
    def test_an_architecture_that_implies_more_than_a_size_is_refused(self, edited, name):
        with pytest.raises(
            ConfigurationError, match=r"differs from a plain vit_\* model in more than its sizes"
        ):
            open_checkpoint(edited("timm", lambda config: config.update(architecture=name)))

    @pytest.mark.parametrize("name", ["vit_base_patch16_224.mae", "vit_base_patch16_224_in21k"])
    def test_pretrained_tag_of_an_architecture_is_accepted(self, edited, name):
        path = edited("timm", lambda config: config.update(architecture=name))
        assert open_checkpoint(path).unread == ()

    @pytest.mark.parametrize("name", ["patch_size", "depth", "embed_dim"])
    def test_fields_implied_by_the_architecture_are_checked_against_the_tensors(self, edited, name):
        path = edited("timm", lambda config: config["model_args"].pop(name))
        with pytest.raises(ConfigurationError, match="but the tensors have"):
            open_checkpoint(path)

    @pytest.mark.parametrize("location", ["model_args", "pretrained_cfg", None])
    def test_a_field_that_is_not_known_is_named(self, edited, location):
        def change(config):
            (config[location] if location else config)["of_a_later_version"] = 1

        prefix = f"{location}." if location else ""
        named = f"config.json: {prefix}of_a_later_version"
        assert open_checkpoint(edited("timm", change)).unread == (named,)

    def test_quick_gelu_is_read(self, edited):
        path = edited("timm", lambda config: config["model_args"].update(act_layer="quick_gelu"))
        assert open_checkpoint(path).configuration.model.hidden_act == "quick_gelu"

    def test_head_that_omits_classes_is_refused(self, edited):
        path = edited("timm", lambda config: config["pretrained_cfg"].update(label_offset=1))
        with pytest.raises(ConfigurationError, match="label_offset"):
            open_checkpoint(path)


KERAS = {
    "module": "reference_models.keras.mae",
    "class_name": "TFViTMAEModel",
    "registered_name": "reference_models>TFViTMAEModel",
    "config": {"config": {"hidden_size": 32}, "name": "model", "dtype": "float32"},
    "build_config": {},
    "compile_config": {},
}


def of_keras(config):
    return unknown_in_config(config, OurConfig)


def with_policy(kind, name):
    dtype = {"module": "keras", "class_name": kind, "config": {"name": name}}
    return {**KERAS, "config": {**KERAS["config"], "dtype": dtype}}


class TestKeras:
    @pytest.mark.parametrize("name", ["float32", "float64", "bfloat16"])
    def test_one_float_dtype_is_known(self, name):
        assert of_keras(with_policy("DTypePolicy", name)) == ()

    def test_mixed_precision_is_named(self):
        """With mixed precision, Keras computes in float16, whatever the dtype of the weights."""
        named = of_keras(with_policy("DTypePolicy", "mixed_float16"))
        assert named == ("dtype mixed_float16",)

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            ("QuantizedDTypePolicy", "int8_from_float32"),
            ("QuantizedFloat8DTypePolicy", "float8_from_float32"),
            ("DTypePolicyMap", None),
            ("DTypePolicy", "int8_from_float32"),
            ("MyPolicy", "float32"),
        ],
    )
    def test_quantized_weights_and_policies_by_layer_are_refused(self, kind, name):
        with pytest.raises(ConfigurationError, match="quantizes weights"):
            of_keras(with_policy(kind, name))

    def test_a_field_that_our_classes_do_not_know_is_named(self):
        inner = {**KERAS["config"], "config": {"hidden_size": 32, "rope": True}, "lora_rank": 4}
        named = of_keras({**KERAS, "config": inner, "quantized": 1})
        assert sorted(named) == ["config.config.rope", "config.lora_rank", "quantized"]

    def test_fields_in_a_keras_archive_are_checked(self, command, case, tmp_path, monkeypatch):
        source = open_checkpoint(case("encoder_tiny").checkpoint, FLAGS)
        execute(plan_conversion(source, tmp_path / "a.keras", "keras"))
        assert open_checkpoint(tmp_path / "a.keras").unread == ()
        written = open_checkpoint(tmp_path / "a.keras").container.config["keras"]
        assert of_keras({**written, "more": 1}) == ("more",)


def as_trace(checkpoint, **changes):
    configuration = checkpoint.configuration
    description = {
        "preprocessing": described(checkpoint),
        "steps": [],
        "image_mean": list(configuration.image_mean),
        "image_std": list(configuration.image_std),
    }
    return SimpleNamespace(description={**description, **changes})


class TestPreprocessing:
    def test_processor_config_takes_precedence_as_in_transformers(self, edited):
        nested = {"do_normalize": False, "resample": 0, "image_processor_type": "ViTImageProcessor"}
        nested |= {"size": {"height": 32, "width": 32}, "image_std": [0.1, 0.2, 0.3]}
        path = edited(
            "transformers", lambda s: s.update(image_processor=nested), "processor_config.json"
        )
        checkpoint = open_checkpoint(path)
        assert checkpoint.unread == (
            "preprocessor_config.json, which differs from processor_config.json",
        )
        pixels = np.random.default_rng(0).integers(0, 256, (41, 67, 3), dtype=np.uint8)
        reference = ViTImageProcessorPil.from_pretrained(path)
        assert reference.do_normalize is False
        expected = reference(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
        assert np.array_equal(as_pixels(Image.fromarray(pixels), "it", checkpoint), expected)
        ours = MaeImageProcessor.from_pretrained(path)
        assert np.array_equal(ours(Image.fromarray(pixels))["pixel_values"][0], expected)
        (path / "preprocessor_config.json").unlink()
        assert open_checkpoint(path).unread == ()

    @pytest.mark.parametrize("content", [{"a": 1}, {"image_processor": {}}])
    def test_processor_config_without_an_image_processor_is_ignored(self, edited, content):
        path = edited("transformers", lambda s: s.update(content), "processor_config.json")
        checkpoint = open_checkpoint(path)
        assert checkpoint.preprocessor["resample"] == 3
        assert checkpoint.container.preprocessor_source == "preprocessor_config.json"
        assert checkpoint.unread == ()

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("do_pad", True),
            ("image_processor_type", "SiglipImageProcessor"),
            ("auto_map", {"a": "b"}),
        ],
    )
    def test_a_field_that_is_not_known_is_named(self, edited, field, value):
        path = edited(
            "transformers", lambda s: s.update({field: value}), "preprocessor_config.json"
        )
        assert open_checkpoint(path).unread == (f"preprocessor_config.json: {field}",)

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"do_normalize": False}, "do_normalize"),
            ({"do_rescale": False}, "rescale_factor"),
            ({"rescale_factor": 1 / 128}, "rescale_factor"),
            ({"resample": 2}, "resample"),
            ({"size": {"height": 48, "width": 48}}, "size"),
            ({"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 32}, "size"),
            ({"do_center_crop": True, "crop_size": 16}, "crop_size"),
        ],
    )
    def test_other_pixels_are_a_difference(self, models, edited, changes, field):
        path = edited("transformers", lambda s: s.update(changes), "preprocessor_config.json")
        a, b = (as_trace(open_checkpoint(p)) for p in (models / "transformers", path))
        distances = {each.name: each.error for each in compare_preprocessing(a, b)}
        assert distances[field] > 1e-3

    def test_equivalent_preprocessing_is_not_a_difference(self, models, edited):
        same = {"do_center_crop": True, "crop_size": 32, "size": 32}
        path = edited("transformers", lambda s: s.update(same), "preprocessor_config.json")
        a, b = (as_trace(open_checkpoint(p)) for p in (models / "transformers", path))
        (difference,) = compare_preprocessing(a, b)
        assert (difference.name, difference.error) == ("crop_size", 0.0)

    def test_source_without_preprocessing_does_not_contradict_a_size(self, models, edited, case):
        source = as_trace(open_checkpoint(case("pretrain_tiny").checkpoint, FLAGS))
        path = edited("transformers", lambda s: s.update(resample=2), "preprocessor_config.json")
        assert not list(compare_preprocessing(source, as_trace(open_checkpoint(path))))
        path = edited(
            "transformers", lambda s: s.update(do_rescale=False), "preprocessor_config.json"
        )
        assert list(compare_preprocessing(source, as_trace(open_checkpoint(path))))

    def test_preprocessing_that_one_side_does_not_support_is_a_difference(self, models, edited):
        path = edited("transformers", lambda s: s.update(resample=9), "preprocessor_config.json")
        a, b = (as_trace(open_checkpoint(p)) for p in (models / "transformers", path))
        assert [each.error for each in compare_preprocessing(a, b)] == [np.inf]

    def test_extreme_image_sizes_are_not_run(self, models):
        trace = as_trace(open_checkpoint(models / "transformers"))
        huge = {**trace.description["preprocessing"], "crop": [60000, 60000]}
        other = SimpleNamespace(description={**trace.description, "preprocessing": huge})
        assert [each.error for each in compare_preprocessing(trace, other)] == [np.inf]

    @pytest.mark.parametrize("number", [0, 2, 3])
    def test_interpolation_is_converted_to_timm_and_back(self, edited, tmp_path, number):
        path = edited(
            "transformers", lambda s: s.update(resample=number), "preprocessor_config.json"
        )
        source = open_checkpoint(path)
        for name, layout in (("timm", "timm"), ("back", "transformers")):
            execute(plan_conversion(source, tmp_path / name, layout, task="encoder"))
            read = open_checkpoint(tmp_path / name)
            assert not list(compare_preprocessing(as_trace(source), as_trace(read)))
            assert read.preprocessor["resample"] == number

    def test_crop_of_timm_is_converted_to_transformers_and_back(self, edited, tmp_path):
        def change(config):
            config["pretrained_cfg"] |= {"crop_pct": 0.875, "crop_mode": "center"}

        source = open_checkpoint(edited("timm", change))
        assert source.preprocessor["size"] == {"shortest_edge": 36}
        execute(plan_conversion(source, tmp_path / "pt", "transformers"))
        written = json.loads((tmp_path / "pt" / "preprocessor_config.json").read_text())
        assert written["image_processor_type"] == "BitImageProcessor"
        read = open_checkpoint(tmp_path / "pt")
        assert not list(compare_preprocessing(as_trace(source), as_trace(read)))
        execute(plan_conversion(read, tmp_path / "timm", "timm"))
        again = open_checkpoint(tmp_path / "timm")
        assert again.preprocessor == source.preprocessor

    @pytest.mark.parametrize(
        "changes",
        [
            {"do_rescale": False},
            {"do_normalize": False},
            {"do_center_crop": True, "crop_size": 16},
            {"size": {"height": 32, "width": 48}},
        ],
    )
    def test_preprocessing_that_timm_cannot_store_is_refused(self, edited, tmp_path, changes):
        path = edited("transformers", lambda s: s.update(changes), "preprocessor_config.json")
        plan = plan_conversion(open_checkpoint(path), tmp_path / "timm", "timm", task="encoder")
        with pytest.raises(LayoutError, match="cannot write timm"):
            execute(plan)
        assert not (tmp_path / "timm").exists()

    def test_every_crop_of_timm_is_written_as_it_is_read(self):
        for size in (32, 96, 224, 384):
            for share in (0.875, 0.9, 0.95, 0.965, 1.0, 2 / 3):
                config = {"crop_pct": share, "interpolation": "bilinear", "crop_mode": "center"}
                settings = timm_fields.preprocessing(config, size)
                again = timm_fields.data_config(settings, (size, size))
                assert timm_fields.preprocessing(again, size) == settings, (size, share)
                assert preprocessing_from_settings(settings, (size, size), ((0.5,), (0.5,))).crop

    def test_changed_image_size_replaces_the_stored_size(self, edited, tmp_path):
        path = edited("transformers", lambda s: s.update(resample=2), "preprocessor_config.json")
        plan = plan_conversion(
            open_checkpoint(path), tmp_path / "pt", "transformers", geometry=Geometry((48, 48))
        )
        execute(plan)
        written = json.loads((tmp_path / "pt" / "preprocessor_config.json").read_text())
        assert (written["size"], written["resample"]) == ({"height": 48, "width": 48}, 2)


VERDICT = Verdict(True, False, (), None, (), (), (), unread={"B": ("config.json: fusion_config",)})


class TestVerdict:
    def test_it_names_the_fields_in_every_form(self):
        verification = Verification(VERDICT, {})
        assert "fusion_config" in verdict_in_words(VERDICT)[1]
        assert "fusion\\_config" in markdown(verification) or "fusion_config" in markdown(
            verification
        )
        assert 'name="not read on B" value="config.json: fusion_config"' in verdict_junit(
            verification
        )
        assert verdict_json(VERDICT)["unread"] == {"B": ("config.json: fusion_config",)}

    def test_proof_fails_and_names_the_field(self):
        trace = SimpleNamespace(description={"native": True, "task": "encoder", "tensors": {}})
        failed = [c for c in proof(VERDICT, trace, trace) if not c.passed]
        assert [c.measured for c in failed] == ["B: config.json: fusion_config"]
        word, meaning = verdict_in_words(replace(VERDICT, passed=False, checks=tuple(failed)))
        assert (word, "fusion_config" in meaning) == ("NOT PROVEN", True)

    def test_verify_passes_and_does_not_prove(self, command, models, edited, tmp_path):
        path = edited("timm", lambda config: config["model_args"].update(of_later=1))
        report = tmp_path / "verdict.html"
        result = command("verify", models / "timm", path, "--report", report)
        assert result.status == 0, result.err
        words = " ".join(result.out.split())
        assert "PASSED" in words
        assert (
            "not proven: a library may use configuration fields that mae-convert does not know"
            in words
        )
        assert "model_args.of_later" in words
        assert "model_args.of_later" in report.read_text()


ODD = (None, True, 0, -1, 7, 1e300, 0.5, "x", [], [1], [1, 2, 3], ["x"], {}, {"a": [1]})


def refused_or_read(read):
    with suppress(MaeConvertError):
        read()


@pytest.mark.parametrize("layout", ["transformers", "timm"])
def test_unusual_values_of_every_field_are_refused_or_read(models, layout):
    """The older form of timm's configuration, one flat mapping, is included."""
    stored = json.loads((models / layout / "config.json").read_text())
    forms = [(stored, table, ()) for table in ((FIELDS,) if layout == "transformers" else ())]
    if layout == "timm":
        forms = [(stored, timm_fields.FIELDS, ()), (stored, timm_fields.ARGUMENTS, ("model_args",)),
                 (stored, timm_fields.DATA, ("pretrained_cfg",)),
                 ({"architecture": stored["architecture"], **stored["pretrained_cfg"]},
                  timm_fields.LEGACY, ())]  # fmt: skip

    def read(changed):
        check_document(changed, "config", "config.json", "correct it")
        LAYOUTS[layout].read_config(changed)
        if layout == "timm":
            timm_fields.unknown_in_config(changed)
        else:
            transformers_fields.unknown_in_config(changed, CLASSES["pretrain"])
            transformers_fields.check_config(
                changed, models / layout / "model.safetensors", [np.dtype(np.float32)]
            )

    for base, table, location in forms:
        for name in table:
            for value in ODD:
                changed = json.loads(json.dumps(base))
                inner = changed[location[0]] if location else changed
                inner[name] = value
                refused_or_read(lambda changed=changed: read(changed))


def test_unusual_preprocessing_is_refused_or_written_for_timm():
    for name in PREPROCESSOR:
        for value in ODD:
            config = {"do_center_crop": True, "crop_size": 32, "size": 36, name: value}

            def write(config=config):
                check_document(config, "preprocessor", "it", "correct it")
                timm_fields.data_config(config, (32, 32))

            refused_or_read(write)


@pytest.mark.parametrize("value", ODD, ids=str)
def test_unusual_values_in_the_keras_config_are_refused_or_read(value):
    for changed in (
        {**KERAS, "config": value},
        {**KERAS, "config": {**KERAS["config"], "dtype": value}},
        {**KERAS, "config": {**KERAS["config"], "config": value}},
        {**KERAS, "registered_name": "keras_hub>V", "config": {"backbone": value}},
        {**KERAS, "registered_name": "keras_hub>V", "config": {"backbone": {"config": value}}},
    ):
        refused_or_read(lambda changed=changed: of_keras(changed))
