"""Measure the speed compared with `cp`, transformers and timm, as Markdown tables.

python scripts/benchmark.py --peer-python ENV/bin/python --timm-python ENV/bin/python

ENV of the first has transformers 4.57.6, tf-keras, tensorflow, keras 3 and torch; of the second
timm and torch. Without them their columns are missing. All ratios are medians of ratios within a
pair, whose members run directly one after the other, in one run of this script. Checkpoints are
random ones of the official sizes in --folder, so that its disk is measured.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import bench_conversions
import bench_features
import bench_forward
import bench_loading
import bench_start
import bench_training
from bench_measure import table

SIZES = ("base", "large", "huge")


def arguments() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", type=Path, metavar="PATH", help="has transformers 4.57.6")
    parser.add_argument("--timm-python", type=Path, metavar="PATH", help="has timm")
    parser.add_argument("--only", nargs="*", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 16])
    parser.add_argument("--frameworks", nargs="*", default=["pytorch", "tensorflow"])
    parser.add_argument("--images", type=int, default=1000, help="of which features are computed")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="directory for the checkpoints")
    return parser.parse_args()


def conversions(given: argparse.Namespace, folder: Path) -> Iterable[dict]:
    """Measure conversions."""
    return bench_conversions.rows(given.sizes, folder, given.pairs, given.peer_python)


def start(given: argparse.Namespace, folder: Path) -> Iterable[dict]:
    """Measure commands that should start quickly, and the memory of a conversion."""
    return bench_start.rows(given.sizes, folder, given.pairs)


def forward(given: argparse.Namespace, _: Path) -> Iterable[dict]:
    """Measure forward passes."""
    pythons = {"transformers": given.peer_python, "timm": given.timm_python}
    pythons = {library: python for library, python in pythons.items() if python}
    sizes = [size for size in given.sizes if size != "huge"]
    return bench_forward.rows(sizes, given.batches, given.pairs, pythons, given.frameworks)


def training(given: argparse.Namespace, _: Path) -> Iterable[dict]:
    """Measure training steps."""
    return bench_training.rows(given.batches, given.pairs, given.peer_python, given.frameworks)


def features(given: argparse.Namespace, folder: Path) -> Iterable[dict]:
    """Measure features of a folder of images."""
    return bench_features.rows(folder.resolve(), given.images, given.pairs)


def loading(given: argparse.Namespace, folder: Path) -> Iterable[dict]:
    """Measure the time to load a ViT-B."""
    return bench_loading.rows(folder.resolve(), given.pairs)


MEASUREMENTS: dict[str, Callable[[argparse.Namespace, Path], Iterable[dict]]] = {
    "conversions": conversions,
    "start": start,
    "forward": forward,
    "training": training,
    "features": features,
    "loading": loading,
}


def main() -> None:
    """Measure, and print the tables."""
    given = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in given.only:
            print(f"\n{MEASUREMENTS[name].__doc__}\n")
            rows = []
            for row in MEASUREMENTS[name](given, folder):
                rows.append(row)
                print(*row.values(), file=sys.stderr, flush=True)
            print(table(rows) if rows else "Nothing to compare with.", flush=True)


if __name__ == "__main__":
    main()
