"""Visualization: masks, sheets of reconstructions, animations, features."""

import numpy as np
import pytest
from arrays import FLOAT32_LIMIT, distance
from paths import DEMO
from PIL import Image, ImageSequence

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.cli.output.visualization import reconstructions
from mae_convert.errors import MaeConvertError
from mae_convert.families.mae.family import MAE
from mae_convert.visualize.patch_masks import drawn_mask, noise_of
from mae_convert.visualize.pixels import amplified_difference, eight_bits
from mae_convert.visualize.reconstruct import ReconstructionOptions, write_reconstructions
from mae_convert.visualize.reconstruction import crop_to_shape
from mae_convert.visualize.sheet import Row, Sheet, draw, panel
from reference_models.configuration import ViTMAEConfig

DATA = DEMO
MODEL = DATA / "checkpoint.pth"
CONFIG = ViTMAEConfig()  # 14 x 14 patches
WIDE = ViTMAEConfig(image_size=(96, 224))


def kept(noise, count):
    """Return which patches a model keeps, boolean (N, L)."""
    ranks = np.argsort(np.argsort(noise, axis=1), axis=1)
    return ranks < count


@pytest.mark.parametrize("config", [CONFIG, WIDE])
@pytest.mark.parametrize("kind", ["random", "block", "grid"])
def test_mask_is_a_permutation_of_patches(kind, config):
    noise = noise_of(kind, MAE, config, count=3, seed=4)
    assert noise.shape == (3, config.num_patches)
    assert all(len(np.unique(row)) == config.num_patches for row in noise)
    assert np.array_equal(noise, noise_of(kind, MAE, config, count=3, seed=4))
    assert np.array_equal(noise[0], noise[1]) == (kind == "grid")


def test_grid_mask_keeps_one_of_four_patches():
    seen = kept(noise_of("grid", MAE, CONFIG, count=1), 49).reshape(14, 14)
    assert np.array_equal(seen, (np.indices((14, 14)) % 2 == 0).all(axis=0))


def test_a_block_mask_is_less_scattered_than_a_random_one():
    def borders(kind):
        seen = kept(noise_of(kind, MAE, CONFIG, count=20), 49).reshape(20, 14, 14)
        return (seen[:, 1:] != seen[:, :-1]).sum() + (seen[:, :, 1:] != seen[:, :, :-1]).sum()

    assert borders("block") < 0.5 * borders("random")


def test_mask_is_read_from_an_image(tmp_path):
    drawn = np.zeros((60, 60), np.uint8)
    drawn[:30] = 255
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    noise, ratio = drawn_mask(tmp_path / "mask.png", MAE, CONFIG, count=2)
    assert int(CONFIG.num_patches * (1 - ratio)) == 98
    assert np.array_equal(kept(noise, 98)[1].reshape(14, 14), np.indices((14, 14))[0] >= 7)
    Image.new("L", (9, 9), 255).save(tmp_path / "white.png")
    with pytest.raises(MaeConvertError, match="removes every patch"):
        drawn_mask(tmp_path / "white.png", MAE, CONFIG, count=1)


@pytest.mark.parametrize("count", [1, 49, 195, 196])
def test_mask_ratio_determines_the_number_of_kept_patches(count):
    config = ViTMAEConfig(mask_ratio=MAE.ratio_that_keeps(count, CONFIG))
    assert config.num_kept == count


def test_center_of_an_image_is_cropped():
    assert crop_to_shape(Image.new("RGB", (300, 100)), (224, 224)).size == (100, 100)
    assert crop_to_shape(Image.new("RGB", (100, 300)), (96, 192)).size == (100, 50)


def test_groups_of_rows_are_placed_side_by_side():
    row = Row("a name that is much too long for one tile " * 9, (np.zeros((32, 32, 3)),) * 2)
    sheet = Sheet(("original", "masked"), (row,) * 5, "a note", (1.0,) * 4 + (2.0,))
    one, two = draw(sheet, across=1), draw(sheet)
    assert two.width == 2 * one.width
    assert two.height < one.height


def test_sheet_shows_the_model_input(command, tmp_path):
    images = sorted(DATA.glob("*.jpg"))[:2]
    names = [tmp_path / "sheet.png", tmp_path / "film.gif"]
    result = command(
        "reconstruct", MODEL, *images, "-o", names[0], "-o", names[1], "--json", "--mask", "grid"
    )
    report = result.json
    assert [row["removed"] for row in report["images"]] == [108, 108]
    assert all(0 < row["loss"]["torch"] < 1.5 for row in report["images"])
    sheet = np.asarray(Image.open(names[0])).astype(int)
    left, top, tile, step = 16, 36, 288, 294  # of 96 pixels, each three times as large
    original, masked, _, whole = (
        sheet[top : top + tile, left + i * step : left + i * step + tile] for i in range(4)
    )
    patch = slice(0, 24), slice(0, 24)  # the first patch, which a grid mask keeps
    assert np.array_equal(original[patch], masked[patch])
    assert np.array_equal(original[patch], whole[patch])
    beside = slice(0, 24), slice(24, 48)
    assert abs(masked[beside] - 128).max() <= 1
    with Image.open(names[1]) as film:
        assert len(list(ImageSequence.Iterator(film))) == 8
    again = command("reconstruct", MODEL, *images, "-o", names[0])
    assert (again.status, "--overwrite" in again.err) == (2, True)


