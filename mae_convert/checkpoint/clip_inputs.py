"""Inputs of a checkpoint's model that are read from clips: videos or series of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.image_files import SUFFIXES
from mae_convert.checkpoint.preprocessing import as_pixels, preprocessing_of
from mae_convert.checkpoint.video_files import FILES, Frames, read_frames
from mae_convert.errors import MaeConvertError, MissingRequirementError, Option
from mae_convert.families.clips import ALL, Clips
from mae_convert.text import natural_sort_key


@dataclass(frozen=True)
class ClipBatch:
    """A batch of N clips.

    Attributes:
        pixel_values: (N, C, T, H, W), float32, the inputs of the model.
        indices: (N, T), the indices of each clip's frames in its file.
        sampling: a description of how the frames were sampled.
    """

    pixel_values: np.ndarray
    indices: tuple[tuple[int, ...], ...]
    sampling: str


def clips_of(checkpoint: Checkpoint) -> Clips:
    """Return how the family of a checkpoint samples and preprocesses clips.

    Raises:
        MaeConvertError: models of the family do not take videos.
    """
    if checkpoint.family.clips is None:
        raise MaeConvertError(
            checkpoint.path,
            f" is a {checkpoint.family.title} model, which does not take videos",
            hint="specify images",
        )
    return checkpoint.family.clips


def load_clips(
    paths: Sequence[Path],
    checkpoint: Checkpoint,
    *,
    stride: int | None = None,
    stretch: bool = False,
) -> ClipBatch:
    """Return clips as inputs of a checkpoint's model.

    Args:
        paths: files, or folders of frames.
        checkpoint: the checkpoint of the model.
        stride: use every stride-th frame; default: as in the training of the model family.
        stretch: resize each frame to the model's height and width without cropping it.

    Raises:
        MaeConvertError: a clip cannot be read or does not fit the model.
        MissingRequirementError: the package that reads a clip is not installed.
    """
    clips = clips_of(checkpoint)
    if stride is not None and clips.frames == ALL:
        raise MaeConvertError(
            *(Option("frame_stride", stride), " has no effect for this model, which uses all"),
            " images of a series",
            hint="leave the option out",
        )
    if stretch and clips.measured:
        raise MaeConvertError(
            *(Option("fit", "stretch"), " has no effect on measured values, which are not resized"),
            hint="leave the option out",
        )
    stride, read = stride or clips.stride, []
    for path in paths:  # one video at a time, because videos are large
        frames = _sampled(path, checkpoint, stride)
        read.append((frames.indices, _prepared(frames, checkpoint, stretch=stretch)))
    pixels = np.stack([pixels for _, pixels in read])
    return ClipBatch(pixels, tuple(indices for indices, _ in read), clips.in_words(stride))


def frames_of(paths: Sequence[Path], checkpoint: Checkpoint) -> list[np.ndarray]:
    """Return the sampled frames (T, H, W, C) of clips without preprocessing.

    Colour values are from 0 to 255; measured values (such as satellite bands) can have any range.

    Raises:
        MaeConvertError: a clip cannot be read or does not fit the model.
    """
    stride, frames = clips_of(checkpoint).stride, []
    for path in paths:
        sampled = _sampled(path, checkpoint, stride)
        _prepared(sampled, checkpoint, stretch=False)  # checks that the clip fits the model
        frames.append(_without_missing(sampled.pixels, clips_of(checkpoint)))
    return frames


def _sampled(path: Path, checkpoint: Checkpoint, stride: int) -> Frames:
    clips, model = clips_of(checkpoint), checkpoint.configuration.model
    return read_frames(path, lambda count, rate: _indices(clips, count, rate, model, stride))


def _indices(
    clips: Clips, count: int, rate: float | None, model: object, stride: int
) -> Sequence[int]:
    length: int = getattr(model, "num_frames", 1)
    if clips.frames == ALL and count != length:
        raise MaeConvertError(
            f"has {count} frames, but this model takes {length}",
            hint=f"put {length} images into one folder" if length > 1 else "",
        )
    return clips.indices(count, length, rate, stride)


def _prepared(sampled: Frames, checkpoint: Checkpoint, *, stretch: bool) -> np.ndarray:
    """Return sampled frames as an input of the model (C, T, H, W), float32.

    With `stretch`, each frame is resized to the model's height and width without cropping it.
    """
    clips, channels = clips_of(checkpoint), checkpoint.configuration.model.num_channels
    pixels = sampled.pixels
    if pixels.shape[3] != channels:
        raise MaeConvertError(
            f"{sampled.path} has {pixels.shape[3]} channels, but this model takes {channels}",
            hint=("pass the bands as TIFF images or as an .npz file with the array frames "
                  f"(T, H, W, {channels})" if clips.measured else ""),
        )  # fmt: skip
    if clips.measured:
        return _measured(sampled, checkpoint, clips)
    if pixels.dtype != np.uint8:
        raise MaeConvertError(
            f"{sampled.path}: frames are {pixels.dtype}",
            hint="they must be uint8 colours from 0 to 255",
        )
    prepare = preprocessing_of(checkpoint, stretch=stretch)
    frames = []
    for frame in pixels:
        image = Image.fromarray(frame[..., 0] if channels == 1 else frame)
        frames.append(as_pixels(image, str(sampled.path), checkpoint, prepare))
    return np.stack(frames, axis=1)


def _measured(frames: Frames, checkpoint: Checkpoint, clips: Clips) -> np.ndarray:
    """Return the normalized centre crop of frames, (C, T, H, W) float32.

    The frames contain measured values, such as satellite bands, and not colours.
    """
    configuration, pixels = checkpoint.configuration, frames.pixels
    if pixels.dtype.kind not in "iuf":
        raise MaeConvertError(
            f"{frames.path}: frames are {pixels.dtype}", hint="they must be numbers"
        )
    (height, width), (rows, columns) = configuration.model.image_hw, pixels.shape[1:3]
    if rows < height or columns < width:
        raise MaeConvertError(
            f"{frames.path} has {rows}x{columns} pixels, but the model takes {height}x{width}",
            hint="measured values (such as satellite bands) are not resampled; pass larger frames",
        )
    top, left = (rows - height) // 2, (columns - width) // 2
    values = _without_missing(pixels[:, top : top + height, left : left + width], clips)
    if not np.isfinite(values).all():
        raise MaeConvertError(f"{frames.path} contains NaN or infinite values", hint="replace them")
    mean, std = np.array((configuration.image_mean, configuration.image_std), np.float32)
    return np.ascontiguousarray(((values - mean) / std).transpose(3, 0, 1, 2))


def _without_missing(pixels: np.ndarray, clips: Clips) -> np.ndarray:
    """Return measured values as float32, with missing values replaced; return colours unchanged.

    `Clips.missing_value` contains the value that marks a missing value, and its replacement.
    """
    if not clips.measured:
        return pixels
    values = pixels.astype(np.float32)
    if clips.missing_value is not None:
        missing, substitute = clips.missing_value
        values = np.where(values == np.float32(missing), np.float32(substitute), values)
    return values


def unreadable_clips(paths: Sequence[Path], checkpoint: Checkpoint) -> dict[Path, str]:
    """Return the paths that cannot be read as clips for a model, with the reasons.

    Raises:
        MissingRequirementError: the package that reads a file is not installed.
    """
    reasons = {}
    for path in paths:
        try:
            load_clips([path], checkpoint)
        except MissingRequirementError:
            raise
        except MaeConvertError as error:
            reasons[path] = str(error)
    return reasons


def paths_of_clips(paths: Sequence[Path], checkpoint: Checkpoint) -> list[Path]:
    """Return the paths of clips; a folder that is not a clip itself is replaced by the clips in it.

    Raises:
        MaeConvertError: a folder contains no clips.
    """
    clips: list[Path] = []
    for path in paths:
        clips += clips_below(path, checkpoint) if path.is_dir() else [path]
    return clips


def clips_below(folder: Path, checkpoint: Checkpoint) -> list[Path]:
    """Return the clips in a folder and its subfolders: video files, and folders of frames.

    The images in a folder are the frames of one clip. For a model that takes one frame, each image
    is a clip.

    Raises:
        MaeConvertError: the folder does not exist or contains no clips.
    """
    if not folder.is_dir():
        problem = "is a file and not a folder" if folder.exists() else "does not exist"
        raise MaeConvertError(
            folder, f" {problem}", hint="specify a directory that contains videos"
        )
    single = checkpoint.configuration.model.num_frames == 1
    clips = set[Path]()
    for path in folder.rglob("*"):
        suffix = path.suffix.lower()
        if suffix in FILES and not path.is_dir():
            clips.add(path)
        elif suffix in SUFFIXES and not path.is_dir():
            clips.add(path if single else path.parent)
    if not clips:
        raise MaeConvertError(
            folder,
            f" contains no videos ({', '.join(FILES)}) and no folders of frames",
            hint="specify a directory that contains videos",
        )
    return sorted(clips, key=lambda path: natural_sort_key(str(path)))
