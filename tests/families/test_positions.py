"""Position embeddings for other image sizes: resampled as PyTorch does, or recomputed."""

import json

import numpy as np
import pytest
import torch
from arrays import FLOAT32_LIMIT, FLOAT64_LIMIT, distance

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.changes import Geometry
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import ConfigurationError, Option
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.mae.layouts import LAYOUTS
from mae_convert.families.position_embeddings import (
    CORNERS_ALIGNED,
    POSITION_EMBEDDINGS,
    PositionTable,
    bicubic,
    regenerated,
    resampled,
)
from mae_convert.formats.dtypes import DTYPES, rounded
from mae_convert.formats.tensor import LazyTensor
from mae_convert.verify.arithmetic import fixed_positions, resampled_positions
from reference_models.positions import sincos_position_embedding, spacetime_position_embedding

GRIDS = [
    ((14, 14), (24, 24)),
    ((14, 14), (7, 7)),
    ((14, 14), (10, 23)),
    ((4, 9), (13, 3)),
    ((2, 8), (1, 1)),
    ((1, 1), (5, 2)),
    ((32, 32), (14, 16)),
]
HEADS = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
SUFFIX = {"facebook": ".pth", "keras": ".weights.h5", "keras-hub": ".weights.h5"}


def by_torch(embedding, grid, new_grid):
    """Return what the original's fine-tuning code computes for (1, 1 + L, width), in float64."""
    tokens = torch.from_numpy(embedding.astype(np.float64))
    image = tokens[:, 1:].reshape(1, *grid, -1).permute(0, 3, 1, 2)
    image = torch.nn.functional.interpolate(
        image, size=new_grid, mode="bicubic", align_corners=False
    )
    return torch.cat([tokens[:, :1], image.permute(0, 2, 3, 1).flatten(1, 2)], dim=1).numpy()


def random_embedding(grid, width=10, dtype=np.float64):
    shape = (1, 1 + grid[0] * grid[1], width)
    return np.random.default_rng(5).standard_normal(shape).astype(dtype)


def target_for(layout, folder):
    is_file = LAYOUTS[layout].weights_name is None
    return folder / (layout + (SUFFIX.get(layout, ".pth") if is_file else ""))


@pytest.fixture
def pretrain(case):
    return open_checkpoint(case("pretrain_tiny").checkpoint, HEADS)


@pytest.mark.parametrize(("grid", "new_grid"), GRIDS)
def test_resampling_equals_pytorch(grid, new_grid):
    embedding = random_embedding(grid)
    expected = by_torch(embedding, grid, new_grid)
    tensor = resampled(LazyTensor.from_array("p", embedding), grid, new_grid)
    assert tensor.shape == expected.shape
    assert distance(tensor.load(), expected) < FLOAT64_LIMIT
    # The verification has another implementation; it is tested against the same reference.
    assert distance(resampled_positions(embedding, grid, new_grid), expected) < FLOAT64_LIMIT
    assert tensor.load()[:, 0].tobytes() == embedding[:, 0].tobytes()


@pytest.mark.parametrize(("grid", "new_grid"), GRIDS)
def test_resampling_with_aligned_corners_equals_pytorch_at_each_time_step(grid, new_grid):
    embedding = random_embedding((3 * grid[0], grid[1]))  # three times
    images = torch.from_numpy(embedding[0, 1:].astype(np.float64)).reshape(3, *grid, -1)
    images = torch.nn.functional.interpolate(
        images.permute(0, 3, 1, 2), size=new_grid, mode="bicubic", align_corners=True
    ).permute(0, 2, 3, 1)
    expected = np.concatenate([embedding[0, :1], images.reshape(-1, embedding.shape[-1])])[None]
    tensor = LazyTensor.from_array("p", embedding.astype(np.float64))
    result = resampled(tensor, grid, new_grid, PositionTable(times=3), CORNERS_ALIGNED)
    assert result.shape == result.load().shape == expected.shape
    assert distance(result.load(), expected) < FLOAT64_LIMIT
    independent = resampled_positions(embedding, grid, new_grid, aligned=True)
    assert distance(independent, expected) < FLOAT64_LIMIT
    without_class = resampled_positions(embedding[:, 1:], grid, new_grid, 0, aligned=True)
    assert distance(without_class, expected[:, 1:]) < FLOAT64_LIMIT


