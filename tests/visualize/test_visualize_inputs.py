"""Visualization of preprocessed images with any number of channels, specified by --inputs."""

import json

import numpy as np
import pytest
import torch
from arrays import FLOAT32_LIMIT, distance
from click.testing import CliRunner
from golden_cases import Result
from PIL import Image

from mae_convert import save_model
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.cli.main import cli
from mae_convert.errors import MaeConvertError
from mae_convert.visualize.display import display_of
from mae_convert.visualize.image_batch import batch_from_inputs, noise_in
from reference_models import pytorch as reference
from reference_models.configuration import ViTMAEConfig

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32, "image_size": 32, "patch_size": 8,
}  # fmt: skip


@pytest.fixture
def run():
    """Run a command in this process; return its status, output and errors."""

    def run(*arguments):
        result = CliRunner().invoke(cli, list(map(str, arguments)))
        complaint = result.stderr
        if isinstance(result.exception, MaeConvertError):
            return Result(2, result.stdout, str(result.exception))
        return Result(result.exit_code, result.stdout, complaint)

    return run


@pytest.fixture
def model(tmp_path):
    """Return a function that writes a checkpoint of a model with a number of channels."""

    def make(channels):
        torch.manual_seed(0)
        config = ViTMAEConfig(**SIZES, num_channels=channels)
        path = tmp_path / f"model-{channels}-1.npz"
        save_model(reference.ViTMAEForPreTraining(config), path, "facebook", overwrite=True)
        return path

    return make


@pytest.fixture
def inputs(tmp_path):
    """Return a function that writes an .npz of images whose channels have different ranges."""

    def make(channels, count=2, **more):
        random = np.random.default_rng(0)
        ranges = 10.0 ** np.arange(channels).reshape(1, -1, 1, 1)
        pixels = (random.normal(size=(count, channels, 32, 32)) * ranges).astype(np.float32)
        np.savez(tmp_path / "in.npz", pixel_values=pixels, **more)
        return tmp_path / "in.npz"

    return make


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_sheet_is_drawn_for_any_number_of_channels(run, model, inputs, tmp_path, channels):
    sheet = tmp_path / "sheet.png"
    films = ["-o", sheet, *(["-o", tmp_path / "film.gif"] if channels == 5 else [])]
    result = run(
        "reconstruct", model(channels), "--inputs", inputs(channels), *films,
        "--framework", "torch", "--json",
    )  # fmt: skip
    assert (result.status, result.err) == (0, "")
    report = json.loads(result.out)
    assert [row["image"] for row in report["images"]] == [
        f"{tmp_path}/in.npz[0]", f"{tmp_path}/in.npz[1]",
    ]  # fmt: skip
    shown = {1: "channel 1 in grey", 2: "channel 1 in grey", 5: "channels 1, 2, 3 as red, green"}
    assert (report["note"] or "").startswith(shown.get(channels, "")), report["note"]
    assert bool(report["note"]) == (channels != 3)
    assert np.asarray(Image.open(sheet)).std() > 20


def test_noise_in_the_file_determines_the_mask(run, model, inputs, tmp_path):
    order = np.arange(16, dtype=np.float32)
    noise = np.stack([order, order[::-1]])
    path = inputs(5, noise=noise)
    checkpoint = model(5)
    result = run(
        "timeline", checkpoint, "--inputs", path, "-o", tmp_path / "t.json", "-o",
        tmp_path / "t.png", "--framework", "torch", "--bands", "5,1,2",
    )  # fmt: skip
    assert result.status == 0, result.err
    batch = batch_from_inputs(path, open_checkpoint(checkpoint))
    assert np.array_equal(batch.noise, noise)
    assert noise_in(batch, "random", "random") is batch.noise
    with pytest.raises(MaeConvertError, match='mask="block" specifies a mask too; leave mask= out'):
        noise_in(batch, "block", "random")
    refused = run(
        "reconstruct", checkpoint, "--inputs", path, "-o", tmp_path / "x.png", "--mask", "grid",
        "--framework", "torch",
    )  # fmt: skip
    assert (refused.status, "leave mask= out" in refused.err) == (2, True)
    most = run("timeline", checkpoint, "--inputs", path, "-o", tmp_path / "m.json", "--most", 1,
               "--framework", "torch")  # fmt: skip
    assert most.status == 0
    assert json.loads((tmp_path / "m.json").read_text())["images"] == ["in.npz[0]"]


def test_features_of_inputs_are_those_of_the_model(run, model, inputs, tmp_path):
    path, checkpoint = inputs(5, count=3), model(5)
    result = run("features", checkpoint, "--inputs", path, "-o", tmp_path / "f.npz", "--batch", 2,
               "--framework", "torch")  # fmt: skip
    assert result.status == 0, result.err
    arrays = np.load(tmp_path / "f.npz")
    assert arrays["names"].tolist() == ["in.npz[0]", "in.npz[1]", "in.npz[2]"]
    assert arrays["labels"].tolist() == ["", "", ""]
    torch.manual_seed(0)
    whole = reference.ViTMAEForPreTraining(ViTMAEConfig(**SIZES, num_channels=5, mask_ratio=0.0))
    pixels = torch.from_numpy(np.load(path)["pixel_values"])
    order = torch.arange(16.0).repeat(3, 1)
    encoder = reference.ViTMAEModel(ViTMAEConfig(**SIZES, num_channels=5, mask_ratio=0.0))
    own = encoder.state_dict().keys()
    encoder.load_state_dict({n: v for n, v in whole.state_dict().items() if n in own})
    with torch.inference_mode():
        hidden = encoder(pixels, order).last_hidden_state.numpy()
    assert distance(arrays["cls"], hidden[:, 0]) < FLOAT32_LIMIT


@pytest.mark.parametrize("command", ["reconstruct", "features", "timeline"])
def test_missing_or_mismatched_inputs_are_reported(run, model, inputs, tmp_path, command):
    output = tmp_path / ("o.npz" if command == "features" else "o.png")
    nothing = run(command, model(5), "-o", output)
    assert (nothing.status, "no image is specified; pass" in nothing.err) == (2, True)
    wrong = run(command, model(5), "-o", output, "--inputs", inputs(4), "--framework", "torch")
    assert wrong.status == 2
    assert "pixel_values has shape (2, 4, 32, 32); this model takes (N, 5, 32, 32)" in wrong.err


def test_each_channel_is_stretched_by_the_original(model):
    configuration = open_checkpoint(model(5)).configuration
    ramp = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(1, 1, 32, 32)
    pixels = np.concatenate([ramp * 10.0**k - k for k in range(5)], axis=1)
    display = display_of(pixels, configuration, (5, 3, 1))
    colours = display(pixels)
    assert colours.shape == (1, 32, 32, 3)
    for band in range(3):  # each channel is the same ramp, regardless of its range
        assert distance(colours[0, ..., band], colours[0, ..., 0]) < FLOAT32_LIMIT
    assert (colours.min(), colours.max()) == (0, 1)
    assert display(pixels[:, ::-1])[0, ..., 0].max() == pytest.approx(0, abs=1e-3)
    constant = np.ones((1, 5, 32, 32), np.float32)
    assert np.isfinite(display_of(constant, configuration)(constant)).all()
    grey = display_of(pixels, configuration, (4,))
    assert grey.note.startswith("channel 4 in grey, scaled from the 2nd")
    with pytest.raises(
        MaeConvertError, match='bands="6" refers to channels that the model does not'
    ):
        display_of(pixels, configuration, (6,))
