"""The plot of a timeline: loss by epoch."""

import numpy as np

from mae_convert.reports.html import Chart, line, point, text
from mae_convert.visualize.timeline import Timeline

CHART = Chart("loss by epoch", height=360, left=70, bottom=44)


def plot(found: Timeline) -> str:
    """Return an SVG of the loss by epoch: the mean, each image, and where 99 % is reached."""
    points = [point for point in found.points if point.loss is not None]
    first, last = points[0].epoch, points[-1].epoch
    levels = _ticks(0, max(max(p.losses) for p in points), beyond=True)

    def x(epoch: float) -> float:
        return CHART.x((epoch - first) / max(last - first, 1))

    def y(loss: float) -> float:
        return CHART.y(loss / levels[-1])

    bottom = CHART.height - CHART.bottom
    grid = [CHART.level(level / levels[-1], f"{level:g}") for level in levels]
    epochs = [text(x(e), bottom + 18, f"{e:g}", anchor="middle") for e in _ticks(first, last)]
    thin = [
        line([(x(p.epoch), y(p.losses[i])) for p in points], "faint")
        for i in range(len(found.images))
    ]
    mean = line([(x(p.epoch), y(p.loss or 0.0)) for p in points], "accent")
    dots = [
        point(x(p.epoch), y(p.loss or 0.0), f"epoch {p.epoch}: {p.loss:.4f}", "accent")
        for p in points
    ]
    at = x(found.paid_until.epoch)
    is_right = at > CHART.width / 2
    mark = line([(at, CHART.top), (at, bottom)], "ok-mark") + text(
        at - 6 if is_right else at + 6, CHART.top + 12, "99 % of the improvement",
        anchor="end" if is_right else "start", more=' class="ok-fill"',
    )  # fmt: skip
    turned = f' transform="rotate(-90 14 {bottom / 2:.1f})"'
    return CHART.svg(
        *grid, *epochs, *thin, mark, mean, *dots,
        text(CHART.width / 2, CHART.height - 6, "epoch", anchor="middle"),
        text(14, bottom / 2, "loss: mean (blue), images (grey)", anchor="middle", more=turned),
    )  # fmt: skip


def _ticks(low: float, high: float, *, beyond: bool = False) -> list[float]:
    """Return round numbers in a range; with `beyond`, also the next one above the range."""
    span = (high - low) or 1.0
    step = 10.0 ** np.floor(np.log10(span))
    step *= next(f for f in (0.1, 0.2, 0.5, 1.0, 2.0) if span / (step * f) <= 6)
    first, last = np.ceil(low / step), (np.ceil if beyond else np.floor)(high / step)
    return [float(step * i) for i in np.arange(first, last + 1)]
