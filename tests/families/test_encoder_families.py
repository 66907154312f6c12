"""Families whose encoder is read, and how a checkpoint's family is recognised.

The names and shapes are those of facebookresearch/AudioMAE (`models_mae.py`, Swin blocks of its
patched timm) and of bair-climate-initiative/scale-mae (`models_mae.py`, `lib/fpn.py`), made small.
"""

import argparse
import json

import numpy as np
import pytest
import torch

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import CheckpointError, ConfigurationError, LayoutError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.mae.relatives import KNOWN, name_relative
from mae_convert.formats import open_container

pytestmark = pytest.mark.usefixtures("forked_children")

WIDTH, DEPTH, DECODER = 24, 2, 16


def linear(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def block(name, width):
    return {
        **norm(f"{name}.norm1", width),
        **linear(f"{name}.attn.qkv", 3 * width, width),
        **linear(f"{name}.attn.proj", width, width),
        **norm(f"{name}.norm2", width),
        **linear(f"{name}.mlp.fc1", 4 * width, width),
        **linear(f"{name}.mlp.fc2", width, 4 * width),
    }


def blocks(prefix, depth, width):
    return {k: v for index in range(depth) for k, v in block(f"{prefix}.{index}", width).items()}


def encoder(channels, patches):
    return {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + patches, WIDTH),
        "patch_embed.proj.weight": (WIDTH, channels, 16, 16),
        "patch_embed.proj.bias": (WIDTH,),
        **blocks("blocks", DEPTH, WIDTH),
        **norm("norm", WIDTH),
    }


def decoder(patches):
    return {
        "mask_token": (1, 1, DECODER),
        "decoder_pos_embed": (1, 1 + patches, DECODER),
        **linear("decoder_embed", DECODER, WIDTH),
        **blocks("decoder_blocks", 2, DECODER),
        **norm("decoder_norm", DECODER),
    }


def audio_mae(patches=512):
    swin = {
        name: shape
        for index in range(2)
        for part in [f"decoder_blocks.{index}.attn"]
        for name, shape in {
            f"{part}.tau": (4,),
            **linear(f"{part}.meta_mlp.fc1", 384, 2),
            **linear(f"{part}.meta_mlp.fc2", 4, 384),
        }.items()
    }
    return {
        **encoder(1, patches),
        **decoder(patches),
        **swin,
        **linear("decoder_pred", 256, DECODER),
    }


