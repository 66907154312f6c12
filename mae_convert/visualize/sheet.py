"""Contact sheets: labelled rows of images, in one or more groups, and animations of them."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mae_convert.families.configuration import Configuration
from mae_convert.files.atomic import check_target, replacing_file
from mae_convert.text import for_terminal
from mae_convert.visualize.display import Display, display_of
from mae_convert.visualize.pixels import GREY, amplified_difference, eight_bits, in_pixels, pasted
from mae_convert.visualize.reconstruction import Reconstruction

TILE = 224  # pixels on the sheet of an image's longer side, at least
MARGIN, GAP, LINE = 16, 6, 20
INK, FAINT, PAPER = (32, 32, 36), (110, 110, 118), (255, 255, 255)
FORMATS = (".png", ".jpg", ".jpeg", ".webp")
FILMS = (".gif",)
FRAME_MS, LAST_FRAME_MS = 900, 1800
NAMES = {"torch": "PyTorch", "tensorflow": "TensorFlow", "jax": "JAX"}


@dataclass(frozen=True)
class Row:
    """A row of a sheet: its label, and its images (H, W, 3) in [0, 1]."""

    label: str
    tiles: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Sheet:
    """What is drawn.

    Attributes:
        heads: what each column shows.
        rows: of as many tiles.
        note: a line below everything, or nothing.
        shapes: width to height that each row's images are shown in.
    """

    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str
    shapes: tuple[float, ...]


def sheet_of(
    done: Reconstruction,
    names: Sequence[str],
    configuration: Configuration,
    *,
    shapes: Sequence[float],
    note: str = "",
    display: Display | None = None,
) -> Sheet:
    """Return a sheet with a row for each image.

    Of one framework it shows original, masked image, reconstruction, and the reconstruction with
    the original visible patches; of two the last of each, and their difference, amplified.

    Args:
        done: what the models made.
        names: of the images.
        configuration: the model's, for patches and normalisation.
        shapes: width to height in which each image is shown.
        note: a line for below.
        display: how pixels become colours; default: as those of photographs.
    """
    display = display or display_of(done.pixel_values, configuration)
    original = display(done.pixel_values)
    masked = pasted(original, np.full_like(original, GREY), done.mask, configuration)
    painted = {name: display(image) for name, image in done.predicted.items()}
    whole = {
        name: pasted(original, image, done.mask, configuration) for name, image in painted.items()
    }
    columns = {"original": original, "masked": masked}
    if len(painted) == 1:
        columns |= {"reconstruction": next(iter(painted.values()))}
        columns |= {"with visible patches": next(iter(whole.values()))}
    else:
        columns |= {NAMES[name]: image for name, image in whole.items()}
        difference, factor = amplified_difference(*done.predicted.values())
        scale = f"difference (white: +{GREY / factor:.0e})"
        head = scale if math.isfinite(factor) else "no difference at all"
        columns[head] = display.chosen(difference)
    rows = (
        Row(label, tiles)
        for label, tiles in zip(names, zip(*columns.values(), strict=True), strict=True)
    )
    notes = "; ".join(text for text in (note, display.note) if text)
    return Sheet(tuple(columns), tuple(rows), notes, tuple(shapes))


def panel(
    pixel_values: np.ndarray,
    reconstruction: np.ndarray,
    mask: np.ndarray,
    names: Sequence[str],
    configuration: Configuration,
) -> Image.Image:
    """Return a drawn sheet of one model's reconstructions.

    Args:
        pixel_values: (N, C, H, W), normalised.
        reconstruction: (N, C, H, W), as the model predicts it.
        mask: (N, L), 1 where a patch is removed.
        names: of the images.
        configuration: the model's.
    """
    painted = in_pixels(reconstruction, pixel_values, configuration)
    done = Reconstruction(pixel_values, mask, {"": painted}, {})
    height, width = configuration.model.image_hw
    return draw(sheet_of(done, names, configuration, shapes=[width / height] * len(names)))


def draw(sheet: Sheet, *, across: int | None = None) -> Image.Image:
    """Return the sheet as an image, with `across` groups side by side, or a suitable number."""
    across = across or (1 if len(sheet.rows) <= 4 else 2 if len(sheet.rows) <= 12 else 3)
    across = min(across, len(sheet.rows))
    sizes = [_size(row, shape) for row, shape in zip(sheet.rows, sheet.shapes, strict=True)]
    cell = max(width for width, _ in sizes)
    group = len(sheet.heads) * (cell + GAP) - GAP
    per_group = math.ceil(len(sheet.rows) / across)
    groups = [range(i, min(i + per_group, len(sizes))) for i in range(0, len(sizes), per_group)]
    tallest = max(sum(sizes[i][1] + LINE + GAP for i in rows) for rows in groups)
    width = len(groups) * (group + 2 * MARGIN)
    height = MARGIN + LINE + tallest + (LINE if sheet.note else 0) + MARGIN
    paper = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(paper)
    for number, rows in enumerate(groups):
        left, top = MARGIN + number * (group + 2 * MARGIN), MARGIN
        for column, head in enumerate(sheet.heads):
            _write(pen, (left + column * (cell + GAP), top), head, cell, INK)
        top += LINE
        for i in rows:
            for column, tile in enumerate(sheet.rows[i].tiles):
                paper.paste(_scaled(tile, sizes[i]), (left + column * (cell + GAP), top))
            top += sizes[i][1]
            _write(pen, (left, top + 2), sheet.rows[i].label, group, FAINT)
            top += LINE + GAP
    if sheet.note:
        _write(pen, (MARGIN, height - MARGIN - LINE), sheet.note, width - 2 * MARGIN, FAINT)
    return paper


def _size(row: Row, shape: float) -> tuple[int, int]:
    """Return width and height on the sheet: integer multiples of the pixels where possible."""
    height, width = row.tiles[0].shape[:2]
    factor = max(1, math.ceil(TILE / max(height, width)))
    if math.isclose(shape, width / height, rel_tol=0.01):
        return width * factor, height * factor
    longer = factor * max(height, width)
    return (
        (longer, max(1, round(longer / shape)))
        if shape > 1
        else (max(1, round(longer * shape)), longer)
    )


def _scaled(tile: np.ndarray, size: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(eight_bits(tile))
    whole = size[0] % picture.width == 0 and size[1] % picture.height == 0
    return picture.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.BICUBIC)


def _write(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    width: int,
    ink: tuple[int, int, int],
) -> None:
    """Draw a line of text in Pillow's own font, truncated if it does not fit."""
    font = ImageFont.load_default(13)
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = for_terminal(text).encode("ascii", "replace").decode()
    if pen.textlength(text, font=font) > width:
        while text and pen.textlength(text + " ...", font=font) > width:
            text = text[:-1]
        text += " ..."
    pen.text(at, text, fill=ink, font=font)


def check_name(path: Path, *, overwrite: bool) -> None:
    """Check that an image can be written to a path, before it is computed.

    Raises:
        MaeConvertError: the suffix is unknown, or the file already exists.
    """
    check_target(path, overwrite=overwrite, suffixes=(*FORMATS, *FILMS))


def save(frames: Sequence[Image.Image], path: Path, *, overwrite: bool) -> None:
    """Write an image, or several as an animation that loops."""
    with replacing_file(path, overwrite=overwrite) as place:
        if len(frames) == 1:
            frames[0].save(place, Image.registered_extensions()[path.suffix.lower()], quality=95)
            return
        # One palette for all frames, or colours flicker.
        palette = frames[-1].quantize(256)
        first, *rest = (
            frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames
        )
        times = [FRAME_MS] * len(rest) + [LAST_FRAME_MS]
        first.save(place, "GIF", save_all=True, append_images=rest, duration=times, loop=0)
