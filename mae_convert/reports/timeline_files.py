"""A timeline as files: a page with plot, images and table, or only the images or the table."""

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
MOST_PICTURES = 4  # in a sheet; the loss is that of all images


def check_names(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse output files that could not be written, before any work.

    Raises:
        OutputError: as `check_target`.
    """
    for path in paths:
        check_target(path, overwrite=overwrite, suffixes=WRITERS)


def write(found: Timeline, paths: Sequence[Path], *, overwrite: bool) -> None:
    """Write a timeline to every path, in the format of its suffix."""
    for path in paths:
        write_file(path, WRITERS[path.suffix.lower()](found), overwrite=overwrite)


def timeline_json(found: Timeline) -> dict[str, Any]:
    """Return a timeline as plain data."""
    return {
        "objective": objective_in_words(found),
        "mask_ratio": found.mask_ratio,
        "images": list(found.images),
        "best_epoch": found.best.epoch,
        "paid_until_epoch": found.paid_until.epoch,
        "points": [vars(point) for point in found.points],
    }


def objective_in_words(found: Timeline) -> str:
    """Return a description of the loss."""
    of = "normalised patches" if found.configuration.model.norm_pix_loss else "normalised pixels"
    return f"mean squared error of {of} over removed patches"


def sheet(found: Timeline) -> Image.Image:
    """Return images side by side: the original, the visible patches, and the reconstructions."""
    columns = _columns(found)
    count = min(len(found.images), MOST_PICTURES)
    rows = tuple(
        Row(found.images[i], tuple(column[i] for column in columns.values())) for i in range(count)
    )
    height, width = found.configuration.model.image_hw
    return draw(Sheet(tuple(columns), rows, _note(found), (width / height,) * count))


def _note(found: Timeline) -> str:
    """Return a note about colours, and about which frame of clips is shown."""
    shape = next(iter(found.shown.values())).pixel_values.shape
    frame = "the middle frame of each clip is shown" if len(shape) == 5 else ""
    return "; ".join(filter(None, (frame, found.display.note)))


def _columns(found: Timeline) -> dict[str, np.ndarray]:
    """Return columns of colours (N, H, W, 3) and their headings; of clips, of one frame each."""
    first = next(iter(found.shown.values()))
    original = found.display(first.pixel_values)
    columns = {
        "original": original,
        "seen": pasted(original, np.full_like(original, GREY), first.mask, first.shapes),
    }
    for epoch, done in sorted(found.shown.items()):
        (predicted,) = done.predicted.values()
        painted = found.display(predicted)
        columns[f"epoch {epoch}"] = pasted(original, painted, done.mask, done.shapes)
    if original.ndim == 5:  # (N, T, H, W, 3): the middle frame
        columns = {head: colours[:, colours.shape[1] // 2] for head, colours in columns.items()}
    return columns


def page(found: Timeline) -> str:
    """Return a self-contained HTML page."""
    best, paid = found.best, found.paid_until
    gained = "" if paid is best else (
        f" By epoch {paid.epoch}, the loss had made 99 % of the improvement from its first to its "
        "lowest value."
    )  # fmt: skip
    sentence = (
        f"{len(found.points)} checkpoints, all evaluated in float32 on the same "
        f"{len(found.images)} images with the same noise: {objective_in_words(found)}, "
        f"{found.mask_ratio:.0%} of them removed."
    )
    parts = [
        "<h1>Training, checkpoint by checkpoint</h1>",
        f'<p class="grey">{sentence}</p>',
        f"<p>Lowest loss: <strong>{best.loss:.4f}</strong> at epoch {best.epoch}.{gained}</p>",
        plot(found),
        "<h2>Pictures</h2>",
        _pictures(found),
        "<h2>Checkpoints</h2>",
        _table(found),
    ]
    return document("mae-convert timeline", parts)


def _table(found: Timeline) -> str:
    before: float | None = None
    rows: list[tuple[str | Cell, ...]] = []
    for point in found.points:
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
        " ".join(n for n, p in (("best", found.best), ("paid", found.paid_until)) if p is point)
        for point in found.points
    ]
    heads = ("epoch", "loss", "change", "over images", "checkpoint")
    return table(heads, rows, attributes=[f'class="{mark}"' for mark in marks])


def _pictures(found: Timeline) -> str:
    columns = _columns(found)
    rows = (
        [_picture(column[i], name) for name, column in columns.items()]
        for i in range(min(len(found.images), MOST_PICTURES))
    )
    note = f'<p class="grey">Visible patches are taken from the original. {_note(found)}</p>'
    return images(list(columns), rows) + note


def _picture(colours: np.ndarray, name: str) -> str:
    return image(np.rint(colours * 255).astype(np.uint8), name)


def _as_png(found: Timeline) -> bytes:
    data = io.BytesIO()
    sheet(found).save(data, format="PNG", optimize=True)
    return data.getvalue()


def _as_csv(found: Timeline) -> bytes:
    text = io.StringIO()
    table = csv.writer(text)
    images = map(for_terminal, found.images)
    table.writerow(("epoch", "loss", *images, "checkpoint", "error"))
    for p in found.points:
        losses = p.losses or ("",) * len(found.images)
        words = (for_terminal(p.source), for_terminal(p.error or ""))
        table.writerow((p.epoch, p.loss, *losses, *words))
    return text.getvalue().encode()


def _as_json(found: Timeline) -> bytes:
    return (json.dumps(plain(timeline_json(found)), indent=2) + "\n").encode()


WRITERS: Mapping[str, Callable[[Timeline], bytes]] = {
    ".html": lambda found: page(found).encode(),
    ".png": _as_png,
    ".csv": _as_csv,
    ".json": _as_json,
}


def plot(found: Timeline) -> str:
    """Return an SVG of the loss by epoch: the mean, each image, and where 99 % is reached."""
    points = [p for p in found.points if p.loss is not None]
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
        for i in range(len(found.images))
    ]
    mean = line([(x(p.epoch), y(p.loss or 0.0)) for p in points], "accent")
    dots = [
        chart_point(x(p.epoch), y(p.loss or 0.0), f"epoch {p.epoch}: {p.loss:.4f}", "accent")
        for p in points
    ]
    at = x(found.paid_until.epoch)
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
    """Return round numbers in a range; with `beyond`, also the next one above the range."""
    span = (high - low) or 1.0
    step = 10.0 ** np.floor(np.log10(span))
    step *= next(f for f in (0.1, 0.2, 0.5, 1.0, 2.0) if span / (step * f) <= 6)
    first, last = np.ceil(low / step), (np.ceil if beyond else np.floor)(high / step)
    return [float(step * i) for i in np.arange(first, last + 1)]
