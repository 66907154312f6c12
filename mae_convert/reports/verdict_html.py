"""A verdict as one self-contained HTML page: measurements, differences by depth, images."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mae_convert.files.strict_json import plain
from mae_convert.reports.html import (
    Cell,
    Chart,
    document,
    heading,
    image,
    images,
    line,
    point,
    table,
    text,
)
from mae_convert.text import for_html, format_number
from mae_convert.verify.distance import relative_error
from mae_convert.verify.judge import FUNCTION_LIMIT, Verdict
from mae_convert.verify.summary import (
    by_depth,
    effects_in_words,
    headline,
    runner_in_words,
    step_rows,
    summary,
    suspects_title,
    verdict_in_words,
)
from mae_convert.visualize.display import display_of
from mae_convert.visualize.pixels import amplified_difference, eight_bits, in_pixels, pasted

if TYPE_CHECKING:
    from mae_convert.verify.verification import Verification

MOST_IMAGES = 4
LEAST_CORRELATION = 0.2  # of neighbouring pixels; photographs have a correlation of at least 0.8


def page(verification: "Verification", environment: Mapping[str, str]) -> str:
    """Return the HTML page of a verification; `environment` has package versions by name."""
    verdict = verification.verdict
    word, meaning = headline(verdict), verdict_in_words(verdict)[1]
    parts = [
        f"{heading(word, passed=verdict.passed)}<p>{for_html(meaning)}</p>",
        *_explanation(verdict),
        "<h2>Runs</h2>",
        table(("", "checkpoint", "run by", "loaded by"), map(_row_of_runner, verdict.witnesses)),
        "<h2>Checks</h2>",
        table(
            ("compared", "measured difference", "limit", ""), map(_line, summary(verdict.checks))
        ),
        *_isolated(verdict),
        *_depth(verdict),
        *_images(verification),
        "<h2>Environment</h2>",
        table(
            ("package", "version"),
            ([for_html(name), for_html(version)] for name, version in environment.items()),
        ),
    ]
    return document(f"mae-convert: {word}", parts)


def _line(line: Any) -> tuple[str | Cell, ...]:
    mark = '<span class="ok">ok</span>' if line.passed else '<strong class="bad">FAILED</strong>'
    numbers = (Cell(for_html(text), "n") for text in (line.measured, line.limit))
    return (for_html(line.title), *numbers, Cell(mark, "word"))


def _row_of_runner(runner: Mapping[str, Any]) -> tuple[str, ...]:
    name, sha256 = runner["checkpoint"]["name"], runner["checkpoint"]["sha256"]
    return (
        for_html(runner["side"]),
        f"<code>{for_html(name.rsplit('/', 1)[-1])}</code><br>"
        f"{for_html(runner['layout'])},"
        f" {for_html(runner['task'])}<br>"
        f'<span class="grey">sha256 {for_html(sha256[:16])}…</span>',
        f"{for_html(runner_in_words(runner))} on {for_html(runner['device'])}",
        for_html(
            "its own tensor names"
            if runner["native"]
            else runner.get("ours") or "mae-convert's mapping tables"
        ),
    )


def _explanation(verdict: Verdict) -> Iterator[str]:
    items = []
    if verdict.first_divergence:
        items.append(f"first divergence: <code>{for_html(verdict.first_divergence)}</code>")
    if verdict.suspects and not verdict.passed:
        names = ", ".join(f"<code>{for_html(name)}</code>" for name in verdict.suspects[:6])
        items.append(f"{suspects_title(verdict)}: {names}")
    items += [f"meaning: {for_html(meaning)}" for meaning in verdict.meanings]
    items += [f"cause: {for_html(cause)}" for cause in verdict.causes]
    items += [f"not compared: {for_html(what)}" for what in verdict.not_compared]
    items += [
        f"declared by B, and applied to A before comparing: {for_html(str(plain(dict(step))))}"
        for step in verdict.steps
    ]
    items += map(for_html, effects_in_words(verdict.effects))
    if items:
        yield "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def _isolated(verdict: Verdict) -> Iterator[str]:
    """Yield an HTML table of the step-isolated comparison, if it was requested.

    In this comparison, each step of the model (such as a block) gets the same input on both sides.
    """
    if not verdict.isolated:
        return
    columns, rows = step_rows(verdict.isolated)
    yield "<h2>Each step with the same input</h2>"
    marks = {"ok": '<span class="ok">ok</span>'}
    yield table(
        (*map(for_html, columns), ""),
        (
            (
                for_html(cells[0]),
                *(Cell(for_html(cell), "n") for cell in cells[1:]),
                Cell(marks.get(word, f'<strong class="bad">{word}</strong>'), "word"),
            )
            for cells, word in rows
        ),
    )


def _depth(verdict: Verdict) -> Iterator[str]:
    depths = by_depth(verdict)
    if depths:
        yield "<h2>Difference by intermediate activation, from first to last</h2>"
        yield depth_plot(depths)


def depth_plot(depths: Sequence[tuple[str, float]]) -> str:
    """Return an SVG of each activation's relative L2 difference, on a log scale of 1e-17 to 10."""
    chart = Chart("relative L2 by intermediate activation", height=350, left=130, bottom=140)
    low, high = -17.0, 1.0

    def y(error: float) -> float:
        exponent = math.log10(max(error, 10**low)) if math.isfinite(error) else high
        return chart.y((min(max(exponent, low), high) - low) / (high - low))

    grid = [chart.level((exponent - low) / (high - low), f"1e{exponent}")
            for exponent in range(-16, 1, 4)]  # fmt: skip
    end = chart.width - chart.right
    limit = line([(chart.left, y(FUNCTION_LIMIT)), (end, y(FUNCTION_LIMIT))], "bad-mark")
    named = text(end, y(FUNCTION_LIMIT) - 5, "limit", anchor="end", more=' class="bad-fill"')
    xs = [chart.x(number / max(len(depths) - 1, 1)) for number in range(len(depths))]
    points = [(x, y(error)) for x, (_, error) in zip(xs, depths, strict=True)]
    marks = [
        point(x, at, f"{name}: {format_number(error)}", "ok" if error <= FUNCTION_LIMIT else "bad")
        for (x, at), (name, error) in zip(points, depths, strict=True)
    ]
    below = chart.height - chart.bottom + 14
    every = math.ceil(len(depths) / 30)
    names = [
        text(x, below, name, anchor="end", more=f' transform="rotate(-50 {x:.1f} {below})"')
        for x, (name, _) in list(zip(xs, depths, strict=True))[::every]
    ]
    return chart.svg(*grid, limit, named, line(points, "curve"), *marks, *names)


