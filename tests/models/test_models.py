"""A script for the PyTorch classes of transformers gives the same results with mae-convert."""

import copy
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Hashable

import numpy as np
import pytest
import torch
import transformers
from arrays import FLOAT32_LIMIT, FLOAT64_LIMIT, distance
from hub_state import Account
from paths import DEMO, GOLDEN
from PIL import Image

from mae_convert import load_model, save_model
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.changes import Geometry
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import ConfigurationError, LayoutError, MaeConvertError
from mae_convert.models import (
    AutoImageProcessor,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
)
from mae_convert.models.transformers_config import plain
from reference_models import pytorch as reference

PRETRAIN = GOLDEN / "transformers_tf_pretrain_tiny_v4pt"
CLASSIFIER = GOLDEN / "transformers_tf_classifier_tiny_v4pt"
CLASSES = {
    "encoder": (ViTMAEModel, transformers.ViTMAEModel, PRETRAIN),
    "pretrain": (ViTMAEForPreTraining, transformers.ViTMAEForPreTraining, PRETRAIN),
    "classify": (ViTForImageClassification, transformers.ViTForImageClassification, CLASSIFIER),
}
SIZE = (48, 64)
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}


@pytest.fixture(params=CLASSES)
def task(request):
    return request.param


def inputs_of(task, size=(32, 32), dtype=torch.float32):
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.normal(size=(2, 3, *size))).to(dtype)
    patches = size[0] * size[1] // 64
    noise = {} if task == "classify" else {"noise": torch.from_numpy(random.random((2, patches)))}
    return {"pixel_values": pixels, **noise}


def model_of(task, **options):
    ours, _, path = CLASSES[task]
    return ours.from_pretrained(path, **options)


# --- the examples like those of transformers' documentation ---


def test_the_documented_encoder_example():
    image_processor = AutoImageProcessor.from_pretrained(DEMO / "checkpoint.pth")
    model = ViTMAEModel.from_pretrained(DEMO / "checkpoint.pth")

    inputs = image_processor(images=Image.open(DEMO / "chelsea.jpg"), return_tensors="pt")
    outputs = model(**inputs)

    visible = model.config.num_kept
    assert outputs.last_hidden_state.shape == (1, 1 + visible, model.config.hidden_size)


def test_the_documented_pretraining_example():
    image_processor = AutoImageProcessor.from_pretrained(DEMO / "checkpoint.pth")
    model = ViTMAEForPreTraining.from_pretrained(DEMO / "checkpoint.pth")

    inputs = image_processor(images=Image.open(DEMO / "chelsea.jpg"), return_tensors="pt")
    outputs = model(**inputs)
    loss, mask, ids_restore = outputs.loss, outputs.mask, outputs.ids_restore

    assert 0 < float(loss.detach()) < 1.1
    assert mask.sum() == model.config.num_patches - model.config.num_kept
    assert sorted(ids_restore[0].tolist()) == list(range(model.config.num_patches))
    images = model.unpatchify(outputs.logits)
    assert images.shape == inputs.pixel_values.shape


def test_the_documented_configuration_example():
    configuration = ViTMAEConfig(hidden_size=32, num_attention_heads=2, intermediate_size=64,
                                 num_hidden_layers=1)  # fmt: skip
    model = ViTMAEModel(configuration)
    assert model.config is configuration
    assert model.training


# --- the same numbers as transformers' own classes ---


def test_every_output_equals_that_of_the_transformers_class(task):
    ours, of_transformers, path = CLASSES[task]
    inputs = inputs_of(task, dtype=torch.float64)
    if task == "classify":
        inputs["labels"] = torch.tensor([3, 8])
    mine = ours.from_pretrained(path, dtype="float64")(**inputs, **EVERYTHING)
    # transformers computes attention in float32 if it returns probabilities, else in float64.
    for kernel, limit, expected_type in (
        ("sdpa", FLOAT64_LIMIT, ("hidden_states",)),
        ("eager", FLOAT32_LIMIT, ()),
    ):
        real = of_transformers.from_pretrained(
            path, dtype=torch.float64, attn_implementation=kernel
        )
        asked = (
            dict.fromkeys(EVERYTHING, True) if not expected_type else {"output_hidden_states": True}
        )
        expected = real(**inputs, **asked)
        assert set(expected) <= set(mine.keys())
        for name, value in expected.items():
            pairs = zip(mine[name], value, strict=True) if isinstance(value, tuple) else ()
            for one, other in pairs or ((mine[name], value),):
                assert distance(one, other) < limit, (name, kernel)


