"""Reconstruct images or videos with a checkpoint, and write contact sheets and animations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae_convert.checkpoint.checkpoint import Checkpoint, require_images
from mae_convert.errors import MaeConvertError, Option
from mae_convert.visualize.display import Display, check_bands, display_of
from mae_convert.visualize.image_batch import (
    ImageBatch,
    batch_from_files,
    batch_from_inputs,
    noise_in,
)
from mae_convert.visualize.patch_masks import KINDS, drawn_mask, noise_of
from mae_convert.visualize.reconstruction import Reconstruction, Reconstructor
from mae_convert.visualize.sheet import (
    ANIMATION_FORMATS,
    check_name,
    columns_of,
    draw,
    save,
    sheet_of,
    sheet_of_clips,
)

ANIMATION_RATIOS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
STATISTICS_OF_ORIGINAL = (
    "the model predicts each patch normalized (norm_pix_loss): the mean and standard deviation of "
    "each patch are taken from the original"
)
ONLY_REMOVED = (
    "the model predicts removed patches only; visible patches are copied from the original"
)


@dataclass(frozen=True)
class ReconstructionOptions:
    """The options of a reconstruction."""

    mask: str = "random"
    """One of `patch_masks.KINDS`, or the path of a mask image: the patches that are white in it are
    removed from the input."""

    seed: int = 0
    """The seed of the mask."""

    framework: str = "torch"
    """The framework: "torch", "tensorflow", "jax", or "both" for PyTorch and TensorFlow."""

    device: str | None = None
    """The device: cpu or cuda; None for the default of the framework."""

    frame_stride: int | None = None
    """The distance between consecutive frames of a clip, in frames of the video (see
    `Clips.stride`); None for the distance in the training of the model family."""

    stretch: bool = False
    """Resize whole images to the model's shape instead of cropping them at the centre."""

    across: int | None = None
    """The rows of the sheet are divided into this number of parts, which are drawn side by side.
    None for `Sheet.default_across`."""

    inputs: Path | None = None
    """An .npz file with ``pixel_values`` and optionally ``noise``, instead of image files."""

    bands: tuple[int, ...] | None = None
    """The displayed channels, numbered from 1: one for grey, or three for colours. None for the
    default channels of the model family."""