def _images(verification: "Verification") -> Iterator[str]:
    """Yield HTML with the reconstructions of both sides and their difference, if available."""
    if len(verification.traces) < 2:
        return
    source, target = verification.traces[:2]
    name_of_result = "float64/reconstruction"
    if name_of_result not in source.arrays or name_of_result not in target.arrays:
        return
    family, configuration = source.family, source.configuration
    model = configuration.model
    pixels = family.predicted_pixels(verification.inputs["pixel_values"][:MOST_IMAGES], model)
    both = [side.arrays[name_of_result][:MOST_IMAGES] for side in (source, target)]
    shown_channels = model.num_channels == 3 or family.clips is not None
    if not shown_channels or both[0].shape != both[1].shape:
        return
    yield "<h2>Reconstructions</h2>"
    if is_noise(pixels):
        yield (
            '<p class="grey">Not shown: both sides were run on random images. Verify with a folder'
            " of your own images to see their reconstructions.</p>"
        )
        return
    mask = source.arrays["mask"][:MOST_IMAGES]
    shapes = family.prediction(model)
    display = display_of(pixels, configuration, colours=family.colours)
    original = display(pixels)
    shown = [display(in_pixels(r, pixels, family, model)) for r in both]
    columns = {"original": original}
    for name, colours in zip("AB", shown, strict=True):
        columns[f"reconstruction of {name}"] = pasted(original, colours, mask, shapes)
    apart = relative_error(*both)
    caption = (
        "Visible patches are taken from the original image. The relative L2 distance between the"
        f" reconstructions of A and B is {apart:.1e}"
    )
    if apart <= FUNCTION_LIMIT:
        caption += ", which is rounding."
    else:
        apart_in_colours, factor = amplified_difference(*both)
        columns["B minus A"] = display.selected_channels(apart_in_colours)
        caption += f"; their difference is multiplied by {factor:.1e} for display, with grey for 0."
    if display.note:
        caption += f" {display.note[0].upper()}{display.note[1:]}."
    if original.ndim == 5:  # (N, T, H, W, 3)
        middle = original.shape[1] // 2
        caption += (
            f" The images show frame {family.predicted_frames(model)[middle] + 1} of each clip."
        )
        columns = {head: colours[:, middle] for head, colours in columns.items()}
    rows = zip(*columns.values(), strict=True)
    yield images(list(columns), ([*map(_image, row, columns)] for row in rows))
    yield f'<p class="grey">{caption}</p>'


def _image(colours: np.ndarray, name: str) -> str:
    return image(eight_bits(colours), name, least_width=1)


def is_noise(pixel_values: np.ndarray) -> bool:
    """Return whether pixels (N, C, H, W) are random, so that neighbours are not correlated."""
    left, right = pixel_values[..., :-1].ravel(), pixel_values[..., 1:].ravel()
    if left.std() == 0 or right.std() == 0:
        return False
    return bool(np.corrcoef(left, right)[0, 1] < LEAST_CORRELATION)
