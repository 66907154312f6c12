"""Small checkpoints in every layout, and a comparison of the tensors of two files."""

import numpy as np

from mae_convert.families.mae.layouts import LAYOUTS
from mae_convert.families.mae.schema import schema
from mae_convert.formats import open_container, write_file
from mae_convert.formats.tensor import LazyTensor
from mae_convert.layouts.table import write_tensors
from reference_models.configuration import ViTMAEConfig

SUFFIX = {"pth": ".pth", "safetensors": ".safetensors", "keras_h5": ".weights.h5"}


def target_for(layout, folder, number=0):
    entry = LAYOUTS[layout]
    suffix = "" if entry.weights_name else SUFFIX[entry.containers[0]]
    return folder / f"{number}-{layout}{suffix}"


def arrays(path):
    return {name: t.load().copy() for name, t in open_container(path).tensors.items()}


def assert_same_file(before, after):
    assert list(before) == list(after), "the order of the tensors"
    for name, array in before.items():
        assert (array.dtype, array.shape) == (after[name].dtype, after[name].shape), name
        assert array.tobytes() == after[name].tobytes(), name


def can_hold(layout, checkpoint):
    entry, task = LAYOUTS[layout], checkpoint.task
    holds = any(task in table.tasks for table in entry.tables)
    return holds and entry.refusal(checkpoint.configuration.model, task) is None


def fields_of_task(config, task):
    """Return the fields that have an effect for a task."""
    fields = config.to_dict()
    if task != "pretrain":
        fields = {k: v for k, v in fields.items() if not k.startswith(("decoder_", "norm_pix"))}
    fields.pop("mask_ratio" if task == "classify" else "num_labels")
    return fields


def write_original(path, config, task, dtype):
    rng = np.random.default_rng(3)
    canonical = {
        name: LazyTensor.from_array(name, rng.standard_normal(shape).astype(dtype))
        for name, shape in schema(config, task).items()
    }
    layout = LAYOUTS["facebook"]
    rules = layout.table_for(task).expand(canonical)
    write_file(path, "pth", write_tensors(canonical, rules), config=config.to_dict())


SMALL = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "image_size": 16,
    "patch_size": 8,
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 10,
    "num_labels": 5,
}


def original(folder, task="pretrain", **changes):
    config = ViTMAEConfig(**{**SMALL, **changes})
    write_original(folder / "original.pth", config, task, np.float32)
    return folder / "original.pth"