@pytest.mark.parametrize("problem", ["one class", "several labels", "said"])
def test_loss_of_a_classifier_equals_that_of_the_transformers_class(problem):
    changes = {"num_labels": 1} if problem == "one class" else {"num_labels": 4}
    if problem == "said":
        changes["problem_type"] = "multi_label_classification"
    options = {**changes, "ignore_mismatched_sizes": True}
    ours = ViTForImageClassification.from_pretrained(CLASSIFIER, **options)
    of_transformers = transformers.ViTForImageClassification.from_pretrained(CLASSIFIER, **options)
    torch.nn.init.normal_(ours.head.weight)
    of_transformers.classifier.load_state_dict(ours.head.state_dict())
    labels = torch.tensor([0.3, 0.9]) if problem == "one class" else torch.eye(4)[:2]
    inputs = {**inputs_of("classify"), "labels": labels}
    torch.testing.assert_close(ours(**inputs).loss, of_transformers(**inputs).loss)


def test_other_sizes_give_the_same_result_as_a_conversion_with_image_size(task, tmp_path):
    """Positions are interpolated as by a conversion, in the decoder too; transformers differs."""
    ours, _, path = CLASSES[task]
    inputs = inputs_of(task, SIZE, torch.float64)
    model = ours.from_pretrained(path, dtype="float64")
    result = model(**inputs, interpolate_pos_encoding=True, **EVERYTHING)
    # First to float64, because a conversion rounds resampled positions to the stored dtype.
    save_model(model, tmp_path / "wide.pth", "facebook")
    source = open_checkpoint(tmp_path / "wide.pth")
    execute(plan_conversion(source, tmp_path / "model.pth", "facebook", geometry=Geometry(SIZE)))
    expected = load_model(tmp_path / "model.pth")(**inputs, **EVERYTHING)
    for name in result.keys():  # noqa: SIM118 (it is no dict)
        one, other = (getattr(outputs, name) for outputs in (result, expected))
        for a, b in zip(one, other, strict=True) if isinstance(one, tuple) else ((one, other),):
            assert distance(a, b) < FLOAT64_LIMIT, name
    if task == "pretrain":
        pixels = inputs["pixel_values"]
        loss = model.forward_loss(pixels, result.logits, result.mask, interpolate_pos_encoding=True)
        assert torch.equal(loss, result.loss)
        patches = model.patchify(pixels, interpolate_pos_encoding=True)
        assert torch.equal(model.unpatchify(patches, SIZE), pixels)
    with pytest.raises(ValueError, match="interpolate_pos_encoding=True"):
        model(**inputs)


# --- model tests like those of transformers ---


def test_outputs_by_attribute_index_tuple_and_dictionary(task):
    model, inputs = model_of(task), inputs_of(task)
    outputs = model(**inputs, **EVERYTHING)
    as_tuple = model(**inputs, **EVERYTHING, return_dict=False)
    assert type(as_tuple) is tuple
    assert len(as_tuple) == len(outputs) == len(outputs.to_tuple()) == len(dict(outputs))
    for index, (name, value) in enumerate(outputs.items()):
        assert name in outputs
        for other in (outputs[index], outputs[name], getattr(outputs, name), outputs.get(name)):
            assert other is value
        first = value[0] if isinstance(value, tuple) else value
        same = as_tuple[index][0] if isinstance(value, tuple) else as_tuple[index]
        assert torch.equal(first, same)
    plain = model(**inputs)
    assert plain.hidden_states is None
    assert plain.attentions is None
    assert "attentions" not in plain
    with pytest.raises(KeyError):
        plain["attentions"]
    again = pickle.loads(pickle.dumps(outputs))
    assert type(again) is type(outputs)
    model.config.return_dict = False
    assert type(model(**inputs)) is tuple


def test_hidden_states_and_attentions_have_their_shapes(task):
    model, inputs = model_of(task), inputs_of(task)
    model.config.update({"output_hidden_states": True, "output_attentions": True})
    outputs = model(**inputs)
    tokens = 1 + (16 if task == "classify" else 4)
    assert [state.shape for state in outputs.hidden_states] == [(2, tokens, 32)] * 4
    assert [table.shape for table in outputs.attentions] == [(2, 4, tokens, tokens)] * 3
    for table in outputs.attentions:
        torch.testing.assert_close(table.sum(-1), torch.ones(2, 4, tokens))


