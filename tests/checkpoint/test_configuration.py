"""Fields that tensors do not determine come from named sources, in a fixed order, never a guess."""

import argparse
import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from mae_convert.checkpoint.open import Flags, open_checkpoint
from mae_convert.errors import ConfigurationError, Option
from mae_convert.families.configuration import check_flags_apply
from mae_convert.families.configuration import resolve as resolve_of
from mae_convert.families.evidence import Evidence
from mae_convert.families.mae.family import MAE

GEOMETRY = {
    "hidden_size": 768,
    "num_channels": 3,
    "patch_size": 16,
    "num_patches": 196,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "qkv_bias": True,
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_intermediate_size": 2048,
}
CONVENTIONS = {
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "mask_ratio": 0.75,
    "norm_pix_loss": False,
    "image_mean": (0.485, 0.456, 0.406),
    "image_std": (0.229, 0.224, 0.225),
}

resolve = partial(resolve_of, family=MAE)


def evidence(**changes):
    nothing = {
        "geometry": GEOMETRY,
        "flags": {},
        "config": {},
        "config_source": "config.json",
        "preprocessor": {},
        "training_args": {},
        "conventions": CONVENTIONS,
        "layout": "facebook",
    }
    return Evidence(**{**nothing, **changes})


def test_configuration_sources_are_read_in_order_of_precedence():
    specified = {
        "flags": {"num_attention_heads": 2},
        "config": {"num_attention_heads": 4},
        "training_args": {"model": "mae_vit_base_patch16"},
    }
    official = "official ViT-B/16 with the same shapes"
    expected = [(2, "option"), (4, "config.json"), (12, "training arguments"), (12, official)]
    for value, source in expected:
        resolved = resolve("pretrain", evidence(**specified))
        assert resolved.model.num_attention_heads == value
        assert resolved.sources["num_attention_heads"].startswith(source)
        kind = "official" if source == official else None
        assert resolved.assumptions.get("num_attention_heads") == kind
        if specified:
            specified.pop(next(iter(specified)))


def test_width_alone_does_not_determine_the_number_of_heads():
    # MAE-Lite's Tiny and solo-learn's have 12 heads at this width, timm's has 3.
    small = {**GEOMETRY, "hidden_size": 192, "intermediate_size": 768}
    other_depth = {**GEOMETRY, "num_hidden_layers": 6}
    for geometry in (small, other_depth):
        with pytest.raises(ConfigurationError, match="num_heads= and decoder_num_heads="):
            resolve("pretrain", evidence(geometry=geometry))
        resolved = resolve("pretrain", evidence(geometry=geometry), incomplete=True)
        missing = {field.field: field.option for field in resolved.missing}
        assert missing == {
            "num_attention_heads": Option("num_heads"),
            "decoder_num_attention_heads": Option("decoder_num_heads"),
        }
        assert resolved.value("num_attention_heads") is None
        with pytest.raises(ConfigurationError, match="with num_heads="):
            resolved.require_complete()
        result = resolved.specified(dict.fromkeys(missing, 4), "experiment")
        assert (result.missing, result.value("num_attention_heads")) == ((), 4)
        assert result.sources["num_attention_heads"] == "experiment"


def test_layouts_without_published_checkpoints_have_no_official_model():
    with pytest.raises(ConfigurationError, match="with num_heads="):
        resolve("pretrain", evidence(layout="mmpretrain"))


def test_model_name_determines_heads_only_if_the_size_matches():
    arguments = {"training_args": {"model": "mae_vit_large_patch16"}}
    narrow = {**GEOMETRY, "hidden_size": 192}
    with pytest.raises(
        ConfigurationError, match=r"specify mae_vit_large_patch16.* width 192"
    ) as raised:
        resolve("pretrain", evidence(geometry=narrow, **arguments))
    assert "has an encoder of width 1024 with 24 blocks" in str(raised.value)
    # The decoder has the sizes of the named model, so its number of heads is known.
    with pytest.raises(ConfigurationError, match="specify mae_vit_large_patch16"):
        resolve("pretrain", evidence(**arguments))  # although the official ViT-B has these shapes
    assert "decoder_num_heads" not in str(raised.value)


def test_scalar_mean_and_std_apply_to_all_channels_as_in_transformers():
    resolved = resolve("encoder", evidence(preprocessor={"image_mean": 0.5, "image_std": 2}))
    assert (resolved.image_mean, resolved.image_std) == ((0.5,) * 3, (2,) * 3)


