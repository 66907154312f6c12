"""Batches for visualisation: image files, videos, or preprocessed arrays in an .npz file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.clip_inputs import load_clips, paths_of_clips
from mae_convert.checkpoint.image_files import images_of, open_image
from mae_convert.errors import MaeConvertError, Option
from mae_convert.runtime.inputs import read_inputs
from mae_convert.visualize.reconstruction import load_cropped


@dataclass(frozen=True)
class ImageBatch:
    """N images or clips, ready as inputs of a model."""

    names: tuple[str, ...]
    """The names of the images in a report."""

    labels: tuple[str, ...]
    """A short name of each image or clip, for captions."""

    pixel_values: np.ndarray
    """(N, C, [T,] H, W), float32, the inputs of the model."""

    shapes: tuple[float, ...]
    """Displayed ratio of width to height of each image."""

    noise: np.ndarray | None = None
    """(N, L), float32, the noise that determines the mask; None if no noise is specified."""

    indices: tuple[tuple[int, ...], ...] | None = None
    """(N, T), the indices of each clip's frames in its file; None for images and for preprocessed
    clips."""

    sampling: str = ""
    """A sentence about how the frames of videos were sampled; "" for images."""

    additional: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Additional inputs of the model besides pixels and noise, from a file of inputs."""

    def with_noise(self, noise: np.ndarray) -> dict[str, np.ndarray]:
        """Return the inputs of the model by name, with noise (N, L)."""
        return {"pixel_values": self.pixel_values, "noise": noise, **self.additional}


def batch_from_files(
    paths: Sequence[Path],
    checkpoint: Checkpoint,
    *,
    stretch: bool = False,
    stride: int | None = None,
    most: int | None = None,
) -> ImageBatch:
    """Read images or videos and return them as a batch, cropped or resized for the model.

    Args:
        paths: image files and folders of images; for a video model, video files, folders with the
            frames of a clip, and folders of clips.
        checkpoint: the checkpoint of the model.
        stretch: resize whole images instead of cropping them to the model's aspect ratio.
        stride: the distance between consecutive frames of a clip, in frames of the video (see
            `Clips.stride`); None for the distance in the training of the model family.
        most: the maximum number of files; later files are ignored. None for all files.

    Raises:
        MaeConvertError: a file is not an image or video, or does not fit the model.
        MissingRequirementError: the package that reads a file is not installed.
    """
    if checkpoint.family.clips is not None:
        clips = paths_of_clips(paths, checkpoint)[:most]
        return _clips_from_files(clips, checkpoint, stretch=stretch, stride=stride)
    if stride is not None:
        raise MaeConvertError(
            *(Option("frame_stride", stride), " has no effect on a model for single images"),
            hint="leave it out",
        )
    paths = images_of(paths)[:most]
    height, width = checkpoint.configuration.model.image_hw
    shapes = [width / height] * len(paths)
    if stretch:
        shapes = [image.width / image.height for image in map(open_image, paths)]
    return ImageBatch(
        tuple(map(str, paths)),
        tuple(path.name for path in paths),
        load_cropped(paths, checkpoint, stretch=stretch),
        tuple(shapes),
    )


def _clips_from_files(
    paths: Sequence[Path], checkpoint: Checkpoint, *, stretch: bool, stride: int | None
) -> ImageBatch:
    clips = load_clips(paths, checkpoint, stride=stride, stretch=stretch)
    height, width = checkpoint.configuration.model.image_hw
    return ImageBatch(
        tuple(map(str, paths)),
        tuple(path.name for path in paths),
        clips.pixel_values,
        (width / height,) * len(paths),
        indices=clips.indices,
        sampling=clips.sampling,
    )


def batch_from_inputs(path: Path, checkpoint: Checkpoint, most: int | None = None) -> ImageBatch:
    """Return the images of an .npz file with ``pixel_values`` and optionally ``noise``.

    Args:
        path: the file; its images must be preprocessed already.
        checkpoint: the checkpoint of the model.
        most: the maximum number of images; later images are ignored. None for all images.

    Raises:
        MaeConvertError: the file is not an .npz file with these arrays, or does not fit the model.
    """
    model = checkpoint.configuration.model
    arrays = {
        name: array[:most] for name, array in read_inputs(path, checkpoint.family, model).items()
    }
    count, (height, width) = len(arrays["pixel_values"]), model.image_hw
    return ImageBatch(
        tuple(f"{path}[{i}]" for i in range(count)),
        tuple(f"{path.name}[{i}]" for i in range(count)),
        arrays["pixel_values"],
        (width / height,) * count,
        arrays.get("noise"),
        additional={n: a for n, a in arrays.items() if n not in ("pixel_values", "noise")},
    )


def noise_in(batch: ImageBatch, mask: str, default: str) -> np.ndarray | None:
    """Return the noise of a batch, or None if the batch has no noise.

    Args:
        batch: the images, and the noise if the file of inputs contains noise.
        mask: the kind of mask that the user specified.
        default: the default of ``mask``; if the batch has noise, ``mask`` must have this value.

    Raises:
        MaeConvertError: both the batch and ``mask`` specify a mask.
    """
    if batch.noise is not None and mask != default:
        raise MaeConvertError(
            "the file of inputs contains noise, which specifies the mask, but ",
            *(Option("mask", mask), " specifies a mask too"),
            hint=("leave ", Option("mask"), " out to use the noise"),
        )
    return batch.noise
