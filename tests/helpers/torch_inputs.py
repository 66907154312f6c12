"""A small checkpoint and its inputs as PyTorch tensors."""

import numpy as np
import torch
from paths import GOLDEN

PRETRAIN = GOLDEN / "transformers_tf_pretrain_tiny_v4pt"


def inputs():
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.normal(size=(4, 3, 32, 32)).astype(np.float32))
    return pixels, torch.from_numpy(random.random((4, 16)).astype(np.float32))
