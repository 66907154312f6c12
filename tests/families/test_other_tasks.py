"""Unsupported tasks and layouts of video families, and new classifier heads on their encoders."""

import pytest
import torch
from paths import GOLDEN

from mae_convert.runtime import load_model

HEADS = ("--num-heads", 4)
PRITHVI = GOLDEN / "prithvi_v2_tiny" / "checkpoint.pth"
NEW_HEADS = {
    "videomae_pretrain_tiny": (("--source-image-size", 32), "fc_norm"),
    "mae_st_pretrain_tiny": ((), "norm"),
}


@pytest.mark.parametrize("case", NEW_HEADS)
def test_a_new_head_reads_the_mean_of_the_tokens(command, tmp_path, case):
    options, norm = NEW_HEADS[case]
    source, target = GOLDEN / case / "checkpoint.pth", tmp_path / "new.safetensors"
    convert = ("convert", source, target, "--to", "original", *HEADS, *options)
    report = command(*convert, "--num-labels", 5, "--json").json
    names = {f"{norm}.weight", f"{norm}.bias", "head.weight", "head.bias"}
    assert set(report["created"]) == names
    assert report["created"][f"{norm}.weight"].startswith("ones")
    model = load_model(target)
    weights = dict(model.named_parameters())
    assert weights["head.weight"].shape == (5, 32)
    assert not weights["head.weight"].any()
    assert bool((weights[f"{norm}.weight"] == 1).all())
    assert not weights[f"{norm}.bias"].any()
    frames = model.config.num_frames
    logits = model(torch.zeros(1, 3, frames, 32, 32)).logits
    assert logits.shape == (1, 5)
    verify = ("verify", source, target, "--num-heads", 4, "--decoder-num-heads", 3, *options)
    result = command(*verify, "--framework-a", "torch", "--framework-b", "torch")
    assert result.status == 0, result.out + result.err
    result = command(*verify, "--quick")
    assert result.status == 2
    assert "without --quick" in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to", "keras", "--num-labels", 3), "family prithvi have no classifier head; leave out"),
        (("--to", "keras", "--task", "classify"), "have no classifier head; pass --task encoder"),
        (("--to", "timm"), "family prithvi cannot be written as timm; their layouts are original"),
        (("--to", "kers"), "unknown layout 'kers'; did you mean 'keras'?"),
    ],
)
def test_unsupported_task_of_a_family_is_refused(command, tmp_path, options, message):
    target = tmp_path / "out.keras"
    result = command("convert", PRITHVI, target, *options, *HEADS, "--decoder-num-heads", 3)
    assert result.status == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_missing_decoder_is_not_suggested_from_another_family(command, tmp_path):
    source = GOLDEN / "videomae_finetune_tiny_v5"
    result = command("convert", source, tmp_path / "a", "--to", "original", "--task", "pretrain")
    assert result.status == 2
    assert "has no decoder" in result.err
    assert "mae_visualize" not in result.err


def test_advice_for_native_runs_is_specific_to_the_family(command, tmp_path):
    source, target = GOLDEN / "videomae_finetune_tiny_v5", tmp_path / "b"
    assert command("convert", source, target, "--to", "transformers").status == 0
    torch_too = ("--framework-a", "torch", "--framework-b", "torch")
    result = command("verify", source, target, "--quick", *torch_too)
    printed = " ".join(result.out.split())
    assert "run A with transformers, which loads transformers natively" in printed
    assert "tensorflow" not in result.out
