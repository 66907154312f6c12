"""Videos and series of satellite images: read, sampled, masked, reconstructed, drawn, encoded."""

import builtins
import json

import numpy as np
import pytest
import torch
from arrays import distance
from family_cases import inputs as golden_inputs
from paths import DEMO, GOLDEN
from PIL import Image, ImageSequence

from mae_convert.checkpoint.clip_inputs import clips_below, load_clips
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.checkpoint.video_files import read_frames
from mae_convert.errors import MaeConvertError, MissingRequirementError
from mae_convert.families import families
from mae_convert.families.checkpoint_options import Flags
from mae_convert.runtime import load_model
from mae_convert.visualize.patch_masks import drawn_mask, noise_of
from mae_convert.visualize.pixels import in_pixels, mask_of_pixels
from mae_convert.visualize.reconstruction import Reconstructor
from mae_convert.visualize.timeline import objective

CASES = {
    "videomae": "videomae_pretrain_tiny",
    "mae_st": "mae_st_pretrain_tiny",
    "prithvi": "prithvi_v2_tiny",
}
HEADS = ("--num-heads", 4, "--decoder-num-heads", 3)
SIZE = ("--source-image-size", "32x32")


def path_of(family):
    return GOLDEN / CASES[family] / "checkpoint.pth"


def opened(family, **fields):
    option_values = {
        "num_attention_heads": 4,
        "decoder_num_attention_heads": 3,
        "image_size": (32, 32),
    }
    return open_checkpoint(path_of(family), Flags(**option_values, **fields))


def moving(count, height=40, width=48):
    """Return frames (T, H, W, 3) of a photograph that moves by 2 pixels each time."""
    with Image.open(DEMO / "coffee.jpg") as image:
        photograph = np.asarray(image.convert("RGB").resize((width + 2 * count, height)))
    return np.stack([photograph[:, 2 * i : 2 * i + width] for i in range(count)])


def six_bands(count, height=40, width=36):
    """Return values (T, H, W, 6) like those of satellite images, computed from a photograph."""
    colours = moving(count, height, width).astype(np.int16)
    return np.concatenate([colours * 12 + 200, colours * 9 + 800], axis=-1)


@pytest.fixture
def clip(tmp_path):
    """Return a function that writes a clip with the input shape of a family."""

    def make(family, count=None, name="clip.npz"):
        frames = six_bands(count or 3) if family == "prithvi" else moving(count or 40)
        np.savez(tmp_path / name, frames=frames)
        return tmp_path / name

    return make


def read_all(path):
    return read_frames(path, lambda count, _: range(count))


def test_every_kind_of_file_gives_the_same_frames(tmp_path):
    frames = moving(12)
    np.savez(tmp_path / "clip.npz", frames=frames)
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame{i + 1}.png")  # frame10 sorts before frame2
    assert np.array_equal(read_all(tmp_path / "clip.npz").pixels, frames)
    assert np.array_equal(read_all(folder).pixels, frames)
    first, *rest = map(Image.fromarray, frames)
    first.save(tmp_path / "clip.gif", save_all=True, append_images=rest, duration=40)
    film = read_all(tmp_path / "clip.gif")
    assert (film.count, film.rate) == (12, 25)
    assert np.abs(film.pixels.astype(int) - frames).mean() < 6  # of 256 colours
    chosen = read_frames(tmp_path / "clip.npz", lambda count, _: (1, 7, 7))
    assert np.array_equal(chosen.pixels, frames[[1, 7, 7]])


def test_truncated_gif_is_refused_for_every_selection_of_frames(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 24, 32, 3), dtype=np.uint8)
    first, *rest = map(Image.fromarray, frames)
    whole, cut = tmp_path / "whole.gif", tmp_path / "cut.gif"
    first.save(whole, save_all=True, append_images=rest)
    cut.write_bytes(whole.read_bytes()[:-100])
    chosen = lambda *_: [0]  # noqa: E731
    assert read_frames(whole, chosen).count == 4
    with pytest.raises(MaeConvertError, match=r"cut\.gif cannot be read as a GIF"):
        read_frames(cut, chosen)


