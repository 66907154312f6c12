"""Models of other families or numbers of frames are reported as different without a run."""

import pytest
from paths import GOLDEN

HEADS = ("--num-heads", 4, "--decoder-num-heads", 3)
VIDEOMAE = GOLDEN / "videomae_pretrain_tiny_v4"
MAE_ST = GOLDEN / "mae_st_pretrain_tiny" / "checkpoint.pth"


def test_other_families_are_named_before_tensors(command):
    result = command("verify", VIDEOMAE, MAE_ST, *HEADS)
    assert result.status == 1
    assert "cause: A is of the family videomae" in result.out
    assert result.out.count("\ncause:") == 1
    result = command("diff", VIDEOMAE, MAE_ST, *HEADS)
    assert result.status == 1
    assert "family is videomae in A and mae_st in B" in result.out


def test_other_numbers_of_frames_are_a_difference(command):
    source = GOLDEN / "videomae_pretrain_tiny" / "checkpoint.pth"
    options = (*HEADS, "--source-image-size", 32, "--source-num-frames", 8)
    result = command("verify", VIDEOMAE, source, *options)
    assert result.status == 1
    assert "cause: num_frames is 16 in A and 8 in B" in result.out


@pytest.mark.parametrize("name", ["a.npz", "a.pth", "a.keras"])
def test_trace_file_with_the_suffix_of_another_format_is_refused(command, tmp_path, name):
    result = command("trace", VIDEOMAE, tmp_path / name)
    assert result.status == 2
    assert "choose a name that ends in .safetensors" in result.err
    assert not list(tmp_path.iterdir())
