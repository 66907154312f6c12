"""Our files load in the classes of transformers 5 and give the results of the original."""

import numpy as np
import pytest
import torch
import transformers
from arrays import FLOAT64_LIMIT, distance

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.families.checkpoint_options import Flags

CLASSES = {
    "pretrain_tiny": transformers.ViTMAEForPreTraining,
    "encoder_tiny": transformers.ViTMAEModel,
    "finetune_cls_tiny": transformers.ViTForImageClassification,
}


@pytest.fixture(params=CLASSES)
def converted(request, case, tmp_path):
    golden = case(request.param)
    flags = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
    source = open_checkpoint(golden.checkpoint, flags)
    execute(plan_conversion(source, tmp_path / "model", "transformers"))
    return request.param, golden.arrays, tmp_path / "model"


def test_the_real_class_loads_every_tensor_and_computes_the_same(converted):
    name, golden, folder = converted
    model, info = CLASSES[name].from_pretrained(
        folder, output_loading_info=True, dtype=torch.float64
    )
    assert not any(info.values()), info
    pixels = torch.from_numpy(golden["imgs"]).double()
    with torch.no_grad():
        if name == "finetune_cls_tiny":
            results = {"logits": model.eval()(pixels).logits}
        else:
            outputs = model.eval()(pixels, noise=torch.from_numpy(golden["noise"]))
            results = dict(outputs)
            assert np.array_equal(outputs.mask.numpy(), golden["mask"])
            assert np.array_equal(outputs.ids_restore.numpy(), golden["ids_restore"])
    names = {
        "pretrain_tiny": [("logits", "pred"), ("loss", "loss")],
        "encoder_tiny": [("last_hidden_state", "latent")],
        "finetune_cls_tiny": [("logits", "logits")],
    }[name]
    for reference, ours in names:
        assert distance(results[reference], golden[f"f64/{ours}"]) < FLOAT64_LIMIT, reference


def test_the_image_processor_loads(converted):
    _, _, folder = converted
    processor = transformers.ViTImageProcessor.from_pretrained(folder)
    assert tuple(processor.image_mean) == (0.485, 0.456, 0.406)
    assert (processor.size["height"], processor.size["width"]) == (32, 32)


def test_files_saved_by_transformers_5_are_read_back(converted, tmp_path):
    """Version 5 writes decoder names that version 4 initializes at random; we read them."""
    name, _, folder = converted
    CLASSES[name].from_pretrained(folder).save_pretrained(tmp_path / "again")
    before, after = open_checkpoint(folder), open_checkpoint(tmp_path / "again")
    assert before.task == after.task
    for tensor in before.tensors:
        assert np.array_equal(before.tensors[tensor].load(), after.tensors[tensor].load()), tensor
