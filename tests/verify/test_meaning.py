"""Sentences that explain a distance, computed from the results of both sides."""

import numpy as np
import pytest
from mutation.models import random_tensors, write_model, write_original

from mae_convert.runtime.trace import Trace
from mae_convert.verify.meaning import meanings, precision_in_words

OWN = 2.0**-24 * 3  # a rounding error in float32, three units


@pytest.mark.parametrize(
    ("distance", "words"),
    [
        (OWN, ": as large as rounding errors in float32"),
        (OWN / 100, ": smaller than rounding errors in float32"),
        (OWN * 2**13, ": as large as rounding errors in float16 or TF32"),
        (OWN * 100, ": smaller than rounding errors in float16 or TF32"),
        (OWN * 2**16, ": as large as rounding errors in bfloat16"),
        (1.0, ": larger than rounding errors in bfloat16"),
    ],
)
def test_distance_is_described_by_the_precision_with_that_rounding_error(distance, words):
    sentence = precision_in_words(distance, OWN)
    assert sentence.endswith(words)
    assert f"is {distance / OWN:.2g} times" in sentence


def trace(task, **results):
    exact = {f"float64/{name}": np.asarray(array) for name, array in results.items()}
    rounded = {name.replace("64", "32"): np.float32(array) for name, array in exact.items()}
    config = {"norm_pix_loss": False}
    description = {"task": task, "config": config, "image_std": [0.5, 0.25, 0.25]}
    return Trace(description, {**exact, **rounded})


def test_pixels_are_in_grey_levels_and_features_in_similarities():
    rng = np.random.default_rng(0)
    logits, image = rng.standard_normal((2, 4, 6)), np.zeros((2, 3, 4, 4))
    other = image.copy()
    other[0, 0, 0, 0] = 1.0  # 127.5 grey levels in one of 96 values
    a = trace("pretrain", logits=logits, reconstruction=image, loss=1.0)
    b = trace("pretrain", logits=logits * 1.001, reconstruction=other, loss=1.5)
    result = list(meanings(a, b))
    assert result[1:] == [
        "predicted pixels change by 1.3 of 255 grey levels on average, at most by 1.3e+02",
        "the loss on these images is 1 in A and 1.5 in B",
    ]
    assert list(meanings(a, a)) == []
    tokens = np.ones((2, 3, 2))
    turned = tokens * [1.0, 0.0]  # by 45 degrees
    result = list(meanings(trace("encoder", last_hidden_state=tokens),
                          trace("encoder", last_hidden_state=turned)))  # fmt: skip
    assert "cosine similarity of 0.707107 (" in result[1]


def test_decisions_are_counted_on_many_images(tmp_path, command):
    a = write_model("token", tmp_path)
    config = a.configuration.model
    tensors = random_tensors(config, "classify", 0, learned=True)
    for name in ("head.weight", "head.bias"):  # every class is called by the name of the next
        tensors[name] = np.roll(tensors[name], 1, axis=0)
    b = write_original(tmp_path / "b.safetensors", config, "classify", tensors)
    call = ["verify", a.path, b.path, "--framework-a", "torch", "--framework-b", "torch"]
    result = command(*call)
    assert result.status == 1
    sentence = "the top-1 class changes for 1000 of 1000 random images (100 %)"
    assert f"meaning: {sentence}" in result.out
