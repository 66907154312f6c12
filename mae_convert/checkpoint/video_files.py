"""Read videos: GIF, MP4 and other containers, folders of frames, arrays in .npz files.

PyAV decodes containers and tifffile decodes TIFF images with more than four bands; both are
optional. A container is opened only in the format that its suffix indicates, so that a file cannot
make FFmpeg open another file or a URL.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from mae_convert.checkpoint.image_files import SUFFIXES, brightness_problem, open_image
from mae_convert.errors import CheckpointError, MaeConvertError, MissingRequirementError, Option
from mae_convert.files.byte_ranges import ByteFile, open_input
from mae_convert.formats.archive import Archive
from mae_convert.formats.npz import arrays_in
from mae_convert.text import natural_sort_key

# FFmpeg's name of the format, by suffix.
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".webm": "matroska", ".mkv": "matroska",
              ".avi": "avi"}  # fmt: skip
GIF, ARRAYS = ".gif", ".npz"
TIFF = (".tif", ".tiff")
FILES = (*CONTAINERS, GIF, ARRAYS)
ARRAY = "frames"
MOST_FRAMES = 1 << 20  # frames per file; a larger number indicates a corrupt file
MOST_NUMBERS = 1 << 30  # values per TIFF

Choose = Callable[[int, float | None], Sequence[int]]


@dataclass(frozen=True)
class Frames:
    """Some frames of a video.

    Attributes:
        path: the file or folder.
        pixels: (T, H, W, C), uint8 colours or measured values.
        indices: (T,), the indices of the frames in the file.
        count: the number of frames in the file.
        rate: frames per second, or None if unknown.
    """

    path: Path
    pixels: np.ndarray
    indices: tuple[int, ...]
    count: int
    rate: float | None = None


def read_frames(path: Path, choose: Choose) -> Frames:
    """Read some frames of a video.

    Args:
        path: a file, or a folder of images that are ordered by the numbers in their names.
        choose: a function that takes the number of frames and the frames per second (None if
            unknown), and returns the ascending indices of the frames to read.

    Raises:
        MaeConvertError: the path cannot be read as a video.
        MissingRequirementError: the package that reads this format is not installed.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        return _of_images(path, frames_in(path), choose)
    if suffix in CONTAINERS:
        return _of_container(path, choose)
    if suffix == GIF:
        return _of_gif(path, choose)
    if suffix == ARRAYS:
        return _of_arrays(path, choose)
    if suffix in SUFFIXES:
        return _of_images(path, [path], choose)
    raise MaeConvertError(
        path,
        " is not a video",
        hint=f"specify a folder of frames, or a file that ends in {', '.join(FILES)}",
    )


def frames_in(folder: Path) -> list[Path]:
    """Return the images directly in a folder, in the order of the numbers in their names."""
    files = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.is_dir())
    return sorted(files, key=lambda path: natural_sort_key(path.name))


def _chosen(path: Path, choose: Choose, count: int, rate: float | None) -> tuple[int, ...]:
    if not count:
        raise MaeConvertError(
            path, " contains no frames", hint="specify a folder of images, or a video"
        )
    try:
        return tuple(choose(count, rate))
    except MaeConvertError as error:
        raise MaeConvertError(path, " ", error) from error


def _of_images(path: Path, files: Sequence[Path], choose: Choose) -> Frames:
    indices = _chosen(path, choose, len(files), None)
    read = {index: read_image(files[index]) for index in dict.fromkeys(indices)}
    pixels = _stacked(path, [read[index] for index in indices])
    return Frames(path, pixels, indices, len(files))


def read_image(path: Path) -> np.ndarray:
    """Return an image (H, W, C): uint8 RGB, or all bands of a TIFF with more than four bands.

    Raises:
        MaeConvertError: the image cannot be read.
        MissingRequirementError: the image is a TIFF with more than four bands, and tifffile is not
            installed.
    """
    if path.suffix.lower() in TIFF and (bands := _bands(path)) is not None:
        return bands
    return _colours(open_image(path), path)


def _colours(image: Image.Image, path: Path) -> np.ndarray:
    if problem := brightness_problem(image):
        raise MaeConvertError(f"{path}: {problem}")
    return np.asarray(image.convert("RGB"))


def _bands(path: Path) -> np.ndarray | None:
    """Return a TIFF with more than four bands as (H, W, C), or None for other images."""
    with open_input(path) as file:
        try:
            from tifffile import TiffFile
        except ImportError as error:
            if _fits_pillow(file):
                return None
            raise MissingRequirementError(
                f"{path} is a TIFF that Pillow cannot read, and tifffile is not installed",
                hint="pip install 'mae-convert[geotiff]'",
            ) from error
        try:
            with _silent("tifffile"), TiffFile(file, name=path.name) as tiff:
                series = tiff.series[0]
                if len(series.shape) != 3 or min(series.shape[0], series.shape[-1]) <= 4:
                    return None
                if math.prod(series.shape) > MOST_NUMBERS:
                    raise MaeConvertError(
                        path,
                        f" has {math.prod(series.shape)} values, which is more than {MOST_NUMBERS}",
                        hint="cut out the part that is needed",
                    )
                pixels: np.ndarray = series.asarray()
        except (MaeConvertError, MemoryError):
            raise
        except Exception as error:  # the decoder raises many different exceptions for damaged files
            reason = " ".join(str(error).split()) or type(error).__name__
            raise MaeConvertError(
                path, f" cannot be read as a TIFF: {reason}", hint="copy or download it again"
            ) from error
    # An image has fewer bands than rows or columns, so the bands are on the smallest axis.
    return pixels if pixels.shape[2] <= pixels.shape[0] else pixels.transpose(1, 2, 0)


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Prevent a library's logger from printing errors that the library also raises."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _fits_pillow(file: Any) -> bool:
    try:
        with Image.open(file, formats=("TIFF",)):
            return True
    except Exception:
        return False


