"""Draw contact sheets (labelled rows of images), and save them as images or as animations."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.files.atomic import check_target, replacing_file
from mae_convert.text import for_terminal
from mae_convert.visualize.display import Display, display_of
from mae_convert.visualize.pixels import GREY, amplified_difference, eight_bits, in_pixels, pasted
from mae_convert.visualize.reconstruction import Reconstruction

TILE = 224  # minimum length, in pixels on the sheet, of an image's longer side
MARGIN, GAP, LINE, FONT_SIZE = 16, 6, 20, 13
INK, FAINT, PAPER = (32, 32, 36), (110, 110, 118), (255, 255, 255)
FORMATS = (".png", ".jpg", ".jpeg", ".webp")
ANIMATION_FORMATS = (".gif",)
FRAME_MS, LAST_FRAME_MS = 900, 1800
CLIP_MS, SHORTEST_MS = 3200, 150  # duration of a clip, and minimum duration of a frame
MOST_FRAMES = 8  # maximum number of frames on a sheet
NAMES = {"torch": "PyTorch", "tensorflow": "TensorFlow", "jax": "JAX"}


@dataclass(frozen=True)
class Row:
    """A row of a sheet: its label, and its images (H, W, 3) in [0, 1]."""

    label: str
    tiles: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Sheet:
    """The contents of a contact sheet."""

    heads: tuple[str, ...]
    """The column headings."""

    rows: tuple[Row, ...]
    """The rows, each with one tile for every column."""

    note: str
    """A line of text at the bottom, or ""."""

    shapes: tuple[float, ...]
    """Displayed ratio of width to height of the images in each row."""

    rows_per_group: int = 1
    """The number of rows in one group, such as the original and the reconstruction of one clip. The
    rows of a group are drawn below each other, never side by side."""

    @property
    def default_across(self) -> int:
        """The default number of parts, side by side, into which the rows are divided."""
        count = len(self.rows) // self.rows_per_group
        if self.rows_per_group > 1:  # groups of rows that show the frames of a clip
            return max(1, min(count, MOST_FRAMES // len(self.heads)))
        return 1 if count <= 4 else 2 if count <= 12 else 3


def columns_of(result: Reconstruction, display: Display) -> dict[str, np.ndarray]:
    """Return the columns of a sheet of reconstructions: colours (N, [T,] H, W, 3) by heading.

    For one framework the columns are the original, the masked image, the reconstruction, and the
    reconstruction with the visible patches of the original; for a model that predicts only removed
    patches, the third column is omitted. For two frameworks the columns are the original, the
    masked image, the reconstruction of each framework with the visible patches of the original, and
    the amplified difference between the two reconstructions.

    Args:
        result: the reconstructions.
        display: the conversion of pixels to colours.
    """
    original = display(result.pixel_values)
    masked = pasted(original, np.full_like(original, GREY), result.mask, result.shapes)
    predicted = {name: display(image) for name, image in result.predicted.items()}
    with_visible = {
        name: pasted(original, image, result.mask, result.shapes)
        for name, image in predicted.items()
    }
    columns = {"original": original, "masked": masked}
    if len(predicted) == 1 and result.only_removed:
        return columns | {"reconstruction": next(iter(with_visible.values()))}
    if len(predicted) == 1:
        columns |= {"reconstruction": next(iter(predicted.values()))}
        return columns | {"with visible patches": next(iter(with_visible.values()))}
    columns |= {NAMES[name]: image for name, image in with_visible.items()}
    difference, factor = amplified_difference(*result.predicted.values())
    scale = f"difference (white: +{GREY / factor:.0e})"
    head = scale if math.isfinite(factor) else "no difference"
    return columns | {head: display.selected_channels(difference)}


def sheet_of(
    columns: Mapping[str, np.ndarray],
    labels: Sequence[str],
    *,
    shapes: Sequence[float],
    note: str = "",
) -> Sheet:
    """Return a sheet with a row for each image.

    Args:
        columns: colours (N, H, W, 3) by heading.
        labels: the labels of the images.
        shapes: displayed ratio of width to height of each image.
        note: a line of text at the bottom.
    """
    rows = zip(labels, zip(*columns.values(), strict=True), strict=True)
    return Sheet(tuple(columns), tuple(Row(*row) for row in rows), note, tuple(shapes))


def sheet_of_clips(
    columns: Mapping[str, np.ndarray],
    labels: Sequence[str],
    frames: Sequence[int],
    *,
    shapes: Sequence[float],
    note: str = "",
) -> Sheet:
    """Return a sheet with a column for each frame, and a row for each version of each clip.

    At most `MOST_FRAMES` evenly spaced frames are displayed.

    Args:
        columns: colours (N, T, H, W, 3) of each version of the clips, by the name of the version,
            such as "original". In this sheet, each version of a clip is a row (not a column), and
            the label of the row contains the name.
        labels: the labels of the N clips.
        frames: (T,), the indices of the frames in the clip.
        shapes: displayed ratio of width to height of each clip.
        note: a line of text at the bottom.
    """
    shown = np.linspace(0, len(frames) - 1, min(len(frames), MOST_FRAMES)).round().astype(int)
    rows = [
        Row(f"{label}: {head}", tuple(colours[i][shown]))
        for i, label in enumerate(labels)
        for head, colours in columns.items()
    ]
    heads = tuple(f"frame {frames[index] + 1}" for index in shown)
    of_rows = tuple(shape for shape in shapes for _ in columns)
    return Sheet(heads, tuple(rows), note, of_rows, len(columns))


def panel(
    pixel_values: np.ndarray,
    reconstruction: np.ndarray,
    mask: np.ndarray,
    names: Sequence[str],
    checkpoint: Checkpoint,
) -> Image.Image:
    """Draw a contact sheet of one model's reconstructions.

    Args:
        pixel_values: (N, C, [T,] H, W), normalized.
        reconstruction: (N, C, [T,] H, W), the prediction of the model.
        mask: (N, L), 1 where a patch is removed.
        names: the names of the images.
        checkpoint: the checkpoint of the model.
    """
    family, configuration = checkpoint.family, checkpoint.configuration
    model = configuration.model
    target = family.predicted_pixels(pixel_values, model)
    predicted = in_pixels(reconstruction, target, family, model)
    result = Reconstruction(
        target, mask, {"": predicted}, {}, family.prediction(model),
        only_removed=family.predicts_removed_only,
    )  # fmt: skip
    display = display_of(pixel_values, configuration, colours=family.colours)
    columns = columns_of(result, display)
    shapes = [model.image_hw[1] / model.image_hw[0]] * len(names)
    if family.clips is None:
        return draw(sheet_of(columns, names, shapes=shapes))
    frames = family.predicted_frames(model)
    return draw(sheet_of_clips(columns, names, frames, shapes=shapes))


def draw(sheet: Sheet, *, across: int | None = None) -> Image.Image:
    """Draw a sheet.

    Args:
        sheet: the contents of the sheet.
        across: the number of parts, side by side, into which the rows are divided; None for
            `Sheet.default_across`.
    """
    across = min(across or sheet.default_across, len(sheet.rows) // sheet.rows_per_group)
    sizes = [_size(row, shape) for row, shape in zip(sheet.rows, sheet.shapes, strict=True)]
    cell = max(width for width, _ in sizes)
    group = len(sheet.heads) * (cell + GAP) - GAP
    per_group = math.ceil(len(sheet.rows) / sheet.rows_per_group / across) * sheet.rows_per_group
    groups = [range(i, min(i + per_group, len(sizes))) for i in range(0, len(sizes), per_group)]
    tallest = max(sum(sizes[i][1] + LINE + GAP for i in rows) for rows in groups)
    width = len(groups) * (group + 2 * MARGIN)
    notes = _wrapped(sheet.note, width - 2 * MARGIN)
    height = MARGIN + LINE + tallest + LINE * len(notes) + MARGIN
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
    for number, line in enumerate(reversed(notes), 1):
        _write(pen, (MARGIN, height - MARGIN - number * LINE), line, width - 2 * MARGIN, FAINT)
    return paper


def _wrapped(text: str, width: int) -> list[str]:
    """Return the text in lines that fit into a width in pixels."""
    font, lines = ImageFont.load_default(FONT_SIZE), list[str]()
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _size(row: Row, shape: float) -> tuple[int, int]:
    """Return the width and height in pixels at which the images of a row are drawn.

    Both are the same integer multiple of the width and height of the images. If `shape` (width /
    height) is not the aspect ratio of the images, the longer side is a multiple of their longer
    side, and the shorter side follows from `shape`.
    """
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
    image = Image.fromarray(eight_bits(tile))
    is_multiple = size[0] % image.width == 0 and size[1] % image.height == 0
    return image.resize(size, Image.Resampling.NEAREST if is_multiple else Image.Resampling.BICUBIC)


def _write(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    width: int,
    ink: tuple[int, int, int],
) -> None:
    """Draw a line of text in Pillow's default font, truncated if it does not fit."""
    font = ImageFont.load_default(FONT_SIZE)
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = for_terminal(text).encode("ascii", "replace").decode()
    if pen.textlength(text, font=font) > width:
        while text and pen.textlength(text + " ...", font=font) > width:
            text = text[:-1]
        text += " ..."
    pen.text(at, text, fill=ink, font=font)