def head_of_scale_mae(name):
    hidden = 8
    blocks = {}
    for index in range(2):
        blocks |= {
            **conv(f"{name}.conv_blocks.{index}.convs.1", hidden // 2, 2, 3),
            **conv(f"{name}.conv_blocks.{index}.convs.3", hidden, hidden // 2, 1),
            **conv(f"{name}.conv_blocks.{index}.residual", hidden, hidden, 1),
        }
    return {
        **conv(f"{name}.proj", hidden, DECODER, 1),
        **blocks,
        **norm(f"{name}.pred.0.ln", hidden),
        **conv(f"{name}.pred.1", hidden, hidden // 2, 4),
        **conv(f"{name}.pred.3", hidden // 2, 2, 3),
        **conv(f"{name}.pred.5", hidden // 2, hidden // 4, 1),
        **conv(f"{name}.pred.7", hidden // 2, 3, 2),
    }


def conv(name, first, second, size):
    return {f"{name}.weight": (first, second, size, size), f"{name}.bias": (first,)}


def scale_mae(heads=("fcn_high", "fcn_low")):
    return {
        **encoder(3, 16),
        **decoder(16),
        "mask_token_decoder": (1, 1, DECODER),
        **conv("fpn.fpn1.0", DECODER, DECODER, 2),
        **norm("fpn.fpn1.1.ln", DECODER),
        **conv("fpn.fpn1.3", DECODER, DECODER, 2),
        **conv("fpn.fpn2.0", DECODER, DECODER, 2),
        **{name: shape for head in heads for name, shape in head_of_scale_mae(head).items()},
    }


def saved(path, shapes, prefix="", **arguments):
    generator = torch.Generator().manual_seed(4)
    state = {
        prefix + name: torch.randn(shape, generator=generator) for name, shape in shapes.items()
    }
    torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(**arguments)}, path)
    return path


FAMILIES = {
    "AudioMAE": (audio_mae(), "decoder_blocks.0.attn.tau", (1024, 128), "Swin blocks"),
    "Scale-MAE": (scale_mae(), "mask_token_decoder", (64, 64), "two frequency bands"),
}
HEADS = ["--num-heads", "4"]


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


def test_the_encoder_is_read_and_every_tensor_of_the_decoder_is_dropped_by_name(tmp_path, name):
    shapes, key, size, why = FAMILIES[name]
    source = open_checkpoint(saved(tmp_path / "x.pth", shapes), Flags(num_attention_heads=4))
    assert (source.task, source.layout.name) == ("encoder", "facebook")
    assert source.relative.relative.name == name
    assert (source.relative.certain, source.relative.because) == (True, f"it has {key}")
    used = {rule.external for rule in source.rules}
    assert used == set(encoder(*shapes["patch_embed.proj.weight"][1:2], shapes["pos_embed"][1] - 1))
    assert used | set(source.dropped) == set(shapes)
    assert all(why in reason for reason in source.dropped.values())
    assert source.configuration.model.image_hw == size


def test_the_caveat_is_printed_and_recorded(command, tmp_path, name):
    shapes, key, *_ = FAMILIES[name]
    source = saved(tmp_path / "x.pth", shapes)
    inspected = command("inspect", source, *HEADS)
    converted = command("convert", source, tmp_path / "m", "--to", "transformers", *HEADS)
    caveat = next(relative.caveat for relative in KNOWN if relative.name == name)
    for result in (inspected, converted):
        assert result.status == 0, result.err
        assert f"{name}: it has {key}" in result.out
        assert " ".join(caveat.split()) in " ".join(result.out.split())
    assert len(inspected.out.splitlines()) < 40  # one screen, though many tensors are dropped
    document = command("inspect", source, *HEADS, "--json").json["family"]
    record = json.loads((tmp_path / "m" / "conversion.json").read_text())
    assert document == record["family"]
    assert document == {
        "name": name, "certainty": "known", "because": f"it has {key}", "also": [], "caveat": caveat
    }  # fmt: skip
    assert set(record["dropped"]) == {*(set(shapes) - set(encoder(3, 1))), "epoch"}
    again = command("inspect", tmp_path / "m", "--json").json["family"]
    assert (again["name"], again["because"]) == (name, "according to the conversion record")


@pytest.mark.parametrize("target", ["m.pth", "m.weights.h5", "m.keras", "m.npz"])
def test_family_is_stored_in_a_single_file(command, tmp_path, name, target):
    source = saved(tmp_path / "x.pth", FAMILIES[name][0])
    layout = "keras" if "h5" in target or "keras" in target else "facebook"
    result = command("convert", source, tmp_path / target, "--to", layout, *HEADS)
    assert result.status == 0, result.err
    before, after = open_checkpoint(source, Flags(4)), open_checkpoint(tmp_path / target)
    assert (after.relative.relative.name, after.relative.certain) == (name, True)
    for field in ("model", "image_mean", "image_std"):
        assert getattr(after.configuration, field) == getattr(before.configuration, field)


def test_source_and_target_are_proven_to_be_the_same_encoder(command, tmp_path):
    """The decoder, which the reference model does not have, is dropped without a mapping table."""
    source = saved(tmp_path / "x.pth", audio_mae(64))
    command("convert", source, tmp_path / "m.pth", "--to", "facebook", *HEADS)
    result = command(
        "verify", source, tmp_path / "m.pth", "--batch", 1, *HEADS, "--require-proof", "--json"
    )
    assert result.status == 0, result.out + result.err
    assert result.json["proven"]


def test_family_is_recognised_below_a_prefix(tmp_path, name):
    path = saved(tmp_path / "x.pth", FAMILIES[name][0], prefix="module.")
    source = open_checkpoint(path, Flags(num_attention_heads=4))
    assert source.relative.relative.name == name
    assert source.prefix.in_words() == "module."
    assert all(stored.startswith("module.") for stored in source.dropped)


def test_request_for_a_decoder_that_is_not_a_mae_decoder_is_refused(command, tmp_path, name):
    source = saved(tmp_path / "x.pth", FAMILIES[name][0])
    result = command(
        "convert", source, tmp_path / "y.pth", "--to", "facebook", "--task", "pretrain", *HEADS
    )
    assert result.status == 2
    assert FAMILIES[name][3] in result.err
    assert "--task encoder" in result.err


def test_a_broken_encoder_is_explained_as_one_of_that_family(tmp_path, name):
    shapes = {n: s for n, s in FAMILIES[name][0].items() if n != "blocks.1.attn.qkv.bias"}
    with pytest.raises(LayoutError, match=rf"encoder of {name} .*missing: blocks\.1\.attn\.qkv"):
        open_checkpoint(saved(tmp_path / "x.pth", shapes))


def test_unknown_decoder_tensors_are_dropped(tmp_path):
    shapes = {**scale_mae(), "gating.weight": (3, 3)}
    source = open_checkpoint(saved(tmp_path / "x.pth", shapes), Flags(num_attention_heads=4))
    assert (source.task, source.relative.relative.name) == ("encoder", "Scale-MAE")
    assert set(source.dropped) == set(shapes) - set(encoder(3, 16))
    assert source.dropped["gating.weight"] != source.dropped["mask_token"]


@pytest.mark.parametrize("heads", [("fcn_high", "fcn_low"), ("fcn",)])
def test_either_form_of_scale_mae_s_decoder_is_dropped(tmp_path, heads):
    shapes = scale_mae(heads)
    shapes.pop("mask_token_decoder")  # according to reports, the published checkpoint lacks it
    shapes |= linear("pos_emb_projection", DECODER, DECODER)
    source = open_checkpoint(saved(tmp_path / "x.pth", shapes), Flags(num_attention_heads=4))
    assert source.relative.relative.name == "Scale-MAE"
    assert set(source.dropped) == set(shapes) - set(encoder(3, 16))


class TestAudioMAE:
    """Further fields for spectrograms."""

    @pytest.mark.parametrize(
        ("patches", "size", "mean"),
        [(512, (1024, 128), -4.2677393), (256, (512, 128), -6.6268077), (64, 128, -6.845978)],
    )
    def test_size_and_scaling_follow_from_the_count_of_patches(self, tmp_path, patches, size, mean):
        path = saved(tmp_path / "x.pth", audio_mae(patches))
        configuration = open_checkpoint(path, Flags(num_attention_heads=4)).configuration
        assert configuration.model.image_size == size
        assert configuration.image_mean == (mean,)
        for field in ("image_size", "image_mean", "image_std", "mask_ratio"):
            assert configuration.sources[field] == "convention of AudioMAE"

    def test_preprocessing_for_photographs_is_not_written(self, command, tmp_path):
        source = saved(tmp_path / "x.pth", audio_mae())
        command("convert", source, tmp_path / "m", "--to", "transformers", *HEADS)
        written = json.loads((tmp_path / "m" / "preprocessor_config.json").read_text())
        assert (written["do_rescale"], written["do_resize"]) == (False, False)
        assert written["image_std"] == [2 * 4.5689974]
        assert written["size"] == {"height": 1024, "width": 128}

    def test_its_positions_are_not_resampled(self, command, tmp_path):
        source = saved(tmp_path / "x.pth", audio_mae())
        target = tmp_path / "y.pth"
        options = ["--to", "facebook", "--image-size", "512x128", *HEADS]
        result = command("convert", source, target, *options)
        assert result.status == 2
        assert "for a grid of 8 x 64 patches, but has a grid of 64 x 8 patches" in result.err

    def test_overlapping_patches_are_refused(self, tmp_path):
        path = saved(tmp_path / "x.pth", audio_mae(144), use_custom_patch=True)
        with pytest.raises(CheckpointError, match="patches overlap"):
            open_checkpoint(path, Flags(num_attention_heads=4))
        path = saved(tmp_path / "y.pth", audio_mae(1212))
        with pytest.raises(ConfigurationError, match="1212 patches do not form a square grid"):
            open_checkpoint(path, Flags(num_attention_heads=4))

    def test_fine_tuned_it_is_a_classifier_known_by_its_training_arguments(self, tmp_path):
        shapes = {n: s for n, s in encoder(1, 512).items() if not n.startswith("norm.")}
        shapes |= {**norm("fc_norm", WIDTH), **linear("head", 527, WIDTH)}
        path = saved(tmp_path / "x.pth", shapes, audio_exp=True, dataset="audioset")
        source = open_checkpoint(path, Flags(num_attention_heads=4))
        assert source.relative.because == "training arguments: audio_exp is True"
        assert (source.task, source.configuration.model.image_hw) == ("classify", (1024, 128))

    def test_caveat_is_printed_if_only_shapes_suggest_the_family(self, command, tmp_path):
        source = saved(tmp_path / "x.pth", encoder(1, 512))
        options = ["--to", "facebook", "--source-image-size", "1024x128", *HEADS]
        result = command("convert", source, tmp_path / "y.pth", *options)
        assert "AudioMAE (probable: the shapes also fit" in result.out
        assert "if it is AudioMAE: its images are one-channel spectrograms" in result.out

    def test_configuration_of_a_family_suggested_by_shapes_is_not_assumed(self, tmp_path):
        path = saved(tmp_path / "x.pth", encoder(1, 512))
        with pytest.raises(ConfigurationError, match=r"AudioMAE, which has these .* 1024x128"):
            open_checkpoint(path, Flags(num_attention_heads=4))
        flags = Flags(num_attention_heads=4, image_size=(1024, 128))
        source = open_checkpoint(path, flags)
        assert (source.relative.relative.name, source.relative.certain) == ("AudioMAE", False)
        assert source.configuration.image_std == (1.0,)


def sizes(width, depth, patch, channels=3, patches=196, task="encoder", **more):
    return {
        "task": task,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "intermediate_size": 4 * width,
        "patch_size": patch,
        "num_channels": channels,
        "num_patches": patches,
        **more,
    }


DEC = {"decoder_hidden_size": 512, "decoder_num_hidden_layers": 8}


@pytest.mark.parametrize(
    ("fields", "name", "also"),
    [
        (sizes(768, 12, 16), "MAE B/16", "MAWS"),
        (sizes(1024, 24, 16), "MAE L/16", "Scale-MAE"),
        (sizes(1024, 24, 16, task="pretrain", **DEC), "MAE L/16", "RETFound (MAE)"),
        (sizes(1280, 32, 14, patches=256), "MAE H/14", "MAWS"),
        (sizes(2560, 24, 14, patches=256), "MAWS", None),
        (
            sizes(384, 12, 16, task="pretrain", decoder_hidden_size=512,
                  decoder_num_hidden_layers=2),
            "medical_mae (chest X-rays)",
            None,
        ),
    ],
)  # fmt: skip
def test_shapes_make_a_family_probable_and_never_more(fields, name, also):
    result = name_relative(None, {}, None, fields)
    assert (result.relative.name, result.certain) == (name, False)
    assert result.to_dict()["certainty"] == "probable"
    assert also is None or also in result.also


def test_other_sizes_belong_to_no_family():
    assert name_relative(None, {}, None, sizes(512, 8, 16)) is None
    pretrain = sizes(768, 12, 16, task="pretrain", decoder_hidden_size=256)
    assert name_relative(None, {}, None, {**pretrain, "decoder_num_hidden_layers": 8}) is None


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"model": "RETFound_mae"}, "RETFound (MAE)"),
        ({"finetune": "./RETFound_cfp_weights.pth"}, "RETFound (MAE)"),
        ({"finetune": "RETFound_mae_natureCFP"}, "RETFound (MAE)"),
        ({"datasets_names": ["chexpert", "mimic_cxr"]}, "medical_mae (chest X-rays)"),
        ({"base_resolution": 2.5}, "Scale-MAE"),
    ],
)
def test_training_arguments_identify_a_family(arguments, name):
    result = name_relative(None, arguments, None, sizes(512, 8, 16))
    assert (result.relative.name, result.certain) == (name, True)
    assert next(iter(arguments)) in result.because


