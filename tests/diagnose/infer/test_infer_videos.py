"""Inference of fields of models of videos and satellite images."""

from dataclasses import replace

import numpy as np
import pytest
from inflated_mae import as_mae_st, as_prithvi
from paths import DEMO, GOLDEN
from PIL import Image

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.diagnose.infer import InferenceOptions, infer
from mae_convert.diagnose.infer.experiment import structure_of
from mae_convert.diagnose.infer.losses import make_clips, make_crops
from mae_convert.errors import ConfigurationError
from mae_convert.families.checkpoint_options import Flags

torch = pytest.importorskip("torch")

UNTRAINED = ("videomae_pretrain_tiny", "mae_st_pretrain_tiny", "prithvi_v2_tiny")
TO_BANDS = np.array(
    [[0, 0, 1, 0.2, 0.5, 0.1], [0, 1, 0, 0.5, 0.4, 0.5], [1, 0, 0, 0.4, 0.2, 0.5]]
) * (12, 14, 16, 24, 18, 12)  # RGB to six bands, as the small model was trained


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
def test_no_field_is_inferred_from_random_weights(case, samples):
    images = samples if case.startswith("prithvi") else None
    inferred = infer(
        opened(GOLDEN / case / "checkpoint.pth"), InferenceOptions(images=images, crops=1)
    )
    assert {"num_attention_heads", "decoder_num_attention_heads"} <= inferred.decisions.keys()
    assert inferred.decided() == {}
    assert all(decision.reason for decision in inferred.decisions.values())
    assert inferred.images == 4


def test_samples_of_six_bands_have_to_be_specified(samples):
    checkpoint = opened(GOLDEN / "prithvi_v2_tiny" / "checkpoint.pth")
    inferred = infer(checkpoint)
    assert (
        "mae-convert includes no samples with 6 bands"
        in inferred.decisions["num_attention_heads"].reason
    )
    (samples / "coffee.npz").unlink()
    (samples / "chelsea.npz").unlink()
    with pytest.raises(ConfigurationError, match="has 2 clips, but the experiment needs at"):
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


@pytest.mark.slow
def test_heads_of_trained_models_are_inferred(tmp_path):
    for path in sorted(DEMO.glob("*.jpg")):
        with Image.open(path) as image:
            colours = np.asarray(image.convert("RGB").resize((160, 140)))
        np.savez(tmp_path / f"{path.stem}.npz", frames=colours[None])
    checkpoint = open_checkpoint(
        as_prithvi(tmp_path), Flags(image_size=(96, 96), num_frames=1), incomplete=True
    )
    inferred = infer(checkpoint, InferenceOptions(images=tmp_path, crops=4)).decided()
    assert inferred["num_attention_heads"] == 5
    assert inferred["decoder_num_attention_heads"] == 4


def test_heads_of_a_trained_video_model_are_inferred(tmp_path):
    flags = Flags(image_size=(96, 96), num_frames=2)
    checkpoint = open_checkpoint(as_mae_st(tmp_path), flags, incomplete=True)
    inferred = infer(checkpoint, InferenceOptions(crops=4)).decided()
    assert inferred["num_attention_heads"] == 5
    assert inferred["decoder_num_attention_heads"] == 4
    assert inferred["norm_pix_loss"] is False


def test_weights_show_the_heads_of_videomae():
    """As after training, queries and keys share directions within each head."""
    checkpoint = opened(GOLDEN / "videomae_pretrain_tiny" / "checkpoint.pth")
    generator = np.random.default_rng(0)
    tensors = dict(checkpoint.tensors)
    model = checkpoint.configuration.model
    for part, width, heads, layers in (
        ("encoder", model.hidden_size, 4, model.num_hidden_layers),
        ("decoder", model.decoder_hidden_size, 3, model.decoder_num_hidden_layers),
    ):
        channels = width // heads
        for layer in range(layers):
            query, key = generator.normal(size=(2, width, width))
            for start in range(0, width, channels):
                block = slice(start, start + channels)
                key[block] += generator.normal(size=(channels, channels)) @ query[block]
            for which, value in (("q", query), ("k", key)):
                name = f"{part}.blocks.{layer}.attention.{which}.weight"
                stored = value.astype(np.float32)
                tensors[name] = tensors[name].mapped(
                    lambda _, stored=stored: stored, np.dtype("float32")
                )
    coupled = replace(checkpoint, tensors=tensors)
    inferred = infer(coupled, InferenceOptions(framework="")).decided()
    assert inferred == {"num_attention_heads": 4}
    # The two layers of the decoder have too few orders of channels for a decision.
    assert structure_of(coupled, "decoder_num_attention_heads").best == 3
