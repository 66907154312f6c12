"""What draws or measures images refuses models of videos in one sentence."""

import pytest
from paths import DEMO, GOLDEN

CASES = ("videomae_pretrain_tiny", "mae_st_pretrain_tiny", "prithvi_v2_tiny")
HEADS = ("--num-heads", 4, "--decoder-num-heads", 4)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("work", ["reconstruct", "features", "inspect", "verify"])
def test_models_of_videos_are_refused(command, tmp_path, name, work):
    checkpoint = GOLDEN / name / "checkpoint.pth"
    if work == "inspect":
        result = command("inspect", checkpoint, "--infer")
    elif work == "verify":
        sides = ("--framework-a", "torch", "--framework-b", "torch", "--images", DEMO)
        result = command("verify", checkpoint, checkpoint, *sides, *HEADS)
    else:
        output = tmp_path / ("x.png" if work == "reconstruct" else "x.npz")
        result = command(work, checkpoint, DEMO, "-o", output, *HEADS)
    assert result.status == 2
    assert "can be used with masked autoencoders of single images only" in result.err
    assert result.err.count("mae-convert: ") == 1
    assert "Traceback" not in result.err
    assert not any(tmp_path.iterdir())
