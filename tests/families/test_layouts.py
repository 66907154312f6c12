"""Layouts of other libraries, compared with files and outputs of their own classes.

``golden/timm_*``, ``torchvision_*``, ``lightly_*``, ``mmpretrain_*`` hold the library's own state
dict for the weights of another golden case, and what the library computed with it.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from arrays import FLOAT32_LIMIT, FLOAT64_LIMIT, distance
from safetensors.numpy import load_file

from mae_convert.checkpoint.inspect import inspect
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import ConfigurationError, as_option, render
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.mae.layouts import LAYOUTS
from mae_convert.formats import LazyTensor, open_container, write_file
from reference_models.configuration import ViTMAEConfig
from reference_models.pytorch import ViTForImageClassification, ViTMAEForPreTraining, ViTMAEModel

pytestmark = pytest.mark.usefixtures("forked_children")

CASES = {
    "timm_encoder_tiny": ("timm", "encoder_tiny"),
    "timm_finetune_gap_tiny": ("timm", "finetune_gap_tiny"),
    "torchvision_classifier_tiny": ("torchvision", "finetune_cls_tiny"),
    "lightly_pretrain_tiny": ("lightly", "pretrain_tiny"),
    "mmpretrain_pretrain_tiny": ("mmpretrain", "pretrain_tiny"),
}
FLAGS = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
MODELS = {
    "pretrain": ViTMAEForPreTraining,
    "encoder": ViTMAEModel,
    "classify": ViTForImageClassification,
}


@pytest.fixture(params=CASES)
def name(request):
    return request.param


def model_of(path, tmp_path):
    """Convert a library's file to the original's layout and load it into the PyTorch reference."""
    source = open_checkpoint(path, FLAGS)
    execute(plan_conversion(source, tmp_path / "original.pth", "facebook"))
    state = torch.load(tmp_path / "original.pth", weights_only=True)["model"]
    model = MODELS[source.task](source.configuration.model).double().eval()
    model.load_state_dict({name: tensor.double() for name, tensor in state.items()}, strict=True)
    return source, model


def test_file_of_the_library_is_recognised_and_gives_the_same_results(golden, tmp_path, name):
    layout, _ = CASES[name]
    source, model = model_of(golden / name / "model.safetensors", tmp_path)
    assert source.layout.name == layout
    with np.load(golden / name / "golden.npz") as archive:
        expected = dict(archive)
    pixels = torch.from_numpy(expected["imgs"]).double()
    if source.task == "classify":
        logits = expected.get("f64/logits", expected.get("f64/output"))
        assert distance(model(pixels).logits, logits) < FLOAT64_LIMIT
    elif layout == "timm":
        # timm does not mask: all patches, in order.
        order = torch.arange(16.0).repeat(2, 1)
        unmasked = ViTMAEModel(replace(model.config, mask_ratio=0.0)).double().eval()
        unmasked.load_state_dict(model.state_dict())
        tokens = unmasked(pixels, order).last_hidden_state
        assert distance(tokens, expected["f64/forward_features"]) < FLOAT64_LIMIT
        assert distance(tokens[:, 0], expected["f64/output"]) < FLOAT64_LIMIT
    else:
        outputs = model(pixels, torch.from_numpy(expected["noise"]), output_taps=True)
        assert distance(outputs.taps["encoder.norm"], expected["f64/latent"]) < FLOAT64_LIMIT
        if layout == "mmpretrain":
            assert distance(outputs.logits, expected["f64/pred"]) < FLOAT64_LIMIT
            assert np.array_equal(outputs.ids_restore.numpy(), expected["ids_restore"])
        else:
            removed = torch.from_numpy(expected["idx_mask"]) - 1  # lightly counts the class token
            predicted = outputs.logits.take_along_dim(removed.unsqueeze(-1), dim=1)
            assert distance(predicted, expected["f64/pred_masked"]) < FLOAT64_LIMIT


def test_written_file_equals_that_of_the_library(golden, case, tmp_path, name):
    layout, origin = CASES[name]
    source = open_checkpoint(case(origin).checkpoint, FLAGS)
    target = tmp_path / "written.safetensors"
    report = execute(plan_conversion(source, target, layout))
    of_library = load_file(golden / name / "model.safetensors")
    ours = {n: t.load() for n, t in open_container(target).tensors.items()}
    assert set(ours) == set(of_library)
    for tensor, array in of_library.items():
        assert array.tobytes() == ours[tensor].tobytes(), tensor
    assert set(report["created"]) == ({"backbone.mask_token"} if layout == "lightly" else set())


def test_tensors_that_mae_does_not_use_are_reported_as_dropped(golden):
    source = open_checkpoint(golden / "lightly_pretrain_tiny" / "model.safetensors", FLAGS)
    assert list(source.dropped) == ["backbone.mask_token"]


def test_the_newer_names_of_lightly_are_read(golden, tmp_path):
    from safetensors.numpy import save_file

    def newer(name):
        name = name.replace("decoder.decoder_embed", "decoder_embed")
        name = name.replace("decoder.decoder_pred", "prediction_head")
        return name.replace("decoder.decoder_", "decoder.")

    of_library = load_file(golden / "lightly_pretrain_tiny" / "model.safetensors")
    save_file({newer(n): a for n, a in of_library.items()}, tmp_path / "new.safetensors")
    old = open_checkpoint(golden / "lightly_pretrain_tiny" / "model.safetensors", FLAGS)
    new = open_checkpoint(tmp_path / "new.safetensors", FLAGS)
    assert new.table.name == "lightly, names since 1.6"
    for canonical, tensor in old.tensors.items():
        assert np.array_equal(tensor.load(), new.tensors[canonical].load()), canonical


def test_the_older_names_of_torchvision_are_read(golden, tmp_path):
    from safetensors.numpy import save_file

    of_library = load_file(golden / "torchvision_classifier_tiny" / "model.safetensors")
    older = {
        n.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): a
        for n, a in of_library.items()
    }
    save_file(older, tmp_path / "old.safetensors")
    assert open_checkpoint(tmp_path / "old.safetensors", FLAGS).layout.name == "torchvision"


@pytest.mark.parametrize(
    ("layout", "origin", "key"),
    [
        ("facebook", "pretrain_tiny", "model"),
        ("mmpretrain", "pretrain_tiny", "state_dict"),
        ("lightly", "pretrain_tiny", None),
        ("timm", "finetune_cls_tiny", None),
        ("torchvision", "finetune_cls_tiny", None),
    ],
)
class TestFormOfPth:
    """Each library's own loader finds the tensors where it looks for them.

    mmengine's ``load_checkpoint`` takes ``state_dict``; ``Module.load_state_dict(strict=True)``, by
    which torchvision and lightly load, and timm's ``load_checkpoint`` take a plain state dict.
    """

    @pytest.fixture
    def written(self, case, tmp_path, layout, origin, key):
        source = open_checkpoint(case(origin).checkpoint, replace(FLAGS, layer_norm_eps=1e-6))
        execute(plan_conversion(source, tmp_path / "x.pth", layout))
        return source, tmp_path / "x.pth"

    def test_tensors_are_stored_under_the_key_that_the_library_reads(self, written, key):
        source, path = written
        stored = torch.load(path, weights_only=True)
        state = stored[key] if key else stored
        assert len(state) >= len(source.rules)
        assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())

    def test_a_module_takes_them_strictly(self, written, key):
        stored = torch.load(written[1], weights_only=True)
        state = stored[key] if key else stored
        module = torch.nn.Module()
        for name, tensor in state.items():
            *path, leaf = name.split(".")
            parent = module
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, torch.nn.Module())
                parent = getattr(parent, part)
            parent.register_buffer(leaf, torch.zeros_like(tensor))
        module.load_state_dict(state, strict=True)

    def test_the_file_keeps_its_configuration(self, written, layout):
        source, path = written
        again = open_checkpoint(path)  # without any flag
        assert again.layout.name == layout
        assert again.configuration.model == source.configuration.model
        assert again.container.conversion["source"]["layout"] == "facebook"
        assert again.container.ignored == {}

    def test_it_keeps_it_when_it_is_loaded_and_saved_again(self, written, tmp_path, key):
        stored = torch.load(written[1], weights_only=True)
        value = stored if key else {"model": stored, "epoch": 4}
        torch.save(value, tmp_path / "again.pth")
        again = open_checkpoint(tmp_path / "again.pth")
        assert again.configuration.model == written[0].configuration.model


class TestSynonyms:
    """The original's encoder and timm's have the same names; other evidence selects the layout."""

    def test_container_selects_between_equivalent_layouts(self, golden, case, tmp_path):
        original = open_checkpoint(case("encoder_tiny").checkpoint, FLAGS)
        assert (original.layout.name, original.synonyms) == ("facebook", ("timm",))
        of_library = open_checkpoint(golden / "timm_encoder_tiny" / "model.safetensors", FLAGS)
        assert (of_library.layout.name, of_library.synonyms) == ("timm", ("facebook",))

    def test_stored_configuration_takes_precedence_over_the_container(self, case, tmp_path):
        source = open_checkpoint(case("encoder_tiny").checkpoint, FLAGS)
        for layout, name in (("facebook", "a.safetensors"), ("timm", "b.pth")):
            execute(plan_conversion(source, tmp_path / name, layout))
            assert open_checkpoint(tmp_path / name).layout.name == layout

    def test_config_json_of_timm_selects_the_layout_and_the_heads(self, case, tmp_path):
        source = open_checkpoint(case("finetune_gap_tiny").checkpoint, FLAGS)
        execute(plan_conversion(source, tmp_path / "model", "timm"))
        again = open_checkpoint(tmp_path / "model")
        assert (again.layout.name, again.synonyms) == ("timm", ("facebook",))
        assert again.configuration.model.num_attention_heads == 4
        assert again.configuration.sources["num_attention_heads"] == "config.json"
        assert again.configuration.image_mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("changes", "tasks"),
    [
        ({"image_size": (32, 16)}, ("pretrain", "encoder", "classify")),
        ({"patch_size": (8, 4)}, ("pretrain", "encoder")),
        ({"qkv_bias": False}, ("pretrain", "encoder", "classify")),
    ],
    ids=lambda value: next(iter(value)),
)
def test_tensorflow_classes_accept_fewer_models_than_those_of_pytorch(changes, tasks):
    """Tested with 4.57.6: only the PyTorch classes load these models completely."""
    config = replace(ViTMAEConfig(image_size=32, patch_size=8), **changes)
    for task in ("pretrain", "encoder", "classify"):
        assert (LAYOUTS["transformers-tf"].refusal(config, task) is not None) == (task in tasks)
    assert LAYOUTS["transformers"].refusal(config, "encoder") is None


@pytest.mark.parametrize("pooling", ["avg", "map"])
def test_timm_model_with_contradictory_pooling_is_refused(case, tmp_path, pooling):
    source = open_checkpoint(case("finetune_cls_tiny").checkpoint, FLAGS)
    execute(plan_conversion(source, tmp_path / "model", "timm"))
    config = tmp_path / "model" / "config.json"
    stored = json.loads(config.read_text())
    assert stored["global_pool"] == "token"
    stored["model_args"]["global_pool"] = pooling
    config.write_text(json.dumps(stored))
    with pytest.raises(ConfigurationError, match=f"global_pool {pooling}, but the tensors have"):
        open_checkpoint(tmp_path / "model")


def test_width_of_a_timm_architecture_is_checked_against_the_tensors(case, tmp_path):
    source = open_checkpoint(case("encoder_tiny").checkpoint, FLAGS)
    execute(plan_conversion(source, tmp_path / "model", "timm"))
    config = tmp_path / "model" / "config.json"
    stored = json.loads(config.read_text())
    del stored["model_args"]["embed_dim"], stored["model_args"]["num_heads"]
    config.write_text(json.dumps(stored))
    with pytest.raises(ConfigurationError, match="hidden_size as 768, but the tensors have 32"):
        open_checkpoint(tmp_path / "model")


def test_a_timm_model_that_normalizes_before_it_pools_is_read_and_written(case, tmp_path):
    flags = replace(FLAGS, global_pool="avg")
    source = open_checkpoint(case("finetune_cls_tiny").checkpoint, flags)
    model = source.configuration.model
    assert (model.global_pool, model.fc_norm, model.normalizes_mean) == ("avg", False, False)
    execute(plan_conversion(source, tmp_path / "model", "timm"))
    stored = json.loads((tmp_path / "model" / "config.json").read_text())["model_args"]
    assert (stored["global_pool"], stored["fc_norm"]) == ("avg", False)
    read = open_checkpoint(tmp_path / "model").configuration
    assert (read.model, read.sources["global_pool"]) == (model, "config.json")
    for layout in set(LAYOUTS) - {"keras", "timm", "lightly"}:  # lightly has no classifier
        assert LAYOUTS[layout].refusal(model, "classify")


def test_fields_that_the_original_code_does_not_read_are_named(case, tmp_path):
    """transformers' default epsilon is 1e-12; facebookresearch/mae always uses 1e-6."""
    source = open_checkpoint(case("pretrain_tiny").checkpoint, FLAGS)
    execute(plan_conversion(source, tmp_path / "a", "transformers"))
    config = tmp_path / "a" / "config.json"
    edited = {"hidden_act": "relu", "layer_norm_eps": 1e-12}
    config.write_text(json.dumps({**json.loads(config.read_text()), **edited}))
    source = open_checkpoint(tmp_path / "a")
    (difference,) = execute(plan_conversion(source, tmp_path / "b.pth", "facebook"))["differences"]
    assert difference.startswith("facebookresearch/mae does not read the configuration")
    for named in (
        "layer_norm_eps (1e-06 there, 1e-12 in this model)",
        "hidden_act (gelu there, relu in this model)",
    ):
        assert named in difference
    assert inspect(open_checkpoint(tmp_path / "b.pth"))["differences"] == [difference]
    model = open_checkpoint(case("pretrain_tiny").checkpoint, FLAGS).configuration.model
    for name, layout in LAYOUTS.items():
        assert layout.differences(model, "pretrain") == (), name
    model = replace(model, decoder_layer_norm_eps=1e-5)
    assert (
        "decoder_layer_norm_eps (1e-06"
        in LAYOUTS["lightly"].differences(model, "pretrain")[0].sentence
    )


