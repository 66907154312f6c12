"""Time a whole verification against what people do without it, pair by pair, with peak memory.

python scripts/verify_speed.py --peer-python ENV/bin/python [--size base] [--pairs 3]

Ours: ``mae-convert verify`` of a random full-size checkpoint in PyTorch against its ``tf_model.h5``
in TensorFlow: float64 and float32, intermediate activations. The peer: one comparison of float32
outputs with the classes of transformers 4.57.6, both loaded in one process, TensorFlow's from the
PyTorch weights, saved, loaded again, and run. ENV has transformers 4.57.6, tf-keras, tensorflow and
torch.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
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


def main() -> None:
    """Make the checkpoints, run the pairs, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--size", choices=("base", "large", "huge"), default="base")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        checkpoint = work / "mae.pth"
        make = [ROOT / "tests/helpers/full_size.py", f"visualize_vit_{options.size}", checkpoint]
        subprocess.run([sys.executable, *make], check=True, cwd=ROOT / "tests" / "helpers")
        program = [sys.executable, "-m", "mae_convert"]
        convert = ["convert", checkpoint, work / "pt", "--to", "transformers"]
        more = ["--to", f"transformers-tf={work / 'tf'}"]
        subprocess.run([*program, *convert, *more], check=True, capture_output=True)
        heads = ["--num-heads", "12" if options.size == "base" else "16"]
        heads += ["--decoder-num-heads", "16"]
        ours = [*program, "verify", checkpoint, work / "tf", *heads, "--require-proof"]
        peer = [options.peer_python, "-c", PEER, work / "pt"]
        pairs = [(measure(ours), measure(peer)) for _ in range(options.pairs)]
    print("| ViT | verify, s | transformers 4.57.6, s | ratio | memory, GB | theirs, GB |")
    print("|---|---|---|---|---|---|")
    print(f"| {options.size} | {row(pairs)} |")


def measure(command: list) -> tuple[float, int]:
    """Return the seconds that a command takes, and the peak memory of all its processes."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    peaks = [0]
    watching = threading.Thread(target=watch, args=(process, peaks))
    watching.start()
    _, errors = process.communicate()
    watching.join()
    if process.returncode:
        raise SystemExit(errors.decode()[-2000:])
    return time.monotonic() - started, max(peaks)


def watch(process: subprocess.Popen, peaks: list[int]) -> None:
    """Add up the anonymous memory of a process and its children, until it ends."""
    while process.poll() is None:
        peaks.append(sum(anonymous(pid) for pid in family(process.pid)))
        time.sleep(0.1)


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(c) for t in threads for c in (t / "children").read_text().split()]
    except OSError:
        return []
    return [pid, *(one for child in children for one in family(child))]


def anonymous(pid: int) -> int:
    """Return the anonymous memory of a process in bytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(
        int(line.split()[1]) * 1024
        for line in status.splitlines()
        if line.startswith(("RssAnon", "RssShmem"))
    )


def row(pairs: list) -> str:
    """Return the medians of the seconds, of the ratio within a pair, and of the memory."""
    median = statistics.median
    ours, peer = zip(*pairs, strict=True)
    cells = [
        f"{median(s for s, _ in ours):.1f}",
        f"{median(s for s, _ in peer):.1f}",
        f"{median(a[0] / b[0] for a, b in pairs):.2f}",
        f"{median(m for _, m in ours) / 1e9:.1f}",
        f"{median(m for _, m in peer) / 1e9:.1f}",
    ]
    return " | ".join(cells)


if __name__ == "__main__":
    main()
