"""Fields of models of videos and of satellite images, found by experiment."""

import numpy as np
import pytest
from paths import DEMO, GOLDEN
from PIL import Image

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import ConfigurationError
from mae_convert.families.options import Flags
from mae_convert.infer import InferenceOptions, infer
from mae_convert.infer.losses import make_clips, make_crops

torch = pytest.importorskip("torch")

UNTRAINED = ("videomae_pretrain_tiny", "mae_st_pretrain_tiny", "prithvi_v2_tiny")
TO_BANDS = np.array(
    [[0, 0, 1, 0.2, 0.5, 0.1], [0, 1, 0, 0.5, 0.4, 0.5], [1, 0, 0, 0.4, 0.2, 0.5]]
) * (12, 14, 16, 24, 18, 12)  # RGB to six bands, as the toy was trained


def opened(path, **fields):
    return open_checkpoint(path, Flags(image_size=(32, 32), **fields), incomplete=True)


@pytest.fixture
def samples(tmp_path):
    """A folder of series of images of six bands, made of the embedded photographs."""
    for path in sorted(DEMO.glob("*.jpg")):
        with Image.open(path) as image:
            colours = np.asarray(image.convert("RGB").resize((56, 56)), np.float64)
        np.savez(tmp_path / f"{path.stem}.npz", frames=np.stack([colours @ TO_BANDS] * 3))
    return tmp_path


@pytest.mark.parametrize("case", UNTRAINED)
def test_random_weights_decide_nothing(case, samples):
    images = samples if case.startswith("prithvi") else None
    found = infer(
        opened(GOLDEN / case / "checkpoint.pth"), InferenceOptions(images=images, crops=2)
    )
    assert {"num_attention_heads", "decoder_num_attention_heads"} <= found.decisions.keys()
    assert found.decided() == {}
    assert all(decision.reason for decision in found.decisions.values())
    assert found.images == 4


def test_samples_of_six_bands_have_to_be_specified(samples):
    checkpoint = opened(GOLDEN / "prithvi_v2_tiny" / "checkpoint.pth")
    found = infer(checkpoint)
    assert "samples of 6 bands are not embedded" in found.decisions["num_attention_heads"].reason
    (samples / "coffee.npz").unlink()
    (samples / "chelsea.npz").unlink()
    with pytest.raises(ConfigurationError, match="holds 2 clips, and the experiment needs at"):
        infer(checkpoint, InferenceOptions(images=samples))


def test_crops_move_across_photographs_and_stay_within_clips():
    checkpoint = opened(GOLDEN / UNTRAINED[0] / "checkpoint.pth")
    family, config = checkpoint.family, checkpoint.configuration.model
    with Image.open(DEMO / "coffee.jpg") as image:
        crops = make_crops([image.convert("RGB")], family, config, crops=3, seed=1)
        frames = np.stack([np.asarray(image.convert("RGB").resize((60, 50)))] * 16)
    assert crops.pixels.shape == (1, 3, 16, 32, 32, 3)
    assert crops.noise.shape == (1, 3, config.num_patches)
    assert (crops.pixels[0, :, 0] != crops.pixels[0, :, -1]).any()
    still = make_clips([frames], family, config, crops=2, seed=1).pixels
    assert (still[0, :, 0] == still[0, :, -1]).all()