def test_output_describes_the_frames_of_an_animation(tmp_path, capsys):
    checkpoint = open_checkpoint(MODEL)
    report = write_reconstructions(
        [DATA / "coffee.jpg"], checkpoint, [tmp_path / "film.gif"], ReconstructionOptions()
    )
    assert report["mask_ratio"] == 0.5
    assert report["film_ratios"][0] == 0.5
    reconstructions(report)
    assert (
        "the first frame of the animation, at a mask ratio of 50%; the last frame is at 95%"
        in capsys.readouterr().out
    )


@pytest.mark.filterwarnings("error")
def test_non_finite_values_are_drawn_without_a_warning():
    checkpoint = open_checkpoint(MODEL)
    model = checkpoint.configuration.model
    shape = (1, 3, *model.image_hw)
    mask = np.ones((1, model.num_patches), np.float32)
    painted = np.full(shape, np.nan)
    painted[:, :, ::2] = np.inf
    drawn = panel(np.zeros(shape), painted, mask, ["broken"], checkpoint)
    assert drawn.width > 0
    shown, _ = amplified_difference(painted, painted)
    assert eight_bits(shown).dtype == np.uint8


def test_two_frameworks_give_the_same_reconstruction(command, tmp_path):
    wide = tmp_path / "wide.png"
    Image.open(DATA / "coffee.jpg").resize((300, 100)).save(wide)
    output = tmp_path / "sheet.png"
    result = command(
        "reconstruct", MODEL, wide, "-o", output, "--framework", "both", "--fit", "stretch",
        "--norm-pix-loss", "--json",
    )  # fmt: skip
    report = result.json
    losses = report["images"][0]["loss"]
    assert losses["torch"] == pytest.approx(losses["tensorflow"], rel=1e-4)
    assert 0 < report["largest_difference"] < 1e-4
    assert "taken from the original" in report["note"]
    assert Image.open(output).size == (16 * 2 + 5 * 294 - 6, 16 * 2 + 20 * 3 + 6 + 96)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.png", "-o", "x.png"], "nowhere.png does not exist"),
        ([DATA / "coffee.jpg", "-o", "x.tga"], "end in .png"),
        ([DATA / "coffee.jpg", "-o", "x.png", "-o", "./x.png"], "x.png is specified twice"),
        ([DATA / "coffee.jpg", "-o", "x.png", "--mask", "holes"], "--mask holes does not exist"),
        ([DATA / "coffee.jpg", "-o", "x.gif", "--mask", DATA / "coffee.jpg"], "fixed mask ratio"),
    ],
)
def test_invalid_arguments_of_reconstruct_are_reported(command, tmp_path, arguments, sentence):
    result = command("reconstruct", MODEL, *arguments, cwd=tmp_path)
    assert result.status == 2
    assert sentence in result.err
    assert not list(tmp_path.iterdir())


def test_reconstruct_refuses_an_encoder(command, case, tmp_path):
    encoder = case("encoder_tiny")
    result = command(
        "reconstruct", encoder.checkpoint, DATA / "coffee.jpg", "-o", tmp_path / "x.png",
        *encoder.heads,
    )  # fmt: skip
    assert result.status == 2
    assert "has no decoder" in result.err


def test_features_have_names_and_labels(command, run, tmp_path):
    folder = tmp_path / "pictures"
    for label in ("cats", "cups"):
        (folder / label).mkdir(parents=True)
    for name, label in (("chelsea", "cats"), ("coffee", "cups")):
        (folder / label / f"{name}.jpg").write_bytes((DATA / f"{name}.jpg").read_bytes())
    for framework, start in (("torch", command), ("tensorflow", run)):  # never both in one process
        output = tmp_path / f"{framework}.npz"
        result = start(
            "features", MODEL, folder, "-o", output, "--framework", framework, "--batch", 1
        )
        assert "2 images, 160 features each, 2 labels" in result.out
    one, other = (np.load(tmp_path / f"{name}.npz") for name in ("torch", "tensorflow"))
    assert one["names"].tolist() == ["cats/chelsea.jpg", "cups/coffee.jpg"]
    assert one["labels"].tolist() == ["cats", "cups"]
    for name in ("cls", "mean"):
        assert one[name].shape == (2, 160)
        assert distance(one[name], other[name]) < FLOAT32_LIMIT
    data = (DATA / "coffee.jpg").read_bytes()
    (folder / "cups" / "torn.jpg").write_bytes(data[: len(data) // 2])
    (folder / "cups" / "vague.tif").write_bytes(b"not a picture")
    torn = command("features", MODEL, folder, "-o", tmp_path / "torn.npz")
    assert torn.status == 2
    assert "torn.jpg cannot be read as an image" in torn.err
    assert "(2 files cannot be read)" in torn.err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "contains no images" in command("features", MODEL, empty, "-o", tmp_path / "x.npz").err
