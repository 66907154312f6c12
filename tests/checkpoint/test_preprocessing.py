"""Preprocessed pixels equal those of transformers' own image processor bit for bit."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import ViTImageProcessorPil

from mae_convert.checkpoint.image_files import check_images, open_image
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.checkpoint.preprocessing import load_images
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import MaeConvertError
from mae_convert.families.checkpoint_options import Flags

STATED = {
    "as written": {},
    "bilinear": {"resample": 2},
    "nearest": {"resample": 0},
    "not resized": {"do_resize": False},
    "not normalized": {"do_normalize": False},
    "not rescaled": {"do_rescale": False},
    "another scale": {"rescale_factor": 1 / 128},
    "other statistics": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]},
}


@pytest.fixture(scope="module")
def model(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("preprocessing") / "model"
    flags = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
    source = open_checkpoint(case("pretrain_tiny").checkpoint, flags)
    execute(plan_conversion(source, folder, "transformers"))
    return folder


def with_settings(model, folder, settings):
    """Return a copy of a model directory with changed fields in preprocessor_config.json."""
    copy = folder / "model"
    copy.mkdir()
    for path in model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    written = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps({**written, **settings}))
    return copy


def images_in(folder, size=None):
    random = np.random.default_rng(0)
    kinds = {"RGB": 3, "L": 1, "RGBA": 4}
    paths = []
    for mode, channels in kinds.items():
        height, width = size or (41 + channels, 67)
        pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
        paths.append(folder / f"{mode}.png")
        Image.fromarray(pixels.squeeze(), mode=mode).save(paths[-1])
    return paths


@pytest.mark.parametrize("name", STATED)
def test_pixels_equal_those_of_the_transformers_processor(model, tmp_path, name):
    settings = STATED[name]
    folder = with_settings(model, tmp_path, settings)
    paths = images_in(tmp_path, (32, 32) if settings.get("do_resize") is False else None)
    ours = load_images(paths, open_checkpoint(folder))
    real = ViTImageProcessorPil.from_pretrained(folder)
    reference = real([Image.open(path).convert("RGB") for path in paths], return_tensors="np")
    assert ours.dtype == np.float32
    assert np.array_equal(ours, reference["pixel_values"])


def test_image_is_rotated_by_its_exif_orientation(tmp_path):
    image = Image.new("RGB", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (2, 4)


def test_16_bit_image_keeps_its_range(model, tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray((ramp / 257).astype(np.uint8)).save(tmp_path / "flat.png")
    deep, flat = load_images([tmp_path / "deep.png", tmp_path / "flat.png"], open_checkpoint(model))
    assert np.abs(deep - flat).max() <= 1 / 255 / 0.2


BAD = {
    "size": ({"size": {"height": 40, "width": 40}}, "the model takes 32x32"),
    "two edges": ({"size": {"shortest_edge": 32, "longest_edge": 40}}, "is not an image size"),
    "no number": ({"rescale_factor": float("nan")}, "NaN"),
    "no factor": ({"rescale_factor": 0.0}, "is 0.0, but it must be a finite number other than 0"),
    "not an image size": ({"size": {"height": -1}}, "is not an image size"),
    "filter": ({"resample": 17}, "is not a Pillow filter"),
    "factor": ({"rescale_factor": "big"}, "rescale_factor must be number"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_impossible_preprocessing_is_refused(model, tmp_path, name):
    settings, words = BAD[name]
    directory = with_settings(model, tmp_path, settings)
    with pytest.raises(MaeConvertError, match=words):
        load_images(images_in(tmp_path), open_checkpoint(directory))


def test_file_that_is_not_an_image_is_refused(model, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(MaeConvertError, match="cannot be read as an image"):
        load_images([tmp_path / "text.png"], open_checkpoint(model))


def test_files_are_checked_before_they_are_prepared(tmp_path):
    good, torn, vague = tmp_path / "good.png", tmp_path / "torn.png", tmp_path / "vague.tif"
    Image.new("RGB", (64, 64), "red").save(good)
    torn.write_bytes(good.read_bytes()[:-20])
    Image.new("I", (4, 4)).save(vague)
    check_images([good])
    for path, words in (
        (torn, "torn.png cannot be read as an image"),
        (vague, "vague.tif: .* mode I has"),
    ):
        with pytest.raises(MaeConvertError, match=words):
            check_images([good, path])