@pytest.mark.parametrize(
    "value", [True, "0.5", [0.5], ["a", "b", "c"], {"r": 1}, [0.1, 0.2, float("nan")]]
)
def test_mean_color_has_one_value_per_channel(value):
    with pytest.raises(ConfigurationError, match="image_mean"):
        resolve("encoder", evidence(preprocessor={"image_mean": value}))


def test_a_config_json_beside_the_only_file_of_weights_is_used(case, tmp_path):
    shutil.copy(case("pretrain_tiny").checkpoint, tmp_path / "checkpoint-799.pth")
    fields = {"num_attention_heads": 4, "decoder_num_attention_heads": 3, "layer_norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert (
        open_checkpoint(tmp_path / "checkpoint-799.pth").configuration.model.layer_norm_eps == 1e-5
    )


def test_the_number_of_heads_has_no_convention():
    odd = {**GEOMETRY, "hidden_size": 96, "intermediate_size": 384}
    with pytest.raises(ConfigurationError, match=r"allows 1, 2, 3, .*with num_heads="):
        resolve("pretrain", evidence(geometry=odd))


@pytest.mark.parametrize("heads", [0, -1, 7])
def test_heads_that_do_not_divide_the_width_are_refused(heads):
    with pytest.raises(ConfigurationError, match="with num_heads="):
        resolve("encoder", evidence(flags={"num_attention_heads": heads}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer_norm_eps", -1.0),
        ("layer_norm_eps", "small"),
        ("mask_ratio", 1.5),
        ("hidden_act", "x"),
    ],
)
def test_impossible_values_are_refused(field, value):
    with pytest.raises(ConfigurationError, match="invalid"):
        resolve("pretrain", evidence(config={field: value}))


def test_non_square_grid_requires_an_image_size():
    wide, heads = {**GEOMETRY, "num_patches": 98}, {"num_attention_heads": 12}
    with pytest.raises(ConfigurationError, match="source_image_size="):
        resolve("encoder", evidence(geometry=wide, flags=heads))
    flags = {**heads, "image_size": (112, 224)}
    resolved = resolve("encoder", evidence(geometry=wide, flags=flags))
    assert resolved.model.grid_hw == (7, 14)
    flags = {**heads, "image_size": (224, 224)}
    with pytest.raises(ConfigurationError, match="98 patches"):
        resolve("encoder", evidence(geometry=wide, flags=flags))


def test_in_a_comparison_a_flag_applies_to_the_file_that_lacks_the_field():
    specified = {"flags": {"layer_norm_eps": 1e-5}, "config": {"layer_norm_eps": 1e-6}}
    assert resolve("pretrain", evidence(**specified)).model.layer_norm_eps == 1e-5
    stating = resolve("pretrain", evidence(**specified, fill_only=True))
    lacking = resolve("pretrain", evidence(flags=specified["flags"], fill_only=True))
    assert [c.model.layer_norm_eps for c in (stating, lacking)] == [1e-6, 1e-5]
    check_flags_apply(specified["flags"], {"a": stating, "b": lacking})
    with pytest.raises(ConfigurationError, match=r"1e-05 contradicts a, which specifies 1e-06"):
        check_flags_apply(specified["flags"], {"a": stating})


def test_other_sensors_have_no_default_mean_color():
    flags = {"num_attention_heads": 12}
    resolved = resolve("encoder", evidence(geometry={**GEOMETRY, "num_channels": 4}, flags=flags))
    assert (resolved.image_mean, resolved.image_std) == ((0.0,) * 4, (1.0,) * 4)


def test_training_arguments_inside_a_checkpoint_are_used(case, tmp_path):
    model = torch.load(case("pretrain_tiny").checkpoint, weights_only=True)["model"]
    arguments = argparse.Namespace(model="mine", norm_pix_loss=True, mask_ratio=0.5)
    torch.save({"model": model, "args": arguments, "epoch": 3}, tmp_path / "run.pth")
    flags = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
    configuration = open_checkpoint(tmp_path / "run.pth", flags).configuration
    assert (configuration.model.norm_pix_loss, configuration.model.mask_ratio) == (True, 0.5)
    assert configuration.sources["norm_pix_loss"] == "training arguments"


