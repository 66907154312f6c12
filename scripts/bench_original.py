"""Run main_pretrain.py of a clone of facebookresearch/mae on CPU with current libraries.

python scripts/bench_original.py CLONE [ARGUMENTS OF main_pretrain.py]

The clone is not changed. This script adds the names that the clone uses and that current versions
of NumPy, timm and PyTorch no longer have, sets ``timm.__version__`` to the version that the clone
requires, and replaces ``torch.cuda.synchronize`` if there is no GPU.
"""

import argparse
import runpy
import sys
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mae_convert.runtime.original_code import bridge_numpy, bridge_timm

REQUIRED_TIMM = "0.3.2"


def main() -> None:
    """Add the names that current versions of libraries no longer have, and run main_pretrain.py."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clone", type=Path, help="clone of facebookresearch/mae")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for main_pretrain.py")
    given = parser.parse_args()
    script = given.clone / "main_pretrain.py"
    if not script.is_file():
        parser.error(f"{given.clone} is not a clone of facebookresearch/mae: no {script.name}")
    import timm.optim
    import torch

    bridge_numpy()
    bridge_timm()
    moved = ModuleType("torch._six")
    moved.inf = float("inf")
    sys.modules["torch._six"] = moved
    factory = ModuleType("timm.optim.optim_factory")
    factory.add_weight_decay = timm.optim.param_groups_weight_decay
    timm.optim.optim_factory = sys.modules[factory.__name__] = factory
    timm.__version__ = REQUIRED_TIMM
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda: None
    sys.path.insert(0, str(given.clone))
    sys.argv = [str(script), *given.arguments]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
