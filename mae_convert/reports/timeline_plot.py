"""The plot of a timeline: loss by epoch."""

from collections.abc import Callable, Sequence

import numpy as np

from mae_convert.visualize.timeline import Point, Timeline

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 360, 70, 20, 16, 44


def plot(found: Timeline) -> str:
    """Return an SVG of loss by epoch: the mean, each picture, and where it stopped paying."""
    points = [point for point in found.points if point.loss is not None]
    x, y = _scales(points)
    grid = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#d8dee4"/>'
        f'<text x="{LEFT - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>'
        for v in _ticks(0, max(max(p.losses) for p in points), beyond=True)
    ) + "".join(
        f'<text x="{x(v):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{v:g}</text>'
        for v in _ticks(points[0].epoch, points[-1].epoch)
    )
    thin = "".join(
        _line([(x(p.epoch), y(p.losses[i])) for p in points], "#b6c2cf", 1)
        for i in range(len(found.images))
    )
    mean = _line([(x(p.epoch), y(p.loss or 0.0)) for p in points], "#0969da", 2.5)
    dots = "".join(
        f'<circle cx="{x(p.epoch):.1f}" cy="{y(p.loss or 0.0):.1f}" r="3" fill="#0969da">'
        f"<title>epoch {p.epoch}: {p.loss:.4f}</title></circle>"
        for p in points
    )
    at = x(found.paid_until.epoch)
    mark = (
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#1a7f37"'
        f' stroke-dasharray="5 4"/><text x="{at:.1f}" y="{TOP + 12}" fill="#1a7f37"'
        f" {'dx=-6 text-anchor=end' if at > WIDTH / 2 else 'dx=6'}>99 % of the gain</text>"
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="12" fill="#57606a"'
        f' aria-label="loss by epoch">{grid}{thin}{mark}{mean}{dots}'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">epoch</text>'
        f'<text transform="translate(14 {(HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        "loss: mean, and each picture (grey)</text></svg>"
    )


def _scales(points: Sequence[Point]) -> tuple[Callable[[float], float], Callable[[float], float]]:
    first, last = points[0].epoch, points[-1].epoch
    top = _ticks(0, max(max(p.losses) for p in points), beyond=True)[-1]

    def x(epoch: float) -> float:
        return LEFT + (epoch - first) / max(last - first, 1) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return HEIGHT - BOTTOM - loss / top * (HEIGHT - TOP - BOTTOM)

    return x, y


def _ticks(low: float, high: float, *, beyond: bool = False) -> list[float]:
    """Return round numbers in a range, and with `beyond` the next one if it ends between two."""
    span = (high - low) or 1.0
    step = 10.0 ** np.floor(np.log10(span))
    step *= next(f for f in (0.1, 0.2, 0.5, 1.0, 2.0) if span / (step * f) <= 6)
    first, last = np.ceil(low / step), (np.ceil if beyond else np.floor)(high / step)
    return [float(step * i) for i in np.arange(first, last + 1)]


def _line(points: Sequence[tuple[float, float]], colour: str, width: float) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
