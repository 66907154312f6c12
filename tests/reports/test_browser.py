"""The HTML pages in a real browser: no error, no horizontal scrolling, sorting, dark mode."""

from dataclasses import replace

import pytest
from browser import find_browser, look
from paths import DEMO

from mae_convert.reports.sweep_html import page
from mae_convert.sweep.result import Row

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome is installed"),
]
WIDTHS = (1400, 400)
LEAST_CONTRAST = 4.5  # of text, WCAG 2 level AA


def sweep_page():
    """Return the page of a sweep with every kind of row, and long names."""
    result = Row(
        "0", "/data/a-long-name-of-a-folder/run/checkpoint-0.pth", layout="transformers-tf",
        target="/data/out/" + "checkpoint-with-a-long-name-" * 3, verdict="PASSED and proven",
        passed=True, proven=True, function=1.5e-15, own_error={"float32": 9e-7}, seconds=12.5,
        source_sha256="ab" * 32, target_sha256="cd" * 32, source_bytes=447_000_000,
        source_fingerprint="mae1:" + "ef" * 32, target_fingerprint="mae1:" + "ef" * 32,
        convert_seconds=2.5, verify_seconds=10.0, peak_memory=2_500_000_000,
        settings={"dtype": "float16", "task": "encoder"},
    )  # fmt: skip
    rows = []
    for number in range(12):
        row = replace(
            result, key=f"{number:064}", source=result.source.replace("-0", f"-{number}"),
            layout=("transformers-tf", "timm", "keras")[number % 3], seconds=100.0 / (number + 1),
            function=10.0 ** -(number + 5),
        )  # fmt: skip
        if number % 5 == 1:
            cause = "encoder.blocks.1.attention.v.weight is transposed " * 4
            row = replace(row, outcome="failed", verdict="DIFFERENT", passed=False, cause=cause)
        if number % 5 == 2:
            row = replace(row, outcome="error", verdict=None, passed=None, function=None,
                          error="/data/a/long/path/without/a/space/" * 6)  # fmt: skip
        rows.append(row)
    return page(rows, not_run=2)


@pytest.fixture(scope="module")
def pages(run, tmp_path_factory):
    """The three pages; those of a verdict and of a training run are made by their commands."""
    folder = tmp_path_factory.mktemp("pages")
    checkpoint = DEMO / "checkpoint.pth"
    photographs = ("--images", DEMO)
    (folder / "same.pth").write_bytes(checkpoint.read_bytes())
    verified = run(
        "verify", checkpoint, folder / "same.pth", *photographs,
        *("--framework-a", "torch", "--framework-b", "torch"), "--report", folder / "same.html",
    )  # fmt: skip
    assert verified.status == 0, verified.err
    sources = []
    for epoch in (1, 2, 3):
        sources.append(folder / f"checkpoint-{epoch}.pth")
        sources[-1].write_bytes(checkpoint.read_bytes())
    output = folder / "timeline.html"
    followed = run("timeline", *sources, *photographs, "--framework", "torch", "-o", output)
    assert followed.status == 0, followed.err
    return {
        "verdict": (folder / "same.html").read_text(),
        "timeline": output.read_text(),
        "sweep": sweep_page(),
    }


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["verdict", "sweep", "timeline"])
def test_page_is_displayed_correctly_in_a_browser(pages, name, dark):
    seen = look(find_browser(), pages[name], WIDTHS, dark=dark)
    assert seen.messages == []
    assert sorted(frame["width"] for frame in seen.frames) == sorted(WIDTHS)
    for frame in seen.frames:
        assert frame["dark"] == dark
        assert frame["scrollWidth"] <= frame["width"]
        assert len(frame["texts"]) > 20
        faint = [text for text in frame["texts"] if text["contrast"] < LEAST_CONTRAST]
        assert faint == []
        behind = {text["behind"] for text in frame["texts"]}
        assert ("rgb(255, 255, 255)" in behind) != dark
        assert all(image["width"] and image["alt"] for image in frame["images"])
        if frame["width"] == max(WIDTHS):
            assert frame["scrolled"] == []  # no table is wider than the page
    if name == "verdict":
        assert {"original", "reconstruction of A", "reconstruction of B"} <= set(
            seen.frames[0]["headings"]
        )


def test_the_table_of_a_sweep_is_sorted_and_filtered(pages):
    (frame,) = look(find_browser(), pages["sweep"], (1400,)).frames
    assert {head["name"] for head in frame["heads"]} >= {"source", "result", "why", "time"}
    for head in frame["heads"]:
        assert head["order"] == ["ascending", "descending"]
        assert head["right"], head["name"]
    assert frame["filter"] == {"shown": 1, "all": 12}


def test_faults_of_a_page_are_detected():
    """The browser check detects the faults whose absence the tests above assert."""
    bad = (
        '<html style="color-scheme: light dark"><body style="color: #777">faint'
        '<div style="width: 1500px">wide</div><script>nothing.here</script></body></html>'
    )
    seen = look(find_browser(), bad, WIDTHS)
    assert any("nothing is not defined" in message for message in seen.messages)
    assert all(frame["scrollWidth"] > frame["width"] for frame in seen.frames)
    assert min(text["contrast"] for text in seen.frames[0]["texts"]) < LEAST_CONTRAST
