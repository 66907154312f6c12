"""scripts/benchmark.py: which comparisons are measured, the figures, and errors in one sentence."""

import importlib.util
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from paths import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import bench_forward
import bench_measure
import bench_pretrain
import bench_sweep
import benchmark

PYTHON = Path(sys.executable)
# A worker without a model: this project's step takes 2 s, a library's 3 s.
WORKER = """
import sys
for request in sys.stdin:
    print(*((2, 4) if sys.argv[1] == "reference" else (3, 5)), flush=True)
"""
MODULES = {
    "timm/__init__.py": "__version__ = '1.0'\n",
    "timm/optim.py": "def param_groups_weight_decay(): return 'groups'\n",
    "timm/layers.py": "",
    "timm/models/__init__.py": "",
    "timm/models/_registry.py": "",
    "timm/models/vision_transformer.py": "class Block: pass\n",
}
CLONE = """
import numpy as np
import timm
import torch
from timm.optim import optim_factory
from timm.models import layers
from torch._six import inf
from util import NAME
import sys
assert timm.__version__ == "0.3.2"
assert isinstance(inf, np.float)
torch.cuda.synchronize()
print(optim_factory.add_weight_decay(), NAME, *sys.argv[1:])
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    monkeypatch.setattr(bench_forward, "WORKER", path)
    monkeypatch.setattr(bench_forward, "require", lambda *_: None)
    return path


def table(capsys, *arguments):
    benchmark.main(list(map(str, arguments)))
    printed = capsys.readouterr().out.splitlines()
    lines = [[c.strip() for c in x.split("|")[1:-1]] for x in printed if x.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_training_steps_are_compared_with_each_library_that_is_there(worker, tmp_path, capsys):
    folder = tmp_path / "new" / "folder"
    rows = table(capsys, "--only", "training", "--batches", 8, 32, "--pairs", 1,
                 "--timm-python", PYTHON, "--peer-python", PYTHON, "--folder", folder)  # fmt: skip
    assert (tmp_path / "new" / "folder").is_dir()
    assert [(row["framework"], row["step of"], row["against"]) for row in rows[::2]] == [
        ("pytorch", "pre-training", "transformers"),
        ("pytorch", "pre-training", "the original's recipe"),
        ("pytorch", "fine-tuning", "transformers"),
        ("pytorch", "fine-tuning", "timm"),
        ("tensorflow", "pre-training", "transformers"),
        ("tensorflow", "fine-tuning", "transformers"),
    ]
    assert {(row["theirs / ours"], row["of processor time"]) for row in rows} == {("1.50", "1.25")}
    assert [row["batch"] for row in rows] == ["8", "32"] * 6
    few = table(capsys, "--only", "training", "--batches", 8, "--pairs", 1, "--against", "timm",
                "--timm-python", PYTHON)  # fmt: skip
    assert [row["against"] for row in few] == ["timm"]


def test_the_last_line_of_a_failed_worker_is_the_error(worker):
    worker.write_text("raise ValueError('there is no such class')")
    with (
        pytest.raises(SystemExit, match="failed: ValueError: there is no such class"),
        bench_forward.started(PYTHON, "timm", "pytorch", "base", "classifier") as model,
    ):
        model.measured("training", 8, 1)


def test_an_interpreter_that_lacks_a_module_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match="has no module no_such_module: install it"):
        bench_measure.require(PYTHON, "json", "no_such_module")
    with pytest.raises(SystemExit, match="can't be run as a Python interpreter"):
        bench_measure.require(tmp_path / "python", "json")


def test_turns_change_their_order():
    called = []
    ways = {name: partial(called.append, name) for name in "ab"}
    assert bench_measure.by_turns(ways, 2) == {"a": [None] * 2, "b": [None] * 2}
    assert called == ["b", "a", "a", "b"]


def test_memory_is_that_of_all_processes():
    held = "x = b'1' * (100 << 20); import time; time.sleep(0.1)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {held!r}])"
    assert 100 << 20 < bench_measure.run([PYTHON, "-c", child]).anonymous < 200 << 20


def test_rates_of_the_training_scripts_are_the_ones_that_they_report(tmp_path, monkeypatch, capsys):
    commands = []

    def run(command):
        commands.append(list(map(str, command)))
        (tmp_path / "trained").mkdir()
        line = json.dumps({"images_per_second": 6.0})
        (tmp_path / "trained" / "log.jsonl").write_text(f"{line}\n")
        output = "Epoch: [0] Total time: 0:00:14 (2.0000 s / it)\n"
        return bench_measure.Run(1.0, 10**9, output, 1.0)

    monkeypatch.setattr(bench_pretrain, "run", run)
    monkeypatch.setattr(bench_pretrain, "require", lambda *_: None)
    (tmp_path / "main_pretrain.py").write_text("")
    places = ("--timm-python", PYTHON, "--original", tmp_path, "--folder", tmp_path)
    options = ("--images", 2, "--batches", 8, "--pairs", 1)
    (row,) = table(capsys, "--only", "pretrain", *options, *places)
    assert row["main_pretrain.py, images/s"] == "4.00"
    assert row["ours / theirs"] == "1.50"
    theirs, ours = commands
    assert ours[ours.index("--num-workers") + 1] == theirs[theirs.index("--num_workers") + 1]
    with pytest.raises(SystemExit, match=r"contains no main_pretrain\.py"):
        table(capsys, "--only", "pretrain", "--timm-python", PYTHON, "--original", tmp_path / "x")


def test_what_lacks_its_options_is_left_out(capsys):
    benchmark.main(["--only", "pretrain", "verify", "gpu"])
    omitted = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Omitted")]
    assert omitted == [
        "Omitted: this measurement needs --original and --timm-python.",
        "Omitted: this measurement needs --peer-python or --timm-python.",
        "Omitted: this measurement needs --device, such as --device cuda.",
    ]


@pytest.mark.slow
def test_a_sweep_is_compared_with_a_loop(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_sweep, "VERIFIED", {})
    rows = table(capsys, "--only", "sweep", "--jobs", 1, "--pairs", 1, "--folder", tmp_path)
    assert [(row["method"], row["jobs"]) for row in rows] == [
        ("a loop", "1"),
        ("1 worker", "1"),
        ("2 workers", "1"),
    ]
    assert rows[0]["time / time of the loop"] == "1.00"


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")
def test_training_and_features_of_tiny_models_are_measured(tmp_path, capsys):
    common = ("--sizes", "tiny", "--pairs", 1, "--against", "transformers", "--folder", tmp_path)
    rows = table(capsys, "--only", "training", "--frameworks", "pytorch", "--batches", 2, *common)
    assert len(rows) == 3
    assert all(float(row["memory, GB"]) > 0 for row in rows)
    (row,) = table(capsys, "--only", "features", "--images", 2, *common)
    assert float(row["memory, GB"]) > 0


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_models_are_measured_on_a_device(device, tmp_path, capsys):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    common = ("--sizes", "tiny", "--pairs", 1, "--against", "transformers", "--folder", tmp_path)
    loading, *rows = table(capsys, "--only", "gpu", "--device", device, "--batches", 2, *common)
    assert (loading["what"], loading["against"]) == ("loading", "load_file of safetensors")
    assert len(rows) == 2 * (2 + 4 + 4)
    assert all(float(row["theirs / ours"]) > 0 for row in rows)
    assert all((float(row["theirs, GB"]) > 0) == (device == "cuda") for row in rows)


@pytest.mark.slow
def test_the_original_finds_what_current_libraries_no_longer_have(tmp_path):
    for path, text in MODULES.items():
        (tmp_path / "libraries" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "libraries" / path).write_text(text)
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "main_pretrain.py").write_text(CLONE)
    (tmp_path / "clone" / "util.py").write_text("NAME = 'util of the clone'\n")
    command = [PYTHON, ROOT / "scripts/bench_original.py", tmp_path / "clone", "--epochs", "1"]
    done = subprocess.run(command, env={"PYTHONPATH": str(tmp_path / "libraries")}, check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout == "groups util of the clone --epochs 1\n"