def write_reconstructions(
    images: Sequence[Path],
    checkpoint: Checkpoint,
    outputs: Sequence[Path],
    options: ReconstructionOptions,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Reconstruct images or videos and write contact sheets and animations.

    Outputs with the suffix ``.gif`` are animations: an animation of images shows increasing mask
    ratios, and an animation of videos shows the frames.

    Args:
        images: image files or clips, or folders of images or clips, as for `batch_from_files`.
        checkpoint: a checkpoint with a decoder.
        outputs: the files to write.
        options: the mask, the framework and the layout of the sheets.
        overwrite: replace existing files.

    Returns:
        A report with ``mask_ratio``, ``images`` (name, removed patches, loss by framework, and
        ``frames`` for videos), ``note`` (what is taken from the original images and how pixels are
        displayed, or None) and ``outputs``; for videos also ``sampling``; for two
        frameworks also ``largest_difference``, in normalized pixels. If only animations over mask
        ratios are written, the report also has ``film_ratios``, and the other values are computed
        with the first ratio.

    Raises:
        MaeConvertError: an image, the mask, the checkpoint or an output cannot be used.
        MissingRequirementError: the framework or the device is not available.
    """
    require_images(checkpoint, "reconstruct")
    is_clip = checkpoint.family.clips is not None
    check_bands(options.bands, options.inputs, checkpoint)
    _check_outputs(outputs, overwrite=overwrite)
    animations = [path for path in outputs if path.suffix.lower() in ANIMATION_FORMATS]
    if animations and not is_clip:
        source = str(checkpoint.configuration.sources.get("mask_ratio", ""))
        fixed = source.startswith("option") and len(animations) == len(outputs)
        _check_mask_of_animation(options, fixed_ratio=fixed)
    if options.inputs is not None:
        batch = batch_from_inputs(options.inputs, checkpoint)
    else:
        batch = batch_from_files(
            images, checkpoint, stretch=options.stretch, stride=options.frame_stride
        )
    noise, ratio = _masked(checkpoint, batch, options)
    display = display_of(
        batch.pixel_values, checkpoint.configuration, options.bands,
        preprocessed=options.inputs is not None, colours=checkpoint.family.colours,
    )  # fmt: skip
    run = Reconstructor(checkpoint, options.framework, options.device)
    notes = "; ".join(filter(None, (note_on(checkpoint), display.note)))
    drawing = _Drawing(batch, checkpoint, display, notes, options.across)
    if is_clip:
        result = run(batch.with_noise(noise), ratio)
        for path in outputs:
            frames = drawing.frames(result) if path in animations else [drawing.sheet(result)]
            save(frames, path, overwrite=overwrite, clip=True)
        report = _report(result, batch)
    else:
        report = _images(
            run,
            drawing,
            animations,
            without_animations(animations, outputs),
            noise,
            ratio,
            overwrite,
        )
    return {**report, "note": notes or None, "outputs": [str(path) for path in outputs]}


def _check_mask_of_animation(options: ReconstructionOptions, *, fixed_ratio: bool) -> None:
    """Check that no option fixes the mask ratio, because an animation shows several ratios.

    Args:
        options: the mask, the framework and the layout of the sheets.
        fixed_ratio: whether a mask ratio is specified although only animations are written.

    Raises:
        MaeConvertError: an option fixes the mask ratio.
    """
    if options.mask not in KINDS:
        raise MaeConvertError(
            f"{options.mask} has a fixed mask ratio, but an animation shows several ratios",
            hint=("for an animation, use ", Option("mask", "random"), ", block or grid"),
        )
    if fixed_ratio:
        raise MaeConvertError(
            "a .gif animation shows mask ratios from 0.5 to 0.95",
            hint=("leave ", Option("mask_ratio"), " out"),
        )


def _images(
    run: Reconstructor,
    drawing: "_Drawing",
    animations: Sequence[Path],
    sheets: Sequence[Path],
    noise: np.ndarray,
    ratio: float,
    overwrite: bool,
) -> dict[str, Any]:
    """Write contact sheets, and animations of increasing mask ratios; return a report.

    Args:
        run: the model.
        drawing: the images, and how they are drawn.
        animations: the animations to write.
        sheets: the contact sheets to write.
        noise: the noise (N, L) of the mask.
        ratio: the mask ratio of the contact sheets.
        overwrite: replace existing files.
    """
    report: dict[str, Any] = {}
    for paths, ratios in ((sheets, (ratio,)), (animations, ANIMATION_RATIOS)):
        if not paths:
            continue
        results = [run(drawing.batch.with_noise(noise), mask_ratio) for mask_ratio in ratios]
        frames = [drawing.sheet(result) for result in results]
        for path in paths:
            save(frames, path, overwrite=overwrite)
        report = report or _report(results[0], drawing.batch)
    return report if sheets else {**report, "film_ratios": list(ANIMATION_RATIOS)}


def _check_outputs(outputs: Sequence[Path], *, overwrite: bool) -> None:
    """Check that every output can be written and is specified once.

    Raises:
        MaeConvertError: an output cannot be written, or is specified twice.
    """
    seen: set[Path] = set()
    for path in outputs:
        check_name(path, overwrite=overwrite)
        if path.resolve() in seen:
            raise MaeConvertError(
                path, " is specified twice", hint="use a different name for each output"
            )
        seen.add(path.resolve())


def without_animations(animations: Sequence[Path], outputs: Sequence[Path]) -> list[Path]:
    """Return the outputs that are not animations."""
    return [path for path in outputs if path not in animations]


def note_on(checkpoint: Checkpoint) -> str | None:
    """Return a note on the parts of reconstructions that are taken from the original images.

    These parts are the visible patches if the model predicts removed patches only, and the mean and
    standard deviation of each patch if the model predicts normalized patches. The result is None if
    nothing is taken from the original images.
    """
    notes = []
    if checkpoint.family.predicts_removed_only:
        notes.append(ONLY_REMOVED)
    if checkpoint.configuration.model.norm_pix_loss:
        notes.append(STATISTICS_OF_ORIGINAL)
    return "; ".join(notes) or None


def _masked(
    checkpoint: Checkpoint, batch: ImageBatch, options: ReconstructionOptions
) -> tuple[np.ndarray, float]:
    """Return the noise (N, L) of the mask, and the mask ratio."""
    family, model, count = checkpoint.family, checkpoint.configuration.model, len(batch.names)
    ratio = family.ratio_that_keeps(model.num_kept, model)
    if (noise := noise_in(batch, options.mask, KINDS[0])) is not None:
        return noise, ratio
    if options.mask in KINDS:
        return noise_of(options.mask, family, model, count=count, seed=options.seed), ratio
    path = Path(options.mask)
    if not path.exists():
        raise MaeConvertError(
            *(Option("mask", options.mask), " does not exist"),
            hint=f"use {', '.join(KINDS)}, or an image that is white where patches are removed",
        )
    return drawn_mask(path, family, model, count=count)


@dataclass(frozen=True)
class _Drawing:
    """Draws contact sheets of the reconstructions of a batch."""

    batch: ImageBatch
    checkpoint: Checkpoint
    display: Display
    note: str
    across: int | None

    def sheet(self, result: Reconstruction) -> Image.Image:
        """Return a contact sheet with a row for each image, or several rows for each clip."""
        columns, labels = columns_of(result, self.display), self._labels(result)
        shapes, family = self.batch.shapes, self.checkpoint.family
        if family.clips is None:
            sheet = sheet_of(columns, labels, shapes=shapes, note=self.note)
            return draw(sheet, across=self.across)
        frames = family.predicted_frames(self.checkpoint.configuration.model)
        sheet = sheet_of_clips(columns, labels, frames, shapes=shapes, note=self.note)
        return draw(sheet, across=self.across)

    def frames(self, result: Reconstruction) -> list[Image.Image]:
        """Return a contact sheet for each frame, with a row for each clip."""
        columns, labels = columns_of(result, self.display), self._labels(result)
        images = []
        for index in range(result.pixel_values.shape[2]):
            of_frame = {head: colours[:, index] for head, colours in columns.items()}
            sheet = sheet_of(of_frame, labels, shapes=self.batch.shapes, note=self.note)
            images.append(draw(sheet, across=self.across))
        return images

    def _labels(self, result: Reconstruction) -> list[str]:
        return [
            f"{label}, {mask.mean():.0%} removed"
            for label, mask in zip(self.batch.labels, result.mask, strict=True)
        ]


def _report(result: Reconstruction, batch: ImageBatch) -> dict[str, Any]:
    """Return the report on one reconstruction of a batch, as plain data."""
    rows: list[Mapping[str, Any]] = [
        {
            "image": name,
            "removed": int(result.mask[i].sum()),
            "patches": result.mask.shape[1],
            "loss": {
                name: float(errors[i]) if result.mask[i].any() else None
                for name, errors in result.loss.items()
            },
        }
        for i, name in enumerate(batch.names)
    ]
    if batch.indices is not None:
        rows = [{**row, "frames": list(f)} for row, f in zip(rows, batch.indices, strict=True)]
    report: dict[str, Any] = {
        "mask_ratio": float(result.mask.mean(dtype=np.float64)),
        "images": rows,
    }
    if batch.sampling:
        report["sampling"] = batch.sampling
    if len(result.predicted) > 1:
        a, b = result.predicted.values()
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            report["largest_difference"] = float(np.abs(a - b).max())
    return report