def _of_gif(path: Path, choose: Choose) -> Frames:
    with open_input(path) as file:
        try:
            with Image.open(file, formats=("GIF",)) as image:
                count = min(getattr(image, "n_frames", 1), MOST_FRAMES)
                duration = image.info.get("duration") or 0  # milliseconds
                rate = 1000 / duration if duration else None
                indices = _chosen(path, choose, count, rate)
                read = {}
                for index in dict.fromkeys(indices):
                    image.seek(index)
                    read[index] = np.asarray(image.convert("RGB"))
                # Read the last frame, so that a truncated file is refused for any choice of frames.
                image.seek(count - 1)
                image.load()
        except (MaeConvertError, MemoryError):
            raise
        except UnidentifiedImageError as error:  # Pillow's message contains only a file descriptor
            raise MaeConvertError(
                path,
                " cannot be read as a GIF: it is truncated or not a GIF",
                hint="copy or download it again",
            ) from error
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise MaeConvertError(
                path, f" cannot be read as a GIF: {reason}", hint="copy or download it again"
            ) from error
    return Frames(path, np.stack([read[index] for index in indices]), indices, count, rate)


def _of_container(path: Path, choose: Choose) -> Frames:
    try:
        import av
    except ImportError as error:
        raise MissingRequirementError(
            f"PyAV, which reads {path.suffix} files, is not installed",
            hint="pip install 'mae-convert[video]', or pass the video as a folder of frames",
        ) from error
    try:
        count, rate = _counted(av, path)
        indices = _chosen(path, choose, count, rate)
        last = max(indices)
        read: dict[int, np.ndarray] = {}
        for index, frame in enumerate(_decoded(av, path)):
            if index in indices:
                read[index] = frame.to_ndarray(format="rgb24")
            if index == last:
                break
    except (MaeConvertError, MemoryError):
        raise
    except Exception as error:  # PyAV raises many different exceptions
        # Only the text of the error; the rest is an error number and a file descriptor.
        text = getattr(error, "strerror", None) or str(error)
        reason = " ".join(text.split()) or type(error).__name__
        raise MaeConvertError(
            path,
            f" cannot be read as a video: {reason}",
            hint="copy or download it again, or convert it to MP4",
        ) from error
    if missing := [index for index in indices if index not in read]:
        raise MaeConvertError(
            path,
            f" is damaged: frame {missing[0]} of its {count} frames cannot be decoded",
            hint="copy or download it again",
        )
    return Frames(path, np.stack([read[index] for index in indices]), indices, count, rate)


def _opened(av: Any, path: Path, file: Any) -> Any:
    """Open a video container with FFmpeg's demuxer for the suffix of its name.

    If FFmpeg detected the format from the content, it could choose a playlist format, in which a
    file can refer to other files.

    Args:
        av: the module ``av`` (PyAV).
        path: the path of the file; its suffix is a key of `CONTAINERS`.
        file: the open file.
    """
    return av.open(file, format=CONTAINERS[path.suffix.lower()])


def _counted(av: Any, path: Path) -> tuple[int, float | None]:
    """Return the number of frames and the frames per second, without decoding the video.

    The frames per second are None if the file does not specify them.
    """
    with open_input(path) as file, _opened(av, path, file) as container:
        stream = _video_stream(path, container)
        count = sum(1 for packet in container.demux(stream) if packet.size)
        rate = float(stream.average_rate) if stream.average_rate else None
    if count > MOST_FRAMES:
        raise MaeConvertError(
            path,
            f" has {count} frames, which is more than {MOST_FRAMES}",
            hint="cut out the part that is needed",
        )
    return count, rate


def _decoded(av: Any, path: Path) -> Iterator[Any]:
    with open_input(path) as file, _opened(av, path, file) as container:
        yield from container.decode(_video_stream(path, container))


def _video_stream(path: Path, container: Any) -> Any:
    if not container.streams.video:
        raise MaeConvertError(path, " contains no video", hint="specify a video")
    return container.streams.video[0]


def _of_arrays(path: Path, choose: Choose) -> Frames:
    """Read the frames that `choose` selects from the array ``frames`` of an .npz file.

    The shape of the array is (T, H, W, C).
    """
    try:
        tensor = arrays_in(Archive(ByteFile(path)), (ARRAY,)).get(ARRAY)
    except CheckpointError as error:
        raise MaeConvertError(
            error, f". A video in an .npz file must be the array {ARRAY} (T, H, W, C)",
            hint="write it with numpy.savez",
        ) from error  # fmt: skip
    if tensor is None:
        raise MaeConvertError(
            path,
            f" contains no array {ARRAY} (T, H, W, C)",
            hint=(
                "write it with numpy.savez(path, frames=...), or specify "
                "preprocessed pixel_values with ",
                Option("inputs"),
            ),
        )
    if len(tensor.shape) != 4:
        raise MaeConvertError(
            path, f": {ARRAY} has shape {tensor.shape}", hint="it must be (T, H, W, C)"
        )
    pixels = np.asarray(tensor.load())
    indices = _chosen(path, choose, len(pixels), None)
    return Frames(path, pixels[list(indices)], indices, len(pixels))


def _stacked(path: Path, images: Sequence[np.ndarray]) -> np.ndarray:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        sizes = " and ".join(f"{h}x{w} pixels with {c} channels" for h, w, c in sorted(shapes)[:2])
        raise MaeConvertError(
            path, f" contains frames of different sizes ({sizes})", hint="resize them to one size"
        )
    return np.stack(images)
