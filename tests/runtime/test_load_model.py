"""Checkpoints are loaded as models in one line, and trained models are saved as checkpoints."""

import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from arrays import FLOAT64_LIMIT, distance
from paths import GOLDEN

from mae_convert import load_model, save_model
from mae_convert.checkpoint.diff import diff
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import MaeConvertError, MissingRequirementError
from mae_convert.families.checkpoint_options import Flags
from reference_models import pytorch

HEADS = {"num_attention_heads": 4, "decoder_num_attention_heads": 3}
ORIGINAL = GOLDEN / "pretrain_tiny" / "checkpoint.pth"
# Every layout, as the libraries themselves wrote it; the original case of the same weights, and
# which of its results the model returns under which name.
SOURCES = {
    "facebook": ("pretrain_tiny/checkpoint.pth", "pretrain_tiny", "pred", "logits"),
    "transformers 4": ("transformers_tf_pretrain_tiny_v4pt", "pretrain_tiny", "pred", "logits"),
    "transformers 5": ("transformers_v5_pretrain/model.safetensors", "pretrain_tiny", "pred",
                       "logits"),
    "transformers-tf": ("transformers_tf_pretrain_tiny", "pretrain_tiny", "pred", "logits"),
    "encoder": ("encoder_tiny/checkpoint.pth", "encoder_tiny", "latent", "last_hidden_state"),
    "pooled": ("finetune_gap_tiny/checkpoint.pth", "finetune_gap_tiny", "logits", "logits"),
    "timm": ("timm_finetune_gap_tiny/model.safetensors", "finetune_gap_tiny", "logits", "logits"),
    "lightly": ("lightly_pretrain_tiny/model.safetensors", "pretrain_tiny", "pred", "logits"),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_any_checkpoint_gives_the_results_of_the_original(name, case):
    path, origin, result, returned_as = SOURCES[name]
    arrays = case(origin).arrays
    heads = HEADS if "pred" in result else {"num_attention_heads": 4}
    model = load_model(GOLDEN / path, dtype="float64", **heads)
    assert not model.training
    inputs = [torch.from_numpy(arrays[key]).double() for key in ("imgs", "noise") if key in arrays]
    assert distance(getattr(model(*inputs), returned_as), arrays[f"f64/{result}"]) < FLOAT64_LIMIT


def test_state_dict_equals_the_original_bit_for_bit():
    model = load_model(ORIGINAL, **HEADS)
    original = torch.load(ORIGINAL, weights_only=False)["model"]
    state = model.state_dict()
    assert list(state) == list(original)
    assert all(torch.equal(state[name], original[name]) for name in original)
    fixed = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert fixed == {"pos_embed", "decoder_pos_embed"}


def test_task_dtype_size_and_head_give_the_same_model_as_convert():
    encoder = load_model(ORIGINAL, "torch", "encoder", "bfloat16", "cpu", image_size=48, **HEADS)
    assert type(encoder) is pytorch.ViTMAEModel
    assert {value.dtype for value in encoder.parameters()} == {torch.bfloat16}
    assert encoder.config.image_size == 48
    assert encoder.pos_embed.shape == (1, 1 + 36, 32)
    classifier = load_model(ORIGINAL, num_labels=7, **HEADS)
    assert type(classifier) is pytorch.ViTForImageClassification
    assert not classifier.head.weight.any()
    assert classifier.config.num_labels == 7


WRONG = {
    "no heads": (
        {},
        MaeConvertError,
        r"specify them with num_heads= and decoder_num_heads=, or determine them",
    ),
    "framework": ({"framework": "mxnet", **HEADS}, MaeConvertError, "torch, tensorflow, jax"),
    "dtype": ({"dtype": "int8", **HEADS}, MaeConvertError, "float64, float32"),
    "policy": ({"dtype": "mixed_float16", **HEADS}, MaeConvertError, "float64, float32"),
    "task": ({"task": "classify", **HEADS}, MaeConvertError, "no classifier head"),
    "size": ({"image_size": 33, **HEADS}, MaeConvertError, "choose 32 or 40"),
    "size in words": ({"image_size": "large", **HEADS}, MaeConvertError, "pass one number of"),
    "three sizes": ({"image_size": (32, 32, 3), **HEADS}, MaeConvertError, "(height, width)"),
    "half a pixel": ({"image_size": 32.5, **HEADS}, MaeConvertError, "32.5"),
    "no size": ({"image_size": True, **HEADS}, MaeConvertError, "cannot be True"),
    "head twice": (
        {"source": GOLDEN / "transformers_tf_classifier_tiny", "num_labels": 3},
        MaeConvertError, r'num_labels= adds a head .* task="encoder"\)',
    ),
    "device": ({"device": "cuda:9", **HEADS}, MissingRequirementError, "cuda:9"),
    "unknown": ({"heads": 4}, TypeError, "the arguments are num_heads, decoder_num_heads"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_invalid_arguments_are_refused_in_one_sentence(name):
    arguments, kind, words = WRONG[name]
    with pytest.raises(kind, match=words):
        load_model(**{"source": ORIGINAL, **arguments})


@pytest.mark.parametrize("size", ["48", 48.0, "48x48", (48, 48), [48, 48], np.int64(48)])
def test_size_is_accepted_in_every_documented_form(size):
    assert load_model(ORIGINAL, image_size=size, **HEADS).config.image_hw == (48, 48)


def test_dtype_is_accepted_under_the_name_of_its_framework(tmp_path):
    for dtype in (torch.float16, np.dtype("float16"), "float16"):
        model = load_model(ORIGINAL, dtype=dtype, **HEADS)
        assert model.cls_token.dtype == torch.float16
        save_model(model, tmp_path / "m.pth", "facebook", dtype=dtype, overwrite=True)
    with pytest.raises(MaeConvertError, match="'int8'; choose float64, float32, float16, bfloat16"):
        save_model(model, tmp_path / "other.pth", "facebook", dtype="int8")


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("device", ["cpu", "nowhere"])
def test_garbage_collector_is_paused_only_while_the_model_is_created(monkeypatch, enabled, device):
    during = []
    created = pytorch.ViTMAEForPreTraining.__init__
    monkeypatch.setattr(
        pytorch.ViTMAEForPreTraining,
        "__init__",
        lambda *arguments: (during.append(gc.isenabled()), created(*arguments))[1],
    )
    (gc.enable if enabled else gc.disable)()
    try:
        load_model(ORIGINAL, device=device, **HEADS)
    except MaeConvertError:
        assert device == "nowhere"
    finally:
        after = gc.isenabled()
        gc.enable()
    assert after is enabled
    assert not any(during)
    assert during or device == "nowhere"


@pytest.mark.parametrize("frozen", [False, True])
def test_objects_of_a_model_are_examined_only_by_full_collections(frozen):
    """Objects that the caller has frozen stay frozen."""
    (gc.freeze if frozen else gc.unfreeze)()
    try:
        model = load_model(ORIGINAL, **HEADS)
        oldest = any(one is model for one in gc.get_objects(2))
        assert oldest != frozen
        assert (gc.get_freeze_count() > 0) == frozen
    finally:
        gc.freeze()  # as before


def test_layers_created_concurrently_by_another_thread_are_initialized():
    """Loading a model skips random initialization without an effect on other models."""
    loaded, wrong = threading.Event(), list[str]()

    def make_layers():
        while not loaded.is_set():
            norm, linear = torch.nn.LayerNorm(64), torch.nn.Linear(64, 64)
            if not (torch.equal(norm.weight, torch.ones(64)) and not norm.bias.any()):
                wrong.append(f"layer norm: {norm.weight}")
            # Uniform in ±1/8.
            if not (
                0.06 < linear.weight.std().item() < 0.09 and linear.weight.abs().max() <= 1 / 8
            ):
                wrong.append(f"linear: {linear.weight}")
            norm.weight.data.fill_(7), linear.weight.data.fill_(7)  # this memory is used again

    other = threading.Thread(target=make_layers)
    other.start()
    try:
        for _ in range(20):
            load_model(ORIGINAL, **HEADS)
    finally:
        loaded.set()
        other.join()
    assert not wrong, wrong[0]


LAYOUTS = {
    "transformers": "",
    "transformers-tf": "",
    "facebook": ".pth",
    "keras": ".weights.h5",
    "lightly": ".safetensors",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_that_was_trained_further_is_saved_in_any_layout(layout, tmp_path):
    model = load_model(ORIGINAL, **HEADS)
    with torch.no_grad():
        model.decoder_pred.bias += 1
    record = save_model(model, tmp_path / f"model{LAYOUTS[layout]}", layout)
    assert record["source"]["loaded_from"] == "checkpoint.pth"
    again = load_model(tmp_path / f"model{LAYOUTS[layout]}")
    assert again.config == model.config
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


def test_mean_std_and_class_names_are_kept(tmp_path):
    model = load_model(GOLDEN / "transformers_tf_classifier_tiny")
    save_model(model, tmp_path / "model.safetensors", "timm", dtype="float16")
    before, after = (
        open_checkpoint(path).configuration
        for path in (GOLDEN / "transformers_tf_classifier_tiny", tmp_path / "model.safetensors")
    )
    assert (after.image_mean, after.image_std) == (before.image_mean, before.image_std)
    assert after.labels == before.labels
    stored = open_checkpoint(tmp_path / "model.safetensors").tensors.values()
    assert {str(tensor.dtype) for tensor in stored} == {"float16"}


def test_saving_has_the_same_checks_as_converting(tmp_path):
    model = load_model(ORIGINAL, **HEADS)
    save_model(torch.nn.DataParallel(model), tmp_path / "model.pth", "facebook")
    heads = Flags(**HEADS)
    pair = open_checkpoint(ORIGINAL, heads), open_checkpoint(tmp_path / "model.pth")
    assert diff(*pair).same
    with pytest.raises(MaeConvertError, match=r"or pass overwrite=True$"):
        save_model(model, tmp_path / "model.pth", "facebook")
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(MaeConvertError, match="NaN"):
        save_model(model, tmp_path / "other.pth", "facebook")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]
    with pytest.raises(MaeConvertError, match="Linear is not one of"):
        save_model(torch.nn.Linear(2, 2), tmp_path / "other.pth", "facebook")


def in_a_process(program, *arguments, **variables):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **variables},
    ).stdout


def test_importing_the_package_imports_no_framework():
    message = in_a_process(
        "import sys, mae_convert, mae_convert.runtime\n"
        "from mae_convert.models import MaeImageProcessor, ViTMAEConfig\n"
        "print(*({'torch', 'tensorflow', 'keras', 'jax'} & set(sys.modules)))"
    )
    assert message.split() == []


PEAK = """
import re, sys
from mae_convert import load_model

def peak_memory():  # getrusage returns that of the parent if it is larger
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

load_model(sys.argv[2], num_attention_heads=4)  # imports all modules
open("/proc/self/clear_refs", "w").write("5")  # resets the peak of the imports
before = peak_memory()
model = load_model(sys.argv[1], mmap=False)
print((peak_memory() - before) / sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.slow
def test_loading_takes_the_memory_of_one_model(tmp_path):
    model = pytorch.ViTMAEForPreTraining(pytorch.ViTMAEConfig())  # ViT-B, 447 MB
    save_model(model, tmp_path / "model", "transformers")
    encoder = GOLDEN / "encoder_tiny" / "checkpoint.pth"
    share = float(in_a_process(PEAK, tmp_path / "model", encoder))
    print(f"peak: {share:.2f} of the model's size")
    assert 0.9 < share < 1.1


def test_options_without_effect_raise_a_warning_or_an_error():
    with pytest.warns(
        UserWarning, match="global_pool= has no effect on a model for the task pretrain"
    ):
        load_model(ORIGINAL, global_pool="avg", **HEADS)
    opened = open_checkpoint(ORIGINAL, Flags(**HEADS))
    with pytest.raises(TypeError, match="is open already; specify num_heads where it is opened"):
        load_model(opened, num_heads=2)
