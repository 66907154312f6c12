"""Run main_pretrain.py of a clone of facebookresearch/mae on CPU with current libraries.

python scripts/bench_original.py CLONE [ARGUMENTS OF main_pretrain.py]

The clone is not changed. This script adds the names that the clone uses and that current versions
of NumPy, timm and PyTorch no longer have, sets ``timm.__version__`` to the version that the clone
requires, and replaces ``torch.cuda.synchronize`` if there is no GPU.
"""

import runpy
import sys
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import timm.optim
import torch

from mae_convert.runtime.original_code import bridge_numpy, bridge_timm

REQUIRED_TIMM = "0.3.2"


def main() -> None:
    """Add the missing names, and run main_pretrain.py."""
    clone = Path(sys.argv[1])
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
    sys.path.insert(0, str(clone))
    sys.argv[:2] = [str(clone / "main_pretrain.py")]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
