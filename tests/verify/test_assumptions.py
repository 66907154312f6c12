"""An assumption that changes the function is listed in the verdict and prevents a proof."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from arrays import FLOAT64_LIMIT, distance

from mae_convert.checkpoint import official_match
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import ConfigurationError, LayoutError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.mae import official as official_catalog
from mae_convert.families.mae.family import ImageMAE
from mae_convert.families.mae.layouts import LAYOUTS
from mae_convert.families.mae.official import Official
from mae_convert.publish.card_parity import in_short
from mae_convert.reports.junit import verdict_junit
from mae_convert.reports.verdict_files import markdown, verdict_json
from mae_convert.reports.verdict_html import page
from mae_convert.runtime import load_model, save_model
from mae_convert.runtime.sides import Side
from mae_convert.runtime.trace import Trace
from mae_convert.verify.assumptions import assumptions
from mae_convert.verify.judge import SPECIFIED, Verdict, proof
from mae_convert.verify.summary import headline, verdict_in_words, verdict_text
from mae_convert.verify.verification import Options, run_verification

pytestmark = pytest.mark.usefixtures("forked_children")

HEADS = Flags(num_attention_heads=4, decoder_num_attention_heads=3)


def traced(checkpoint):
    """Return a trace without results, for comparing assumptions only."""
    return Trace(
        {
            "task": checkpoint.task,
            "steps": list((checkpoint.container.conversion or {}).get("steps", [])),
            "assumptions": checkpoint.configuration.only_assumed(),
        },
        {},
    )


def between(a, b):
    """Return field → (sides, whether it blocks a proof) for the assumptions of two checkpoints."""
    assumed = assumptions(traced(a), traced(b))
    return {x["field"]: ("".join(x["sides"]), x["blocks_proof"]) for x in assumed}


@pytest.fixture
def stand_in(case, monkeypatch):
    """A catalog whose only official checkpoint has the shapes of the small golden one."""
    model = open_checkpoint(case("pretrain_tiny").checkpoint, HEADS).configuration.model
    entry = Official("mae_visualize_vit_tiny", "visualize", "pretrain", model, False, "for tests")
    with_catalog(monkeypatch, entry)
    return entry


def with_catalog(monkeypatch, *entries):
    monkeypatch.setattr(official_catalog, "OFFICIAL", entries)
    monkeypatch.setattr(ImageMAE, "official", entries)


def converted(source, target, layout="facebook"):
    execute(plan_conversion(source, target, layout))
    return open_checkpoint(target)


def test_the_heads_of_an_official_model_are_an_assumption_that_blocks_a_proof(
    case, tmp_path, stand_in
):
    source = open_checkpoint(case("pretrain_tiny").checkpoint)
    heads = ("num_attention_heads", "decoder_num_attention_heads")
    assert {source.configuration.assumptions[name] for name in heads} == {"official"}
    assert source.configuration.sources[heads[0]] == "official ViT-T/8 with the same shapes"
    for layout, name in (("facebook", "a.pth"), ("transformers", "b")):
        target = converted(source, tmp_path / name, layout)
        # The assumed value is written into the target's configuration and is still an assumption
        # there.
        assert "assumed by the conversion: official" in target.configuration.sources[heads[0]]
        result = between(source, target)
        assert [result[name] for name in heads] == [("AB", True), ("AB", True)]
        # The layout's own code fixes these.
        assert result["layer_norm_eps"] == result["hidden_act"] == ("AB", False)
        assert "image_size" not in result  # the fixed position table gives it
        specified = open_checkpoint(case("pretrain_tiny").checkpoint, HEADS)
        result = between(specified, target)
        assert [result[name] for name in heads] == [("B", False), ("B", False)]
    # A configuration with another value than the assumed one specifies the value.
    path = tmp_path / "b" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_attention_heads": 8}))
    stating = open_checkpoint(tmp_path / "b").configuration
    assert "num_attention_heads" not in stating.assumptions
    # So does a configuration without a record of a conversion.
    (tmp_path / "b" / "conversion.json").unlink()
    assert between(source, open_checkpoint(tmp_path / "b"))[heads[1]] == ("A", False)


def test_a_second_conversion_does_not_confirm_an_assumption(case, tmp_path, stand_in):
    source = open_checkpoint(case("pretrain_tiny").checkpoint)
    first = converted(source, tmp_path / "a", "transformers")
    second = converted(first, tmp_path / "b.pth")
    assert second.configuration.assumptions["num_attention_heads"] == "official"
    assert between(first, second)["num_attention_heads"] == ("AB", True)


def test_saving_a_loaded_model_does_not_confirm_an_assumption(case, tmp_path, stand_in):
    model = load_model(case("pretrain_tiny").checkpoint)
    save_model(model, tmp_path / "a.pth", "facebook")
    saved = open_checkpoint(tmp_path / "a.pth").configuration
    assert saved.assumptions["num_attention_heads"] == "official"
    message = load_model(case("pretrain_tiny").checkpoint, num_attention_heads=4)
    save_model(message, tmp_path / "b.pth", "facebook")
    assert (
        "num_attention_heads" not in open_checkpoint(tmp_path / "b.pth").configuration.assumptions
    )


def test_inspect_reports_an_assumption_confirmed_by_the_hash(case, command, stand_in):
    shown = " ".join(command("inspect", case("pretrain_tiny").checkpoint).out.split())
    assert "num_attention_heads and decoder_num_attention_heads are assumed; --hash" in shown
    assert "official ViT-T/8 with the same shapes" in shown


def test_the_hash_of_the_official_file_confirms_it(case, tmp_path, monkeypatch, stand_in):
    md5 = official_match.file_md5(case("pretrain_tiny").checkpoint)
    with_catalog(monkeypatch, dataclasses.replace(stand_in, md5=md5[:6]))
    source = open_checkpoint(case("pretrain_tiny").checkpoint)
    confirmed = official_match.confirmed_by_hash(source).configuration
    assert "num_attention_heads" not in confirmed.assumptions
    message = confirmed.sources["num_attention_heads"]
    assert message == "mae_visualize_vit_tiny.pth, confirmed by its MD5"
    target = converted(source, tmp_path / "a", "transformers")
    assert "num_attention_heads" not in target.configuration.assumptions
    with_catalog(monkeypatch, dataclasses.replace(stand_in, md5="000000"))
    assert official_match.confirmed_by_hash(source) is source


def test_resampling_makes_an_assumed_grid_part_of_the_function(case, tmp_path):
    from mae_convert.convert.changes import Geometry

    flags = Flags(num_attention_heads=4, global_pool="token")
    source = open_checkpoint(case("finetune_cls_tiny").checkpoint, flags)
    assert source.configuration.assumptions["image_size"] == "square"
    same = converted(source, tmp_path / "a.pth")
    assert between(source, same)["image_size"] == ("AB", False)
    plan = plan_conversion(
        source, tmp_path / "b.pth", "facebook", geometry=Geometry(image_size=(48, 48))
    )
    execute(plan)
    resampled = open_checkpoint(tmp_path / "b.pth")
    assert resampled.configuration.model.image_hw == (48, 48)
    assert "from 32x32 (square grid)" in resampled.configuration.sources["image_size"]
    assert between(plan.source, resampled)["image_size"] == ("AB", True)


def test_pooling_inferred_from_names_alone_is_not_proven(case, tmp_path):
    for pooling in (None, "token", "avg"):
        flags = Flags(num_attention_heads=4, global_pool=pooling)
        source = open_checkpoint(case("finetune_cls_tiny").checkpoint, flags)
        # facebookresearch/mae cannot take the mean of normalized patches; timm can.
        layout, name = ("timm", "avg") if pooling == "avg" else ("facebook", f"{pooling}.pth")
        target = converted(source, tmp_path / name, layout)
        assert source.configuration.model.global_pool == (pooling or "token")
        assert target.configuration.model == source.configuration.model
        result = between(source, target).get("global_pool")
        assert result == (("AB", True) if pooling is None else None)
    source = open_checkpoint(case("finetune_cls_tiny").checkpoint, Flags(num_attention_heads=4))
    # The names of transformers' classifier give the class token, which the conversion assumed.
    named = converted(source, tmp_path / "model", "transformers")
    assert between(source, named)["global_pool"] == ("AB", True)
    target = open_checkpoint(tmp_path / "None.pth")
    options = Options(require_proof=True, dtypes=("float64",))
    verdict = run_verification(source, target, Side("torch"), Side("torch"), options).verdict
    (check,) = (check for check in verdict.checks if check.name == SPECIFIED)
    assert not check.passed
    assert not verdict.passed
    assert verdict_in_words(verdict)[0] == "NOT PROVEN"
    assert (
        "global_pool token (tensor names of a class-token classifier"
        in verdict_in_words(verdict)[1]
    )
    assert "global_pool" in verdict_in_words(verdict)[1]


def test_names_that_only_one_pooling_has_are_evidence(case):
    flags = Flags(num_attention_heads=4)
    for name, pooling in (("finetune_gap_tiny", "avg"), ("linprobe_tiny", "token")):
        configuration = open_checkpoint(case(name).checkpoint, flags).configuration
        assert configuration.model.global_pool == pooling
        assert "global_pool" not in configuration.assumptions
        other = {"avg": "token", "token": "avg"}[pooling]
        report = dataclasses.replace(flags, global_pool=other)
        with pytest.raises(ConfigurationError, match=r"global_pool=.* contradicts"):
            open_checkpoint(case(name).checkpoint, report)


def test_every_form_of_a_verdict_lists_its_assumptions():
    assumed = {
        "field": "num_attention_heads",
        "value": 12,
        "source": "official ViT-B/16 with the same shapes",
        "sides": ["A", "B"],
        "blocks_proof": True,
    }
    verdict = Verdict(True, True, (), None, (), (), (), assumptions=(assumed,))
    words = "assuming num_attention_heads 12 (official ViT-B/16 with the same shapes)"
    assert headline(verdict) == f"PASSED and proven, {words}"
    assert words in verdict_text(verdict)
    result = SimpleNamespace(verdict=verdict, traces=(), inputs={})
    assert f"✅ PASSED and proven, {words}" in markdown(result)
    assert f'<h1 class="ok">PASSED and proven, {words}</h1>' in page(result, {})
    document = {"checks": [], "steps": [], "proven": True, "assumptions": [assumed]}
    card = in_short(SimpleNamespace(certificate=SimpleNamespace(document=document)))
    assert card.startswith(f"**Verified, {words}:**")
    assert words in verdict_junit(result)
    assert words in verdict_json(verdict)["verdict"]
    assert verdict_json(verdict)["assumptions"] == (assumed,)
    empty = Trace({"tensors": {}, "task": "encoder", "steps": [], "dtypes": []}, {})
    unproven = proof(verdict, empty, empty)
    assert [check.passed for check in unproven if check.name == SPECIFIED] == [False]
    failed = dataclasses.replace(verdict, passed=False, checks=unproven)
    assert verdict_in_words(failed)[0] == "NOT PROVEN"
    assert "num_heads" in verdict_in_words(failed)[1]
    assert "--hash" in verdict_in_words(failed)[1]


def test_the_decoder_s_epsilon_is_a_field_of_its_own(case, tmp_path):
    flags = dataclasses.replace(HEADS, decoder_layer_norm_eps=1e-5)
    source = open_checkpoint(case("pretrain_tiny").checkpoint, flags)
    model = source.configuration.model
    assert (model.layer_norm_eps, model.decoder_eps) == (1e-6, 1e-5)
    for layout in ("transformers", "transformers-tf"):
        with pytest.raises(LayoutError, match=r"one layer norm epsilon .* 1e-06 and 1e-05"):
            plan_conversion(source, tmp_path / "x", layout)
        assert LAYOUTS[layout].refusal(model, "encoder") is None
    for name, layout in (("a.pth", "facebook"), ("a.weights.h5", "keras"), ("b.pth", "lightly")):
        read = converted(source, tmp_path / name, layout).configuration
        assert (read.model.layer_norm_eps, read.model.decoder_layer_norm_eps) == (1e-6, 1e-5)
    # Without the option the decoder has the epsilon of the encoder, and the results differ.
    arrays = case("pretrain_tiny").arrays
    images_and_noise = (
        torch.tensor(arrays["imgs"]).double(),
        torch.tensor(arrays["noise"]).double(),
    )
    heads = {"num_attention_heads": 4, "decoder_num_attention_heads": 3, "dtype": "float64"}
    plain = load_model(case("pretrain_tiny").checkpoint, **heads)
    other = load_model(case("pretrain_tiny").checkpoint, **heads, decoder_layer_norm_eps=1e-5)
    target = load_model(tmp_path / "a.pth", dtype="float64")
    with torch.no_grad():
        of_plain, of_other, of_target = (
            model(*images_and_noise).logits for model in (plain, other, target)
        )
    assert distance(of_other, of_target) < FLOAT64_LIMIT
    assert 1e-8 < distance(of_target, of_plain) < 1e-2


def test_encoder_does_not_require_fields_of_the_omitted_decoder(case, tmp_path, run):
    source = case("pretrain_tiny").checkpoint
    heads = Flags(num_attention_heads=4)
    with pytest.raises(ConfigurationError, match="decoder_num_heads="):
        open_checkpoint(source, heads)
    whole = open_checkpoint(source, heads, incomplete=True)
    with pytest.raises(ConfigurationError, match="decoder_num_heads="):
        plan_conversion(whole, tmp_path / "whole", "transformers")
    with pytest.raises(ConfigurationError, match="with num_heads="):
        open_checkpoint(source, task="encoder")
    encoder = open_checkpoint(source, heads, task="encoder")
    execute(plan_conversion(encoder, tmp_path / "encoder", "transformers", task="encoder"))
    written = json.loads((tmp_path / "encoder" / "config.json").read_text())
    # Not a placeholder: decoder fields in the configuration of an encoder.
    assert (written["num_attention_heads"], written["decoder_num_attention_heads"]) == (4, 16)
    assert load_model(source, task="encoder", num_attention_heads=4).config.hidden_size
    assert load_model(source, num_labels=3, num_attention_heads=4).head.weight.shape[0] == 3
    document = run("inspect", source, "--task", "encoder", "--num-heads", 4, "--json").json
    assert document["missing"] == []
    again = run(
        "convert", source, tmp_path / "new", "--to", "timm", "--num-labels", 3, "--num-heads", 4
    )
    assert again.status == 0, again.err
