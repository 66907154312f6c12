"""Compare the speed of mae-convert with `cp`, transformers, timm and facebookresearch/mae.

python scripts/benchmark.py --peer-python PYTHON --timm-python PYTHON2 --original CLONE

The environment of PYTHON contains transformers 4.57.6, tf-keras, tensorflow, keras 3 and torch; the
environment of PYTHON2 contains timm, torchvision and torch and, for a clone of
facebookresearch/mae, tensorboard and rich. Measurements that require an option which is not
specified are omitted. The results are printed as Markdown tables. All ratios are medians over pairs
of runs; the two runs of a pair follow each other directly, in one run of this script. The
checkpoints have random weights and the official sizes; they are written to --folder, and the times
depend on the disk of this folder.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import bench_conversions
import bench_features
import bench_forward
import bench_gpu
import bench_loading
import bench_pretrain
import bench_start
import bench_sweep
import bench_training
import bench_verify
from bench_measure import table

SIZES = ("base", "large", "huge")


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Return the parsed arguments: `given` or, if it is None, the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer-python",
        type=Path,
        metavar="PATH",
        help="Python interpreter of an environment with transformers 4.57.6",
    )
    parser.add_argument(
        "--timm-python",
        type=Path,
        metavar="PATH",
        help="Python interpreter of an environment with timm",
    )
    parser.add_argument(
        "--original", type=Path, metavar="PATH", help="clone of facebookresearch/mae"
    )
    parser.add_argument("--only", nargs="*", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--sizes", nargs="*", choices=("tiny", *SIZES), help="sizes of the ViT")
    parser.add_argument("--batches", nargs="*", type=int, help="batch sizes")
    parser.add_argument("--frameworks", nargs="*", default=["pytorch", "tensorflow"])
    parser.add_argument("--against", nargs="*", default=["transformers", "timm"])
    parser.add_argument("--images", type=int, help="number of images for `features` and `pretrain`")
    parser.add_argument("--jobs", type=int, default=300, help="number of jobs in the sweep")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--device",
        help="device of PyTorch for the measurements gpu and pretrain (see --only), such as cuda",
    )
    parser.add_argument("--folder", type=Path, help="directory for the checkpoints")
    parsed = parser.parse_args(given)
    if parsed.folder and parsed.folder.exists() and not parsed.folder.is_dir():
        parser.error(f"{parsed.folder} is not a directory")
    return parsed


def conversions(given: argparse.Namespace, folder: Path) -> Iterable[dict]:
    """Measure the time and memory of conversions."""
    return bench_conversions.rows(given.sizes or SIZES, folder, given.pairs, given.peer_python)


def start(given: argparse.Namespace, folder: Path) -> Iterable[dict]:
    """Measure commands that should start quickly, and conversions in 1 GB of address space."""
    return bench_start.rows(given.sizes or SIZES, folder, given.pairs)


def forward(given: argparse.Namespace, _: Path) -> Iterable[dict]:
    """Measure the time of forward passes."""
    pythons = {"transformers": given.peer_python, "timm": given.timm_python}
    pythons = {name: python for name, python in pythons.items() if python and name in given.against}
    sizes = [size for size in given.sizes or SIZES if size != "huge"]
    batches = given.batches or [1, 16]
    return bench_forward.rows(sizes, batches, given.pairs, pythons, given.frameworks)


def training(given: argparse.Namespace, _: Path) -> Iterable[dict]:
    """Measure the time and memory of training steps."""
    pythons = {
        ("pytorch", "transformers"): Path(sys.executable),
        ("pytorch", "timm"): given.timm_python,
        ("tensorflow", "transformers"): given.peer_python,
    }
    pythons = {key: python for key, python in pythons.items() if key[1] in given.against}
    sizes, batches = given.sizes or ["base"], given.batches or [8, 32]
    return bench_training.rows(sizes, batches, given.pairs, pythons, given.frameworks)


def pretrain(given: argparse.Namespace, folder: Path) -> Iterable[dict]:
    """Measure the training scripts of this project and of facebookresearch/mae."""
    if given.original is None or given.timm_python is None:
        return []
    sizes, batches = given.sizes or ["base"], given.batches or [16]
    peer = (given.timm_python, given.original)
    images, device = given.images or 128, given.device or "cpu"
    return bench_pretrain.rows(sizes, batches, given.pairs, folder, images, *peer, device)


def features(given: argparse.Namespace, folder: Path) -> Iterable[dict]:
    """Measure the time to compute features of images."""
    pythons = {"transformers": Path(sys.executable), "timm": given.timm_python}
    pythons = {name: python for name, python in pythons.items() if name in given.against}
    for size in given.sizes or ["base"]:
        yield from bench_features.rows(size, folder, given.images or 1000, given.pairs, pythons)


def loading(given: argparse.Namespace, folder: Path) -> Iterable[dict]:
    """Measure the time to load a ViT-B."""
    return bench_loading.rows(folder, given.pairs)


def sweep(given: argparse.Namespace, folder: Path) -> Iterable[dict]:
    """Measure a sweep of small checkpoints."""
    return bench_sweep.rows(folder / "sweep", given.jobs, given.pairs)


def verify(given: argparse.Namespace, folder: Path) -> Iterable[dict]:
    """Measure a verification."""
    return bench_verify.rows(given.sizes or ["base"], folder, given.pairs, given.peer_python)


def gpu(given: argparse.Namespace, folder: Path) -> Iterable[dict]:
    """Measure the time of loading, forward passes and training steps in PyTorch on a GPU."""
    if given.device is None:
        return []
    against = [name for name in given.against if importlib.util.find_spec(name)]
    sizes, batches = given.sizes or ["base", "large"], given.batches or [1, 64]
    return bench_gpu.rows(given.device, sizes, batches, given.pairs, folder, against)


MEASUREMENTS: dict[str, Callable[[argparse.Namespace, Path], Iterable[dict]]] = {
    measure.__name__: measure
    for measure in (
        *(conversions, start, loading, forward, training, pretrain),
        *(features, verify, sweep, gpu),
    )
}


OMITTED = {
    "pretrain": "Omitted: this measurement needs --original and --timm-python.",
    "gpu": "Omitted: this measurement needs --device, such as --device cuda.",
    "others": "Omitted: this measurement needs --peer-python or --timm-python.",
}
"""By the name of a table: what is printed in its place if a required option is not specified."""


def main(argv: list[str] | None = None) -> None:
    """Run the measurements, and print their tables."""
    given = arguments(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for name in given.only:
            print(f"\n{MEASUREMENTS[name].__doc__}\n")
            rows = []
            for row in MEASUREMENTS[name](given, folder):
                rows.append(row)
                print(*row.values(), file=sys.stderr, flush=True)
            print(table(rows) if rows else OMITTED.get(name, OMITTED["others"]), flush=True)


if __name__ == "__main__":
    main()
