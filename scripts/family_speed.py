"""Time the conversion and verification of a random model of an official size.

python scripts/family_speed.py [--family videomae] [--model "VideoMAE ViT-B/16"] [--batch 1]

The pre-training model is written in its authors' layout, converted to Keras, and verified: PyTorch
against TensorFlow, in float64 and float32, with all intermediate activations. Memory is the sum
over all processes. The load of the machine is printed, because other programs make times longer.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from bench_measure import run
from full_size import random_tensor

from mae_convert.families import families
from mae_convert.families.family import Family
from mae_convert.formats import write_file
from mae_convert.layouts.table import external_shapes


def main() -> None:
    """Make the checkpoint, run the commands, print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=families(), default="videomae")
    parser.add_argument("--model", default="VideoMAE ViT-B/16")
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    family = families()[options.family]
    models = {o.model_name: o.model for o in family.official if o.task == "pretrain"}
    if options.model not in models:
        parser.error(f"unknown model {options.model!r}: choose from {', '.join(models)}")
    program = [sys.executable, "-m", "mae_convert"]
    print("| command | s | memory, GB | load average before |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.pth", Path(folder) / "model.weights.h5"
        write_random(family, models[options.model], source)
        for name, arguments in (
            ("convert", ["convert", source, target, "--to", "keras"]),
            ("verify", ["verify", source, target, "--batch", str(options.batch)]),
        ):
            load = os.getloadavg()[0]
            result = run([*program, *map(str, arguments)])
            print(
                f"| {name} | {result.seconds:.1f} | {result.anonymous / 1e9:.1f} | {load:.1f} |",
                flush=True,
            )


def write_random(family: Family, config: object, path: Path) -> None:
    """Write random weights of a pre-training model in the authors' layout."""
    layout, shapes = family.layout("original"), family.schema(config, "pretrain")
    external = external_shapes(layout.table_for("pretrain").expand(shapes), shapes)
    tensors = [
        random_tensor(name, shape, seed) for seed, (name, shape) in enumerate(external.items())
    ]
    complete = {**config.to_dict(), "task": "pretrain", "layout": "original"}
    write_file(path, "pth", tensors, config=complete)


if __name__ == "__main__":
    main()
