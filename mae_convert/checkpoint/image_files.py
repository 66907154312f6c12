"""Image files, read by Pillow's own decoders.

Formats for which Pillow calls another program (Ghostscript for EPS) are not read. Messages and
warnings of decoders become one warning for each file.
"""

import errno
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from mae_convert.errors import MaeConvertError, Text
from mae_convert.files.byte_ranges import open_input

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
SEVERAL_FRAMES = ("GIF", "PNG", "WEBP", "TIFF", "AVIF")  # not MPO, whose other images are previews
UNKNOWN_BRIGHTNESS = ("I", "F")  # Pillow's modes without a defined range of values
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LONGEST_COMPLAINT = 200
STANDARD_ERROR = 2
OF_THE_SYSTEM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)


class ImageWarning(UserWarning):
    """Warning about an image file that was read, for example that it may be corrupt."""


def open_image(path: Path) -> Image.Image:
    """Return the first image of a file, rotated by its EXIF orientation.

    Warns:
        ImageWarning: the decoder printed a warning, or the file contains several images.

    Raises:
        MaeConvertError: the file cannot be read as an image.
    """
    with _decoded(path) as image:
        several = image.format in SEVERAL_FRAMES and getattr(image, "is_animated", False)
        image.load()
        turned = ImageOps.exif_transpose(image)
    if several:
        warnings.warn(f"{path} has several images; the first is used", ImageWarning, stacklevel=2)
    return turned


def check_images(paths: Sequence[Path], advice: Text = "correct or remove it") -> None:
    """Check that files can be read as images; they are not preprocessed.

    JPEG files are decoded at an eighth of their size; for other formats, only the headers and the
    checksums are read.

    Args:
        paths: the files.
        advice: what to do about a file that is not an image.

    Raises:
        MaeConvertError: a file cannot be read; the message contains the path of the first
            unreadable file and the number of unreadable files.
    """
    if wrong := list(unreadable_images(paths).values()):
        more = f" ({len(wrong)} files cannot be read)" if len(wrong) > 1 else ""
        raise MaeConvertError(f"{wrong[0]}{more}", hint=advice)


def unreadable_images(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the files that cannot be read as images, with the reasons."""
    reasons = {path: _problem_with(path) for path in paths}
    return {path: reason for path, reason in reasons.items() if reason}


def _problem_with(path: Path) -> str | None:
    """Return why a file cannot be used as an image, or None."""
    try:
        with _decoded(path, quiet=True) as image:
            if problem := brightness_problem(image):
                return f"{path}: {problem}"
            if image.format == "JPEG":  # the format has no checksums
                image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
                image.load()
            else:
                image.verify()
    except MaeConvertError as error:
        return str(error)
    return None


def brightness_problem(image: Image.Image) -> str | None:
    """Return an error message if the pixel values of an image have no defined range, else None."""
    if image.mode not in UNKNOWN_BRIGHTNESS:
        return None
    return (
        f"an image of mode {image.mode} has no defined range of pixel values; save it with 8 or 16 "
        "bits per channel"
    )


def images_of(paths: Sequence[Path]) -> list[Path]:
    """Return the paths of image files; each directory is replaced by the images in it.

    Raises:
        MaeConvertError: a directory contains no image.
    """
    return [image for path in paths for image in (images_in(path) if path.is_dir() else [path])]


def images_in(folder: Path) -> list[Path]:
    """Return the paths of the images in a directory, sorted by name.

    Raises:
        MaeConvertError: the directory does not exist, or contains no image.
    """
    return _images(folder, folder.iterdir() if folder.is_dir() else None)


def images_below(folder: Path) -> list[Path]:
    """Return the paths of the images in a directory and its subdirectories, sorted.

    Raises:
        MaeConvertError: the directory does not exist, or contains no image.
    """
    return _images(folder, folder.rglob("*") if folder.is_dir() else None)


def _images(folder: Path, paths: Iterator[Path] | None) -> list[Path]:
    if paths is None:
        what = "is a file and not a folder" if folder.exists() else "does not exist"
        raise MaeConvertError(folder, f" {what}", hint="specify a directory that contains images")
    image_paths = sorted(p for p in paths if p.suffix.lower() in SUFFIXES and not p.is_dir())
    if not image_paths:
        raise MaeConvertError(
            folder,
            f" contains no images ({', '.join(SUFFIXES)})",
            hint="specify a directory that contains images",
        )
    return image_paths


@contextmanager
def _decoded(path: Path, *, quiet: bool = False) -> Iterator[Image.Image]:
    """Open an image file as a context manager; the decoder's messages go into one warning.

    If the file cannot be read, the messages go into the error instead.

    Args:
        path: the file.
        quiet: suppress the warning, because the file was read before.

    Raises:
        MaeConvertError: the file cannot be read as an image.
    """
    complaints: list[str] = []
    try:
        with (
            open_input(path) as file,
            _collected(complaints, prints=_is_tiff(file)),
            Image.open(file, formats=_available()) as image,
        ):
            yield image
    except (MaeConvertError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise MaeConvertError(
            path,
            " cannot be read as an image: it is not a PNG, JPEG, WebP, BMP, GIF or TIFF "
            f"file{_in_brackets(complaints)}",
            hint="specify an image, or convert it to PNG",
        ) from error
    except Exception as error:  # decoders raise errors of any type for damaged files
        if getattr(error, "errno", None) in OF_THE_SYSTEM:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MaeConvertError(
            path,
            f" cannot be read as an image: {reason}{_in_brackets(complaints)}",
            hint="copy or download it again, or convert it to PNG",
        ) from error
    if complaints and not quiet:
        text = f"{path} was read, but may be corrupt{_in_brackets(complaints)}"
        warnings.warn(text, ImageWarning, stacklevel=2)


def _available() -> tuple[str, ...]:
    """Return the supported formats that the installed version of Pillow can decode."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _in_brackets(complaints: Sequence[str]) -> str:
    text = "; ".join(dict.fromkeys(" ".join(one.split()) for one in complaints))
    return f" ({text[:LONGEST_COMPLAINT].rstrip('. ')})" if text else ""


def _is_tiff(file: BinaryIO) -> bool:
    """Return whether a file, read from its start, is a TIFF."""
    signature = file.read(4)
    file.seek(0)
    return signature in TIFF_SIGNATURES


@contextmanager
def _collected(complaints: list[str], *, prints: bool) -> Iterator[None]:
    """Collect Pillow's warnings, and the messages that its TIFF decoder (a C library) prints.

    Collecting affects the whole process, so it is done in the main thread only. Warnings of other
    threads are passed on.

    Args:
        complaints: the list to which the messages are appended.
        prints: whether the image is a TIFF, whose decoder prints messages on standard error.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            _printed(complaints) if prints else nullcontext(),
        ):
            warnings.simplefilter("always")
            yield
    finally:
        for one in caught:
            if "PIL" in Path(one.filename).parts:
                complaints.append(str(one.message))
            else:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


@contextmanager
def _printed(complaints: list[str]) -> Iterator[None]:
    """Append to `complaints` the lines that are printed on standard error in the ``with`` block."""
    with tempfile.TemporaryFile() as file:
        try:
            saved_descriptor = os.dup(STANDARD_ERROR)
        except OSError:  # an error is raised if standard error is closed
            yield
            return
        try:
            os.dup2(file.fileno(), STANDARD_ERROR)
            yield
        finally:
            os.dup2(saved_descriptor, STANDARD_ERROR)
            os.close(saved_descriptor)
            with suppress(OSError):
                file.seek(0)
                complaints += file.read().decode(errors="replace").splitlines()
