"""Measure images per second of `pretrain.py` and of facebookresearch/mae's main_pretrain.py.

The programs run in alternating order, in the same environment, on CPU in float32, with the same
model, images, batch size, number of workers that decode images, learning rate and transforms:
random resized crop and flip with Pillow. Each program reports its rate in the last epoch, which
excludes imports, the creation of the model and the writing of the checkpoint. Processor time and
memory are measured for the whole process.
"""

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench_features import made_images
from bench_measure import Run, by_turns, median, ratio, require, run

SCRIPTS = Path(__file__).resolve().parent
MODELS = {
    "base": "mae_vit_base_patch16",
    "large": "mae_vit_large_patch16",
    "huge": "mae_vit_huge_patch14",
}
WORKERS = 2
PER_STEP = re.compile(r"Total time: .*\(([\d.]+) s / it\)")


class Measured(NamedTuple):
    """A run of a training program."""

    rate: float
    """Images per second."""

    made: Run


def rows(
    sizes: list[str],
    batches: list[int],
    pairs: int,
    folder: Path,
    count: int,
    python: Path,
    clone: Path,
    device: str,
) -> Iterator[dict[str, object]]:
    """Yield a row of the table for each model size and batch size.

    Args:
        sizes: the sizes of the ViT.
        batches: the batch sizes.
        pairs: the number of runs of each program.
        folder: the directory for images and outputs.
        count: the number of images; a run trains for one epoch.
        python: the Python interpreter that runs both programs.
        clone: a clone of facebookresearch/mae.
        device: the device of PyTorch, such as "cpu".
    """
    if not (clone / "main_pretrain.py").is_file():
        raise SystemExit(
            f"{clone} contains no main_pretrain.py: specify a clone of facebookresearch/mae"
        )
    require(python, "torch", "torchvision", "timm", "tensorboard", "PIL", "rich")
    images, output = folder / "pretrain", folder / "trained"
    made_images(images / "train" / "0", count)
    common = ["--epochs", "1", "--warmup_epochs", "0", "--blr", "1.5e-4", "--device", device]
    common += ["--num_workers", str(WORKERS)]
    for size in sizes:
        for batch in batches:
            flags = [*common, "--model", MODELS[size], "--batch_size", str(batch)]
            ours = [python, SCRIPTS / "pretrain.py", images, output]
            ours += [flag.replace("_", "-") if flag[:2] == "--" else flag for flag in flags]
            theirs = [python, SCRIPTS / "bench_original.py", clone, *flags, "--no_pin_mem"]
            theirs += ["--data_path", images, "--output_dir", output, "--log_dir", output]
            ways = {"ours": partial(_ours, ours, output), "theirs": partial(_theirs, theirs, batch)}
            runs = by_turns({name: partial(_alone, w, output) for name, w in ways.items()}, pairs)
            yield _row(size, count, batch, runs["ours"], runs["theirs"])


def _alone(way: partial[Measured], output: Path) -> Measured:
    try:
        return way()
    finally:
        shutil.rmtree(output, ignore_errors=True)


def _ours(command: list[str | Path], output: Path) -> Measured:
    made = run(command)
    last = (output / "log.jsonl").read_text().splitlines()[-1]
    return Measured(json.loads(last)["images_per_second"], made)


def _theirs(command: list[str | Path], batch: int) -> Measured:
    made = run(command)
    return Measured(batch / float(PER_STEP.findall(made.output)[-1]), made)


def _row(
    size: str, count: int, batch: int, ours: list[Measured], theirs: list[Measured]
) -> dict[str, object]:
    (a, made_a), (b, made_b) = (zip(*runs, strict=True) for runs in (ours, theirs))
    cpu_a, cpu_b = ([each.processor for each in runs] for runs in (made_a, made_b))
    return {
        "ViT": size,
        "images": count,
        "batch": batch,
        "pretrain.py, images/s": f"{median(a):.2f}",
        "main_pretrain.py, images/s": f"{median(b):.2f}",
        "ours / theirs": f"{ratio(a, b):.2f}",
        "processor time, theirs / ours": f"{ratio(cpu_b, cpu_a):.2f}",
        "memory, GB": f"{median(each.anonymous for each in made_a) / 1e9:.2f}",
        "theirs, GB": f"{median(each.anonymous for each in made_b) / 1e9:.2f}",
    }
