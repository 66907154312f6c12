"""A family of models of another package, which registers itself by entry points."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from paths import DEMO, ROOT

from mae_convert.families import families

PAGE = ROOT / "docs" / "adding_a_family.md"
EXAMPLES = re.compile(r"```python\n(.*?)```", re.DOTALL)
ENTRY_POINTS = re.compile(r"```text\n(.*?)```", re.DOTALL)
MODULES = ("toy_family", "toy_model", "toy_layout")
OPTIONS = ("--num-heads", 2, "--decoder-num-heads", 2)


@pytest.fixture
def site(tmp_path):
    """Install the package of the page in a folder, as pip does with ``--target``."""
    folder, page = tmp_path / "site", PAGE.read_text()
    examples, points = EXAMPLES.findall(page), ENTRY_POINTS.search(page)[1]
    about = folder / "toy_family-1.0.dist-info"
    about.mkdir(parents=True)
    for module, text in zip(MODULES, examples, strict=True):
        (folder / f"{module}.py").write_text(text)
    metadata = "Metadata-Version: 2.1\nName: toy-family\nVersion: 1.0\n"
    (about / "METADATA").write_text(metadata)
    section = re.sub(r'project\.entry-points\."(.*?)"', r"\1", points)
    (about / "entry_points.txt").write_text(re.sub(r'= "(.*?)"', r"= \1", section))
    return folder


@pytest.fixture
def toy(site):
    """Run a program with the package installed."""
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            check=False, capture_output=True, text=True, env=environment,
        )  # fmt: skip

    return run


WRITE = """
import sys
import torch
from reference_models.configuration import ViTMAEConfig
from toy_model import ToyForPreTraining
sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
             image_size=32, patch_size=8, decoder_hidden_size=12, decoder_num_hidden_layers=1,
             decoder_num_attention_heads=2, decoder_intermediate_size=20)
model = ToyForPreTraining(ViTMAEConfig(**sizes))
generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
torch.save({"model": model.state_dict()}, sys.argv[1])
"""
# Several commands in one process, which imports everything once.
COMMANDS = """
import json, sys
from mae_convert.cli.main import main
for command in json.loads(sys.argv[1]):
    try:
        main(command)
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{command}: {ended.code}")
"""
LOAD = """
import sys
import torch
import mae_convert
model = mae_convert.load_model(sys.argv[1], num_heads=2, decoder_num_heads=2, dtype="float64")
assert type(model).__module__ == "toy_model", type(model)
stored = torch.load(sys.argv[1], weights_only=True)["model"]
assert all(torch.equal(value, stored[name].double()) for name, value in model.state_dict().items())
pixels, noise = torch.zeros(1, 3, 32, 32).double(), torch.arange(16.0)[None]
assert model(pixels, noise).logits.shape == (1, 16, 192)
larger = mae_convert.load_model(sys.argv[1], image_size=48, num_heads=2, decoder_num_heads=2)
assert larger.toy_positions.shape == (1, 36, 16)
"""


def run_commands(toy, *commands):
    result = toy("-c", COMMANDS, json.dumps([[str(part) for part in c] for c in commands]))
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_another_package_adds_a_family(tmp_path, toy):
    source, other = tmp_path / "toy.pth", tmp_path / "toy.safetensors"
    written = toy("-c", WRITE, source)
    assert written.returncode == 0, written.stderr
    document = run_commands(toy, ("inspect", source, *OPTIONS, "--json"))
    report = json.loads(document)
    assert (report["model_family"], report["layout"], report["task"]) == (
        "toy",
        "original",
        "pretrain",
    )
    verdicts = tmp_path / "same.json", tmp_path / "exported.json"
    torch = ("--framework-a", "torch", "--framework-b", "torch")
    out = run_commands(
        toy,
        ("convert", source, other, "--to", "original", *OPTIONS),
        ("convert", source, tmp_path / "e.safetensors", "--to", "exported", *OPTIONS),
        ("convert", tmp_path / "e.safetensors", tmp_path / "back.pth", "--to", "original"),
        ("diff", source, tmp_path / "back.pth", *OPTIONS),
        ("verify", source, other, *torch, *OPTIONS, "--report", verdicts[0]),
        ("layouts",),
    )
    assert "a toy" in out
    assert "exported" in out
    verdict = json.loads(verdicts[0].read_text())
    assert (verdict["passed"], verdict["proven"]) == (True, True)
    loaded = toy("-c", LOAD, source)
    assert loaded.returncode == 0, loaded.stderr


@pytest.mark.slow
def test_external_family_works_with_the_other_commands(tmp_path, toy):
    source, image = tmp_path / "toy.pth", DEMO / "astronaut.jpg"
    assert toy("-c", WRITE, source).returncode == 0
    exported, report = tmp_path / "e.safetensors", tmp_path / "verdict.json"
    run_commands(
        toy,
        ("convert", source, exported, "--to", "exported", "--image-size", 48, *OPTIONS),
        ("verify", source, exported, *OPTIONS, "--report", report),
        ("trace", source, tmp_path / "t.safetensors", "--taps", *OPTIONS),
        ("reconstruct", source, image, "-o", tmp_path / "out.png", *OPTIONS),
    )
    verdict = json.loads(report.read_text())
    # Only the tables read the exported names.
    assert (verdict["passed"], verdict["proven"]) == (True, False)
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_without_the_package_its_files_are_unknown(tmp_path, command):
    import torch

    path: Path = tmp_path / "toy.pth"
    torch.save({"toy_positions": torch.zeros(1, 16, 16), "toy_mask": torch.zeros(1, 1, 12)}, path)
    assert command("inspect", path, "--num-heads", 2).status == 2


def test_documented_line_counts_are_correct():
    page = PAGE.read_text()
    words = " ".join(page.split())
    family, model, _ = (
        sum(bool(line.strip()) for line in example.splitlines())
        for example in EXAMPLES.findall(page)
    )
    assert f"has {family} non-empty lines, and the module of its model {model}." in words


def test_adding_a_layout_does_not_change_the_family():
    family = families()["mae"]
    own = family.layouts["timm"]
    extended = family.with_layouts([replace(own, name="new"), replace(own, title="another timm")])
    assert extended.layouts["new"].title == own.title
    assert extended.layouts["timm"] is own
    assert "new" not in family.layouts
