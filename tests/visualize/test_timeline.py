"""The checkpoints of a training run, evaluated on the same images with the same noise."""

import csv
import os

import numpy as np
import pytest
from paths import DEMO, HELPERS

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.formats import LazyTensor, write_file
from mae_convert.formats.container import open_container
from mae_convert.visualize.timeline import spread_indices


def write_blurred(path, amount):
    """Write the embedded checkpoint with noise added to its weights, as if it were trained less."""
    checkpoint = open_checkpoint(DEMO / "checkpoint.pth")
    rng = np.random.default_rng(0)

    def blurred(tensor):
        value = tensor.load()
        noise = rng.standard_normal(value.shape).astype(np.float32) * value.std()
        value = value + np.float32(amount) * noise
        return LazyTensor(tensor.name, value.shape, value.dtype, lambda: value)

    tensors = [blurred(tensor) for tensor in checkpoint.container.tensors.values()]
    write_file(path, "pth", tensors, config=checkpoint.container.config)


@pytest.fixture
def training(tmp_path):
    """Four checkpoints with decreasing loss, one of which cannot be read."""
    for epoch, amount in ((0, 0.5), (9, 0.1), (10, 0.0)):
        write_blurred(tmp_path / f"checkpoint-{epoch}.pth", amount)
    (tmp_path / "checkpoint-5.pth").write_bytes(b"PK")
    return tmp_path


def test_the_loss_falls_with_training_and_a_damaged_checkpoint_is_listed(command, training):
    result = command(
        "timeline", "*.pth", "--images", DEMO, "-o", "t.html", "-o", "t.csv", "-o", "t.png",
        "--framework", "torch", "--shown", "3", "--json", cwd=training,
    )  # fmt: skip
    assert result.status == 1, result.err
    assert "1 of 4 checkpoints have no loss" in result.err
    assert "checkpoint-5.pth" in result.err
    document = result.json
    assert [p["epoch"] for p in document["points"]] == [0, 5, 9, 10]
    first, broken, better, best = document["points"]
    assert first["loss"] > better["loss"] > best["loss"] == np.mean(best["losses"])
    assert broken["loss"] is None
    assert "checkpoint-5.pth" in broken["error"]
    assert document["best_epoch"] == 10
    page = (training / "t.html").read_text()
    # Instead of the damaged checkpoint, the next one is shown.
    assert page.count("<img ") == 4 * (2 + 3)
    assert "http" not in page.replace("http-equiv", "")
    with (training / "t.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "5", "9", "10"]


def test_without_any_loss_there_is_no_timeline(command, tmp_path):
    write_blurred(tmp_path / "checkpoint-1.pth", 1e30)
    result = command(
        "timeline", "checkpoint-1.pth", "--images", DEMO, "-o", "t.csv", "--framework", "torch",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.status == 2
    assert "no checkpoint can be run; the first error is: its loss is" in result.err
    assert not (tmp_path / "t.csv").exists()


def test_the_loss_is_that_of_the_model_itself(fork_servers, training):
    """Compare with the reference model's loss, with and without ``norm_pix_loss``."""
    code = HELPERS / "timeline_worker.py"
    module, checkpoint = "mae_convert.runtime.run_pytorch", training / "checkpoint-9.pth"
    fork_servers.run(module, code, checkpoint, DEMO, environment=os.environ)


def test_output_that_cannot_be_written_is_refused_before_any_work(command, training):
    result = command("timeline", "*.pth", "--images", DEMO, "-o", "t.pdf", cwd=training)
    assert (result.status, "end in .html, .png, .csv or .json" in result.err) == (2, True)
    result = command("timeline", "none*.pth", "--images", DEMO, "-o", "t.html", cwd=training)
    assert (result.status, result.err) == (
        2,
        "mae-convert: no file matches the pattern none*.pth; check the pattern; quotes keep the"
        " shell from expanding it\n",
    )


@pytest.mark.parametrize(
    ("stored", "epoch"),
    [({"epoch": 12}, 12), ({"meta": {"epoch": 3}}, 3), ({"epoch": None, "meta": {"epoch": 4}}, 4),
     ({"epoch": np.int64(5)}, 5), ({"epoch": "12"}, None), ({"epoch": True}, None),
     ({"epoch": -1}, None), ({"epoch": 10**20}, None), ({"epoch": 1.0}, None), ({}, None),
     ({"epoch": [12]}, None)],
)  # fmt: skip
def test_the_epoch_is_the_number_that_the_checkpoint_stores(tmp_path, case, stored, epoch):
    torch = pytest.importorskip("torch")
    whole = torch.load(case("pretrain_tiny").checkpoint, weights_only=True)
    torch.save({**whole, **stored}, tmp_path / "run-7.pth")
    assert open_container(tmp_path / "run-7.pth").epoch == epoch


@pytest.mark.parametrize(("count", "expected"), [(1, 5), (5, 5), (6, 5), (7, 4), (800, 6), (9, 2)])
def test_the_first_and_the_last_are_always_shown(count, expected):
    indices = spread_indices(count, expected)
    assert len(set(indices)) == min(count, expected)
    assert (indices[0], indices[-1]) == (0, count - 1)
    assert indices == sorted(indices)
