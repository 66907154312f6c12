"""Reconstruct images with a checkpoint and write sheets, or animations over mask ratios."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae_convert.checkpoint.open import Checkpoint, require_images
from mae_convert.errors import MaeConvertError, Option
from mae_convert.visualize.display import Display, display_of
from mae_convert.visualize.image_batch import (
    ImageBatch,
    batch_from_files,
    batch_from_inputs,
    noise_in,
)
from mae_convert.visualize.masks import KINDS, drawn_mask, noise_of, ratio_that_keeps
from mae_convert.visualize.reconstruction import Reconstruction, Reconstructor
from mae_convert.visualize.sheet import FILMS, check_name, draw, save, sheet_of

FILM_RATIOS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
BORROWED = (
    "the model predicts each patch normalised (norm_pix_loss): the mean and standard deviation of "
    "each patch are taken from the original image"
)


@dataclass(frozen=True)
class Look:
    """How images are looked at.

    Attributes:
        mask: one of ``masks.KINDS``, or the path of an image that is white where patches go.
        seed: of the mask.
        framework: "torch", "tensorflow", "jax" or "both".
        device: "cpu" or "cuda"; None is where the framework puts it.
        stretch: squeeze whole images into the model's shape, in place of taking their middle.
        across: groups of rows beside each other; None is what fits well.
        inputs: an .npz with ``pixel_values`` and maybe ``noise``, in place of image files.
        bands: numbers of the channels of ``inputs`` that are shown, one or three, from 1.
    """

    mask: str = "random"
    seed: int = 0
    framework: str = "torch"
    device: str | None = None
    stretch: bool = False
    across: int | None = None
    inputs: Path | None = None
    bands: tuple[int, ...] | None = None


def look_at(
    images: Sequence[Path],
    checkpoint: Checkpoint,
    outputs: Sequence[Path],
    look: Look,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write sheets, and films for names that end in ``.gif``, and return what was measured.

    Returns:
        ``mask_ratio``, ``images`` (name, removed patches, and the loss by framework), ``note``,
        ``outputs``; ``film_ratios`` where films are all that is written, of which the rest then
        tells the first; of two frameworks also ``largest_difference``, in normalised pixels.

    Raises:
        MaeConvertError: an image, the mask, the checkpoint or an output cannot be used.
        MissingRequirementError: the framework or the device is not there.
    """
    require_images(checkpoint, "reconstruct")
    _check_outputs(outputs, overwrite=overwrite)
    films = [path for path in outputs if path.suffix.lower() in FILMS]
    if films and look.mask not in KINDS:
        raise MaeConvertError(
            f"{look.mask} has a fixed mask ratio, and an animation shows several",
            hint=("give a film ", Option("mask", "random"), ", block or grid"),
        )
    if look.inputs is not None:
        batch = batch_from_inputs(look.inputs, checkpoint)
    else:
        batch = batch_from_files(images, checkpoint, stretch=look.stretch)
    noise, ratio = _masked(checkpoint, batch, look)
    display = display_of(
        batch.pixel_values, checkpoint.configuration, look.bands,
        preprocessed=look.inputs is not None,
    )  # fmt: skip
    run = Reconstructor(checkpoint, look.framework, look.device)
    report: dict[str, Any] = {}
    for kind, ratios in ((outputs_but(films, outputs), (ratio,)), (films, FILM_RATIOS)):
        if not kind:
            continue
        found = [run(batch.pixel_values, noise, each) for each in ratios]
        frames = [_drawn(done, batch, checkpoint, display, look) for done in found]
        for path in kind:
            save(frames, path, overwrite=overwrite)
        report = report or _measured(found[0], batch)
    if len(films) == len(outputs):
        report["film_ratios"] = list(FILM_RATIOS)
    notes = "; ".join(filter(None, (note_on(checkpoint), display.note))) or None
    return {**report, "note": notes, "outputs": [str(path) for path in outputs]}


def _check_outputs(outputs: Sequence[Path], *, overwrite: bool) -> None:
    """Raise MaeConvertError if an output cannot be written, or is specified twice."""
    seen: set[Path] = set()
    for path in outputs:
        check_name(path, overwrite=overwrite)
        if path.resolve() in seen:
            raise MaeConvertError(
                path, " is named twice", hint="use a different name for each output"
            )
        seen.add(path.resolve())


def outputs_but(films: Sequence[Path], outputs: Sequence[Path]) -> list[Path]:
    """Return the outputs that are not animations."""
    return [path for path in outputs if path not in films]


def note_on(checkpoint: Checkpoint) -> str | None:
    """Return a note about the colours of the reconstructions."""
    return BORROWED if checkpoint.configuration.model.norm_pix_loss else None


def _masked(checkpoint: Checkpoint, batch: ImageBatch, look: Look) -> tuple[np.ndarray, float]:
    """Return noise (N, L), and the mask ratio to use with it."""
    model, count = checkpoint.configuration.model, len(batch.names)
    if (given := noise_in(batch, look.mask, KINDS[0])) is not None:
        return given, ratio_that_keeps(model.num_kept, model)
    if look.mask in KINDS:
        noise = noise_of(look.mask, model, count=count, seed=look.seed)
        return noise, ratio_that_keeps(model.num_kept, model)
    path = Path(look.mask)
    if not path.exists():
        raise MaeConvertError(
            *(Option("mask", look.mask), " does not exist"),
            hint=f"write {', '.join(KINDS)}, or name an image that is white where patches go",
        )
    return drawn_mask(path, model, count=count)


def _drawn(
    done: Reconstruction,
    batch: ImageBatch,
    checkpoint: Checkpoint,
    display: Display,
    look: Look,
) -> Image.Image:
    names = [
        f"{label}, {mask.mean():.0%} removed"
        for label, mask in zip(batch.labels, done.mask, strict=True)
    ]
    sheet = sheet_of(
        done, names, checkpoint.configuration, shapes=batch.shapes,
        note=note_on(checkpoint) or "", display=display,
    )  # fmt: skip
    return draw(sheet, across=look.across)


def _measured(done: Reconstruction, batch: ImageBatch) -> dict[str, Any]:
    rows: list[Mapping[str, Any]] = [
        {
            "image": name,
            "removed": int(done.mask[i].sum()),
            "patches": done.mask.shape[1],
            "loss": {
                name: float(errors[i]) if done.mask[i].any() else None
                for name, errors in done.loss.items()
            },
        }
        for i, name in enumerate(batch.names)
    ]
    report: dict[str, Any] = {"mask_ratio": float(done.mask.mean(dtype=np.float64)), "images": rows}
    if len(done.predicted) > 1:
        a, b = done.predicted.values()
        with np.errstate(invalid="ignore"):  # of infinity and infinity
            report["largest_difference"] = float(np.abs(a - b).max())
    return report