@pytest.mark.parametrize(
    "changes",
    [{"image_size": (32, 16)}, {"patch_size": (8, 4)}, {"num_channels": 4}, {"qkv_bias": False},
     {"hidden_act": "relu"}],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_mmpretrain_accepts_only_models_that_its_decoder_and_head_support(changes):
    """Tested with mmpretrain's classes: ``MAEPretrainHead`` asserts square images, for example."""
    config = replace(ViTMAEConfig(image_size=32, patch_size=8), **changes)
    assert "mmpretrain's" in render(LAYOUTS["mmpretrain"].refusal(config, "pretrain"), as_option)
    assert LAYOUTS["mmpretrain"].refusal(config, "encoder") is None


class TestLinearProbe:
    """``golden/linprobe_tiny``: the original's linear probe, a batch norm before its head."""

    @pytest.fixture
    def probe(self, case):
        return open_checkpoint(case("linprobe_tiny").checkpoint, FLAGS)

    def test_folded_head_gives_the_same_results_as_the_linear_probe(self, probe, case, tmp_path):
        golden = case("linprobe_tiny").arrays
        execute(plan_conversion(probe, tmp_path / "folded.pth", "facebook"))
        state = torch.load(tmp_path / "folded.pth", weights_only=True)["model"]
        model = ViTForImageClassification(probe.configuration.model).double().eval()
        model.load_state_dict({n: t.double() for n, t in state.items()}, strict=True)
        logits = model(torch.from_numpy(golden["imgs"]).double()).logits
        # The head was rounded to float32.
        assert distance(logits, golden["f64/logits"]) < FLOAT32_LIMIT

    def test_in_float64_the_folding_is_exact_to_rounding(self, probe, case, tmp_path):
        """The same probe stored in float64 is folded without any rounding to float32."""
        golden, stored = case("linprobe_tiny").arrays, open_container(probe.path).tensors

        def wide(tensor):
            array = tensor.load()
            wider = array.astype(np.float64) if array.ndim else array
            return LazyTensor.from_array(tensor.name, wider)

        write_file(tmp_path / "wide.pth", "pth", [wide(t) for t in stored.values()])
        source = open_checkpoint(tmp_path / "wide.pth", FLAGS)
        head = {n: torch.from_numpy(t.load().copy()) for n, t in source.tensors.items()}
        features = torch.from_numpy(golden["f64/features"])
        logits = features @ head["head.weight"].T + head["head.bias"]
        assert distance(logits, golden["f64/logits"]) < FLOAT64_LIMIT

    def test_the_step_is_declared_and_verified(self, probe, command, tmp_path):
        report = execute(plan_conversion(probe, tmp_path / "model", "transformers"))
        assert [step["step"] for step in report["steps"]] == ["batch_norm"]
        assert set(report["dropped"]) == {
            "head.0.running_mean",
            "head.0.running_var",
            "head.0.num_batches_tracked",
        }
        result = command("verify", probe.path, tmp_path / "model", "--num-heads", 4, "--json")
        assert result.status == 0, result.out + result.err
        assert (result.json["passed"], result.json["proven"]) == (True, False)