def test_file_that_is_not_a_gif_is_refused_with_a_message(tmp_path):
    path = tmp_path / "empty.gif"
    path.touch()
    with pytest.raises(MaeConvertError) as caught:
        read_all(path)
    assert caught.value.message.endswith("cannot be read as a GIF: it is truncated or not a GIF")


def test_file_that_is_not_a_video_is_refused_with_a_message(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "bad.mp4"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(MaeConvertError) as caught:
        read_all(path)
    assert caught.value.message.endswith("as a video: Invalid data found when processing input")


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_containers_are_decoded_by_pyav(tmp_path, suffix):
    av = pytest.importorskip("av")
    frames = moving(30)
    path = tmp_path / f"clip.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 48, 40, "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    read = read_all(path)
    assert (read.count, read.rate) == (30, 25)
    assert np.abs(read.pixels.astype(int) - frames).mean() < 8
    some = read_frames(path, lambda count, _: (3, 20, 20))
    assert np.array_equal(some.pixels, read.pixels[[3, 20, 20]])
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(MaeConvertError, match=r"cannot be read as a video|contains no"):
        read_all(path)


def test_a_playlist_that_is_named_as_a_video_opens_no_other_file(tmp_path):
    pytest.importorskip("av")
    for name, text in {
        "a.mp4": "#EXTM3U\n#EXTINF:1,\n{}\n",
        "b.mp4": "ffconcat version 1.0\nfile {}",
    }.items():
        (tmp_path / name).write_text(text.format(tmp_path / "other.mp4"))
        with pytest.raises(MaeConvertError, match="cannot be read as a video"):
            read_all(tmp_path / name)


def test_tiff_images_of_six_bands(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    frames, folder = six_bands(3), tmp_path / "series"
    folder.mkdir()
    for i, frame in enumerate(frames):
        bands = frame.transpose(2, 0, 1) if i else frame
        tifffile.imwrite(
            folder / f"t{i}.tif",
            bands,
            photometric="minisblack",
            planarconfig="separate" if i else "contig",
        )
    assert np.array_equal(read_all(folder).pixels, frames)


def test_a_missing_package_is_reported(command, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *more, **named):
        if name in ("av", "tifffile"):
            raise ImportError(name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "clip.mp4").write_bytes(b"\0")
    result = command(
        "reconstruct",
        path_of("videomae"),
        tmp_path / "clip.mp4",
        "-o",
        tmp_path / "x.png",
        *HEADS,
        *SIZE,
    )
    assert (result.status, "pip install 'mae-convert[video]'" in result.err) == (3, True)
    (tmp_path / "t.tif").write_bytes(b"II*\0")
    with pytest.raises(MissingRequirementError, match=r"mae-convert\[geotiff\]"):
        read_all(tmp_path / "t.tif")


def test_frames_are_sampled_as_in_training():
    videomae, mae_st, prithvi = (families()[name].clips for name in CASES)
    assert videomae.indices(300, 16, 30.0, 4) == list(range(119, 119 + 64, 4))
    assert videomae.indices(61, 16, None, 4) == list(range(0, 61, 4))
    assert videomae.indices(10, 4, None, 4) == [0, 4, 8, 8]  # too short: the last one is repeated
    # 64 frames at 30 per second, from the middle; both ends belong to it.
    assert mae_st.indices(300, 16, 30.0, 4)[:4] == [118, 122, 126, 130]
    assert mae_st.indices(300, 16, 30.0, 4)[-1] == 181
    slow = mae_st.indices(300, 16, 15.0, 4)  # half as many frames in the same time
    assert slow[-1] - slow[0] == 31
    assert mae_st.indices(8, 4, 30.0, 4) == [0, 5, 7, 7]
    assert prithvi.indices(4, 4, None, 1) == [0, 1, 2, 3]


def test_pixels_are_normalized_with_the_statistics_of_the_family(clip):
    expected = {
        "videomae": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "mae_st": ((0.45,) * 3, (0.225,) * 3),
    }
    for family, (mean, std) in expected.items():
        checkpoint = opened(family)
        pixels = load_clips([clip(family)], checkpoint).pixel_values
        assert pixels.shape == (1, *checkpoint.configuration.model.pixel_shape)
        # The shorter side, 40, is resized to 32, and the other, then 38, is cropped at the middle.
        (indices,) = load_clips([clip(family)], checkpoint).indices
        frame = Image.fromarray(moving(40)[indices[1]]).resize((38, 32), Image.Resampling.BILINEAR)
        normalized = (np.asarray(frame)[:, 3:35] / 255 - mean) / std
        assert distance(pixels[0, :, 1], normalized.transpose(2, 0, 1)) < 1e-6
    frames = six_bands(3)
    frames[0, 10, 10] = -9999
    path = clip("prithvi")
    np.savez(path, frames=frames)
    checkpoint = opened("prithvi")
    pixels = load_clips([path], checkpoint).pixel_values
    mean, std = (
        np.array([1087, 1342, 1433, 2734, 1958, 1363]),
        np.array([2248, 2179, 2178, 1850, 1242, 1049]),
    )
    inside = np.where(frames == -9999, 0.0001, frames)[:, 4:36, 2:34]
    assert distance(pixels[0], ((inside - mean) / std).transpose(3, 0, 1, 2)) < 1e-6


@pytest.mark.slow
def test_frames_are_prepared_as_by_the_processor_of_transformers(tmp_path):
    import transformers

    frames = moving(16, 50, 70)
    np.savez(tmp_path / "clip.npz", frames=frames)
    ours = load_clips([tmp_path / "clip.npz"], opened("videomae"), stride=1).pixel_values
    kind = getattr(transformers, "VideoMAEImageProcessorPil", transformers.VideoMAEImageProcessor)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    processor = kind(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=mean,
        image_std=std,
    )
    reference = np.asarray(processor([list(frames)], return_tensors="np")["pixel_values"])
    limit = 1e-6 if "Pil" in kind.__name__ else 0.05
    assert distance(ours[0], reference[0].swapaxes(0, 1)) < limit


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("normalized", [False, True])
def test_predictions_become_pixels_as_in_the_reference_model(family, normalized):
    checkpoint = opened(family, norm_pix_loss=normalized)
    model = load_model(checkpoint, dtype="float64")
    model_inputs = golden_inputs(CASES[family])
    pixels, noise = (torch.from_numpy(model_inputs[name]) for name in ("pixel_values", "noise"))
    with torch.inference_mode():
        outputs = model(pixels.double(), noise)
        whole = model.reconstruct(pixels.double(), outputs.logits, outputs.mask).numpy()
    run = Reconstructor(checkpoint, "torch")
    config, kind = checkpoint.configuration.model, checkpoint.family
    result = run(model_inputs, kind.ratio_that_keeps(config.num_kept, config))
    assert np.array_equal(result.mask, outputs.mask.numpy())
    removed = np.broadcast_to(
        np.moveaxis(mask_of_pixels(result.mask, result.shapes), -1, 1) > 0, whole.shape
    )
    (predicted,) = result.predicted.values()
    assert distance(predicted[removed], whole[removed]) < 1e-5
    # The frames that the loss is computed from are compared.
    assert distance(result.pixel_values[~removed], whole[~removed]) < 1e-6
    losses = objective(result, kind, config)
    assert losses.mean() == pytest.approx(float(outputs.loss), rel=1e-5)
    stored = kind.predicted_pixels(model_inputs["pixel_values"], config)
    assert in_pixels(predicted, stored, kind, config).shape == stored.shape


@pytest.mark.parametrize("family", CASES)
def test_masks_are_those_of_the_family(family, tmp_path):
    checkpoint = opened(family)
    kind, config = checkpoint.family, checkpoint.configuration.model
    times, rows, columns = config.grid_shape
    noise = noise_of("random", kind, config, count=2, seed=3)
    same = kind.noise(config, 2, np.random.Generator(np.random.Philox(3)))
    assert np.array_equal(noise, same)
    grid = noise_of("grid", kind, config, count=1).reshape(times, rows, columns)
    assert (np.argsort(grid[0].ravel()) == np.argsort(grid[-1].ravel())).all()
    drawn = np.zeros((40, 40), np.uint8)
    drawn[:20] = 255
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    noise, ratio = drawn_mask(tmp_path / "mask.png", kind, config, count=1)
    result = Reconstructor(checkpoint, "torch")(
        {"pixel_values": np.zeros((1, *config.pixel_shape), np.float32), "noise": noise}, ratio
    )
    expected = np.broadcast_to(np.indices((rows, columns))[0] < rows // 2, (times, rows, columns))
    assert np.array_equal(result.mask.reshape(expected.shape) > 0, expected)


@pytest.mark.parametrize("family", CASES)
def test_sheet_of_frames_and_animation_are_written(command, clip, tmp_path, family):
    sheet, film = tmp_path / "sheet.png", tmp_path / "film.gif"
    result = command(
        "reconstruct",
        path_of(family),
        clip(family),
        "-o",
        sheet,
        "-o",
        film,
        *HEADS,
        *SIZE,
        "--json",
    )
    assert result.status == 0, result.err
    report = result.json
    config = opened(family).configuration.model
    frames = {"videomae": 16, "mae_st": 4, "prithvi": 3}[family]
    assert report["images"][0]["removed"] == config.num_patches - config.num_kept
    assert len(report["images"][0]["frames"]) == config.num_frames
    assert report["sampling"]
    if family == "prithvi":
        assert report["note"].startswith("channels 3, 2, 1 as red, green and blue, each scaled")
    with Image.open(sheet) as image:
        rows = 3 if family == "videomae" else 4
        tiles = min(frames, 8)
        assert image.width == 32 + tiles * 230 - 6
        assert image.height > rows * 224
    with Image.open(film) as image:
        assert len(list(ImageSequence.Iterator(image))) == frames
        assert image.width == 32 + rows * 230 - 6
    again = command("reconstruct", path_of(family), clip(family), "-o", sheet, *HEADS, *SIZE)
    assert (again.status, "--overwrite" in again.err) == (2, True)


@pytest.mark.slow
def test_two_frameworks_give_the_same_reconstruction_of_a_video(command, clip, tmp_path):
    result = command(
        "reconstruct",
        path_of("videomae"),
        clip("videomae"),
        "-o",
        tmp_path / "s.png",
        *HEADS,
        *SIZE,
        "--framework",
        "both",
        "--json",
    )
    assert result.status == 0, result.err
    assert 0 < result.json["largest_difference"] < 1e-4


def test_features_of_a_folder_of_videos_are_saved(command, tmp_path):
    folder = tmp_path / "videos"
    for label in ("left", "right"):
        (folder / label / "frames").mkdir(parents=True)
        np.savez(folder / label / "clip.npz", frames=moving(40))
        for i, frame in enumerate(moving(20)):
            Image.fromarray(frame).save(folder / label / "frames" / f"{i}.png")
    (folder / "right" / "torn.gif").write_bytes(b"GIF89a")
    arguments = ("features", path_of("videomae"), folder, *HEADS[:2], *SIZE, "--tokens")
    torn = command(*arguments, "-o", tmp_path / "torn.npz")
    assert (torn.status, "torn.gif cannot be read as a GIF" in torn.err) == (2, True)
    result = command(*arguments, "-o", tmp_path / "f.npz", "--skip-unreadable")
    assert "4 videos, 32 features each, 2 labels" in result.out, result.err
    assert "one frame in 4 from the middle" in result.out
    arrays = np.load(tmp_path / "f.npz")
    assert arrays["names"].tolist() == [
        "left/clip.npz",
        "left/frames",
        "right/clip.npz",
        "right/frames",
    ]
    assert arrays["labels"].tolist() == ["left", "left", "right", "right"]
    assert "cls" not in arrays  # the encoder has no class token
    checkpoint = opened("videomae")
    model = load_model(checkpoint, task="encoder")
    pixels = load_clips(clips_below(folder / "left", checkpoint), checkpoint).pixel_values
    order = torch.arange(128.0).repeat(2, 1)
    model.config = type(model.config)(**{**vars(model.config), "mask_ratio": 0.0})
    with torch.inference_mode():
        hidden = model(torch.from_numpy(pixels), order).last_hidden_state.numpy()
    assert distance(arrays["tokens"][:2], hidden) < 1e-5
    assert distance(arrays["mean"][:2], hidden.mean(1)) < 1e-5


def test_class_tokens_are_saved_if_present(command, clip, tmp_path):
    clip("prithvi", name="clip.npz")
    result = command(
        "features",
        path_of("prithvi"),
        tmp_path,
        *HEADS[:2],
        *SIZE,
        "-o",
        tmp_path.parent / f"{tmp_path.name}.npz",
    )
    assert result.status == 0, result.err
    arrays = np.load(tmp_path.parent / f"{tmp_path.name}.npz")
    assert arrays["cls"].shape == arrays["mean"].shape == (1, 32)


@pytest.mark.parametrize(
    ("family", "frames", "sentence"),
    [
        ("videomae", np.zeros((20, 40, 40, 6), np.uint8), "has 6 channels, but this model takes 3"),
        ("videomae", np.zeros((20, 40, 40, 3), np.float32), "must be uint8"),
        ("videomae", np.zeros((40, 40, 3), np.uint8), "it must be (T, H, W, C)"),
        ("videomae", np.zeros((0, 40, 40, 3), np.uint8), "contains no frames"),
        ("prithvi", np.zeros((4, 40, 40, 6)), "has 4 frames, but this model takes 3"),
        ("prithvi", np.zeros((3, 40, 40, 3)), "has 3 channels, but this model takes 6"),
        (
            "prithvi",
            np.zeros((3, 24, 40, 6)),
            "measured values (such as satellite bands) are not resampled",
        ),
        ("prithvi", np.full((3, 40, 40, 6), np.nan), "contains NaN or infinite values"),
    ],
)
def test_mismatched_inputs_are_reported(tmp_path, family, frames, sentence):
    np.savez(tmp_path / "clip.npz", frames=frames)
    with pytest.raises(MaeConvertError) as error:
        load_clips([tmp_path / "clip.npz"], opened(family))
    assert sentence in str(error.value)
    assert str(tmp_path / "clip.npz") in str(error.value)


def test_file_that_is_not_a_video_is_reported(command, tmp_path):
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "inputs.npz", pixel_values=np.zeros(3))
    (tmp_path / "note.txt").write_text("x")
    for name, sentence in {
        "nowhere.mp4": "does not exist",
        "empty": "contains no videos",
        "note.txt": "is not a video",
        "inputs.npz": "contains no array frames",
    }.items():
        result = command(
            "reconstruct",
            path_of("videomae"),
            tmp_path / name,
            "-o",
            tmp_path / "x.png",
            *HEADS,
            *SIZE,
        )
        assert (result.status, sentence in result.err) == (2, True), result.err
        assert "Traceback" not in result.err
    for option in (("--frame-stride", 2), ("--fit", "stretch")):
        ignored = command(
            "reconstruct",
            path_of("prithvi"),
            tmp_path / "inputs.npz",
            "-o",
            tmp_path / "x.png",
            *HEADS,
            *SIZE,
            *option,
        )
        sentence = f"{option[0]} {option[1]} has no effect"
        assert (ignored.status, sentence in ignored.err) == (2, True)
    image = command(
        "reconstruct",
        DEMO / "checkpoint.pth",
        DEMO / "coffee.jpg",
        "-o",
        tmp_path / "x.png",
        "--frame-stride",
        2,
    )
    assert (image.status, "--frame-stride 2 has no effect" in image.err) == (2, True)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param("videomae", marks=pytest.mark.slow),
        pytest.param("mae_st", marks=pytest.mark.slow),
        "prithvi",
    ],
)
def test_clips_are_inputs_of_a_verification(command, clip, tmp_path, family):
    folder = clip(family).parent
    report = folder.parent / f"{folder.name}.html"
    target = folder.parent / f"{folder.name}-{family}.safetensors"
    converted = command("convert", path_of(family), target, "--to", "original", *HEADS, *SIZE)
    assert converted.status == 0, converted.err
    result = command(
        "verify",
        path_of(family),
        target,
        "--framework-a",
        "torch",
        "--framework-b",
        "torch",
        "--images",
        folder,
        *HEADS,
        *SIZE,
        "--report",
        report,
        "--json",
    )
    assert result.status == 0, result.err + result.out
    assert json.loads(result.out)["passed"]
    page = report.read_text()
    assert "reconstruction of A" in page
    assert ("channels 3, 2, 1 as red" in page.replace("Channels", "channels")) == (
        family == "prithvi"
    )


