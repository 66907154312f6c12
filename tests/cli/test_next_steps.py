"""Messages contain the next step, and missing requirements are reported before any work."""

import json
import shutil

import numpy as np
import pytest
from paths import DEMO

from mae_convert.errors import MissingRequirementError
from mae_convert.runtime import sides
from mae_convert.verify.judge import Verdict
from mae_convert.verify.summary import verdict_in_words

CHECKPOINT = DEMO / "checkpoint.pth"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("convert", CHECKPOINT, "x", "--to", "pytorch"), "choose facebook, transformers, timm or"),
        (("convert", CHECKPOINT, "x", "--to", "transfomers"), "did you mean 'transformers'?"),
        (("convert", CHECKPOINT, "x", "--to", "timm", "--task", "classify"), "--num-labels N"),
        (("verify", CHECKPOINT), "specify the checkpoint to compare it with"),
        (("reconstruct", CHECKPOINT, "no.jpg", "-o", "o.png"), "no.jpg does not exist"),
        (("reconstruct", CHECKPOINT, DEMO, "--mask", "no.png", "-o", "o.png"),
         "no.png does not exist"),
        (("features", CHECKPOINT, "no", "-o", "o.npz"), "no does not exist"),
        (("timeline", CHECKPOINT, "--images", "no", "-o", "o.html"), "no does not exist"),
        (("verify", CHECKPOINT, CHECKPOINT, "--images", "no"), "no does not exist"),
    ],
)  # fmt: skip
def test_message_contains_the_next_step(command, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    result = command(*words)
    assert result.status == 2
    assert message in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("reconstruct", "nothing.pth", DEMO, "--framework", "both", "-o", "o.png"),
        ("reconstruct", "nothing.pth", DEMO, "--framework", "tf", "-o", "o.png"),
        ("features", "nothing.pth", DEMO, "--framework", "tensorflow", "-o", "o.npz"),
        ("timeline", "nothing.pth", "--images", DEMO, "--framework", "tf", "-o", "o.html"),
        ("verify", "nothing.pth", "other.pth", "--framework-b", "tf"),
        ("verify", "nothing.pth", "other.pth", "--against", "tensorflow"),
        ("verify", "nothing.pth", "--framework-a", "tf"),
        ("verify", "nothing.pth", "--published", "mae_visualize_vit_base", "--framework-a", "tf"),
        ("trace", "nothing.pth", "o.safetensors", "--framework", "tf"),
        ("repair", "nothing.pth", "other.pth", "out", "--framework-b", "tf"),
    ],
)
def test_missing_framework_is_reported_before_any_file_is_opened(
    command, monkeypatch, tmp_path, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sides, "missing", lambda names: [name for name in names if name == "tensorflow"]
    )
    result = command(*words)
    assert result.status == 3
    assert "tensorflow is not installed here; pip install 'mae-convert[tensorflow]'" in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("verify", "no.pth", "other.pth"), ("trace", "no.pth", "o.npz")])
def test_absence_of_all_frameworks_is_reported_before_any_file_is_opened(
    command, monkeypatch, words
):
    monkeypatch.setattr(sides, "missing", list)
    result = command(*words)
    assert result.status == 3
    assert "torch is not installed here; pip install 'mae-convert[torch]'" in result.err


def test_the_classes_of_tensorflow_in_transformers_need_no_pytorch(monkeypatch):
    monkeypatch.setattr(sides, "missing", lambda names: [n for n in names if n == "torch"])
    sides.require_sides(sides.Side("transformers"))
    monkeypatch.setattr(sides, "missing", lambda names: [n for n in names if n == "transformers"])
    with pytest.raises(MissingRequirementError, match="transformers is not installed here"):
        sides.require_sides(sides.Side("transformers"))


def test_demo_writes_nothing_without_a_framework(command, monkeypatch, tmp_path):
    monkeypatch.setattr(sides, "missing", list)
    result = command("demo", "--output", tmp_path / "demo")
    assert result.status == 3
    assert "no framework is installed" in result.err
    assert not (tmp_path / "demo").exists()


def test_folders_are_images_for_reconstruct(command, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("chelsea.jpg", "coffee.jpg"):
        shutil.copy(DEMO / name, folder)
    sheet = tmp_path / "sheet.png"
    words = ("reconstruct", CHECKPOINT, folder, DEMO / "astronaut.jpg", "-o", sheet, "--json")
    report = json.loads(command(*words).out)
    names = [image["image"].rpartition("/")[2] for image in report["images"]]
    assert names == ["chelsea.jpg", "coffee.jpg", "astronaut.jpg"]


def test_features_can_skip_files_that_are_not_images_and_reports_them(command, tmp_path):
    shutil.copy(DEMO / "coffee.jpg", tmp_path)
    (tmp_path / "bad.jpg").write_text("not an image")
    output = tmp_path / "features.npz"
    refused = command("features", CHECKPOINT, tmp_path, "-o", output)
    assert refused.status == 2
    assert "--skip-unreadable" in refused.err
    result = command("features", CHECKPOINT, tmp_path, "-o", output, "--skip-unreadable", "--json")
    assert result.status == 0
    assert "skipped: " in result.err
    assert result.json["skipped"] == [str(tmp_path / "bad.jpg")]
    with np.load(output) as arrays:
        assert list(arrays["names"]) == ["coffee.jpg"]
    (tmp_path / "coffee.jpg").unlink()
    other = tmp_path / "other.npz"
    result = command("features", CHECKPOINT, tmp_path, "-o", other, "--skip-unreadable")
    assert result.status == 2
    assert "no readable image" in result.err


@pytest.mark.parametrize(
    ("layout", "framework", "message"),
    [
        ("transformers-tf", "torch", "run B with tensorflow, jax or transformers, which loads"
         " transformers-tf natively (pip install 'mae-convert[tensorflow]')"),
        ("timm", "tensorflow", "pip install 'mae-convert[torch]'"),
        ("mmpretrain", "torch", "no framework loads the mmpretrain layout of B natively"),
    ],
)  # fmt: skip
def test_unproven_verdict_names_the_packages_to_install(layout, framework, message):
    witnesses = (
        {"side": "A", "native": True, "layout": "facebook", "framework": "torch"},
        {"side": "B", "native": False, "layout": layout, "framework": framework},
    )
    verdict = Verdict(True, False, (), None, (), (), witnesses)
    word, meaning = verdict_in_words(verdict)
    assert word == "PASSED"
    assert message in meaning
