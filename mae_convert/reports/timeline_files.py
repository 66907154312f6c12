"""Write a timeline to files: an HTML page, a PNG image, or the values as CSV or JSON."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae_convert.files.atomic import check_target, write_file
from mae_convert.files.strict_json import plain
from mae_convert.reports.html import Cell, Chart, document, image, images, line, table
from mae_convert.reports.html import point as chart_point
from mae_convert.reports.html import text as label
from mae_convert.text import for_html, for_terminal
from mae_convert.visualize.pixels import GREY, pasted
from mae_convert.visualize.sheet import Row, Sheet, draw
from mae_convert.visualize.timeline import Timeline

CHART = Chart("loss by epoch", height=360, left=70, bottom=44)
MOST_IMAGES = 4  # maximum number of images that are shown; the loss is computed from all images


def check_names(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse paths to which no output can be written, before any work is done.

    Raises:
        OutputError: an output cannot be written; see `check_target`.
    """
    for path in paths:
        check_target(path, overwrite=overwrite, suffixes=WRITERS)


def write(result: Timeline, paths: Sequence[Path], *, overwrite: bool) -> None:
    """Write a timeline to every path, in the format of its suffix."""
    for path in paths:
        write_file(path, WRITERS[path.suffix.lower()](result), overwrite=overwrite)


def timeline_json(result: Timeline) -> dict[str, Any]:
    """Return a timeline as values that can be written as JSON."""
    return {
        "objective": objective_in_words(result),
        "mask_ratio": result.mask_ratio,
        "images": list(result.images),
        "best_epoch": result.best.epoch,
        "paid_until_epoch": result.near_best.epoch,
        "points": [vars(point) for point in result.points],
    }


def objective_in_words(timeline: Timeline) -> str:
    """Return a phrase that describes the loss."""
    of = "normalized patches" if timeline.configuration.model.norm_pix_loss else "normalized pixels"
    return f"mean squared error of {of} over removed patches"


def sheet(timeline: Timeline) -> Image.Image:
    """Return images side by side: the original, the masked image, and the reconstructions."""
    columns = _columns(timeline)
    count = min(len(timeline.images), MOST_IMAGES)
    rows = tuple(
        Row(timeline.images[i], tuple(column[i] for column in columns.values()))
        for i in range(count)
    )
    height, width = timeline.configuration.model.image_hw
    return draw(Sheet(tuple(columns), rows, _note(timeline), (width / height,) * count))


def _note(timeline: Timeline) -> str:
    """Return a sentence about the displayed colours and, for clips, the displayed frame."""
    shape = next(iter(timeline.shown.values())).pixel_values.shape
    frame = "the middle frame of each clip is shown" if len(shape) == 5 else ""
    return "; ".join(filter(None, (frame, timeline.display.note)))


