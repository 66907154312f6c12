"""The functions that create HTML pages escape and label texts, in light and dark colours."""

from pathlib import Path

import numpy as np

import mae_convert
from mae_convert.reports.html import Cell, document, image, table


def test_only_the_builder_writes_a_page_and_its_style():
    package = Path(mae_convert.__file__).parent
    for mark in ("<!DOCTYPE", "<style>", "<svg", "<table", "base64"):
        result = {p.name for p in (package / "reports").glob("*.py") if mark in p.read_text()}
        assert result == {"html.py"}, mark


def test_text_is_escaped_and_rows_become_labelled_blocks_on_narrow_screens():
    made = table(("<a>", "b"), [("x", Cell("1", "n", '"2', "<t>"))], attributes=['class="best"'])
    assert "<th>&lt;a&gt;</th>" in made
    assert '<tr class="best"><td data-head="&lt;a&gt;">x</td>' in made
    assert '<td class="n" data-value="&quot;2" title="&lt;t&gt;" data-head="b">1</td>' in made
    page = document("<title>", [made])
    assert "<title>&lt;title&gt;</title>" in page
    assert page.count("attr(data-head)") == 2
    assert "prefers-color-scheme: dark" in page
    assert "NARROW" not in page and "TABLE" not in page  # noqa: PT018


def test_small_images_are_magnified_without_smoothing():
    pixels = np.zeros((4, 4, 3), np.uint8)
    assert "image/png" in image(pixels, "x", least_width=100)
    assert "image/jpeg" in image(pixels, "x")
