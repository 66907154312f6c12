"""Images and other inputs: read, or refused in one sentence; nothing else is printed."""

import io
import os
import shutil
import socket
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_convert.checkpoint.image_files import ImageWarning, check_images, images_in, open_image
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.checkpoint.preprocessing import Preprocessing
from mae_convert.errors import MaeConvertError
from mae_convert.families.mae.family import MAE
from mae_convert.files.byte_ranges import open_input
from mae_convert.runtime.inputs import load_inputs
from mae_convert.sweep.plan_file import read_entries
from reference_models.configuration import ViTMAEConfig

MODEL = ViTMAEConfig(image_size=32, patch_size=8, num_channels=3)


@pytest.fixture(params=["pipe", "directory", "socket", "device", "link to a pipe"])
def irregular(request, tmp_path):
    """A path that is not a regular file, with the name of its kind."""
    path = tmp_path / "x.png"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "directory":
        path.mkdir()
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    return path, request.param.rpartition(" ")[2]


READERS = {
    "image": open_image,
    "images to check": lambda path: check_images([path]),
    "plan": read_entries,
    "inputs": lambda path: load_inputs(path, MAE, MODEL),
    "checkpoint": open_checkpoint,
    "any": open_input,
}


@pytest.mark.parametrize("reader", READERS)
def test_irregular_file_is_refused_immediately(reader, irregular):
    path, kind = irregular
    if (reader, kind) == ("checkpoint", "directory"):
        pytest.skip("a directory is a checkpoint's usual form")
    with pytest.raises(MaeConvertError, match=f"{kind} and not a regular file"):
        READERS[reader](path)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "conversion.json"])
def test_a_file_of_a_model_directory_that_is_a_pipe_is_refused(name, tmp_path, golden):
    folder = tmp_path / "model"
    shutil.copytree(golden / "transformers_v5_encoder", folder)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(MaeConvertError, match=f"{name} is a named pipe and not a regular file"):
        open_checkpoint(folder)


def test_an_image_that_is_a_pipe_does_not_hang_a_command(tmp_path, case):
    os.mkfifo(tmp_path / "x.png")
    source = case("pretrain_tiny")
    call = [
        *("reconstruct", source.checkpoint, tmp_path / "x.png", "-o", tmp_path / "o.png"),
        *("--framework", "torch", "--num-heads", 4, "--decoder-num-heads", 3),
    ]
    result = run(call)
    assert result.returncode == 2
    assert (
        result.stderr
        == f"mae-convert: {tmp_path}/x.png is a named pipe and not a regular file; name a file\n"
    )


