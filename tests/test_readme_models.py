"""The code of the README about models runs as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "mae_convert" / "data" / "demo"
SECTION = (ROOT / "README.md").read_text().split("## Models in one line")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
# What a block takes for granted: its reader has data.
DATASET = """
import tensorflow as tf
import numpy as np
pixels = np.random.default_rng(0).normal(size=(8, 3, 96, 96)).astype("float32")
dataset = tf.data.Dataset.from_tensor_slices((pixels, np.arange(8) % 2)).batch(4)
"""


def run(program, folder):
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    shutil.copy(DEMO / "checkpoint.pth", folder / "checkpoint-799.pth")
    shutil.copy(DEMO / "chelsea.jpg", folder / "cat.jpg")
    return folder


def test_the_block_in_pytorch_runs(folder):
    run(BLOCKS[0], folder)
    assert (folder / "my-mae" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_blocks_in_keras_run_on_what_it_wrote(folder):
    in_pytorch, *in_keras = BLOCKS
    assert len(in_keras) == 2
    if not (folder / "my-mae").exists():
        run(in_pytorch, folder)
    run(DATASET + "\n".join(in_keras), folder)
    assert (folder / "my-mae-tf" / "tf_model.h5").is_file()
    assert (folder / "classifier.keras").is_file()


def test_every_class_that_the_readme_names_is_there():
    import mae_convert.models

    named = set(re.findall(r"`(\w*ViT\w+)`", SECTION))
    assert len(named) > 6
    assert named <= set(mae_convert.models.__all__)