def test_missing_epsilon_uses_the_default_of_the_transformers_classes(golden, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(golden / "transformers_tf_pretrain_tiny_v4pt", folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("layer_norm_eps")
    (folder / "config.json").write_text(json.dumps(config))
    configuration = open_checkpoint(folder).configuration
    assert configuration.model.layer_norm_eps == 1e-12
    assert configuration.sources["layer_norm_eps"] == "convention of the transformers layout"


def test_image_statistics_come_from_the_preprocessor(golden, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(golden / "transformers_tf_pretrain_tiny_v4pt", folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 2]})
    )
    configuration = open_checkpoint(folder).configuration
    assert configuration.image_mean == (0.1, 0.2, 0.3)
    assert configuration.sources["image_std"] == "preprocessor_config.json"
    assert np.all(np.isfinite(configuration.image_std))


MMPRETRAIN = {
    "backbone": {"type": "MAEViT", "arch": "b", "img_size": 224, "patch_size": 16,
                 "mask_ratio": 0.6},
    "neck": {"type": "MAEPretrainDecoder", "decoder_num_heads": 16},
    "head": {"type": "MAEPretrainHead", "norm_pix": False},
    "data_preprocessor": {"mean": [127.5, 127.5, 127.5], "std": [51, 51, 51]},
}  # fmt: skip
EASYCV = {
    "type": "MAE",
    "backbone": {"img_size": 224, "patch_size": 16, "num_heads": 12},
    "neck": {"decoder_num_heads": 16},
    "mask_ratio": 0.6,
    "norm_pix_loss": False,
}
SOLO = {
    "method": "mae",
    "backbone": {"name": "vit_base", "kwargs": {"img_size": 224, "patch_size": 16}},
    "method_kwargs": {"decoder_num_heads": 16, "norm_pix_loss": False, "mask_ratio": 0.6},
}


@pytest.mark.parametrize(
    ("arguments", "conventions"),
    [
        ({"meta": {"cfg": {"model": MMPRETRAIN}}}, {**CONVENTIONS, "norm_pix_loss": True}),
        ({"meta": {"config": {"model": EASYCV}}}, {**CONVENTIONS, "norm_pix_loss": True}),
        (SOLO, CONVENTIONS),
        ({"num_heads": 12, "decoder_num_heads": 16, "norm_pix_loss": False, "mask_ratio": 0.6,
          "img_size": 224}, CONVENTIONS),
    ],
    ids=["mmpretrain", "EasyCV", "solo-learn", "plain"],
)  # fmt: skip
def test_settings_of_other_training_programs_are_used(arguments, conventions):
    resolved = resolve(
        "pretrain",
        evidence(training_args=arguments, conventions=conventions, layout="mmpretrain"),
    )
    model = resolved.model
    assert (model.num_attention_heads, model.decoder_num_attention_heads) == (12, 16)
    assert (model.norm_pix_loss, model.mask_ratio, model.image_size) == (False, 0.6, 224)
    names = ("num_attention_heads", "decoder_num_attention_heads", "norm_pix_loss", "image_size")
    assert {resolved.sources[name] for name in names} == {"training arguments"}
    assert not set(names) & set(resolved.assumptions)
    if "meta" in arguments and "cfg" in arguments["meta"]:
        assert (resolved.image_mean, resolved.image_std) == ((0.5,) * 3, (0.2,) * 3)
    if arguments is SOLO:  # whose decoder has PyTorch's default epsilon
        assert (model.layer_norm_eps, model.decoder_eps) == (1e-6, 1e-5)


@pytest.mark.parametrize(
    "odd",
    [
        {
            "meta": {
                "cfg": {"model": {"backbone": {"arch": 3}, "neck": [], "head": {"norm_pix": 1}}}
            }
        },
        {"meta": {"cfg": {"model": "x", "data_preprocessor": 3}}},
        {"meta": 7, "method": "x", "method_kwargs": {"decoder_num_heads": True}},
        {"num_heads": "12", "input_size": "1e99", "patch_size": {}, "model": ["vit_base_patch16"]},
    ],
)
def test_malformed_training_settings_are_ignored(odd):
    flags = {"num_attention_heads": 12, "decoder_num_attention_heads": 16}
    resolved = resolve("pretrain", evidence(training_args=odd, flags=flags))
    assert "training arguments" not in resolved.sources.values()


def test_each_layout_has_its_own_convention_of_normalized_pixels():
    from mae_convert.families.mae.layouts import LAYOUTS

    flags = {"num_attention_heads": 12, "decoder_num_attention_heads": 16}
    for name, expected in (("mmpretrain", True), ("facebook", False), ("transformers", False)):
        result = evidence(conventions=LAYOUTS[name].conventions, layout=name, flags=flags)
        resolved = resolve("pretrain", result)
        assert resolved.model.norm_pix_loss is expected
        assert resolved.assumptions["norm_pix_loss"] == "layout"
