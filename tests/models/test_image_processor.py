"""The image processor equals transformers' own class bit for bit."""

import json

import numpy as np
import pytest
import torch
from arrays import FLOAT32_LIMIT, distance
from PIL import Image
from transformers import ViTImageProcessorPil

from mae_convert.errors import MaeConvertError
from mae_convert.models import AutoImageProcessor, MaeImageProcessor, ViTImageProcessor

STATED = {
    "the class's own defaults": {},
    "of a MAE": {
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "size": {"height": 32, "width": 48},
    },
    "nearest": {"resample": 0, "size": {"height": 40, "width": 40}},
    "Lanczos": {"resample": 1, "size": {"height": 40, "width": 40}},
    "not resized": {"do_resize": False},
    "not normalized": {"do_normalize": False},
    "not rescaled": {"do_rescale": False},
    "another scale": {"rescale_factor": 1 / 128},
}
RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (37, 53, 3), dtype=np.uint8)
INPUTS = {
    "an image": Image.fromarray(COLOUR),
    "pictures": [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)],
    "an array, channels last": COLOUR,
    "an array, channels first": COLOUR.transpose(2, 0, 1),
    "arrays": [COLOUR, 255 - COLOUR],
    "a batch": np.stack([COLOUR, 255 - COLOUR]),
    "a tensor": torch.from_numpy(COLOUR.transpose(2, 0, 1).copy()),
    "whole numbers as floats": COLOUR.astype(np.float32),
    "whole numbers as half floats": COLOUR.astype(np.float16),
    "whole numbers of 64 bits": COLOUR.astype(np.int64),
    "nothing but black, as floats": np.zeros((20, 20, 3)),
    "true and false": COLOUR > 100,
}


@pytest.fixture(params=STATED)
def pair(request, tmp_path):
    """Return the image processors of mae-convert and of transformers for the same file."""
    ViTImageProcessorPil(**STATED[request.param]).save_pretrained(tmp_path)
    return (
        MaeImageProcessor.from_pretrained(tmp_path),
        ViTImageProcessorPil.from_pretrained(tmp_path),
    )


@pytest.mark.parametrize("name", INPUTS)
def test_pixels_equal_those_of_the_transformers_class(pair, name):
    ours, reference = (processor(INPUTS[name], return_tensors="np") for processor in pair)
    assert ours["pixel_values"].dtype == np.float32
    assert np.array_equal(ours["pixel_values"], reference["pixel_values"])


def test_overrides_per_call_work_as_in_transformers():
    changes = {"size": {"height": 20, "width": 30}, "do_normalize": False, "resample": 3}
    ours, reference = (
        processor(INPUTS["an image"], return_tensors="pt", **changes).pixel_values
        for processor in (ViTImageProcessor(), ViTImageProcessorPil())
    )
    assert torch.equal(ours, reference)
    scaled = COLOUR.astype(np.float32) / 255
    for more in ({}, {"do_resize": False}):
        ours, reference = (
            processor(scaled, return_tensors="np", do_rescale=False, **more).pixel_values
            for processor in (ViTImageProcessor(), ViTImageProcessorPil())
        )
        assert np.array_equal(ours, reference)
    last = ViTImageProcessor()(COLOUR, data_format="channels_last")["pixel_values"]
    first = ViTImageProcessor()(COLOUR)["pixel_values"]
    assert np.array_equal(last[0].transpose(2, 0, 1), first[0])


