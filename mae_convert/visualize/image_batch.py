"""Batches for visualisation: image files, videos, or preprocessed arrays in an .npz file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.clips import load_clips, paths_of_clips
from mae_convert.checkpoint.image_files import images_of, open_image
from mae_convert.errors import MaeConvertError, Option
from mae_convert.runtime.inputs import read_inputs
from mae_convert.visualize.reconstruction import load_cut


@dataclass(frozen=True)
class ImageBatch:
    """N images or clips."""

    names: tuple[str, ...]
    """The labels of the images in a report."""

    labels: tuple[str, ...]
    """Short names, as they stand below an image."""

    pixel_values: np.ndarray
    """(N, C, [T,] H, W), float32, as the model takes them."""

    shapes: tuple[float, ...]
    """Width to height in which each image is shown."""

    noise: np.ndarray | None = None
    """(N, L), float32, by which patches are removed; None where nothing gives it."""

    indices: tuple[tuple[int, ...], ...] | None = None
    """(N, T), which frames of its file each clip has, from 0; None where they are no videos, or
    preprocessed."""

    sampling: str = ""
    """How these frames were chosen, in words, or nothing."""

    additional: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the model takes besides pixels and noise, from a file of inputs."""

    def with_noise(self, noise: np.ndarray) -> dict[str, np.ndarray]:
        """Return the inputs of the model."""
        return {"pixel_values": self.pixel_values, "noise": noise, **self.additional}


def batch_from_files(
    paths: Sequence[Path],
    checkpoint: Checkpoint,
    *,
    stretch: bool = False,
    stride: int | None = None,
    most: int | None = None,
) -> ImageBatch:
    """Return files, or the files in folders, cropped or resized to the model's shape.

    Args:
        paths: images, or for a model that takes them videos or series of images.
        checkpoint: of the model.
        stretch: resize whole images, in place of cropping them to the model's aspect ratio.
        stride: how far apart the frames of a clip are; None is as models of the family are trained.
        most: at most so many of the files.

    Raises:
        MaeConvertError: a file is not an image or video, or does not fit the model.
        MissingRequirementError: the package that reads it is not installed.
    """
    if checkpoint.family.clips is not None:
        clips = paths_of_clips(paths, checkpoint)[:most]
        return _clips_from_files(clips, checkpoint, stretch=stretch, stride=stride)
    if stride is not None:
        raise MaeConvertError(
            *(Option("frame_stride", stride), " has no meaning for a model of single images"),
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
        load_cut(paths, checkpoint, stretch=stretch),
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
    """Return the images of an .npz with ``pixel_values`` and, if it has it, ``noise``.

    Args:
        path: the file; its images are preprocessed already, and used as they are.
        checkpoint: of the model that takes them.
        most: at most so many of the images.

    Raises:
        MaeConvertError: the file is not such an npz, or does not fit the model.
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
    """Return the noise of a batch, which excludes another kind of mask.

    Raises:
        MaeConvertError: both specify which patches are removed.
    """
    if batch.noise is not None and mask != default:
        raise MaeConvertError(
            "the file of inputs holds noise, which says what is removed, and ",
            *(Option("mask", mask), " says it too"),
            hint="leave one out",
        )
    return batch.noise
