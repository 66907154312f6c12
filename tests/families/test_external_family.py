"""A family of models of another package, which registers itself by an entry point."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

from mae_convert.families import families

PAGE = ROOT / "docs" / "adding_a_family.md"
EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture
def toy(tmp_path):
    """Install the package in a folder and return what runs the command line with it."""
    folder = tmp_path / "site"
    (folder / "toy_family-1.0.dist-info").mkdir(parents=True)
    (folder / "toy_family.py").write_text(EXAMPLE.search(PAGE.read_text())[1])
    (folder / "toy_family-1.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: toy-family\nVersion: 1.0\n"
    )
    (folder / "toy_family-1.0.dist-info/entry_points.txt").write_text(
        "[mae_convert.families]\ntoy = toy_family:TOY\n"
    )
    program = (
        f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}];"
        "from mae_convert.cli.main import main; main()"
    )

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            check=False, capture_output=True, text=True,
        )  # fmt: skip

    return run


def write_toy(path: Path) -> None:
    from safetensors.numpy import save_file

    rng, width, shapes = np.random.default_rng(0), 16, {}
    for number in range(2):
        layer = f"toy_layers.{number}"
        for name, rows, columns in (("qkv", 48, 16), ("out", 16, 16), ("up", 32, 16),
                                    ("down", 16, 32)):  # fmt: skip
            shapes[f"{layer}.{name}.weight"] = (rows, columns)
            shapes[f"{layer}.{name}.bias"] = (rows,)
        for name in ("first", "second"):
            shapes |= {f"{layer}.{name}.weight": (width,), f"{layer}.{name}.bias": (width,)}
    shapes |= {"toy_token": (1, 1, width), "toy_positions": (1, 5, width)}
    shapes |= {"toy_patches.weight": (width, 3, 8, 8), "toy_patches.bias": (width,)}
    shapes |= {"toy_norm.weight": (width,), "toy_norm.bias": (width,)}
    save_file({n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}, path)


def test_another_package_adds_a_family(tmp_path, toy):
    source, target = tmp_path / "toy.safetensors", tmp_path / "toy.weights.h5"
    write_toy(source)
    told = toy("inspect", source, "--num-heads", 2, "--json")
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert (report["model_family"], report["layout"]) == ("toy", "original")
    done = toy("convert", source, target, "--to", "keras", "--num-heads", 2)
    assert done.returncode == 0, done.stderr
    back = toy("convert", target, tmp_path / "back.safetensors", "--to", "original")
    assert back.returncode == 0, back.stderr
    same = toy("diff", source, tmp_path / "back.safetensors", "--num-heads", 2)
    assert same.returncode == 0, same.stdout
    assert "a toy" in toy("layouts").stdout


def test_without_the_package_its_files_are_unknown(run, tmp_path, command):
    write_toy(tmp_path / "toy.safetensors")
    assert command("inspect", tmp_path / "toy.safetensors", "--num-heads", 2).status == 2


def test_a_further_layout_leaves_the_family_itself_as_it_is():
    family = families()["mae"]
    own = family.layouts["timm"]
    extended = family.with_layouts([replace(own, name="new"), replace(own, title="another timm")])
    assert extended.layouts["new"].title == own.title
    assert extended.layouts["timm"] is own
    assert "new" not in family.layouts
