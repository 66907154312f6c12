"""Evaluate the checkpoints of a pre-training run on the same images and noise, in float32."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint, Origin, require_images
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import MaeConvertError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.configuration import Configuration
from mae_convert.families.family import Family
from mae_convert.families.pixel_patches import cut, over_patches
from mae_convert.files.staging import scratch_directory
from mae_convert.sources import locate, parse_source, storage
from mae_convert.text.redaction import without_credentials
from mae_convert.visualize.display import Display, check_bands, display_of
from mae_convert.visualize.image_batch import ImageBatch, batch_from_files, batch_from_inputs
from mae_convert.visualize.patch_masks import noise_of
from mae_convert.visualize.reconstruction import Reconstruction, Reconstructor

LONGEST_NUMBER = 9  # digits; a longer number in a name is a hash or a timestamp
COMPARED = ("num_channels", "norm_pix_loss", "num_frames", "tubelet_size", "predicted_length")
NEGLIGIBLE = 0.01  # a smaller fraction of the total decrease of the loss is ignored


@dataclass(frozen=True)
class Point:
    """One checkpoint of a training run, with the results of its evaluation."""

    source: str
    """The name of the checkpoint."""

    epoch: int
    """The epoch stored in the checkpoint. If no epoch is stored: the last number in the name of the
    checkpoint; if the name has no number: the index of the checkpoint."""

    loss: float | None = None
    """Mean training loss over the images; None if the checkpoint could not be run."""

    losses: tuple[float, ...] = ()
    """The training loss for each image, (N,); empty if the checkpoint could not be run."""

    error: str | None = None
    """Why the checkpoint could not be run; None if it was run."""


@dataclass(frozen=True)
class Timeline:
    """The losses and reconstructions of a training run on some images."""

    points: tuple[Point, ...]
    """The points, sorted by epoch."""

    images: tuple[str, ...]
    """Names of the images."""

    shown: dict[int, Reconstruction]
    """Reconstructions by epoch, for the checkpoints that are displayed."""

    configuration: Configuration
    """The configuration of the models."""

    mask_ratio: float
    """The mask ratio."""

    display: Display
    """The conversion of pixels to colours."""

    @property
    def failed(self) -> list[Point]:
        """The points without a loss."""
        return [point for point in self.points if point.error is not None]

    @property
    def best(self) -> Point:
        """The point with the lowest loss."""
        return min((p for p in self.points if p.loss is not None), key=lambda p: p.loss or 0.0)

    @property
    def near_best(self) -> Point:
        """The first point whose loss is close to the lowest loss.

        Its loss exceeds the lowest loss by at most 1 % of the decrease from the first loss to the
        lowest loss.
        """
        points = [p for p in self.points if p.loss is not None]
        first, lowest = points[0].loss or 0.0, self.best.loss or 0.0
        return next(p for p in points if (p.loss or 0.0) <= lowest + NEGLIGIBLE * (first - lowest))


@dataclass(frozen=True)
class TimelineOptions:
    """The options of a timeline."""

    framework: str = "torch"
    """The framework: torch, tensorflow or jax."""

    device: str | None = None
    """The device: cpu or cuda; None for the default of the framework."""

    seed: int = 0
    """The seed of the noise."""

    shown: int = 5
    """Number of checkpoints whose reconstructions are displayed. If the run has more checkpoints,
    those at the beginning are chosen closer together, and the last one is always included."""

    flags: Flags | None = None
    """Configuration fields that the user specified; None if the user specified no fields."""

    state_key: str | None = None
    """The key of the weights in a PyTorch checkpoint; None to detect it."""

    inputs: Path | None = None
    """An .npz file with ``pixel_values`` and optionally ``noise``, instead of image files."""

    most: int | None = None
    """The maximum number of images; None for all images."""

    bands: tuple[int, ...] | None = None
    """The displayed channels, numbered from 1: one for grey, or three for colours. None for the
    default channels of the model family."""


def timeline(
    sources: Sequence[str],
    images: Sequence[Path],
    options: TimelineOptions,
    advance: Callable[[int], None] = lambda _: None,
) -> Timeline:
    """Run the checkpoints of a training run on images; return losses and reconstructions.

    A checkpoint that cannot be run becomes a point without a loss.

    Args:
        sources: the checkpoints; the order matters only if their epochs are unknown.
        images: image files or clips, or folders of images or clips, as for `batch_from_files`.
        options: the framework, the seed of the noise, and what is displayed.
        advance: called with 1 after each checkpoint.

    Raises:
        MaeConvertError: an image cannot be used, or no checkpoint can be run.
        MissingRequirementError: the framework or the device is not available.
    """
    run = _Evaluator(images, options)
    to_display = {sources[i] for i in spread_indices(len(sources), options.shown)}
    points, shown, display_next = list[Point](), dict[str, Reconstruction](), False
    latest: tuple[str, Reconstruction] | None = None
    for index, source in enumerate(sources):
        point, result = run(source, index)
        points.append(point)
        display_next |= source in to_display
        if result is not None:
            latest = source, result
            if display_next:  # also if an earlier checkpoint to be displayed could not be run
                shown[source], display_next = result, False
        advance(1)
    if latest and display_next:
        shown[latest[0]] = latest[1]
    if run.configuration is None or all(point.loss is None for point in points):
        raise MaeConvertError(f"no checkpoint can be run; the first error is: {points[0].error}")
    points = _in_order(points)
    drawn = {p.epoch: shown[p.source] for p in points if p.source in shown}
    points = [replace(p, source=without_credentials(p.source)) for p in points]
    assert run.batch is not None
    assert run.family is not None
    display = display_of(
        run.batch.pixel_values, run.configuration, options.bands,
        preprocessed=options.inputs is not None, colours=run.family.colours,
    )  # fmt: skip
    return Timeline(
        tuple(points), run.batch.labels, drawn, run.configuration, run.mask_ratio, display
    )


def spread_indices(count: int, number: int) -> list[int]:
    """Return up to ``number`` indices below ``count``, closer together at the beginning.

    The first and the last index are included; if only one index is requested, it is the last.
    """
    if count <= number:
        return list(range(count))
    if number < 2:
        return [count - 1][:number]
    indices = [round((count - 1) * (i / (number - 1)) ** 2) for i in range(number)]
    for i in range(1, number):  # no index is repeated
        indices[i] = max(indices[i], indices[i - 1] + 1)
    return indices


def _number_in(source: str) -> int | None:
    """Return the last number in the name of a checkpoint, or None."""
    numbers = re.findall(r"[0-9]+", PurePosixPath(source.rstrip("/")).stem)
    return int(numbers[-1]) if numbers and len(numbers[-1]) <= LONGEST_NUMBER else None


def _in_order(points: Sequence[Point]) -> list[Point]:
    """Return the points sorted by epoch.

    If two of the points have the same epoch, the order is kept, and the epochs of all points are
    replaced by their indices in `points`.
    """
    if len({point.epoch for point in points}) < len(points):
        return [replace(point, epoch=index) for index, point in enumerate(points)]
    return sorted(points, key=lambda point: point.epoch)


class _Evaluator:
    """Evaluates checkpoints on the same images and noise, which the first checkpoint determines."""

    def __init__(self, images: Sequence[Path], options: TimelineOptions) -> None:
        self._images, self._options = images, options
        self.batch: ImageBatch | None = None
        self._noise: Any = None
        self.configuration: Configuration | None = None
        self.family: Family | None = None
        self.mask_ratio = 0.0

    def __call__(self, source: str, index: int) -> tuple[Point, Reconstruction | None]:
        epoch = _number_in(source)
        try:
            with scratch_directory() as folder:
                checkpoint = self._open(source, folder)
                if checkpoint.container.epoch is not None:
                    epoch = checkpoint.container.epoch
                epoch = index if epoch is None else epoch
                require_images(checkpoint, "timeline")
                self._prepare(checkpoint)
                run = Reconstructor(checkpoint, self._options.framework, self._options.device)
                assert self.batch is not None
                result = run(self.batch.with_noise(self._noise), self.mask_ratio)
        except (MaeConvertError, OSError) as error:
            if getattr(error, "exit_status", 2) == 3:
                raise
            return Point(source, index if epoch is None else epoch, error=str(error)), None
        losses = objective(result, checkpoint.family, checkpoint.configuration.model)
        mean = float(losses.mean())
        if not math.isfinite(mean):
            return Point(source, epoch, error=f"its loss is {mean}"), None
        return Point(source, epoch, mean, tuple(map(float, losses))), result

    def _open(self, source: str, folder: Path) -> Checkpoint:
        options = self._options
        origin: Origin | None
        if storage.is_remote(source):
            path, origin = storage.download(source, folder), Origin(without_credentials(source))
        else:
            path, origin = locate(parse_source(source))
        try:
            return open_checkpoint(path, options.flags, state_key=options.state_key, origin=origin)
        except MaeConvertError as error:
            raise error.renamed(path, source) from error

    def _prepare(self, checkpoint: Checkpoint) -> None:
        """Load the images for the first checkpoint; check the inputs of every later checkpoint.

        Raises:
            MaeConvertError: an image cannot be used, or a later checkpoint has another family or
                other inputs than the first checkpoint.
        """
        model = checkpoint.configuration.model
        if self.configuration is not None:
            first = self.configuration.model
            if checkpoint.family is not self.family:
                raise MaeConvertError(
                    f"this is a {checkpoint.family.title} model, but the first checkpoint is not",
                    hint="leave this checkpoint out",
                )
            for name in ("image_hw", "patch_hw", *COMPARED):
                if getattr(model, name, None) != getattr(first, name, None):
                    raise MaeConvertError(
                        f"its {name} is {getattr(model, name)}, but the first checkpoint has "
                        f"{getattr(first, name)}: the two losses cannot be compared",
                        hint="leave this checkpoint out",
                    )
            return
        inputs, options = self._options.inputs, self._options
        check_bands(options.bands, inputs, checkpoint)
        if inputs is not None:
            self.batch = batch_from_inputs(inputs, checkpoint, options.most)
        else:
            self.batch = batch_from_files(self._images, checkpoint, most=options.most)
        family = checkpoint.family
        self._noise = self.batch.noise
        if self._noise is None:
            self._noise = noise_of(
                "random", family, model, count=len(self.batch.names), seed=options.seed
            )
        self.mask_ratio = family.ratio_that_keeps(model.num_kept, model)
        self.configuration, self.family = checkpoint.configuration, family


def objective(result: Reconstruction, family: Family, config: Any) -> np.ndarray:
    """Return the loss (N,) of each image, computed as in the training of the model."""
    (predicted,) = result.predicted.values()
    pixels = result.pixel_values.astype(np.float64)
    _, deviation = family.target_statistics(pixels, config)
    errors = over_patches(
        np.square(cut(predicted - pixels, result.shapes) / deviation), result.shapes
    )
    losses: np.ndarray = (errors * result.mask).sum(axis=1) / result.mask.sum(axis=1)
    return losses
