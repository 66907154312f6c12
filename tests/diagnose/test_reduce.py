"""``verify --reduce``: the smallest reproducer of a failure, which does not need this project."""

import subprocess
import sys

import numpy as np
import pytest
from mutation.models import random_tensors, write_model, write_original

from mae_convert.diagnose.reduce import reduced, write_reproducer
from mae_convert.errors import MaeConvertError, OutputError
from mae_convert.runtime.sides import Side
from mae_convert.verify.distance import relative_error
from mae_convert.verify.verification import Options, parse_options, run_verification

pytestmark = pytest.mark.usefixtures("forked_children")

TORCH = Side("torch")
FLOAT64 = Options(dtypes=("float64",))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_model("pretrain", tmp_path_factory.mktemp("source"))


def failed(source, folder, *names, **fields):
    """Verify the model with changed tensors, or other fields, against itself."""
    from dataclasses import replace

    tensors = random_tensors(source.configuration.model, "pretrain", 0, learned=False)
    for name in names:
        tensors[name] = tensors[name] + np.float32(0.25)
    config = replace(source.configuration.model, **fields)
    target = write_original(folder / "b.safetensors", config, "pretrain", tensors)
    return run_verification(source, target, TORCH, TORCH, FLOAT64)


@pytest.mark.parametrize(
    ("name", "first", "kind", "tensors"),
    [
        pytest.param(
            "encoder.blocks.1.attention.k.weight",
            "encoder.blocks.1.k",
            "projection",
            4,
            marks=pytest.mark.slow,
        ),
        ("encoder.blocks.0.attention.output.bias", "encoder.blocks.0.attention", "attention", 2),
        pytest.param(
            "decoder.blocks.1.mlp.fc2.weight",
            "decoder.blocks.1.mlp",
            "mlp",
            6,
            marks=pytest.mark.slow,
        ),
        pytest.param("encoder.norm.weight", "encoder.norm", "norm", 2, marks=pytest.mark.slow),
        pytest.param("decoder.prediction.bias", "logits", "linear", 2, marks=pytest.mark.slow),
    ],
)
def test_one_step_of_one_token_shows_the_difference(source, tmp_path, name, first, kind, tensors):
    """The plain operations compute what A did from A's tensors, and what B did from B's."""
    verification = failed(source, tmp_path, name)
    reproducer = reduced(verification)
    assert (reproducer.first, reproducer.kind) == (first, kind)
    assert sum(key.startswith("A/") for key in reproducer.arrays) == tensors
    if kind != "attention":
        assert reproducer.arrays["result/A"].shape[:2] == (1, 1)
    folder = tmp_path / "reproducer"
    printed = write_reproducer(reproducer, folder).splitlines()
    distances = [[float(word) for word in line.split() if "e" in word and word[0].isdigit()]
                 for line in printed if "settings of" in line]  # fmt: skip
    (a_from_a, a_from_b), (b_from_a, b_from_b) = distances
    assert max(a_from_a, b_from_b) < 1e-13
    assert min(a_from_b, b_from_a) > 1e-4
    assert sorted(path.name for path in folder.iterdir()) == [
        "output.txt", "reproduce.npz", "reproduce.py",
    ]  # fmt: skip
    assert "mae_convert" not in (folder / "reproduce.py").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["token", "avg"])
def test_the_head_of_a_classifier_is_shown_alone(tmp_path, model):
    source = write_model(model, tmp_path)
    config = source.configuration.model
    tensors = random_tensors(config, "classify", 0, learned=True)
    tensors["head.weight"] = tensors["head.weight"][::-1].copy()
    target = write_original(tmp_path / "b.safetensors", config, "classify", tensors)
    reproducer = reduced(run_verification(source, target, TORCH, TORCH, FLOAT64))
    assert (reproducer.first, reproducer.kind) == ("logits", "class")
    lines = write_reproducer(reproducer, tmp_path / "reproducer").splitlines()
    last = [line for line in lines if "settings of B" in line]
    assert float(last[0].split("computed, ")[1].split()[0]) < 1e-13


@pytest.mark.slow
def test_another_epsilon_is_a_setting_of_the_step(source, tmp_path):
    printed = write_reproducer(
        reduced(failed(source, tmp_path, layer_norm_eps=1e-3)), tmp_path / "reproducer"
    )
    assert "eps is 1e-06 in A and 0.001 in B" in printed
    assert "differs between A and B" not in printed


def test_a_fault_of_code_is_shown_by_what_the_tensors_compute(source, tmp_path, command):
    """A runner that computes something else from the same tensors, in TensorFlow and in PyTorch."""
    (tmp_path / "own.py").write_text(
        "import mae_convert.runtime.run_pytorch as ours\n"
        "from reference_models.configuration import ViTMAEConfig\n"
        "from reference_models.pytorch import ViTMAEForPreTraining\n"
        "ACTIVATIONS = {'encoder.blocks.{}.attention': 'blocks.{}.attn',\n"
        "               'encoder.blocks.{}.mlp': 'blocks.{}.mlp'}\n"
        "def build(config):\n"
        "    known = {n: v for n, v in config.items() if n not in ('task', 'num_kept', 'dtype')}\n"
        "    return ViTMAEForPreTraining(ViTMAEConfig(**{**known, 'hidden_act': 'relu'}))\n"
        "def forward(model, pixels, noise):\n"
        "    outputs = model(pixels, noise)\n"
        "    return {'logits': outputs.logits, 'mask': outputs.mask}\n"
    )
    options = parse_options((f"{tmp_path / 'own.py'}:build",), dtypes=("float64",))
    reproducer = reduced(run_verification(source, source, TORCH, TORCH, options))
    assert reproducer.first == "encoder.blocks.0.mlp"
    assert relative_error(reproducer.arrays["result/B"], reproducer.arrays["result/A"]) > 1e-3
    folder = tmp_path / "reproducer"
    printed = write_reproducer(reproducer, folder)
    assert "differs between" not in printed
    assert "is" not in printed.splitlines()[1].split()  # no setting differs either
    process = subprocess.run(
        [sys.executable, folder / "reproduce.py", "torch"], capture_output=True, text=True,
        check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (process.returncode, process.stdout.strip()) == (1, printed.strip())


def test_the_command_writes_it_after_the_verdict(source, tmp_path, command):
    tensors = random_tensors(source.configuration.model, "pretrain", 0, learned=False)
    tensors["encoder.norm.bias"] += np.float32(1)
    target = write_original(
        tmp_path / "b.safetensors", source.configuration.model, "pretrain", tensors
    )
    pair = ["verify", source.path, target.path, "--framework-a", "torch", "--framework-b", "torch"]
    result = command(*pair, "--reduce", tmp_path / "small")
    assert result.status == 1
    assert "encoder.norm: B differs from A by" in result.err
    again = command(*pair, "--reduce", tmp_path / "small")
    assert (again.status, "exists" in again.err) == (2, True)
    assert command(*pair, "--quick", "--reduce", tmp_path / "other").status == 2


def test_what_cannot_be_shown_alone_is_said(source, tmp_path):
    verification = failed(source, tmp_path, "decoder.mask_token")
    with pytest.raises(MaeConvertError, match=r"decoder\.embedding is the first result"):
        reduced(verification)
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="exists"):
        write_reproducer(reduced(failed(source, tmp_path, "encoder.norm.bias")), tmp_path / "there")
