"""KerasHub's classes load our files and give the same results, and we read their files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from arrays import FLOAT32_LIMIT, distance
from keras_process import run_worker

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import ConfigurationError
from mae_convert.families.checkpoint_options import Flags
from reference_models.pytorch import ViTMAEModel


@pytest.fixture(scope="module")
def work(case, fork_servers, tmp_path_factory):
    folder, golden = tmp_path_factory.mktemp("keras-hub"), case("finetune_cls_tiny")
    source = open_checkpoint(golden.checkpoint, Flags(num_attention_heads=4))
    for task in ("encoder", "classify"):
        target = folder / f"{task}.weights.h5"
        execute(plan_conversion(source, target, "keras-hub", task=task))
    np.save(folder / "images.npy", golden.arrays["imgs"])
    run_worker(fork_servers, "keras_hub_worker.py", "tensorflow", folder)
    with np.load(folder / "outputs.npz") as archive:
        return folder, source, golden.arrays, dict(archive)


def test_classifier_gives_the_same_results_as_the_original(work):
    _, _, golden, outputs = work
    assert distance(outputs["classify"], golden["f64/logits"]) < FLOAT32_LIMIT


def test_backbone_gives_the_same_results_as_the_reference(work, tmp_path):
    _, source, golden, outputs = work
    execute(plan_conversion(source, tmp_path / "encoder.pth", "facebook", task="encoder"))
    model = ViTMAEModel(replace(source.configuration.model, mask_ratio=0.0)).eval()
    model.load_state_dict(torch.load(tmp_path / "encoder.pth", weights_only=True)["model"])
    in_order = torch.arange(16.0).repeat(2, 1)
    with torch.no_grad():
        tokens = model(torch.from_numpy(golden["imgs"]), in_order).last_hidden_state
    assert distance(outputs["encoder"], tokens) < FLOAT32_LIMIT


@pytest.mark.parametrize("suffix", ["weights.h5", "keras"])
@pytest.mark.parametrize("task", ["encoder", "classify"])
def test_files_saved_by_the_classes_are_read_back_bit_for_bit(work, task, suffix):
    folder, source, _, _ = work
    again = open_checkpoint(folder / f"again-{task}.{suffix}")
    assert (again.layout.name, again.task) == ("keras-hub", task)
    # The shapes contain the number of heads here: it does not have to be specified.
    assert again.configuration.model.num_attention_heads == 4
    for name, tensor in again.tensors.items():
        assert np.array_equal(tensor.load(), source.tensors[name].load()), name


def test_a_preset_s_configuration_is_read(work):
    preset = open_checkpoint(work[0] / "preset")
    assert (preset.layout.name, preset.task) == ("keras-hub", "encoder")
    assert preset.configuration.model.image_size == (16, 48)
    assert preset.configuration.model.layer_norm_eps == 1e-4
    assert preset.configuration.sources["layer_norm_eps"] == "config.json"


def test_a_classifier_that_pools_the_class_token_too_is_refused(work):
    with pytest.raises(
        ConfigurationError, match="pooling 'gap': its head reads the mean of all tokens"
    ):
        open_checkpoint(work[0] / "pooled.keras")
