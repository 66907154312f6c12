"""Measure time and peak memory of a verification, compared with a script that uses transformers.

``mae-convert verify`` compares a random checkpoint in PyTorch with its ``tf_model.h5`` in
TensorFlow: float64 and float32 with intermediate activations, or with ``--quick`` the outputs in
float64. The runs of verify and of the script alternate. The script compares the float32 outputs of
the classes of transformers 4.57.6 in one process: it loads the TensorFlow model from the PyTorch
weights, saves it, loads it again, and runs both models.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench_conversions import PROGRAM, checkpoint, converted, heads
from bench_measure import by_turns, median, ratio, require, run

PEER = """
import sys, tempfile, numpy as np, os
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import torch, tensorflow as tf
from transformers import TFViTMAEForPreTraining, ViTMAEForPreTraining
source = sys.argv[1]
ours = ViTMAEForPreTraining.from_pretrained(source).eval()
made = TFViTMAEForPreTraining.from_pretrained(source, from_pt=True)
with tempfile.TemporaryDirectory() as folder:
    made.save_pretrained(folder)
    loaded = TFViTMAEForPreTraining.from_pretrained(folder)
rng = np.random.default_rng(0)
size, patches = ours.config.image_size, (ours.config.image_size // ours.config.patch_size) ** 2
pixels = rng.standard_normal((2, 3, size, size), dtype=np.float32)
noise = rng.random((2, patches), dtype=np.float32)
with torch.no_grad():
    a = ours(torch.from_numpy(pixels), noise=torch.from_numpy(noise)).logits.numpy()
b = loaded(tf.constant(pixels), noise=tf.constant(noise)).logits.numpy()
assert np.abs(a - b).max() < 1e-3, np.abs(a - b).max()
"""


def rows(
    sizes: list[str], folder: Path, pairs: int, python: Path | None
) -> Iterator[dict[str, object]]:
    """Yield a row of the table for each model size, with and without ``--quick``.

    Args:
        sizes: the sizes of the ViT.
        folder: the directory for the checkpoints.
        pairs: the number of measurements of each program.
        python: the Python interpreter of an environment with transformers 4.57.6 and TensorFlow;
            if it is None, nothing is measured.
    """
    if python is None:
        return
    require(python, "torch", "tensorflow", "tf_keras", "transformers")
    for size in sizes:
        target = converted(size, folder, "transformers-tf")
        verify = [*PROGRAM, "verify", checkpoint(size, folder), target, *heads(size)]
        commands = {
            "verify": [*verify, "--require-proof"],
            "verify --quick": [*verify, "--quick"],
            "transformers": [python, "-c", PEER, converted(size, folder, "transformers")],
        }
        runs = by_turns({name: partial(run, command) for name, command in commands.items()}, pairs)
        theirs = [each.seconds for each in runs["transformers"]]
        for name in ("verify", "verify --quick"):
            ours = [each.seconds for each in runs[name]]
            yield {
                "ViT": size,
                "command": f"`{name}`",
                "ours, s": f"{median(ours):.1f}",
                "transformers 4.57.6, s": f"{median(theirs):.1f}",
                "ours / theirs": f"{ratio(ours, theirs):.2f}",
                "memory, GB": f"{median(each.anonymous for each in runs[name]) / 1e9:.1f}",
                "theirs, GB": f"{median(r.anonymous for r in runs['transformers']) / 1e9:.1f}",
            }
