"""What measures images refuses models of videos in one sentence."""

import pytest
from paths import GOLDEN

CASES = ("videomae_pretrain_tiny", "mae_st_pretrain_tiny", "prithvi_v2_tiny")


@pytest.mark.parametrize("name", CASES)
def test_models_of_videos_are_refused(command, name):
    result = command("inspect", GOLDEN / name / "checkpoint.pth", "--infer")
    assert result.status == 2
    assert "can be used with masked autoencoders of single images only" in result.err
    assert result.err.count("mae-convert: ") == 1
    assert "Traceback" not in result.err