def _columns(timeline: Timeline) -> dict[str, np.ndarray]:
    """Return a dictionary from the heading of each column to its colours (N, H, W, 3).

    For clips, these are the colours of the middle frame.
    """
    first = next(iter(timeline.shown.values()))
    original = timeline.display(first.pixel_values)
    columns = {
        "original": original,
        "masked": pasted(original, np.full_like(original, GREY), first.mask, first.shapes),
    }
    for epoch, reconstruction in sorted(timeline.shown.items()):
        (predicted,) = reconstruction.predicted.values()
        painted = timeline.display(predicted)
        columns[f"epoch {epoch}"] = pasted(
            original, painted, reconstruction.mask, reconstruction.shapes
        )
    if original.ndim == 5:  # (N, T, H, W, 3): the middle frame
        columns = {head: colours[:, colours.shape[1] // 2] for head, colours in columns.items()}
    return columns


def page(result: Timeline) -> str:
    """Return a timeline as a self-contained HTML page."""
    best, near_best = result.best, result.near_best
    improvement = "" if near_best is best else (
        f" At epoch {near_best.epoch}, 99 % of the improvement from the first to the lowest loss "
        "is reached."
    )  # fmt: skip
    sentence = (
        f"{len(result.points)} checkpoints, all evaluated in float32 on the same "
        f"{len(result.images)} images with the same noise: {objective_in_words(result)}, "
        f"with {result.mask_ratio:.0%} of the patches removed."
    )
    parts = [
        "<h1>Training, checkpoint by checkpoint</h1>",
        f'<p class="grey">{sentence}</p>',
        f"<p>Lowest loss: <strong>{best.loss:.4f}</strong> at epoch {best.epoch}.{improvement}</p>",
        plot(result),
        "<h2>Images</h2>",
        _images(result),
        "<h2>Checkpoints</h2>",
        _table(result),
    ]
    return document("mae-convert timeline", parts)


def _table(timeline: Timeline) -> str:
    before: float | None = None
    rows: list[tuple[str | Cell, ...]] = []
    for point in timeline.points:
        change = "" if before is None or point.loss is None else f"{point.loss - before:+.4f}"
        loss = f"{point.loss:.4f}" if point.loss is not None else ""
        span = f"{min(point.losses):.4f} to {max(point.losses):.4f}" if point.losses else ""
        name = for_html(point.source)
        if point.error:
            name += f'<br><span class="bad">{for_html(point.error)}</span>'
        numbers = (str(point.epoch), loss, change, span)
        rows.append((*(Cell(number, "n") for number in numbers), name))
        before = before if point.loss is None else point.loss
    marks = [
        " ".join(
            n for n, p in (("best", timeline.best), ("paid", timeline.near_best)) if p is point
        )
        for point in timeline.points
    ]
    heads = ("epoch", "loss", "change", "over images", "checkpoint")
    return table(heads, rows, attributes=[f'class="{mark}"' for mark in marks])


def _images(timeline: Timeline) -> str:
    columns = _columns(timeline)
    rows = (
        [_image(column[i], name) for name, column in columns.items()]
        for i in range(min(len(timeline.images), MOST_IMAGES))
    )
    note = (
        f'<p class="grey">Visible patches are taken from the original image. {_note(timeline)}</p>'
    )
    return images(list(columns), rows) + note


def _image(colours: np.ndarray, name: str) -> str:
    return image(np.rint(colours * 255).astype(np.uint8), name)


def _as_png(timeline: Timeline) -> bytes:
    data = io.BytesIO()
    sheet(timeline).save(data, format="PNG", optimize=True)
    return data.getvalue()


def _as_csv(timeline: Timeline) -> bytes:
    text = io.StringIO()
    table = csv.writer(text)
    images = map(for_terminal, timeline.images)
    table.writerow(("epoch", "loss", *images, "checkpoint", "error"))
    for p in timeline.points:
        losses = p.losses or ("",) * len(timeline.images)
        words = (for_terminal(p.source), for_terminal(p.error or ""))
        table.writerow((p.epoch, p.loss, *losses, *words))
    return text.getvalue().encode()


def _as_json(timeline: Timeline) -> bytes:
    return (json.dumps(plain(timeline_json(timeline)), indent=2) + "\n").encode()


WRITERS: Mapping[str, Callable[[Timeline], bytes]] = {
    ".html": lambda drawn: page(drawn).encode(),
    ".png": _as_png,
    ".csv": _as_csv,
    ".json": _as_json,
}


def plot(timeline: Timeline) -> str:
    """Return an SVG of the loss by epoch: the mean over all images, and the loss of each image.

    The epoch of `Timeline.near_best` is marked: at this epoch, the mean loss has first made 99 % of
    its decrease from the first to the lowest loss.
    """
    points = [p for p in timeline.points if p.loss is not None]
    first, last = points[0].epoch, points[-1].epoch
    levels = _ticks(0, max(max(p.losses) for p in points), beyond=True)

    def x(epoch: float) -> float:
        return CHART.x((epoch - first) / max(last - first, 1))

    def y(loss: float) -> float:
        return CHART.y(loss / levels[-1])

    bottom = CHART.height - CHART.bottom
    grid = [CHART.level(level / levels[-1], f"{level:g}") for level in levels]
    epochs = [label(x(e), bottom + 18, f"{e:g}", anchor="middle") for e in _ticks(first, last)]
    thin = [
        line([(x(p.epoch), y(p.losses[i])) for p in points], "faint")
        for i in range(len(timeline.images))
    ]
    mean = line([(x(p.epoch), y(p.loss or 0.0)) for p in points], "accent")
    dots = [
        chart_point(x(p.epoch), y(p.loss or 0.0), f"epoch {p.epoch}: {p.loss:.4f}", "accent")
        for p in points
    ]
    at = x(timeline.near_best.epoch)
    is_right = at > CHART.width / 2
    mark = line([(at, CHART.top), (at, bottom)], "ok-mark") + label(
        at - 6 if is_right else at + 6, CHART.top + 12, "99 % of the improvement",
        anchor="end" if is_right else "start", more=' class="ok-fill"',
    )  # fmt: skip
    turned = f' transform="rotate(-90 14 {bottom / 2:.1f})"'
    return CHART.svg(
        *grid, *epochs, *thin, mark, mean, *dots,
        label(CHART.width / 2, CHART.height - 6, "epoch", anchor="middle"),
        label(14, bottom / 2, "loss: mean (blue), images (grey)", anchor="middle", more=turned),
    )  # fmt: skip


def _ticks(low: float, high: float, *, beyond: bool = False) -> list[float]:
    """Return round numbers in a range and, with `beyond`, the next round number above the range."""
    span = (high - low) or 1.0
    step = 10.0 ** np.floor(np.log10(span))
    step *= next(f for f in (0.1, 0.2, 0.5, 1.0, 2.0) if span / (step * f) <= 6)
    first, last = np.ceil(low / step), (np.ceil if beyond else np.floor)(high / step)
    return [float(step * i) for i in np.arange(first, last + 1)]
