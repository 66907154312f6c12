"""The grid of patches comes from training arguments and fixed position tables, and they agree."""

import argparse
import math

import numpy as np
import pytest
import torch

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import ConfigurationError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.mae.position_tables import grid_of_table, grids
from mae_convert.formats.tensor import LazyTensor
from reference_models.positions import sincos_position_embedding

HEADS = {"num_attention_heads": 4, "decoder_num_attention_heads": 3}
FLAGS = Flags(**HEADS)


@pytest.fixture
def written(case, tmp_path):
    """Write the small pre-training model, of 16 patches of 8 x 8, with other tables and args."""

    def written(grid=None, decoder_grid=None, trained=False, config=None, **arguments):
        model = torch.load(case("pretrain_tiny").checkpoint, weights_only=True)["model"]
        for name, its_grid in (("pos_embed", grid), ("decoder_pos_embed", decoder_grid or grid)):
            width = model[name].shape[-1]
            if its_grid is not None:
                model[name] = torch.tensor(sincos_position_embedding(width, its_grid)).float()
            if trained:
                model[name] = model[name] + 0.02 * torch.randn_like(model[name])
        stored = {"model": model, "args": argparse.Namespace(**arguments)}
        torch.save(stored | ({"config": config} if config else {}), tmp_path / "run.pth")
        return tmp_path / "run.pth"

    return written


def opened(path, **flags):
    configuration = open_checkpoint(path, Flags(**HEADS, **flags)).configuration
    return configuration.model.image_hw, configuration.sources["image_size"]


@pytest.mark.parametrize("message", [[16, 64], (16, 64), "16,64", "[16, 64]"])
def test_training_arguments_give_a_rectangular_image_which_the_table_confirms(written, message):
    size, source = opened(written((2, 8), input_size=message, patch_size=[8, 8]))
    assert size == (16, 64)
    assert source == "training arguments, confirmed by the fixed position table of the encoder"


@pytest.mark.parametrize("grid", [(2, 8), (8, 2), (1, 16), (4, 4)])
def test_a_fixed_table_alone_gives_the_grid(written, grid):
    size, source = opened(written(grid))
    assert size == (8 * grid[0], 8 * grid[1])
    assert source == (f"the fixed position table of the encoder ({grid[0]} x {grid[1]} patches)")


def test_the_table_of_the_decoder_gives_the_grid_where_the_encoder_s_was_trained(written):
    path = written((2, 8))
    stored = torch.load(path, weights_only=False)
    stored["model"]["pos_embed"] += 0.02 * torch.randn(1, 17, 32)
    torch.save(stored, path)
    assert opened(path) == ((16, 64), "the fixed position table of the decoder (2 x 8 patches)")


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        ({"grid": (2, 8), "input_size": 32}, r"input_size is 32, which is 4 x 4 .* for 2 x 8"),
        ({"grid": (2, 8), "decoder_grid": (8, 2)}, r"2 x 8 patches, .* 8 x 2 patches"),
        ({"trained": True, "input_size": 224}, r"input_size is 224, .* embeddings for 16 patches"),
        ({"trained": True, "input_size": 32, "patch_size": 16}, r"patch_size is 16, .* 8 x 8"),
        (
            {"grid": (2, 8), "config": {"image_size": 32}},
            r"image size of 32, .* the values for 2 x 8",
        ),
    ],
)
def test_contradictory_sizes_are_refused_by_both_names_and_an_option_decides(
    written, made, sentence
):
    path = written(**made)
    with pytest.raises(ConfigurationError, match=sentence) as raised:
        open_checkpoint(path, FLAGS)
    assert "source_image_size=" in str(raised.value)
    assert opened(path, image_size=(64, 16)) == ((64, 16), "option source_image_size")


def test_a_trained_table_leaves_a_square_that_is_marked_as_assumed(written):
    configuration = open_checkpoint(written(trained=True), FLAGS).configuration
    assert configuration.model.image_hw == (32, 32)
    assert configuration.assumptions["image_size"] == "square"
    assert configuration.only_assumed()["image_size"]["source"] == "square grid"


def test_each_grid_of_a_number_of_patches_is_tried_once():
    assert list(grids(12)) == [(3, 4), (4, 3), (2, 6), (6, 2), (1, 12), (12, 1)]
    assert set(map(math.prod, grids(256))) == {256}
    assert len(list(grids(256))) == 9


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("exchanged", [False, True])
def test_tables_are_recognised_in_each_dtype_and_with_their_halves_exchanged(dtype, exchanged):
    table = sincos_position_embedding(64, (4, 16))
    if exchanged:  # mmpretrain's and MoCo v3's order
        table = np.concatenate([table[..., 32:], table[..., :32]], -1)
    stored = table.astype(dtype)
    tensor = LazyTensor("x", stored.shape, stored.dtype, lambda: stored)
    assert grid_of_table(tensor, 64) == (4, 16)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_table_of_zeros_or_nan_gives_no_grid(value):
    stored = np.full((1, 17, 32), value, np.float32)
    assert grid_of_table(LazyTensor("x", stored.shape, stored.dtype, lambda: stored), 16) is None


def test_resize_size_of_photographs_does_not_determine_the_grid(written):
    assert opened(written(trained=True, image_size=256)) == ((32, 32), "square grid")