@pytest.mark.parametrize(
    "arguments",
    [
        {"finetune": "RETFound_dinov2_meh"},
        {"finetune": "mae_pretrain_vit_base.pth", "audio_exp": False, "dataset": "imagenet"},
        {"model": None, "datasets_names": []},
    ],
)
def test_uninformative_training_arguments_identify_no_family(arguments):
    assert name_relative(None, arguments, None, sizes(512, 8, 16)) is None


def test_edited_record_identifies_no_family():
    for recorded in ("AudioMAE", {"name": 3}, {"name": "none", "certainty": "known"}, []):
        assert name_relative(None, {}, recorded, sizes(512, 8, 16)) is None


def zeros(shapes):
    """Return a model whose tensors are views of one zero, as large as a file may claim to be."""
    state = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    count = sum(tensor.numel() for tensor in state.values())
    return {"model": state, "optimizer": torch.zeros(count // 64)}


def test_known_family_is_not_mistaken_for_an_official_checkpoint(command, tmp_path, golden):
    from mae_convert.checkpoint.inspect import inspect

    keys = json.loads((golden / "keys" / "facebook_mae_pretrain_vit_base.json").read_text())
    state = zeros(keys)
    for name, arguments in (("a", {}), ("b", {"base_resolution": 2.5})):
        torch.save({**state, "args": argparse.Namespace(**arguments)}, tmp_path / f"{name}.pth")
    official = [inspect(open_checkpoint(tmp_path / f"{n}.pth"))["official"] for n in "ab"]
    assert official == [{"probable": "mae_pretrain_vit_base.pth"}, None]


def test_a_plain_vit_of_any_size_is_read(tmp_path):
    """MAWS, medical_mae and others have other widths and depths and are not separate families."""
    rng = np.random.default_rng(0)
    state = {n: torch.from_numpy(rng.standard_normal(s)) for n, s in encoder(4, 36).items()}
    torch.save(state, tmp_path / "x.pth")
    source = open_checkpoint(tmp_path / "x.pth", Flags(num_attention_heads=3))
    model = source.configuration.model
    assert (model.hidden_size, model.num_channels, model.image_size) == (WIDTH, 4, 96)
    assert source.relative is None
    assert len(open_container(tmp_path / "x.pth").tensors) == len(source.rules)


def test_output_reports_that_shapes_make_the_family_only_probable(command, golden, tmp_path):
    keys = json.loads((golden / "keys" / "facebook_mae_visualize_vit_large.json").read_text())
    torch.save(zeros(keys), tmp_path / "x.pth")
    result = command("inspect", tmp_path / "x.pth")
    assert "MAE L/16 (probable: the shapes also fit RETFound (MAE), any" in result.out
