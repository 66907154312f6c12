"""Check that the preprocessing of two models gives the same pixels for the same image.

If the settings differ, test images are preprocessed with both settings: equivalent settings pass,
and only different pixels fail.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mae_convert.checkpoint.preprocessing import MODES, Preprocessing
from mae_convert.errors import MaeConvertError
from mae_convert.runtime.trace import Trace
from mae_convert.verify.distance import relative_error

LIMIT = 1e-6
"""Limit of the relative L2 distance of the pixels; the unit roundoff of float32 is 6e-8."""
LARGEST = 4096
"""Largest image side, in pixels, for which preprocessing is run; no ViT uses larger images."""
# For each field of Preprocessing, the name of the field in ``preprocessor_config.json``.
GEOMETRY = {"resize": "size", "shortest_edge": "size", "resample": "resample", "crop": "crop_size"}
VALUES = {"rescale": "rescale_factor", "mean": "do_normalize", "std": "do_normalize"}


class DifferingSetting(NamedTuple):
    """A preprocessing field that differs, its value on each side, and the effect on the pixels.

    ``error`` is the relative L2 distance between the pixels of test images that are preprocessed
    with the settings of each side.
    """

    name: str
    a: Any
    b: Any
    error: float


def compare_preprocessing(a: Trace, b: Trace) -> Iterator[DifferingSetting]:
    """Yield preprocessing settings that differ, with the distance between the resulting pixels.

    Resizing and cropping are compared only if both sides specify them and neither was converted to
    another image size. Differing ``image_mean`` or ``image_std`` are reported by other checks.
    """
    left, right = (trace.description.get("preprocessing") for trace in (a, b))
    if left is None or right is None:
        return
    if "problem" in left or "problem" in right:
        if left.get("problem") != right.get("problem"):
            yield DifferingSetting("size", left.get("problem"), right.get("problem"), math.inf)
        return
    resized = [step for trace in (a, b) for step in trace.description["steps"]]
    same_size = not any(step["step"] == "image_size" for step in resized)
    names = [*VALUES, *(GEOMETRY if left["stated"] and right["stated"] and same_size else ())]
    for name in ("mean", "std"):
        if a.description[f"image_{name}"] != b.description[f"image_{name}"]:
            names.remove(name)
    differing = [n for n in names if _plain(left[n]) != _plain(right[n])]
    if not differing:
        return
    error = _largest_pixel_distance({**right, **{name: left[name] for name in names}}, right)
    settings = {**GEOMETRY, **VALUES}
    for field in dict.fromkeys(settings[name] for name in differing):
        first = next(name for name in differing if settings[name] == field)
        yield DifferingSetting(field, left[first], right[first], error)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _largest_pixel_distance(left: Mapping[str, Any], right: Mapping[str, Any]) -> float:
    """Preprocess two test images with the settings of each model, and compare the pixels.

    Returns:
        The relative L2 distance between the pixels of the two models, for the image with the larger
        distance; infinite if the height or width of a preprocessed image would exceed `LARGEST`.
    """
    pair = [_from_plain(settings) for settings in (left, right)]
    if max((length for one in pair for length in _lengths(one)), default=1) > LARGEST:
        return math.inf
    size = next((tuple(hw) for one in pair if (hw := one.crop or one.resize)), (32, 32))
    return max(_pixel_distance(pair, shape) for shape in (size, (size[0] + 13, 2 * size[1] - 7)))


def _lengths(one: Preprocessing) -> list[int]:
    """Return the side lengths, in pixels, to which preprocessing resizes and crops an image."""
    return [*(one.resize or ()), *(one.crop or ()), one.shortest_edge or 1]


def _pixel_distance(pair: list[Preprocessing], size: tuple[int, ...]) -> float:
    """Preprocess a random image of `size` (H, W) with both settings; return the L2 distance.

    The distance is relative, and infinite if the image cannot be preprocessed.
    """
    channels = pair[0].channels
    random = np.random.Generator(np.random.Philox(0))
    pixels = random.integers(0, 256, (*size, channels), dtype=np.uint8)
    image = Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels, MODES[channels])
    try:
        first, second = (one(image) for one in pair)
    except (MaeConvertError, ValueError):  # a trace file may contain invalid settings
        return math.inf
    return relative_error(first, second)


def _from_plain(described: Mapping[str, Any]) -> Preprocessing:
    names = [field.name for field in fields(Preprocessing)]
    values: dict[str, Any] = {name: described[name] for name in names}
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Preprocessing(**(values | lists))
