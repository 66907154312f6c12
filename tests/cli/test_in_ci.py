"""Interfaces for CI of other projects: the assertion for pytest, and the GitHub action."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from paths import ROOT
from safetensors.numpy import load_file, save_file

from mae_convert.errors import ConfigurationError, MaeConvertError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.runtime.sides import Side
from mae_convert.testing import assert_parity

pytestmark = pytest.mark.usefixtures("forked_children")

FLAGS = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
SIDES = {"side_a": Side("torch"), "side_b": Side("torch"), "require_proof": False}


@pytest.fixture(scope="module")
def pair(run, case, tmp_path_factory):
    folder, pretrain = tmp_path_factory.mktemp("ci"), case("pretrain_tiny")
    run("convert", pretrain.checkpoint, folder / "pt", "--to", "transformers", *pretrain.heads)
    return pretrain.checkpoint, folder / "pt"


def test_assert_parity_passes_for_equal_models_and_returns_the_verdict(pair):
    parity = assert_parity(*pair, flags=FLAGS, **SIDES)
    assert parity.verdict.passed
    assert len(parity.traces) == 2


def test_assert_parity_reports_position_size_and_cause_of_a_difference(pair, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in pair[1].iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    name = "vit.encoder.layer.1.attention.attention.value.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AssertionError) as caught:
        assert_parity(pair[0], broken, flags=FLAGS, **SIDES)
    message = str(caught.value)
    assert "DIFFERENT" in message
    assert "first divergence: encoder.blocks.1.v" in message
    assert "transposed" in message


def test_assert_parity_compares_as_a_task_and_takes_options_by_their_names(pair):
    parity = assert_parity(*pair, task="encoder", num_heads=4, **SIDES)  # no heads of the decoder
    assert {trace.description["task"] for trace in parity.traces} == {"encoder"}
    with pytest.raises(ConfigurationError, match="specify it with decoder_num_heads="):
        assert_parity(*pair, num_heads=4, **SIDES)
    with pytest.raises(TypeError, match="takes flags or num_heads"):
        assert_parity(*pair, flags=FLAGS, num_heads=4)


INVALID_ARGUMENTS = {
    "a typo": (
        {"gradient": True},
        TypeError,
        "has no argument 'gradient'; it takes inputs, dtypes",
    ),
    "a dtype": ({"dtypes": ("int8",)}, MaeConvertError, "'int8'; choose float64, float32, tf32"),
    "one dtype": ({"dtypes": "int8"}, MaeConvertError, "'int8'; choose float64"),
    "a library": (
        {"against": ("jaxx",)},
        MaeConvertError,
        'against="jaxx" is neither a framework nor code that runs a model; choose one of torch',
    ),
    "no library": ({"against": (3,)}, MaeConvertError, "as 'transformers', not 3"),
    "a side": ({"side_a": "torch"}, TypeError, "side_a must be a mae_convert.runtime.sides.Side"),
    "flags": (
        {"flags": {"num_heads": 4}},
        TypeError,
        "flags must be a mae_convert.families.checkpoint_options.Flags",
    ),
    "no heads": (
        {"flags": None},
        MaeConvertError,
        "specify them with num_heads= and decoder_num_heads=",
    ),
}


@pytest.mark.parametrize("name", INVALID_ARGUMENTS)
def test_assert_parity_refuses_invalid_arguments(pair, name):
    options, kind, words = INVALID_ARGUMENTS[name]
    with pytest.raises(kind, match=words):
        assert_parity(*pair, **{"flags": FLAGS, **options})


def test_assert_parity_accepts_runners_by_name(pair):
    parity = assert_parity(
        pair[1], pair[1], side_a=Side("torch"), side_b=Side("torch"), require_proof=False,
        against="transformers", dtypes=["float64"],
    )  # fmt: skip
    assert [trace.description["framework"] for trace in parity.traces[2:]] == ["transformers"]


def test_github_action_of_this_repository_runs_its_documented_command(pair, tmp_path):
    """Its steps, except the installation, are run by bash, as a runner of GitHub does."""
    action = yaml.safe_load((ROOT / ".github/actions/verify/action.yml").read_text())
    workflow = yaml.safe_load((ROOT / ".github/workflows/verify.yml").read_text())
    used = next(s for s in workflow["jobs"]["parity"]["steps"] if "verify" in s.get("uses", ""))
    assert set(used["with"]) <= set(action["inputs"])
    (step,) = [s for s in action["runs"]["steps"] if s.get("name") == "Verify"]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SOURCE": str(pair[0]),
        "TARGET": str(pair[1]),
        "ARGUMENTS": "--num-heads 4 --decoder-num-heads 3 --framework-b torch --framework-a torch",
        "REPORT": "report",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    process = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", step["run"]],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "summary.md").read_text().startswith("## ✅")
    assert (tmp_path / "report.xml").is_file()
    environment["ARGUMENTS"] += " --require-proof"
    process = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", step["run"]],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 1
    assert "NOT PROVEN" in (tmp_path / "summary.md").read_text()