@pytest.mark.parametrize("family", CASES)
def test_timeline_of_video_models(command, clip, tmp_path, family):
    folder, page = clip(family).parent, tmp_path.parent / f"{tmp_path.name}.html"
    sheet = page.with_suffix(".png")
    other = tmp_path.parent / f"{tmp_path.name}-7.safetensors"
    assert command("convert", path_of(family), other, "--to", "original", *HEADS, *SIZE).status == 0
    arguments = ("timeline", path_of(family), other, "--images", folder, *HEADS, *SIZE)
    result = command(*arguments, "-o", page, "-o", sheet, "--json")
    assert result.status == 0, result.err
    one, two = result.json["points"]
    checkpoint = opened(family)
    pixels = load_clips([clip(family)], checkpoint).pixel_values
    config = checkpoint.configuration.model
    noise = noise_of("random", checkpoint.family, config, count=1)
    with torch.inference_mode():
        outputs = load_model(checkpoint)(torch.from_numpy(pixels), torch.from_numpy(noise))
    assert one["loss"] == two["loss"] == pytest.approx(float(outputs.loss), rel=1e-5)
    with Image.open(sheet) as image:
        assert image.height > 224
    assert "the middle frame of each clip is shown" in page.read_text()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("-o", "x.png", "--bands", "3,2,1"), "--bands selects channels of --inputs"),
        (("-o", "x.gif", "--mask-ratio", 0.5), "shows mask ratios from 0.5 to 0.95; leave"),
    ],
)
def test_options_of_other_models_are_refused(command, clip, tmp_path, options, sentence):
    model = (DEMO / "checkpoint.pth", DEMO / "coffee.jpg")
    result = command("reconstruct", *model, *options, cwd=tmp_path)
    assert (result.status, sentence in result.err) == (2, True), result.err
    assert "Traceback" not in result.err
    six = clip("prithvi")
    allowed = command("reconstruct", path_of("prithvi"), six, *options, *HEADS, *SIZE, cwd=tmp_path)
    assert allowed.status == 0, allowed.err


