"""A verdict as one HTML page that needs no other file: figures, error by depth, pictures."""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mae_convert.families.configuration import Configuration
from mae_convert.files.strict_json import plain
from mae_convert.runtime.trace import Trace
from mae_convert.text import for_html, format_number
from mae_convert.verify.judge import FUNCTION_LIMIT, Verdict
from mae_convert.verify.summary import (
    answer,
    by_depth,
    effects_in_words,
    headline,
    summary,
    suspects_title,
)
from mae_convert.visualize.pixels import amplified_difference, as_colours, in_pixels, pasted, tiles
from reference_models.configuration import ViTMAEConfig

if TYPE_CHECKING:
    from mae_convert.verify.verification import Verification

MOST_PICTURES = 4
STYLE = """
:root { --ok: #1a7f37; --bad: #c62828; --line: #d8dee4; --grey: #57606a; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
.ok { color: var(--ok); } .bad { color: var(--bad); } .grey { color: var(--grey); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid var(--line);
         vertical-align: top; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
code { background: #f3f5f7; padding: .1rem .3rem; border-radius: 4px; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; }
figure { margin: 0; } figcaption { color: var(--grey); }
img { image-rendering: pixelated; max-width: 100%; }
"""


def page(done: "Verification", environment: Mapping[str, str]) -> str:
    """Return the page."""
    verdict = done.verdict
    word, meaning = headline(verdict), answer(verdict)[1]
    tone = "ok" if verdict.passed else "bad"
    parts = [
        f'<h1 class="{tone}">{for_html(word)}</h1><p>{for_html(meaning)}</p>',
        *_explanation(verdict),
        "<h2>Who ran what</h2>",
        _table(("", "checkpoint", "run by", "loaded by"), map(_witness, verdict.witnesses)),
        "<h2>What was compared</h2>",
        _table(("compared", "how far apart", "limit", ""), map(_line, summary(verdict.checks))),
        *_depth(verdict),
        *_pictures(done),
        "<h2>Environment</h2>",
        _table(
            ("package", "version"),
            ((for_html(name), for_html(version)) for name, version in environment.items()),
        ),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>mae-convert: {for_html(word)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _table(heads: Sequence[str], rows: Any) -> str:
    head = "".join(f"<th>{for_html(name)}</th>" for name in heads)
    body = "\n".join(
        "<tr>" + "".join(f'<td class="n">{cell}</td>' if i else f"<td>{cell}</td>"
                         for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )  # fmt: skip
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _line(line: Any) -> tuple[str, ...]:
    mark = '<span class="ok">ok</span>' if line.passed else '<strong class="bad">FAILED</strong>'
    return for_html(line.title), for_html(line.measured), for_html(line.limit), mark


def _witness(witness: Mapping[str, Any]) -> tuple[str, ...]:
    versions = witness["versions"] or {}
    name, sha256 = witness["checkpoint"]["name"], witness["checkpoint"]["sha256"]
    return (
        for_html(witness["side"]),
        f"<code>{for_html(name.rsplit('/', 1)[-1])}</code><br>"
        f"{for_html(witness['layout'])},"
        f" {for_html(witness['task'])}<br>"
        f'<span class="grey">sha256 {for_html(sha256[:16])}…</span>',
        f"{for_html(witness['framework'])} {for_html(versions.get(witness['framework'], ''))}"
        f" on {for_html(witness['device'])}",
        for_html(
            "its own names" if witness["native"] else witness.get("ours") or "our mapping tables"
        ),
    )


def _explanation(verdict: Verdict) -> Iterator[str]:
    said = []
    if verdict.first_divergence:
        said.append(f"first divergence: <code>{for_html(verdict.first_divergence)}</code>")
    if verdict.suspects and not verdict.passed:
        names = ", ".join(f"<code>{for_html(name)}</code>" for name in verdict.suspects[:6])
        said.append(f"{suspects_title(verdict)}: {names}")
    said += [f"cause: {for_html(cause)}" for cause in verdict.causes]
    said += [f"not compared: {for_html(what)}" for what in verdict.not_compared]
    said += [
        f"declared by B and applied to A: {for_html(str(plain(dict(step))))}"
        for step in verdict.steps
    ]
    said += map(for_html, effects_in_words(verdict.effects))
    if said:
        yield "<ul>" + "".join(f"<li>{item}</li>" for item in said) + "</ul>"


def _depth(verdict: Verdict) -> Iterator[str]:
    depths = by_depth(verdict)
    if depths:
        yield "<h2>How far apart, from the first step to the last</h2>"
        yield depth_plot(depths)


def depth_plot(depths: Sequence[tuple[str, float]]) -> str:
    """Return an SVG of relative L2 by step, on a logarithmic scale from 1e-17 to 10."""
    width, height, left, top, bottom = 900, 330, 110, 12, 120
    low, high = -17.0, 1.0
    span = (width - left - 20) / max(len(depths) - 1, 1)

    def y(error: float) -> float:
        exponent = high if math.isinf(error) else math.log10(max(error, 10**low))
        return top + (high - min(max(exponent, low), high)) / (high - low) * (height - top - bottom)

    grid = "".join(
        f'<line x1="{left}" x2="{width - 20}" y1="{y(10.0**e):.1f}" y2="{y(10.0**e):.1f}"'
        f' stroke="#d8dee4"/><text x="{left - 8}" y="{y(10.0**e) + 4:.1f}" font-size="11"'
        f' fill="#57606a" text-anchor="end">1e{e}</text>'
        for e in range(-16, 1, 4)
    )
    limit = (
        f'<line x1="{left}" x2="{width - 20}" y1="{y(FUNCTION_LIMIT):.1f}"'
        f' y2="{y(FUNCTION_LIMIT):.1f}" stroke="#c62828" stroke-dasharray="5 4"/>'
        f'<text x="{width - 22}" y="{y(FUNCTION_LIMIT) - 5:.1f}" font-size="11" fill="#c62828"'
        ' text-anchor="end">limit</text>'
    )
    points = [(left + i * span, y(error)) for i, (_, error) in enumerate(depths)]
    line = " ".join(f"{x:.1f},{v:.1f}" for x, v in points)
    every = math.ceil(len(depths) / 30)
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{v:.1f}" r="3.5"'
        f' fill="{"#1a7f37" if error <= FUNCTION_LIMIT else "#c62828"}">'
        f"<title>{for_html(f'{name}: {format_number(error)}')}</title></circle>"
        + (
            f'<text x="{x:.1f}" y="{height - bottom + 14}" font-size="10" fill="#57606a"'
            f' text-anchor="end" transform="rotate(-50 {x:.1f} {height - bottom + 14})">'
            f"{for_html(name)}</text>"
            if i % every == 0
            else ""
        )
        for i, ((name, error), (x, v)) in enumerate(zip(depths, points, strict=True))
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="relative L2 by step">{grid}'
        f'{limit}<polyline points="{line}" fill="none" stroke="#57606a"/>{marks}</svg>'
    )


def _pictures(done: "Verification") -> Iterator[str]:
    """Yield the reconstructions of both sides and their difference, where there are any."""
    if len(done.traces) < 2:
        return
    source, target = done.traces[:2]
    wanted = "float64/reconstruction"
    if wanted not in source.arrays or wanted not in target.arrays:
        return
    configuration = _configuration(source)
    pixels = done.inputs["pixel_values"][:MOST_PICTURES]
    images = [side.arrays[wanted][:MOST_PICTURES] for side in (source, target)]
    if configuration.model.num_channels != 3 or images[0].shape != images[1].shape:
        return
    mask = source.arrays["mask"][:MOST_PICTURES]
    original = as_colours(pixels, configuration)
    shown = [as_colours(in_pixels(image, pixels, configuration), configuration) for image in images]
    both = [pasted(original, image, mask, configuration) for image in shown]
    difference, factor = amplified_difference(images[0], images[1])
    sheet = tiles([original, *both, difference])
    yield "<h2>Reconstructions</h2>"
    yield (
        f'<figure><img alt="original, both reconstructions, difference" src="{_data_url(sheet)}">'
        "<figcaption>original | A | B, with the visible patches put back | difference of the"
        f" reconstructions in every channel, {_times(factor)}</figcaption></figure>"
    )


def _times(factor: float) -> str:
    return "which is exactly zero" if math.isinf(factor) else f"times {factor:.1e} (grey is none)"


def _configuration(trace: Trace) -> Configuration:
    description = trace.description
    return Configuration(
        model=ViTMAEConfig.from_dict(description["config"]),
        image_mean=tuple(description["image_mean"]),
        image_std=tuple(description["image_std"]),
        sources={},
    )


def _data_url(colours: np.ndarray) -> str:
    picture = Image.fromarray(colours)
    factor = max(1, 900 // picture.width)
    picture = picture.resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
    )
    data = io.BytesIO()
    picture.save(data, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")
