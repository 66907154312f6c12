"""Write a random checkpoint of the size of an official one, from its list of names and shapes.

python tests/helpers/full_size.py visualize_vit_base OUT.pth
"""

import json
import sys
from pathlib import Path

import numpy as np
from paths import GOLDEN

from mae_convert.formats import LazyTensor, write_file

KEYS = GOLDEN / "keys"


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> LazyTensor:
    """Return a tensor with values as after training: norms near one, small matrices, no zeros."""

    def load() -> np.ndarray:
        rng = np.random.default_rng(seed)
        values = rng.standard_normal(shape, dtype=np.float32)
        if "norm" in name and name.endswith("weight"):
            return 1 + np.float32(0.1) * values
        return values * np.float32(0.02 if len(shape) == 1 else shape[-1] ** -0.5)

    return LazyTensor(name, shape, np.dtype(np.float32), load)


def write_random_checkpoint(which: str, path: Path) -> None:
    """Write ``facebook_mae_{which}`` in the original layout, with no configuration inside."""
    shapes = json.loads((KEYS / f"facebook_mae_{which}.json").read_text())
    tensors = [
        random_tensor(name, tuple(shape), seed) for seed, (name, shape) in enumerate(shapes.items())
    ]
    write_file(path, "pth", tensors)


if __name__ == "__main__":
    write_random_checkpoint(sys.argv[1], Path(sys.argv[2]))