AS_THERE = {
    "floats in the model's size": (COLOUR.astype(float) + 1e-4, {"do_resize": False}),
    "fractions of 64 bits": (COLOUR / 255, {"do_rescale": False}),
    "fractions of 16 bits": ((COLOUR / 255).astype(np.float16), {"do_rescale": False}),
    "fractions above 1": (COLOUR / 200, {"do_resize": False}),
    "16 bits": (
        COLOUR.astype(np.uint16) * 200, {"do_resize": False, "rescale_factor": 1 / 65535}
    ),
    "a size in a tuple": (COLOUR, {"size": (30, 20)}),
    "a size in a list": (COLOUR, {"size": [30, 20]}),
    "one mean": (COLOUR, {"image_mean": 0.4}),
    "the filter's name": (COLOUR, {"resample": Image.Resampling.BICUBIC}),
    "ambiguous axes": (COLOUR[:3].copy(), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", AS_THERE)
def test_inputs_of_the_transformers_class_give_the_same_result(name):
    images, changes = AS_THERE[name]
    ours, reference = (
        processor(images, return_tensors="np", **changes).pixel_values
        for processor in (ViTImageProcessor(), ViTImageProcessorPil())
    )
    assert np.array_equal(ours, reference)


def test_none_keeps_the_configured_value_as_in_version_4():
    processor = ViTImageProcessor(do_resize=False, image_mean=[0.1, 0.2, 0.3], do_rescale=None)
    plain = processor(COLOUR)["pixel_values"]
    names = ("do_resize", "size", "resample", "do_rescale", "rescale_factor", "image_mean")
    for name in names:
        assert np.array_equal(processor(COLOUR, **{name: None})["pixel_values"], plain), name


def test_tensors_that_numpy_cannot_read_are_read():
    whole = torch.from_numpy(COLOUR.transpose(2, 0, 1).copy())
    expected = ViTImageProcessor()(whole)["pixel_values"][0]
    for tensor in (whole.bfloat16(), whole.float().requires_grad_()):
        assert np.array_equal(ViTImageProcessor()(tensor)["pixel_values"][0], expected)
    assert np.array_equal(
        ViTImageProcessor(resample="bicubic")(whole)["pixel_values"],
        ViTImageProcessor(resample=3)(whole)["pixel_values"],
    )


def test_gray_images_and_images_with_transparency_are_converted():
    grey = Image.fromarray(COLOUR[..., 0])
    clear = Image.fromarray(RANDOM.integers(0, 256, (30, 30, 4), dtype=np.uint8), mode="RGBA")
    palette = Image.fromarray(COLOUR).convert("P")
    real = ViTImageProcessorPil()
    for image in (grey, clear, palette):
        ours = ViTImageProcessor()(image, return_tensors="np").pixel_values
        reference = real(image.convert("RGB"), return_tensors="np").pixel_values
        assert np.array_equal(ours, reference)
    for array in (np.asarray(grey), np.asarray(grey)[None], np.asarray(clear)):
        assert ViTImageProcessor()(array, return_tensors="np").pixel_values.shape[1] == 3
    one = MaeImageProcessor(image_mean=[0.5], image_std=[0.5], do_resize=False)
    assert one(INPUTS["pictures"], return_tensors="np").pixel_values.shape == (2, 1, 37, 53)


def test_images_with_many_channels_are_scaled_and_normalized():
    bands = RANDOM.integers(0, 256, (6, 8, 8), dtype=np.uint8)
    processor = MaeImageProcessor(
        image_mean=[0.1] * 6, image_std=[0.2] * 6, size={"height": 8, "width": 8}
    )
    pixels = processor(bands, return_tensors="np", input_data_format="channels_first").pixel_values
    assert distance(pixels[0], (bands / 255 - 0.1) / 0.2) < FLOAT32_LIMIT
    with pytest.raises(MaeConvertError, match="cannot be resized"):
        processor(bands[:, :4, :4], input_data_format="channels_first")


def test_it_is_saved_loaded_and_created_from_any_checkpoint(tmp_path, golden):
    processor = ViTImageProcessor(**STATED["of a MAE"])
    written = processor.save_pretrained(tmp_path / "new")
    assert written == [str(tmp_path / "new" / "preprocessor_config.json")]
    assert AutoImageProcessor.from_pretrained(tmp_path / "new").to_dict() == processor.to_dict()
    assert ViTImageProcessor.from_dict(processor.to_dict()).to_dict() == processor.to_dict()
    assert json.loads(processor.to_json_string()) == processor.to_dict()
    assert ViTImageProcessor.from_json_file(written[0]).to_dict() == processor.to_dict()
    with pytest.raises(OSError, match="cannot be read"):
        ViTImageProcessor.from_json_file(tmp_path / "none.json")
    assert not processor.is_fast
    real = ViTImageProcessorPil.from_pretrained(tmp_path / "new")
    assert list(real.image_mean) == processor.image_mean
    assert dict(real.size) == processor.size
    old = {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2,
           "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
           "do_resize": True}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    result = AutoImageProcessor.from_pretrained(tmp_path)
    assert result.size == {"height": 224, "width": 224}
    assert ViTImageProcessor(size=(32, 48)).size == {"height": 32, "width": 48}
    batch = result(COLOUR, return_tensors="np")
    assert batch.pixel_values.shape == (1, 3, 224, 224)
    assert type(batch.data) is dict
    assert batch.data["pixel_values"] is batch.pixel_values
    inside = MaeImageProcessor.from_pretrained(golden / "transformers_tf_pretrain_tiny")
    assert inside.size == {"height": 32, "width": 32}
    assert inside.image_mean == [0.485, 0.456, 0.406]


WRONG = {
    "axes": (np.zeros((2, 2, 3, 4, 4), np.uint8), {}, ValueError, "this array has 5"),
    "range": (np.full((4, 4, 3), 300), {}, ValueError, "0 to 255"),
    "fractions": (np.full((4, 4, 3), 1.5), {"do_rescale": False}, ValueError, "from 0 to 1"),
    "twice": (np.full((4, 4, 3), 0.5), {}, ValueError, "do_rescale=False"),
    "sizes": (
        [COLOUR, COLOUR[:9]],
        {"do_resize": False, "return_tensors": "np"},
        ValueError,
        "different sizes",
    ),
    "kind": (COLOUR, {"return_tensors": "jax"}, ValueError, "'np', 'pt', 'tf'"),
    "option": (COLOUR, {"do_flip": True}, TypeError, "do_flip"),
    "filter": (COLOUR, {"resample": 17}, MaeConvertError, "is not a Pillow filter"),
    "filter's name": (COLOUR, {"resample": "sharp"}, MaeConvertError, "is not a Pillow filter"),
    "deviation": (COLOUR, {"image_std": [0, 1, 1]}, MaeConvertError, "must not be 0"),
    "mean": (COLOUR, {"image_mean": "x"}, MaeConvertError, "a number for each channel"),
    "channels": (np.zeros((20, 20, 2), np.uint8), {}, MaeConvertError, "1 or 3 or 4 channels"),
    "grey ones": (np.zeros((2, 20, 20), np.uint8), {}, MaeConvertError, "1 or 3 or 4 channels"),
    "order": (COLOUR, {"input_data_format": "foo"}, MaeConvertError, "'channels_first'"),
    "other order": (COLOUR, {"input_data_format": "channels_first"}, MaeConvertError, "no first"),
    "order of the result": (COLOUR, {"data_format": "foo"}, MaeConvertError, "data_format must"),
    "none in a list": ([], {}, MaeConvertError, "list of images is empty"),
    "none": (None, {}, MaeConvertError, "None is not an image"),
    "a number": ([3], {}, MaeConvertError, "of type int is not an image"),
    "no pixels": (np.zeros((0, 20, 3), np.uint8), {}, MaeConvertError, "no pixels"),
    "not finite": (np.full((20, 20, 3), np.nan), {}, MaeConvertError, "NaN"),
    "complex": (np.zeros((20, 20, 3), complex), {}, MaeConvertError, "complex128"),
    "size": (COLOUR, {"size": 0}, MaeConvertError, "not an image size"),
    "factor": (
        COLOUR,
        {"rescale_factor": 0},
        MaeConvertError,
        "is 0, but it must be a finite number other than 0",
    ),
    "switch": (COLOUR, {"do_resize": "no"}, MaeConvertError, "True or False"),
    "file": ("nowhere.png", {}, MaeConvertError, "nowhere.png"),
}


@pytest.mark.parametrize("name", WRONG)
def test_input_that_is_not_an_image_is_refused_in_one_sentence(name):
    images, changes, kind, words = WRONG[name]
    with pytest.raises(kind, match=words):
        MaeImageProcessor()(images, **changes)


def test_inputs_are_moved_and_converted_in_place_as_transformers_does():
    inputs = ViTImageProcessor(size={"height": 32, "width": 32})([COLOUR, COLOUR])
    assert inputs.convert_to_tensors("pt") is inputs
    inputs["labels"], inputs["names"] = torch.tensor([1, 2]), ["a", "b"]
    assert inputs.to("cpu", torch.float64) is inputs
    assert (inputs.pixel_values.dtype, inputs.labels.dtype) == (torch.float64, torch.int64)
    assert inputs.names == ["a", "b"]
    inputs.to(dtype=torch.bfloat16)
    assert (inputs.pixel_values.dtype, inputs.labels.dtype) == (torch.bfloat16, torch.int64)
    inputs.to("meta")
    assert inputs.pixel_values.device.type == inputs.labels.device.type == "meta"
