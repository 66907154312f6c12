"""Small random models for the faults, one for each task."""

from pathlib import Path

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.families.family import Family
from mae_convert.families.mae.family import MAE
from mae_convert.formats import LazyTensor, write_file
from mae_convert.layouts.table import write_tensors
from reference_models.configuration import ViTMAEConfig
from reference_models.positions import sincos_position_embedding

# Sizes differ where possible; only the matrices that are square in every model are square.
SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 28,
    "mask_ratio": 0.6,
    "num_labels": 5,
}
MODELS = {
    "pretrain": ("pretrain", {}),
    "learned": ("pretrain", {}),
    "encoder": ("encoder", {}),
    "token": ("classify", {"global_pool": "token"}),
    "avg": ("classify", {"global_pool": "avg"}),
}


def random_tensors(
    config: ViTMAEConfig, task: str, seed: int, *, learned: bool
) -> dict[str, np.ndarray]:
    """Return canonical tensors; positions are fixed sines and cosines unless they are learned."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in MAE.schema(config, task).items():
        values = rng.standard_normal(shape)
        if name.endswith("position_embedding") and not learned:
            values = sincos_position_embedding(shape[-1], config.grid_hw)
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.2 * values
        elif len(shape) > 1 and not name.endswith(("token", "embedding")):
            values *= np.prod(shape[1:]) ** -0.5
        else:
            values *= 0.3
        tensors[name] = values.astype(np.float32)
    return tensors


def write_original(
    path: Path,
    config: ViTMAEConfig,
    task: str,
    tensors: dict[str, np.ndarray],
    family: Family = MAE,
) -> Checkpoint:
    """Write canonical tensors in the original's layout, and open the file."""
    lazy = {name: LazyTensor.from_array(name, array) for name, array in tensors.items()}
    layout = family.layout("original")
    rules = layout.table_for(task).expand(lazy)
    complete = {**config.to_dict(), "task": task, "layout": layout.name}
    write_file(path, "safetensors", write_tensors(lazy, rules), config=complete, overwrite=True)
    return open_checkpoint(path)


def write_model(name: str, folder: Path, seed: int = 0) -> Checkpoint:
    """Write one of ``MODELS`` and open it."""
    task, changes = MODELS[name]
    config = ViTMAEConfig(**{**SMALL, **changes})
    tensors = random_tensors(config, task, seed, learned=name not in ("pretrain", "encoder"))
    return write_original(folder / f"{name}.safetensors", config, task, tensors)