def test_coordinates_of_a_file_of_inputs_are_used(command, tmp_path):
    case = "prithvi_v2_tl_tiny"
    model_inputs = golden_inputs(case)
    np.savez(tmp_path / "in.npz", **model_inputs)
    source = GOLDEN / case / "checkpoint.pth"
    fields = {"num_attention_heads": 4, "decoder_num_attention_heads": 3, "image_size": (32, 32)}
    checkpoint = open_checkpoint(source, Flags(**fields))
    model = load_model(checkpoint)
    tensors = {name: torch.from_numpy(array) for name, array in model_inputs.items()}
    with torch.inference_mode():
        loss = float(model(**tensors).loss)
        without = float(model(tensors["pixel_values"], tensors["noise"]).loss)
    assert abs(loss - without) > 1e-4 * loss
    inputs, output = tmp_path / "in.npz", tmp_path / "x.png"
    arguments = (source, "--inputs", inputs, "-o", output, *HEADS, *SIZE, "--json")
    result = command("reconstruct", *arguments)
    assert result.status == 0, result.err
    losses = [row["loss"]["torch"] for row in result.json["images"]]
    assert np.mean(losses) == pytest.approx(loss, rel=1e-5)
    for name in ("with", "without"):
        path = tmp_path / f"{name}.npz"
        arrays = model_inputs if name == "with" else {"pixel_values": model_inputs["pixel_values"]}
        np.savez(path, **arrays)
        out = command("features", source, "--inputs", path, "-o", tmp_path / f"f-{name}.npz",
                      *HEADS[:2], *SIZE)  # fmt: skip
        assert out.status == 0, out.err
    features = [np.load(tmp_path / f"f-{name}.npz")["mean"] for name in ("with", "without")]
    assert distance(*features) > 1e-4