def check_name(path: Path, *, overwrite: bool) -> None:
    """Check that an image can be written to a path.

    Raises:
        MaeConvertError: the suffix is unknown or the file already exists.
    """
    check_target(path, overwrite=overwrite, suffixes=(*FORMATS, *ANIMATION_FORMATS))


def save(frames: Sequence[Image.Image], path: Path, *, overwrite: bool, clip: bool = False) -> None:
    """Write the first image or, for the suffix ``.gif``, all images as a repeating animation.

    Args:
        frames: the images, in the order of the animation.
        path: the file to write.
        overwrite: replace an existing file.
        clip: whether the images are frames of a video; they are then displayed for equal times.
    """
    with replacing_file(path, overwrite=overwrite) as temporary:
        if path.suffix.lower() not in ANIMATION_FORMATS:
            frames[0].save(
                temporary, Image.registered_extensions()[path.suffix.lower()], quality=95
            )
            return
        # All frames use the same palette; with different palettes the colours would flicker.
        palette = _side_by_side(frames).quantize(256)
        first, *others = (
            frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames
        )
        times = [FRAME_MS] * len(others) + [LAST_FRAME_MS]
        if clip:
            times = [max(CLIP_MS // len(frames), SHORTEST_MS)] * len(frames)
        first.save(temporary, "GIF", save_all=True, append_images=others, duration=times, loop=0)


def _side_by_side(frames: Sequence[Image.Image]) -> Image.Image:
    """Return an image with the first, middle and last frame side by side."""
    few = [frames[0], frames[len(frames) // 2], frames[-1]]
    width, height = few[0].size
    rows_per_group = Image.new("RGB", (width * len(few), height))
    for index, frame in enumerate(few):
        rows_per_group.paste(frame, (index * width, 0))
    return rows_per_group
