"""The configuration: derived values, invalid fields, and serialization as plain data."""

import dataclasses
import json
import sys
from subprocess import run

import numpy as np
import pytest
from arrays import FLOAT64_LIMIT, distance

from reference_models.configuration import ViTMAEConfig
from reference_models.positions import sincos_position_embedding


def test_defaults_are_the_base_model_of_the_paper():
    config = ViTMAEConfig()
    assert (config.image_hw, config.patch_hw, config.grid_hw) == ((224, 224), (16, 16), (14, 14))
    assert (config.num_patches, config.patch_dim, config.num_kept) == (196, 768, 49)
    assert config.layer_norm_eps == 1e-6


def test_rectangular_configuration_is_valid():
    config = ViTMAEConfig(image_size=(12, 40), patch_size=(4, 8), num_channels=5, mask_ratio=0.6)
    assert (config.grid_hw, config.num_patches) == ((3, 5), 15)
    assert config.patch_dim == 4 * 8 * 5
    assert config.num_kept == 6


def test_square_image_size_has_one_normal_form():
    pair, number = ViTMAEConfig(image_size=[64, 64]), ViTMAEConfig(image_size=64)
    assert pair == number
    assert hash(pair) == hash(number)
    assert pair.image_size == 64


def test_kept_patches_are_rounded_as_floating_point_does():
    # 10 * (1 - 0.9) is a little less than 1, so the original keeps nothing here.
    config = ViTMAEConfig(image_size=(8, 20), patch_size=4, mask_ratio=0.9)
    assert (config.num_patches, config.num_kept) == (10, 0)


def test_round_trip_through_json():
    config = ViTMAEConfig(image_size=(8, 20), patch_size=4, global_pool="avg", norm_pix_loss=True)
    data = json.loads(json.dumps(config.to_dict()))
    assert set(data) == {field.name for field in dataclasses.fields(config)}
    assert ViTMAEConfig.from_dict({**data, "model_type": "vit_mae", "torch_dtype": None}) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 5}, "5 does not divide 768"),
        ({"decoder_num_attention_heads": 7}, "decoder_num_attention_heads must divide"),
        (
            {"image_size": 220},
            "height of a patch, 16, does not divide the height of the image, 220",
        ),
        ({"image_size": (224, 220)}, "width of a patch"),
        ({"image_size": 224.0}, "image_size must be a positive integer or a pair"),
        ({"patch_size": (4, 4, 4)}, "patch_size must be a positive integer or a pair"),
        ({"num_channels": 0}, "num_channels must be a positive integer, not 0"),
        ({"hidden_size": True}, "hidden_size must be a positive integer"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers must be a positive integer"),
        ({"mask_ratio": 1.0}, "mask_ratio must be at least 0 and less than 1"),
        ({"mask_ratio": float("nan")}, "mask_ratio must be"),
        ({"hidden_dropout_prob": -0.1}, "hidden_dropout_prob must be"),
        ({"attention_probs_dropout_prob": "0"}, "attention_probs_dropout_prob must be"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be a positive number"),
        ({"initializer_range": float("inf")}, "initializer_range must be a positive number"),
        ({"hidden_act": "gelu_fast"}, "hidden_act must be one of gelu,"),
        ({"global_pool": "cls"}, "global_pool must be one of token, avg"),
        ({"norm_pix_loss": 1}, "norm_pix_loss must be true or false"),
        ({"qkv_bias": None}, "qkv_bias must be true or false"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ViTMAEConfig(**fields)


def test_configuration_imports_no_framework():
    code = (
        "import sys, reference_models.configuration\n"
        "assert not {'torch', 'tensorflow', 'keras', 'jax', 'numpy'} & set(sys.modules)"
    )
    run([sys.executable, "-c", code], check=True)


def test_positions_are_sines_and_cosines_of_column_and_row():
    table = sincos_position_embedding(8, (2, 3))
    assert table.shape == (1, 7, 8)
    assert not table[0, 0].any()
    row, column = 1, 2
    expected = [
        f(coordinate * w)
        for coordinate in (column, row)
        for f in (np.sin, np.cos)
        for w in (1, 0.01)
    ]
    assert distance(table[0, 1 + row * 3 + column], expected) < FLOAT64_LIMIT


@pytest.mark.parametrize("width", [1, 2, 3, 6, 7])
def test_positions_are_computed_for_any_width(width):
    table = sincos_position_embedding(width, (2, 2))
    assert table.shape == (1, 5, width)
    assert not table[..., 4 * (width // 4) :].any()
