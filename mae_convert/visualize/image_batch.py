"""Batches of images for visualisation: image files, or preprocessed arrays in an .npz file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mae_convert.checkpoint.image_files import open_image
from mae_convert.checkpoint.open import Checkpoint
from mae_convert.errors import MaeConvertError, Option
from mae_convert.runtime.inputs import read_inputs
from mae_convert.visualize.reconstruction import load_cut


@dataclass(frozen=True)
class ImageBatch:
    """N images.

    Attributes:
        names: of the images, as a report has them.
        labels: short names, as they stand below an image.
        pixel_values: (N, C, H, W), float32, as the model takes them.
        shapes: width to height in which each image is shown.
        noise: (N, L), float32, by which patches are removed; None where nothing gives it.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    pixel_values: np.ndarray
    shapes: tuple[float, ...]
    noise: np.ndarray | None = None


def batch_from_files(
    paths: Sequence[Path], checkpoint: Checkpoint, *, stretch: bool = False
) -> ImageBatch:
    """Return image files, cropped or resized to the model's shape.

    Raises:
        MaeConvertError: a file is not an image, or does not fit the model.
    """
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