def test_resampling_to_the_same_grid_changes_no_bit():
    image = np.random.default_rng(0).standard_normal((5, 3, 4))
    assert bicubic(image, (5, 3)).tobytes() == image.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_result_is_rounded_once_to_the_dtype_of_the_tensor(dtype):
    embedding = rounded(random_embedding((4, 4)), DTYPES[dtype])
    tensor = resampled(LazyTensor.from_array("p", embedding), (4, 4), (6, 5))
    assert tensor.dtype == tensor.load().dtype == DTYPES[dtype]
    expected = rounded(by_torch(embedding, (4, 4), (6, 5)), DTYPES[dtype])
    away = np.abs(tensor.load().astype(np.float64) - expected.astype(np.float64))
    # Values midway between two floats may round either way, but they are rare.
    assert (away > 0).mean() < 0.01


def test_resampling_does_not_read_the_tensor_early():
    def load():
        raise AssertionError("read too early")

    tensor = LazyTensor("p", (1, 17, 8), DTYPES["float32"], load)
    assert resampled(tensor, (4, 4), (2, 3)).shape == (1, 7, 8)


@pytest.mark.parametrize("size", [(48, 48), (16, 16), (40, 24)])
def test_encoder_and_decoder_are_resampled_the_same_way_for_every_target(pretrain, tmp_path, size):
    grid = (size[0] // 8, size[1] // 8)
    expected = {
        name: rounded(by_torch(pretrain.tensors[name].load(), (4, 4), grid), DTYPES["float32"])
        for name in POSITION_EMBEDDINGS
    }
    written = 0
    for layout in LAYOUTS:
        for task in ("pretrain", "encoder"):
            if not can_hold(layout, pretrain, task, size):
                continue
            (folder := tmp_path / task).mkdir(exist_ok=True)
            target = target_for(layout, folder)
            geometry = Geometry(image_size=size)
            execute(plan_conversion(pretrain, target, layout, task=task, geometry=geometry))
            back = open_checkpoint(target)
            assert back.configuration.model.image_hw == size
            for name in POSITION_EMBEDDINGS[: 1 + (task == "pretrain")]:
                result = back.tensors[name].load()
                assert distance(result, expected[name]) < FLOAT32_LIMIT, (layout, name)
            written += 1
    assert written >= 8


def can_hold(layout, checkpoint, task, size):
    from dataclasses import replace

    model = replace(checkpoint.configuration.model, image_size=size)
    holds = any(task in table.tasks for table in LAYOUTS[layout].tables)
    return holds and LAYOUTS[layout].refusal(model, task) is None


def test_equal_size_is_not_a_step_and_changes_no_bit(pretrain, tmp_path):
    for number, sincos in enumerate((False, True)):
        target = tmp_path / f"{number}.pth"
        geometry = Geometry(image_size=(32, 32), sincos_positions=sincos)
        report = execute(plan_conversion(pretrain, target, "facebook", geometry=geometry))
        assert report["steps"] == []
        for name, tensor in open_checkpoint(target).tensors.items():
            assert tensor.load().tobytes() == pretrain.tensors[name].load().tobytes(), name


class TestFixedEmbeddings:
    """Golden: the checkpoints of the original contain its own fixed embeddings."""

    def test_the_original_computes_in_float64_and_stores_float32(self, pretrain):
        for name in POSITION_EMBEDDINGS:
            stored = pretrain.tensors[name].load()
            table = sincos_position_embedding(stored.shape[-1], (4, 4))
            assert stored.tobytes() == table.astype(np.float32).tobytes(), name

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_they_are_recognised_in_every_dtype_and_recomputed(self, dtype):
        stored = sincos_position_embedding(24, (14, 14)).astype(np.float32)
        tensor = LazyTensor.from_array("p", rounded(stored, DTYPES[dtype]))
        made = regenerated(tensor, (14, 14), (20, 6))
        fixed = sincos_position_embedding(24, (20, 6)).astype(np.float32)
        assert made.shape == (1, 121, 24)
        assert made.load().dtype == DTYPES[dtype]
        assert made.load().tobytes() == rounded(fixed, DTYPES[dtype]).tobytes()
        exact = fixed_positions(stored.astype(np.float64), (14, 14), (20, 6))
        assert distance(exact, sincos_position_embedding(24, (20, 6))) < FLOAT64_LIMIT

    @pytest.mark.parametrize("width", [32, 40])
    def test_those_of_frames_rows_and_columns_are_recomputed(self, width):
        stored = spacetime_position_embedding(width, (3, 4, 2)).astype(np.float32)
        tensor, axes = LazyTensor.from_array("p", stored), "times, rows and columns"
        made = regenerated(tensor, (3, 4, 2), (5, 2, 7), axes)
        fixed = spacetime_position_embedding(width, (5, 2, 7))
        assert made.load().tobytes() == fixed.astype(np.float32).tobytes()
        exact = fixed_positions(stored.astype(np.float64), (3, 4, 2), (5, 2, 7))
        assert distance(exact, fixed) < FLOAT64_LIMIT
        stored[0, 5, 1] += 0.1  # a trained embedding is not replaced
        assert np.isnan(fixed_positions(stored, (3, 4, 2), (5, 2, 7))).all()
        option = Option("num_frames", 5)
        with pytest.raises(ConfigurationError, match="num_frames=5 would discard trained values"):
            regenerated(LazyTensor.from_array("p", stored), (3, 4, 2), (5, 4, 2), axes, option)

    def test_float64_embedding_is_recomputed_exactly(self):
        tensor = LazyTensor.from_array("p", sincos_position_embedding(24, (4, 4)))
        fixed = sincos_position_embedding(24, (3, 5))
        assert regenerated(tensor, (4, 4), (3, 5)).load().tobytes() == fixed.tobytes()

    def test_embedding_that_differs_by_one_bit_is_not_fixed(self):
        stored = sincos_position_embedding(24, (4, 4)).astype(np.float32)
        stored[0, 7, 3] = np.nextafter(stored[0, 7, 3], np.float32(2))
        with pytest.raises(ConfigurationError, match=r"p is not the fixed .* leave it out"):
            regenerated(LazyTensor.from_array("p", stored), (4, 4), (3, 5))

    def test_they_are_recomputed_by_a_conversion(self, pretrain, tmp_path):
        geometry = Geometry(image_size=(64, 24), sincos_positions=True)
        target = tmp_path / "model.pth"
        report = execute(plan_conversion(pretrain, target, "facebook", geometry=geometry))
        assert report["steps"] == [
            {"step": "image_size", "from": [32, 32], "to": [64, 24], "positions": "sincos"}
        ]
        for name in POSITION_EMBEDDINGS:
            stored = open_checkpoint(target).tensors[name].load()
            fixed = sincos_position_embedding(stored.shape[-1], (8, 3)).astype(np.float32)
            assert stored.tobytes() == fixed.tobytes(), name


class TestCommandLine:
    def test_learned_embedding_is_not_discarded(self, command, case, tmp_path):
        result = command(
            "convert", case("finetune_cls_tiny").checkpoint, tmp_path / "m", "--to", "transformers",
            "--num-heads", 4, "--image-size", 48, "--sincos-positions",
        )  # fmt: skip
        assert (result.status, result.err.count("\n")) == (2, 1)
        assert "encoder.position_embedding is not the fixed" in result.err
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--image-size", "50"], "do not divide the height 50"),
            (["--image-size", "32x36"], "choose 32 or 40"),
            (["--image-size", "4"], "choose 8"),
            (["--sincos-positions"], "--image-size"),
            (["--image-size", "48x24"], "support only square images"),
            (["--image-size", "0"], "is not a size"),
        ],
    )
    def test_invalid_sizes_are_refused(self, command, case, tmp_path, options, words):
        pretrain, target = case("pretrain_tiny"), tmp_path / "m"
        expected = ["convert", pretrain.checkpoint, target, "--to", "transformers", *pretrain.heads]
        result = command(*expected, *options)
        assert result.status == 2
        assert words in result.err
        assert list(tmp_path.iterdir()) == []

    def test_step_is_reported_and_recorded(self, command, case, tmp_path):
        pretrain, target = case("pretrain_tiny"), tmp_path / "m"
        expected = ["convert", pretrain.checkpoint, target, "--to", "transformers", *pretrain.heads]
        result = command(*expected, "--image-size", "48")
        assert result.status == 0, result.err
        assert "image_size: 32 x 32 to 48 x 48, positions bicubic" in result.out
        assert "cannot be undone" in result.out
        record = json.loads((target / "conversion.json").read_text())
        assert record["steps"] == [
            {"step": "image_size", "from": [32, 32], "to": [48, 48], "positions": "bicubic"}
        ]
        assert json.loads((target / "config.json").read_text())["image_size"] == 48
        size = json.loads((target / "preprocessor_config.json").read_text())["size"]
        assert size == {"height": 48, "width": 48}