def run(call):
    command = [sys.executable, "-m", "mae_convert", *map(str, call)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# --- images ---


def tiff(tags=(), compression=None, damage=None):
    """Return a TIFF file; `tags` are further entries (tag, type, count, offset)."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    stream = io.BytesIO()
    image.save(stream, "TIFF", compression=compression)
    data = bytearray(stream.getvalue())
    if tags:
        start = int.from_bytes(data[4:8], "little")
        count = int.from_bytes(data[start : start + 2], "little")
        entries = data[start + 2 : start + 2 + 12 * count]
        for tag, kind, number, offset in tags:
            for value, width in ((tag, 2), (kind, 2), (number, 4), (offset, 4)):
                entries += value.to_bytes(width, "little")
        data[4:8] = len(data).to_bytes(4, "little")
        data += (count + len(tags)).to_bytes(2, "little") + entries + bytes(4)
    if damage is not None:
        data[damage] ^= 255
    return bytes(data)


def test_damaged_optional_part_of_an_image_is_one_warning(tmp_path):
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(tags=[(33432, 2, 1000, 10**6), (33433, 2, 1000, 10**6)]))
    with pytest.warns(ImageWarning) as caught:
        assert open_image(path).size == (32, 32)
    (text,) = [str(one.message) for one in caught]
    assert text.startswith(f"{path} was read, but may be corrupt (T")


def test_decoder_output_is_reported_as_the_reason_and_not_printed(tmp_path, capfd):
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(compression="tiff_deflate", damage=60))
    with pytest.raises(MaeConvertError, match=r"x\.tif cannot be read as an image") as caught:
        open_image(path)
    assert "ZIPDecode" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_command_prints_one_line_on_a_damaged_image(tmp_path, case):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.tif").write_bytes(tiff(tags=[(33432, 2, 1000, 10**6)]))
    case = case("encoder_tiny")
    call = ["features", case.checkpoint, tmp_path / "images", "-o", tmp_path / "o.npz"]
    result = run([*call, "--framework", "torch", "--num-heads", case.facts["num_heads"]])
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"note: {tmp_path}/images/x.tif was read, but may be corrupt (T")


def animated(kind):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    stream = io.BytesIO()
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_of_several_images_in_a_file_is_used_and_reported(tmp_path, kind):
    path = tmp_path / "x"
    path.write_bytes(animated(kind))
    with pytest.warns(ImageWarning, match="x has several images; the first is used"):
        red, _, blue = open_image(path).convert("RGB").getpixel((3, 3))
    assert (red > 240, blue < 20) == (True, True)


def png(width, height, *chunks):
    """Return a PNG that claims a size; `chunks` are further ones (type, data)."""
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", head), *chunks, (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        data += len(content).to_bytes(4, "big") + kind + content
        data += zlib.crc32(kind + content).to_bytes(4, "big")
    return data


# The content of each bad image, or a function that creates a long one, and the message.
BAD = {
    "claims 4 billion pixels": (png(65535, 65535), "decompression bomb"),
    "claims no pixels": (png(0, 10), "cannot be read as an image"),
    "text that unpacks to 100 MB": (
        lambda: png(10, 10, (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))),
        "cannot be read as an image",
    ),
    "nothing": (b"", "cannot be read as an image: it is not a PNG"),
    "text": (b"hello", "cannot be read as an image: it is not a PNG"),
    "EPS, which another program would be run for": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
        "cannot be read as an image: it is not a PNG",
    ),
    "of unknown brightness": (None, "has no defined range of pixel values"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused_in_one_sentence(tmp_path, name):
    path, (data, reason) = tmp_path / "x.png", BAD[name]
    if callable(data):
        data = data()
    if data is None:
        Image.new("F", (10, 10)).save(path, "TIFF")
    else:
        path.write_bytes(data)
    with pytest.raises(MaeConvertError, match=reason):
        check_images([path])
    if data is not None:
        with pytest.raises(MaeConvertError, match=reason):
            open_image(path)


def test_extremely_wide_image_is_refused_before_it_is_enlarged():
    statistics = (0.5, 0.5, 0.5)
    prepare = Preprocessing(3, None, 224, 3, (224, 224), 1 / 255, statistics, statistics)
    with pytest.raises(
        MaeConvertError, match="an image of 1x60000 pixels would have a longer side of 3010560000"
    ):
        prepare(Image.new("RGB", (60000, 1)))


def test_pipe_or_broken_link_in_an_image_folder_is_not_ignored(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "gone")
    (tmp_path / "d.png").mkdir()
    result = images_in(tmp_path)
    assert [path.name for path in result] == ["a.png", "b.png", "c.png"]
    with pytest.raises(MaeConvertError, match=r"b\.png is a named pipe .* \(2 files cannot"):
        check_images(result)


# --- .npz inputs ---


def npz(path, **arrays):
    with zipfile.ZipFile(path, "w") as archive:
        for name, (descr, shape, data) in arrays.items():
            head = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n"
            archive.writestr(
                f"{name}.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little")
                + head.encode() + data,
            )  # fmt: skip
    return path


INPUTS = {
    "claims 3 PB": (("<f4", (250_000_000_000, 3, 32, 32), b""), "truncated or corrupt"),
    "more than there are numbers for": (("<f4", (10**30, 3, 32, 32), b""), "truncated or corrupt"),
    "a negative size": (("<f4", (-1, 3, 32, 32), b""), "truncated or corrupt"),
    "another size": (("<f4", (1, 3, 32, 16), bytes(6144)), r"shape \(1, 3, 32, 16\); this model"),
    "no image": (("<f4", (0, 3, 32, 32), b""), r"shape \(0, 3, 32, 32\)"),
    "another dtype": (("<f8", (1, 3, 32, 32), bytes(24576)), "must be float32, not float64"),
    "objects": (("|O", (1, 3, 32, 32), b"\x80\x04N."), "object arrays as pickles"),
    "not numbers": (("<f4", (1, 3, 32, 32), b"\xff" * 12288), "NaN or infinite"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_bad_inputs_are_refused_in_one_sentence(tmp_path, name):
    array, reason = INPUTS[name]
    path = npz(tmp_path / "in.npz", pixel_values=array)
    with pytest.raises(MaeConvertError, match=reason):
        load_inputs(path, MAE, MODEL)


def test_inputs_may_be_compressed_and_contain_additional_arrays(tmp_path):
    pixels = np.ones((2, 3, 32, 32), np.float32)
    names = np.array([{"an": "object"}], dtype=object)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "in.npz", pixel_values=pixels, names=names)
        inputs = load_inputs(tmp_path / "in.npz", MAE, MODEL)
        assert np.array_equal(inputs["pixel_values"], pixels)
        assert inputs["noise"].shape == (2, 16)
    path = Path(tmp_path / "in.npz")
    np.savez(path, pixel_values=pixels, noise=np.ones((2, 16), np.float32))
    with pytest.raises(MaeConvertError, match="noise contains equal values"):
        load_inputs(path, MAE, MODEL)
    np.savez(path, pixel_values=pixels, noise=np.ones((2, 15), np.float32))
    with pytest.raises(MaeConvertError, match=r"noise has shape \(2, 15\); \(2, 16\) is needed"):
        load_inputs(path, MAE, MODEL)


@pytest.mark.parametrize("location", ["trace", "certificate"])
def test_named_pipe_instead_of_arrays_is_refused_without_blocking(tmp_path, location):
    """The reader of safetensors would wait in native code, where no signal ends it."""
    from mae_convert.runtime.trace import Trace
    from mae_convert.verify.certificate import Certificate, read_source

    pipe = tmp_path / "verification.safetensors"
    os.mkfifo(pipe)
    # With both ends open here, opening it would not wait, and the test would fail and not hang.
    ends = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        with pytest.raises(MaeConvertError, match="a named pipe"):
            Trace.load(pipe) if location == "trace" else read_source(Certificate(tmp_path, {}))
    finally:
        os.close(ends)
