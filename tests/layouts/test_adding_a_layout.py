"""The example layout in docs/adding_a_layout.md works as soon as it is registered."""

import re

import numpy as np
import pytest
from paths import ROOT
from safetensors.numpy import load_file, save_file

from mae_convert.checkpoint.diff import diff
from mae_convert.checkpoint.inspect import inspect
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.cli.output import catalog as show
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import LayoutError
from mae_convert.families import families, layouts_named
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.mae.family import ImageMAE
from mae_convert.families.mae.layouts import LAYOUTS
from mae_convert.verify.verification import verify

PAGE = ROOT / "docs" / "adding_a_layout.md"
EXAMPLE = re.compile(r"<!-- example: layout -->\n```python\n(.*?)```\n<!-- end -->", re.DOTALL)
FLAGS = Flags(num_attention_heads=4)


@pytest.fixture(autouse=True)
def acme(monkeypatch):
    """Register the layout for one test, in the only registry of layouts."""
    namespace = {}
    exec(EXAMPLE.search(PAGE.read_text(encoding="utf-8"))[1], namespace)
    layouts = {**LAYOUTS, "acme": namespace["ACME"]}
    monkeypatch.setattr(ImageMAE, "layouts", layouts)
    families.cache_clear()
    yield namespace["ACME"]
    families.cache_clear()


@pytest.fixture
def source(case):
    return open_checkpoint(case("finetune_cls_tiny").checkpoint, FLAGS)


def test_round_trip_through_the_layout_is_bit_exact(source, tmp_path):
    report = execute(plan_conversion(source, tmp_path / "there.safetensors", "acme"))
    assert report["layout"] == "acme"
    there = open_checkpoint(tmp_path / "there.safetensors")
    assert (there.layout.name, there.task, there.synonyms) == ("acme", "classify", ())
    execute(plan_conversion(there, tmp_path / "back.pth", "facebook"))
    back = open_checkpoint(tmp_path / "back.pth")
    assert diff(source, back).same
    assert back.container.tensors.keys() == source.container.tensors.keys()


def test_written_file_follows_the_mapping_table(source, tmp_path):
    execute(plan_conversion(source, tmp_path / "there.safetensors", "acme"))
    written = load_file(tmp_path / "there.safetensors")
    canonical = {name: tensor.load() for name, tensor in source.tensors.items()}
    np.testing.assert_array_equal(
        written["layers.2.up.matrix"], canonical["encoder.blocks.2.mlp.fc1.weight"].T
    )
    np.testing.assert_array_equal(
        written["patches.kernel"][3, 5, 1], canonical["encoder.patch_embedding.weight"][:, 1, 3, 5]
    )
    assert written["positions"].shape == (17, 32)
    assert written["layers.0.norm_b.shift"].shape == (32,)


@pytest.mark.parametrize("layout", ["transformers", "keras", "timm", "torchvision"])
def test_it_can_be_converted_to_other_layouts(source, tmp_path, layout):
    execute(plan_conversion(source, tmp_path / "there.safetensors", "acme"))
    there = open_checkpoint(tmp_path / "there.safetensors")
    target = {"keras": "m.keras", "torchvision": "m.pth"}.get(layout, "m")
    execute(plan_conversion(there, tmp_path / target, layout))
    assert diff(source, open_checkpoint(tmp_path / target)).same


def test_the_library_s_own_file_is_recognised_and_its_counter_dropped(source, tmp_path):
    execute(plan_conversion(source, tmp_path / "there.safetensors", "acme"))
    tensors = load_file(tmp_path / "there.safetensors")
    save_file({**tensors, "steps": np.array(7)}, tmp_path / "reference.safetensors")
    reference = open_checkpoint(tmp_path / "reference.safetensors", FLAGS)
    assert reference.dropped == {"steps": "a counter of Acme's training"}
    assert reference.configuration.sources["layer_norm_eps"] == "convention of the acme layout"
    short = {name: array for name, array in tensors.items() if name != "layers.1.up.offset"}
    save_file(short, tmp_path / "short.safetensors")
    with pytest.raises(LayoutError, match=r"layout is acme .*missing: layers\.1\.up\.offset"):
        open_checkpoint(tmp_path / "short.safetensors", FLAGS)


def test_commands_support_it(acme, source, case, tmp_path, capsys):
    assert inspect(source)["becomes"]["acme"] == "yes"
    pooled = open_checkpoint(case("finetune_gap_tiny").checkpoint, FLAGS)
    assert "class token" in inspect(pooled)["becomes"]["acme"]
    with pytest.raises(LayoutError, match="cannot write acme: Acme reads the class token"):
        plan_conversion(pooled, tmp_path / "x.safetensors", "acme")
    show.layouts("title", layouts_named("acme"))
    show.layout(acme)
    assert "layers.#.{up,down}.matrix" in capsys.readouterr().out


@pytest.mark.slow
def test_it_is_verified_through_its_table(source, tmp_path):
    execute(plan_conversion(source, tmp_path / "there.safetensors", "acme"))
    verdict = verify(source, open_checkpoint(tmp_path / "there.safetensors"))
    assert (verdict.passed, verdict.proven) == (True, False)
