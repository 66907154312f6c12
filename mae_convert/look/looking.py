"""From pictures and a checkpoint to a sheet, or a film over mask ratios."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae_convert.checkpoint import Checkpoint
from mae_convert.errors import MaeConvertError
from mae_convert.image_files import open_image
from mae_convert.look.masks import KINDS, drawn_mask, noise_of, ratio_that_keeps
from mae_convert.look.reconstruction import Reconstruction, Reconstructor, load_cut
from mae_convert.look.sheet import FILMS, check_name, draw, save, sheet_of

FILM_RATIOS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
BORROWED = (
    "the model predicts each patch normalised (norm_pix_loss): its mean and contrast are borrowed"
    " from the original"
)


@dataclass(frozen=True)
class Look:
    """How pictures are looked at.

    Attributes:
        mask: one of ``masks.KINDS``, or the path of a picture that is white where patches go.
        seed: of the mask.
        framework: "torch", "tensorflow", "jax" or "both".
        device: "cpu" or "cuda"; None is where the framework puts it.
        stretch: squeeze whole pictures into the model's shape, in place of taking their middle.
        across: groups of rows beside each other; None is what fits well.
    """

    mask: str = "random"
    seed: int = 0
    framework: str = "torch"
    device: str | None = None
    stretch: bool = False
    across: int | None = None


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
        MaeConvertError: a picture, the mask, the checkpoint or an output cannot be used.
        MissingRequirementError: the framework or the device is not there.
    """
    _check_outputs(outputs, overwrite=overwrite)
    films = [path for path in outputs if path.suffix.lower() in FILMS]
    if films and look.mask not in KINDS:
        raise MaeConvertError(
            f"{look.mask} has one mask ratio, and a film shows many; give a film --mask random,"
            " block or grid"
        )
    noise, ratio = _masked(checkpoint, len(images), look)
    pixels = load_cut(images, checkpoint, stretch=look.stretch)
    shapes = _shapes(images, checkpoint, stretch=look.stretch)
    run = Reconstructor(checkpoint, look.framework, look.device)
    report: dict[str, Any] = {}
    for kind, ratios in ((outputs_but(films, outputs), (ratio,)), (films, FILM_RATIOS)):
        if not kind:
            continue
        found = [run(pixels, noise, each) for each in ratios]
        frames = [_drawn(done, images, checkpoint, shapes, look) for done in found]
        for path in kind:
            save(frames, path, overwrite=overwrite)
        report = report or _measured(found[0], images)
    if len(films) == len(outputs):
        report["film_ratios"] = list(FILM_RATIOS)
    return {**report, "note": note_on(checkpoint), "outputs": [str(path) for path in outputs]}


def _check_outputs(outputs: Sequence[Path], *, overwrite: bool) -> None:
    """Raise MaeConvertError where one cannot be written, or would be written twice."""
    seen: set[Path] = set()
    for path in outputs:
        check_name(path, overwrite=overwrite)
        if path.resolve() in seen:
            raise MaeConvertError(f"{path} is named twice; give each output a name of its own")
        seen.add(path.resolve())


def outputs_but(films: Sequence[Path], outputs: Sequence[Path]) -> list[Path]:
    """Return the outputs that are no films."""
    return [path for path in outputs if path not in films]


def note_on(checkpoint: Checkpoint) -> str | None:
    """Return what is to be known of a model's colours."""
    return BORROWED if checkpoint.configuration.model.norm_pix_loss else None


def _masked(checkpoint: Checkpoint, count: int, look: Look) -> tuple[np.ndarray, float]:
    """Return noise (count, L), and the mask ratio that goes with it."""
    model = checkpoint.configuration.model
    if look.mask in KINDS:
        noise = noise_of(look.mask, model, count=count, seed=look.seed)
        return noise, ratio_that_keeps(model.num_kept, model)
    path = Path(look.mask)
    if not path.is_file():
        raise MaeConvertError(
            f"--mask {look.mask} is neither {', '.join(KINDS)} nor a picture; draw one that is"
            " white where patches are to be removed"
        )
    return drawn_mask(path, model, count=count)


def _shapes(images: Sequence[Path], checkpoint: Checkpoint, *, stretch: bool) -> list[float]:
    """Return the width to height in which each picture is shown."""
    height, width = checkpoint.configuration.model.image_hw
    if not stretch:
        return [width / height] * len(images)
    return [picture.width / picture.height for picture in map(open_image, images)]


def _drawn(
    done: Reconstruction,
    images: Sequence[Path],
    checkpoint: Checkpoint,
    shapes: Sequence[float],
    look: Look,
) -> Image.Image:
    names = [
        f"{path.name}, {mask.mean():.0%} removed"
        for path, mask in zip(images, done.mask, strict=True)
    ]
    sheet = sheet_of(
        done, names, checkpoint.configuration, shapes=shapes, note=note_on(checkpoint) or ""
    )
    return draw(sheet, across=look.across)


def _measured(done: Reconstruction, images: Sequence[Path]) -> dict[str, Any]:
    rows: list[Mapping[str, Any]] = [
        {
            "image": str(path),
            "removed": int(done.mask[i].sum()),
            "patches": done.mask.shape[1],
            "loss": {
                name: float(errors[i]) if done.mask[i].any() else None
                for name, errors in done.loss.items()
            },
        }
        for i, path in enumerate(images)
    ]
    report: dict[str, Any] = {"mask_ratio": float(done.mask.mean(dtype=np.float64)), "images": rows}
    if len(done.predicted) > 1:
        a, b = done.predicted.values()
        with np.errstate(invalid="ignore"):  # of infinity and infinity
            report["largest_difference"] = float(np.abs(a - b).max())
    return report
