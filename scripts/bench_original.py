"""Run main_pretrain.py of a clone of facebookresearch/mae on CPU with current libraries.

python scripts/bench_original.py CLONE [ARGUMENTS OF main_pretrain.py]

The clone is not changed. This process restores names that the clone uses and that current versions
of NumPy, timm and PyTorch do not have, sets the version of timm that the clone requires, and does
not wait for a GPU.
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
    """Restore the names, and run the program."""
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
