"""The text of the HTML pages; test_browser.py checks their appearance in a browser."""

import re

import numpy as np
import pytest
from paths import DEMO

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.checkpoint.preprocessing import load_images
from mae_convert.reports.sweep_html import page
from mae_convert.reports.verdict_html import is_noise
from mae_convert.sweep.result import Row


def test_random_pixels_are_distinguished_from_photographs():
    source = open_checkpoint(DEMO / "checkpoint.pth")
    photographs = load_images(sorted(DEMO.glob("*.jpg")), source)
    random = np.random.default_rng(0).standard_normal(photographs.shape)
    assert is_noise(random)
    assert not is_noise(photographs)
    assert not is_noise(np.zeros((1, 3, 8, 8)))


@pytest.fixture
def rows():
    result = Row(
        "k" * 64, "/runs/a.pth", layout="timm", verdict="PASSED", passed=True, function=1e-16
    )
    failed = Row("f" * 64, "/runs/z.pth", layout="timm", outcome="failed", passed=False,
                 verdict="DIFFERENT", first_divergence="encoder.norm", cause="it is transposed",
                 function=0.5)  # fmt: skip
    error = Row("e" * 64, "/runs/b.pth", layout="timm", outcome="error", error="it is damaged")
    return [result, error, failed]


def test_sweep_page_shows_failures_first_with_consistent_names(rows):
    text = page(rows, not_run=1)
    (title,) = re.findall("<h1.*?>(.*?)</h1>", text)
    assert title == "4 jobs, 1 failed, 1 no result, 1 not run"
    matrix, table = text.split("<h2>Jobs</h2>")
    for part in (matrix.split("<h2>Verdicts</h2>")[1], table):
        names = re.findall(r">(\w)\.pth<", part)
        assert names[-1] == "a"
        assert part.count(">failed<") == part.count(">no result<") == 1
        assert not re.search(r">(DIFFERENT|error|ended with an error)<", part)
    assert re.findall(r">(\w)\.pth<", table) == ["z", "b", "a"]
    assert re.search("DIFFERENT at encoder.norm: it is transposed", table)