def test_same_noise_gives_the_same_output_and_no_noise_is_random():
    model, inputs = model_of("pretrain"), inputs_of("pretrain")
    first, second = model(**inputs), model(**inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    del inputs["noise"]
    torch.manual_seed(1)
    drawn = model(**inputs)
    other = model(**inputs)
    torch.manual_seed(1)
    again = model(**inputs)
    assert torch.equal(drawn.ids_restore, again.ids_restore)
    assert not torch.equal(drawn.ids_restore, other.ids_restore)


def test_gradients_reach_every_trainable_parameter_and_kept_tensors(task):
    model = model_of(task).train()
    inputs = inputs_of(task)
    if task == "classify":
        inputs["labels"] = torch.tensor([1, 2])
    outputs = model(**inputs, **EVERYTHING)
    for remaining in (outputs.hidden_states[0], outputs.attentions[0]):
        remaining.retain_grad()
    (outputs[0] if task != "encoder" else outputs[0].square().sum()).backward()
    assert outputs.hidden_states[0].grad.any()
    assert outputs.attentions[0].grad.any()
    for name, value in model.named_parameters():
        assert (value.grad is not None) == value.requires_grad, name
        # Softmax cancels the effect of a key bias.
        assert not value.requires_grad or value.grad.any(), name


def test_saved_model_is_the_same_when_loaded_here_and_in_transformers(task, tmp_path):
    ours, of_transformers, _ = CLASSES[task]
    model, inputs = model_of(task), inputs_of(task)
    with torch.no_grad():
        model.norm.bias.add_(0.5)
    model.save_pretrained(tmp_path / "model")
    expected = model(**inputs)[0]
    again = ours.from_pretrained(tmp_path / "model")
    assert distance(again(**inputs)[0], expected) < FLOAT32_LIMIT
    assert again.config == model.config
    real, loading_info = of_transformers.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(loading_info.values())
    assert distance(real(**inputs)[0], expected) < FLOAT32_LIMIT
    state = torch.load(GOLDEN / "pretrain_tiny" / "checkpoint.pth", weights_only=False)["model"]
    if task == "pretrain":  # the names of the original, so that existing code can load it
        assert list(model.state_dict()) == list(state)


def test_it_is_saved_into_a_directory_with_other_files(tmp_path):
    model = model_of("pretrain")
    (tmp_path / "trainer_state.json").write_text("{}")
    AutoImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    for _ in range(2):
        model.save_pretrained(tmp_path)
        assert AutoImageProcessor.from_pretrained(tmp_path).size["height"] == 16
        assert (tmp_path / "trainer_state.json").exists()
        ViTMAEForPreTraining.from_pretrained(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    with tempfile.TemporaryDirectory() as empty:
        model.save_pretrained(empty)
        assert transformers.ViTMAEForPreTraining.from_pretrained(empty)


# --- configuration ---


def test_a_configuration_has_transformers_attributes_and_can_be_set(tmp_path):
    config = ViTMAEConfig(id2label={0: "cat", 1: "dog"}, output_attentions=True, my_own=3)
    assert (config.num_labels, config.label2id["dog"], config.my_own) == (2, 1, 3)
    assert config.layer_norm_eps == 1e-6
    config.mask_ratio = 0.5
    config.image_size = [64, 32]
    assert (config.num_kept, config.image_size) == (4, (64, 32))
    for name, value in (("mask_ratio", 1.5), ("num_attention_heads", -5), ("hidden_act", "tan")):
        with pytest.raises(ValueError, match=name):
            setattr(config, name, value)
    assert config.mask_ratio == 0.5
    config.save_pretrained(tmp_path)
    assert ViTMAEConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    config.num_labels = 3
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    of_transformers = transformers.ViTMAEConfig.from_pretrained(PRETRAIN).to_dict()
    ours = ViTMAEConfig.from_pretrained(PRETRAIN)
    shared = ours.to_dict().keys() & of_transformers.keys() - {"transformers_version"}
    assert len(shared) > 20
    assert all(getattr(ours, name) == of_transformers[name] for name in shared)


def test_fields_of_a_configuration_are_set_in_any_order_and_checked_by_the_model():
    """As ``--config_overrides`` of run_mae.py sets them."""
    config = ViTMAEConfig()
    config.update_from_string("hidden_size=32,num_attention_heads=4,image_size=42,patch_size=14")
    config.decoder_hidden_size = 40
    assert config.to_dict()["decoder_hidden_size"] == 40
    with pytest.raises(ValueError, match="decoder_num_attention_heads must divide"):
        ViTMAEForPreTraining(config)
    config.update({"decoder_num_attention_heads": 5, "num_hidden_layers": 1})
    config.update({"decoder_num_hidden_layers": 1, "intermediate_size": 16})
    model = ViTMAEForPreTraining(config)
    assert model(torch.zeros(1, 3, 42, 42)).logits.shape == (1, 9, 14 * 14 * 3)
    for value in (0, "a", 2.5):
        with pytest.raises(ValueError, match="patch_size must be"):
            config.patch_size = value


def test_configuration_is_read_as_a_dictionary_with_the_unused_arguments():
    stored, rest = ViTMAEConfig.get_config_dict(PRETRAIN, my_own=3)
    assert (stored["hidden_size"], rest) == (32, {"my_own": 3})
    config, unused = ViTMAEConfig.from_pretrained(
        PRETRAIN, return_unused_kwargs=True, mask_ratio=0.5, my_own=3
    )
    assert (config.mask_ratio, unused) == (0.5, {"my_own": 3})
    assert not hasattr(config, "my_own")
    assert ViTMAEConfig().dtype is ViTMAEConfig().torch_dtype is None


def test_a_configuration_that_can_change_has_no_hash_and_is_equal_by_its_values():
    a, b = ViTMAEConfig(mask_ratio=0.5), ViTMAEConfig()
    assert not isinstance(a, Hashable)
    assert a != b
    b.mask_ratio = 0.5
    assert a == b
    assert a != plain(a)  # the immutable one, which has a hash, is another type
    assert (plain(a), hash(plain(a))) == (plain(b), hash(plain(b)))
    b.output_attentions = True
    assert a != b
    again = copy.copy(b)
    again.hidden_act = "relu"
    assert b.hidden_act == "gelu"
    assert vars(b)["hidden_size"] == 768
    with pytest.raises(AttributeError, match="num_patches is derived from other fields"):
        b.num_patches = 3
    with pytest.raises(AttributeError, match="has no attribute 'num_patch'"):
        _ = b.num_patch
    assert ViTMAEConfig(**b.to_dict()) == b == ViTMAEConfig.from_dict(b.to_dict())
    assert '"mask_ratio": 0.5' in repr(b)


def test_mask_ratio_and_kind_of_target_can_be_changed_on_the_model():
    model, inputs = model_of("pretrain", mask_ratio=0.5, norm_pix_loss=True), inputs_of("pretrain")
    assert int(model(**inputs).mask.sum()) == 16
    normalized = model(**inputs).loss
    model.config.norm_pix_loss = False
    assert not torch.equal(model(**inputs).loss, normalized)
    model.config.mask_ratio = 0.0
    outputs = model(**inputs)
    assert outputs.loss is None
    assert outputs[0] is outputs.logits


@pytest.mark.parametrize("task", ["pretrain", "classify"])
def test_encoder_and_decoder_can_be_frozen_by_their_names_in_transformers(task):
    _, real_class, path = CLASSES[task]
    model, real = model_of(task), real_class.from_pretrained(path)
    for part in ("vit", "base_model", *(["decoder"] if task == "pretrain" else [])):
        counts = [sum(p.numel() for p in getattr(m, part).parameters()) for m in (model, real)]
        assert counts[0] == counts[1], part
    before = dict(model.named_parameters())
    model.vit.requires_grad_(False)
    assert any(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for n, p in before.items() if n.startswith("blocks."))
    assert list(model.state_dict()) == list(model_of(task).state_dict())


def test_the_encoder_is_called_and_its_blocks_frozen_by_the_names_of_transformers(task):
    _, real_class, path = CLASSES[task]
    model, real = model_of(task).eval(), real_class.from_pretrained(path).eval()
    real_encoder = real if task == "encoder" else real.vit
    given = inputs_of(task)
    result, expected = model.vit(**given, **EVERYTHING), real_encoder(**given)
    assert distance(result.last_hidden_state, expected.last_hidden_state) < FLOAT32_LIMIT
    assert [len(result.hidden_states), len(result.attentions)] == [4, 3]
    assert type(model.vit(**given, return_dict=False)) is tuple
    larger = torch.randn(1, 3, 48, 32)
    assert model.vit(larger, interpolate_pos_encoding=True).last_hidden_state.shape[2] == 32
    model.vit.encoder.layer[0].requires_grad_(False)
    assert [p.requires_grad for p in model.blocks[0].parameters()] == [False] * 12
    assert model.vit.layers[1] is model.blocks[1]
    assert model.vit.layernorm is model.norm
    model.blocks[2].train()
    model.vit(**given)
    assert model.blocks[2].training


def test_images_of_any_size_are_cut_to_whole_patches(task):
    model, real = model_of(task), CLASSES[task][1].from_pretrained(CLASSES[task][2])
    pixels = torch.randn(2, 3, 31, 45)
    options = {"interpolate_pos_encoding": True}
    if task == "pretrain":
        with pytest.raises(ValueError, match="not a multiple of the patch size"):
            model(pixels, **options)
        return
    if task == "encoder":
        options["noise"] = torch.rand(2, 15)
    expected = model(pixels[:, :, :24, :40], **options)[0]
    assert distance(model(pixels, **options)[0], expected) < FLOAT32_LIMIT
    assert real(pixels, **options)[0].shape == expected.shape
    with pytest.raises(ValueError, match="not a multiple of the patch size"):
        model(pixels[:, :, :7], interpolate_pos_encoding=True)


def test_head_of_a_classifier_can_be_replaced_by_its_name_in_transformers():
    model, pixels = model_of("classify"), inputs_of("classify")["pixel_values"]
    features = model.vit(pixels).last_hidden_state[:, 0]
    assert distance(model.classifier(features), model(pixels).logits) < FLOAT32_LIMIT
    names = list(model.state_dict())
    model.classifier = torch.nn.Linear(32, 5)
    assert model(pixels).logits.shape == (2, 5)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("attribute", ["embeddings", "encoder", "layernorm"])
def test_parts_of_the_encoder_are_frozen_by_the_names_of_transformers(attribute):
    for model in (model_of("encoder"), model_of("classify").vit):
        part = getattr(model, attribute)
        for parameter in part.parameters():
            parameter.requires_grad = False
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        expected = {"embeddings": ("cls_token", "pos_embed", "patch_embed"), "encoder": ("blocks",)}
        names = expected.get(attribute, ("norm",))
        assert frozen - {"pos_embed"} == {
            n for n, _ in model.named_parameters() if n.startswith(names) and n != "pos_embed"
        }
    embeddings = model_of("encoder").embeddings
    assert embeddings.patch_embeddings.projection.weight.shape == (32, 3, 8, 8)
    assert embeddings.position_embeddings.shape == (1, 17, 32)


def test_subclass_with_additional_layers_loads_the_other_weights():
    class WithHead(ViTMAEModel):
        def __init__(self, config):
            super().__init__(config)
            self.head = torch.nn.Linear(32, 2)
            self.register_buffer("scale", torch.tensor(3.0), persistent=False)
            self.post_init()

    with pytest.warns(UserWarning, match=r"initialized by the class: head\.weight, head\.bias"):
        model, keys = WithHead.from_pretrained(
            PRETRAIN, mask_ratio=0.0, dtype="float64", output_loading_info=True
        )
    assert sorted(keys["missing_keys"]) == ["head.bias", "head.weight"]
    assert (model.dtype, model.name_or_path, model.training) == (
        torch.float64, str(PRETRAIN), False,
    )  # fmt: skip
    pixels = inputs_of("encoder", dtype=torch.float64)["pixel_values"]
    tokens = model(pixels).last_hidden_state
    expected = model_of("encoder", mask_ratio=0.0, dtype="float64")(pixels).last_hidden_state
    assert torch.equal(tokens, expected)
    assert (model.head(tokens) * model.scale).shape == (2, 17, 2)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_arguments_by_position_have_the_order_of_transformers_4_57():
    model, inputs = model_of("pretrain"), inputs_of("pretrain", (48, 48))
    outputs = model(inputs["pixel_values"], inputs["noise"], None, True, True)
    assert len(outputs.attentions) == 3
    classifier, pixels = model_of("classify"), inputs["pixel_values"]
    assert classifier(pixels, None, torch.tensor([0, 1]), True).loss > 0
    classifier.num_labels = 10
    assert classifier.num_labels == classifier.config.num_labels == 10


def test_options_about_the_download_do_nothing_for_a_folder():
    local = {"local_files_only": True, "token": "x", "cache_dir": "y", "force_download": True}
    assert model_of("encoder", quantization_config=None, weights_only=True, **local)
    assert AutoImageProcessor.from_pretrained(PRETRAIN, **local)
    with pytest.raises(ConfigurationError, match="load_in_8bit is not supported"):
        model_of("encoder", load_in_8bit=True)
    for option, words in {"cache_dir": "HF_HOME", "token": "hf auth login"}.items():
        with pytest.raises(ConfigurationError, match=words):
            ViTMAEModel.from_pretrained("someone/some-model", **{option: "y"})


def test_options_of_from_pretrained_have_an_effect(tmp_path):
    path = GOLDEN / "pretrain_tiny" / "checkpoint.pth"
    heads = {"num_attention_heads": 4, "decoder_num_attention_heads": 3}
    config = ViTMAEConfig.from_pretrained(PRETRAIN, hidden_dropout_prob=0.1)
    for options in (heads, {"config": config}):
        model = ViTMAEForPreTraining.from_pretrained(path, from_tf=False, cache_dir=None, **options)
        assert model.dtype == torch.float32
        assert model.device.type == "cpu"
        assert not model.training
    assert model.blocks[0].mlp.dropout.p == 0.1
    wide = ViTMAEModel.from_pretrained(PRETRAIN, torch_dtype=torch.bfloat16, image_size=64)
    assert (wide.dtype, wide.config.num_patches) == (torch.bfloat16, 64)
    assert wide.num_parameters(only_trainable=True) < wide.num_parameters()
    assert wide.get_input_embeddings() is wide.patch_embed
    named = ViTForImageClassification.from_pretrained(PRETRAIN, id2label={0: "a", 1: "b"})
    assert (named.config.num_labels, named.config.labels) == (2, ("a", "b"))
    named.save_pretrained(tmp_path / "named")
    assert open_checkpoint(tmp_path / "named").configuration.labels == ("a", "b")


REFUSED = {
    "no decoder": (ViTMAEForPreTraining, "encoder_tiny/checkpoint.pth", {}, ConfigurationError,
                   "decoder"),
    "no head": (ViTForImageClassification, "transformers_tf_pretrain_tiny_v4pt", {},
                ConfigurationError, "pass num_labels"),
    "another head": (ViTForImageClassification, "transformers_tf_classifier_tiny_v4pt",
                     {"num_labels": 3}, ConfigurationError, "ignore_mismatched_sizes"),
    "width": (ViTMAEModel, "transformers_tf_pretrain_tiny_v4pt", {"hidden_size": 64},
              ConfigurationError, "cannot be set to 64"),
    "unknown": (ViTMAEModel, "transformers_tf_pretrain_tiny_v4pt", {"hiden_size": 32}, TypeError,
                "hiden_size"),
    "nowhere": (ViTMAEModel, "nowhere.pth", {}, MaeConvertError, "nowhere.pth"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_missing_weights_are_not_initialized_silently(name):
    model, path, options, kind, words = REFUSED[name]
    heads = {"num_attention_heads": 4} if path.endswith("tiny/checkpoint.pth") else {}
    with pytest.raises(kind, match=words):
        model.from_pretrained(GOLDEN / path, **options, **heads)


def test_saving_fields_that_the_layout_cannot_store_is_refused(tmp_path):
    model = ViTForImageClassification.from_pretrained(
        GOLDEN / "finetune_gap_tiny" / "checkpoint.pth", num_attention_heads=4
    )
    with pytest.raises(LayoutError, match="timm"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(NotImplementedError, match="head_mask"):
        model(torch.zeros(1, 3, 32, 32), head_mask=torch.ones(4))
    with pytest.raises(ValueError, match="pixel_values"):
        model()


def test_state_dict_argument_of_save_pretrained_is_saved(tmp_path):
    model = model_of("pretrain")
    other = {name: value + 1 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "model", state_dict=other)
    again = ViTMAEForPreTraining.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(value, other[name]) for name, value in again.items())
    other.pop("cls_token")
    with pytest.raises(LayoutError, match="in name or shape: cls_token"):
        model.save_pretrained(tmp_path / "other", state_dict=other)
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()


def test_weights_are_saved_in_shards_of_a_size_given_as_text(tmp_path):
    model = model_of("pretrain")
    model.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 2
    model.save_pretrained(tmp_path / "whole", False, max_shard_size="5GB")
    model.save_pretrained(tmp_path / "whole", max_shard_size="5GB", safe_serialization=False)
    assert (tmp_path / "whole" / "model.safetensors").is_file()
    for size in ("big", "0MB", 0.5, -1):
        with pytest.raises(MaeConvertError, match="is not a size"):
            model.save_pretrained(tmp_path / "none", max_shard_size=size)


UNSAVED = {
    "a typo": (
        {"max_shard_sise": 5},
        TypeError,
        "has no argument 'max_shard_sise'; it takes is_main",
    ),
    "a SavedModel": ({"saved_model": True}, MaeConvertError, "model.export"),
    "a variant": ({"variant": "fp16"}, MaeConvertError, "leave it out"),
    "a token": ({"token": "hf_x", "push_to_hub": True}, MaeConvertError, "hf auth login"),
}


@pytest.mark.parametrize("name", UNSAVED)
def test_unsupported_save_options_are_refused_before_anything_is_written(name, tmp_path):
    options, kind, words = UNSAVED[name]
    with pytest.raises(kind, match=words):
        model_of("pretrain").save_pretrained(tmp_path / "model", **options)
    assert not any(tmp_path.iterdir())


def test_push_to_hub_refuses_unsupported_options():
    with pytest.raises(MaeConvertError, match="mae-convert publish"):
        model_of("pretrain").push_to_hub("someone/my-mae", tags=["mae"])
    with pytest.raises(TypeError, match="push_to_hub has no argument 'message'"):
        model_of("pretrain").push_to_hub("someone/my-mae", message="Train")


def test_unknown_dtype_and_size_are_refused():
    for options, words in (
        ({"dtype": "int8"}, "choose float64, float32"),
        ({"torch_dtype": torch.int8}, "choose float64, float32"),
        ({"image_size": "large"}, "pass one number"),
    ):
        with pytest.raises(MaeConvertError, match=words):
            model_of("pretrain", **options)


def test_unknown_problem_type_is_refused():
    config = ViTMAEConfig(problem_type="regression")
    for refused in (
        lambda: ViTMAEConfig(problem_type="foo"),
        lambda: setattr(config, "problem_type", "foo"),
        lambda: model_of("classify", problem_type="foo"),
        lambda: ViTMAEConfig(problem_type="single_label_classification", num_labels=1),
    ):
        with pytest.raises(ValueError, match="problem_type"):
            refused()


# --- errors, names and attributes that scripts use ---


KINDS_OF_ERRORS = {
    "no file": (lambda: ViTMAEModel.from_pretrained("nowhere.pth"), OSError),
    "no configuration": (lambda: ViTMAEConfig.from_pretrained("nowhere"), OSError),
    "no JSON file": (lambda: ViTMAEConfig.from_json_file("nowhere.json"), OSError),
    "no image processor": (lambda: AutoImageProcessor.from_pretrained("nowhere"), OSError),
    "another width": (lambda: model_of("encoder", hidden_size=64), RuntimeError),
    "another head": (lambda: model_of("classify", num_labels=3), ValueError),
    "a state dict": (lambda: model_of("pretrain").save_pretrained("x", state_dict={}), ValueError),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS_OF_ERRORS)
def test_errors_are_instances_of_ours_and_of_the_transformers_exception_classes(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    fails, kind = KINDS_OF_ERRORS[name]
    with pytest.raises(kind) as caught:
        fails()
    assert isinstance(caught.value, MaeConvertError)
    assert str(caught.value)
    if kind is not OSError:
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, RuntimeError)


def test_a_broken_configuration_file_is_an_os_error(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OSError, match="cannot be read"):
        ViTMAEConfig.from_pretrained(tmp_path)


def test_other_methods_of_transformers_configurations(tmp_path):
    config = ViTMAEConfig(mask_ratio=0.5, gradient_checkpointing=True)
    config.to_json_file(tmp_path / "my.json")
    assert ViTMAEConfig.from_json_file(tmp_path / "my.json") == config
    assert config.to_diff_dict() == {
        "mask_ratio": 0.5, "gradient_checkpointing": True, "model_type": "vit_mae"
    }  # fmt: skip
    assert not any((config.is_encoder_decoder, config.is_decoder, config.sub_configs))
    config.to_json_file(tmp_path / "less.json", use_diff=True)
    assert ViTMAEConfig.from_json_file(tmp_path / "less.json") == config
    config.update_from_string("mask_ratio=0.25,norm_pix_loss=true,hidden_size=192,hidden_act=relu")
    changed = (config.mask_ratio, config.norm_pix_loss, config.hidden_size, config.hidden_act)
    assert changed == (0.25, True, 192, "relu")
    for wrong in ("mask_ratio", "maskratio=1", "norm_pix_loss=maybe", "hidden_size=big"):
        with pytest.raises(ValueError, match=wrong.split("=")[-1]):
            config.update_from_string(wrong)
    assert config.mask_ratio == 0.25
    assert config.name_or_path == ""
    assert ViTMAEConfig.from_pretrained(PRETRAIN).name_or_path == str(PRETRAIN)
    assert config.get_text_config() is config


def test_attributes_of_a_model_that_trainers_use():
    model = model_of("pretrain")
    assert model.name_or_path == model.config.name_or_path == str(PRETRAIN)
    assert model.num_parameters(exclude_embeddings=True) == model.num_parameters()
    inputs = inputs_of("pretrain")
    values = inputs["pixel_values"].numel()
    assert model.floating_point_ops(inputs) == 6 * values * model.num_parameters()
    assert model.no_weight_decay() <= set(dict(model.named_parameters()))
    assert isinstance(model, transformers.PreTrainedModel)
    for make in (ViTMAEModel.from_config, ViTMAEModel._from_config):
        new = make(model.config, dtype="bfloat16")
        assert (new.dtype, new.config.hidden_size) == (torch.bfloat16, 32)
    with pytest.raises(TypeError, match="has no argument 'dtipe'"):
        ViTMAEModel.from_config(model.config, dtipe="bfloat16")


def test_without_masking_patches_stay_in_their_order():
    pixels = inputs_of("pretrain")["pixel_values"]
    in_order = torch.arange(16.0).expand(2, -1)
    for model in (model_of("encoder", mask_ratio=0.0), load_model(PRETRAIN, mask_ratio=0.0)):
        result, expected = model(pixels), model(pixels, noise=in_order)
        assert torch.equal(result.ids_restore, in_order.long())
        name = "logits" if "logits" in dir(result) else "last_hidden_state"
        assert torch.equal(getattr(result, name), getattr(expected, name))
    features = model_of("encoder", mask_ratio=0.0)(pixels).last_hidden_state
    assert features.shape == (2, 17, 32)
    wide = model_of("encoder", mask_ratio=0.0)(
        inputs_of("pretrain", SIZE)["pixel_values"], interpolate_pos_encoding=True
    )
    assert torch.equal(wide.ids_restore[0], torch.arange(48))


def test_outputs_are_unpacked_as_those_of_the_original():
    model, inputs = model_of("pretrain"), inputs_of("pretrain")
    loss, pred, mask, _ = model(**inputs)
    again = model(**inputs)
    assert torch.equal(loss, again.loss)
    assert torch.equal(pred, again.logits)
    assert torch.equal(mask, again["mask"])
    assert isinstance(again, dict)


def test_transformers_names_exist_or_name_the_replacement():
    import mae_convert.models as ours

    assert ours.AutoModelForPreTraining is ViTMAEForPreTraining
    assert ours.AutoModelForImageClassification is ViTForImageClassification
    assert ours.ViTFeatureExtractor is ours.AutoFeatureExtractor is AutoImageProcessor
    assert ours.AutoConfig is ours.ViTConfig is ViTMAEConfig
    bases = {"TorchModel", "KerasModel"}  # public under the names of transformers
    assert set(ours.__all__) == {*ours.MODULES, *ours.ALIASES} - bases
    assert issubclass(ViTMAEModel, ours.ViTMAEPreTrainedModel)
    for name in ("AutoModel", "ViTModel", "TFViTModel"):
        with pytest.raises(ImportError, match="which has no pooling layer"):
            getattr(ours, name)
    assert not hasattr(ours, "BertModel")


def test_a_missing_framework_is_named_with_the_extra_to_install(monkeypatch):
    import mae_convert.models as ours

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(ImportError, match=r"ViTMAEModel needs torch.*'mae-convert\[torch\]'"):
        _ = ours.ViTMAEModel
    with pytest.raises(ImportError, match=r"keras.*'mae-convert\[tensorflow\]'"):
        _ = ours.TFAutoModelForPreTraining
    assert ours.ViTMAEConfig


WITHOUT_TRANSFORMERS = """
import sys
sys.modules["transformers"] = None  # cannot be imported
import torch
from mae_convert.models import ViTMAEForPreTraining
model = ViTMAEForPreTraining.from_pretrained(sys.argv[1])
outputs = model(torch.zeros(1, 3, 32, 32))
loss, pred, mask, _ = outputs
assert loss is outputs.loss is outputs["loss"] is outputs[0]
model.gradient_checkpointing_enable({"use_reentrant": False})
model.train()(torch.zeros(1, 3, 32, 32)).loss.backward()
model.save_pretrained(sys.argv[2])
"""


def test_the_models_work_where_transformers_is_not_installed(tmp_path):
    subprocess.run(
        [sys.executable, "-c", WITHOUT_TRANSFORMERS, PRETRAIN, tmp_path / "model"],
        check=True,
        env={**os.environ, "PYTHONPATH": str(GOLDEN.parents[2])},
    )
    assert transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "model")


# --- the Hub ---


def test_model_is_pushed_to_the_hub_and_loaded_by_its_name(hub, monkeypatch):
    hub.state.accounts["hf_writer"] = Account("someone")
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    model = model_of("pretrain")
    address = model.push_to_hub("someone/my-mae", commit_message="Train further",
                                commit_description="Longer.", max_shard_size="100KB")  # fmt: skip
    assert address.startswith(hub.url)
    again = ViTMAEForPreTraining.from_pretrained("someone/my-mae")
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert ViTMAEConfig.from_pretrained("someone/my-mae").hidden_size == 32
    assert AutoImageProcessor.from_pretrained("someone/my-mae").size["height"] == 32
    assert isinstance(again, reference.ViTMAEForPreTraining)


@pytest.mark.parametrize(
    "case", ["videomae_pretrain_tiny", "mae_st_pretrain_tiny", "prithvi_v2_tiny"]
)
def test_video_models_are_refused_by_the_image_mae_classes(case):
    with pytest.raises(ConfigurationError, match=r"masked autoencoders of single images; load it"):
        ViTMAEForPreTraining.from_pretrained(GOLDEN / case / "checkpoint.pth")
