"""Features of PyTorch work with a model: compilers, low precision, several processes."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from arrays import FLOAT32_LIMIT, assert_near, distance
from paths import GOLDEN, HELPERS
from torch_inputs import PRETRAIN, inputs

from mae_convert import load_model
from mae_convert.errors import MaeConvertError
from mae_convert.models import ViTForImageClassification, ViTMAEForPreTraining, ViTMAEModel
from mae_convert.models.checkpointing import blocks_of
from mae_convert.models.export import export_encoder
from mae_convert.models.fine_tuning_torch import fine_tuning_optimizer, parameter_groups

CLASSIFIER = GOLDEN / "transformers_tf_classifier_tiny_v4pt"


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "kind", ["transformers", pytest.param("reference", marks=pytest.mark.slow)]
)
def test_torch_compile_takes_the_whole_model_as_one_graph(kind):
    model = (load_model if kind == "reference" else ViTMAEForPreTraining.from_pretrained)(PRETRAIN)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    result, expected = compiled(*inputs()), model(*inputs())
    assert type(result) is type(expected)
    assert distance(result.logits, expected.logits) < FLOAT32_LIMIT
    result.loss.backward()
    compiled_gradients = gradients(model)
    model.zero_grad()
    expected.loss.backward()
    assert_near(compiled_gradients, gradients(model), FLOAT32_LIMIT)


@pytest.mark.slow
def test_kernels_of_the_compiler_give_the_same_results():
    model = ViTMAEForPreTraining.from_pretrained(PRETRAIN)
    result = torch.compile(model, fullgraph=True)(*inputs())
    assert distance(result.logits, model(*inputs()).logits) < FLOAT32_LIMIT


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        (load_model(PRETRAIN), inputs()),
        (ViTMAEModel.from_pretrained(PRETRAIN), inputs()),
        (ViTForImageClassification.from_pretrained(CLASSIFIER), inputs()[:1]),
    ],
    ids=["reference", "encoder", "classifier"],
)
def test_torch_export_gives_a_program_for_any_batch_size(model, arguments):
    batch = torch.export.Dim("batch", min=1, max=64)
    names = ("pixel_values", "noise")[: len(arguments)]
    dynamic = {name: {0: batch} for name in names}
    program = torch.export.export(model, arguments, dynamic_shapes=dynamic)
    fewer = tuple(argument[:3] for argument in arguments)
    result, expected = program.module()(*fewer), model(*fewer)
    assert type(result) is type(expected)
    for one, other in zip(result, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert distance(one, other) < FLOAT32_LIMIT


def test_encoder_runs_as_onnx_within_the_verification_limit(tmp_path):
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed)
    import onnxruntime

    pixels = inputs()[0]
    model = load_model(PRETRAIN)
    export_encoder(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    wide = load_model(PRETRAIN, "torch", "encoder", "float64", mask_ratio=0.0)
    in_order = torch.arange(16.0).expand(4, -1)
    exact = wide(pixels.double(), in_order).last_hidden_state.detach().numpy()
    for images in (1, 4):
        (result,) = session.run(None, {"pixel_values": pixels[:images].numpy()})
        away = distance(result, exact[:images])
        print(f"onnxruntime: {away * 2**24:.1f} units of roundoff")
        assert away < 64 * 2.0**-24
    with pytest.raises(MaeConvertError, match="already exists"):
        export_encoder(model, tmp_path / "model.onnx")
    with pytest.raises(MaeConvertError, match='"tensorflow"'):
        export_encoder(model, tmp_path / "model.tflite")
    with pytest.raises(MaeConvertError, match="no encoder"):
        export_encoder(load_model(CLASSIFIER), tmp_path / "other.onnx")


def test_autocast_computes_in_bfloat16_and_keeps_mask_and_loss():
    model, (pixels, noise) = ViTMAEForPreTraining.from_pretrained(PRETRAIN), inputs()
    exact = model(pixels, noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = model(pixels, noise)
    assert result.logits.dtype == torch.bfloat16
    assert torch.equal(result.mask, exact.mask)
    assert result.loss.dtype == torch.float32
    assert distance(result.loss, exact.loss) < 2e-2
    result.loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def count(visible, mode, tensor):
    visible[mode] += tensor.numel()
    return tensor


def test_activation_checkpointing_saves_memory_and_gives_the_same_gradients():
    model = ViTMAEForPreTraining.from_pretrained(PRETRAIN, hidden_dropout_prob=0.1).train()
    names = list(model.state_dict())
    results, remaining = {}, {}
    for mode in ("plain", "checkpointed", "disabled"):
        if mode == "checkpointed":
            model.gradient_checkpointing_enable()
        if mode == "disabled":
            model.gradient_checkpointing_disable()
        assert model.is_gradient_checkpointing == (mode == "checkpointed")
        model.zero_grad()
        torch.manual_seed(0)
        remaining[mode] = 0
        with torch.autograd.graph.saved_tensors_hooks(partial(count, remaining, mode), lambda x: x):
            loss = model(*inputs()).loss
        loss.backward()
        results[mode] = gradients(model)
    assert remaining["checkpointed"] < 0.5 * remaining["plain"] == 0.5 * remaining["disabled"]
    assert_near(results["checkpointed"], results["plain"], FLOAT32_LIMIT)
    assert list(model.state_dict()) == names
    model.gradient_checkpointing_enable()
    pixels = torch.randn(2, 3, 48, 48)
    model(pixels, interpolate_pos_encoding=True).loss.backward()


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_layers": 2},
        {"offload": True},
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ],
    ids=str,
)
def test_options_of_activation_checkpointing_change_no_gradient(options):
    model = ViTMAEForPreTraining.from_pretrained(PRETRAIN).train()
    model(*inputs()).loss.backward()
    expected = gradients(model)
    model.gradient_checkpointing_enable(**options)
    recomputed = [block for block in blocks_of(model) if "forward" in vars(block)]
    assert len(recomputed) == (3 if "every_n_layers" in options else 5)
    model.zero_grad()
    model(*inputs()).loss.backward()
    assert_near(gradients(model), expected, FLOAT32_LIMIT)
    with pytest.raises(ValueError, match="every_n_layers"):
        model.gradient_checkpointing_enable(every_n_layers=0)


# By hand: a model of 3 blocks has the layers 0 (embeddings) to 4 (norm and head).
LAYERS = {"cls_token": 0, "pos_embed": 0, "patch_embed.proj.weight": 0, "patch_embed.proj.bias": 0,
          "blocks.0.mlp.fc1.weight": 1, "blocks.1.norm1.weight": 2, "blocks.2.attn.qkv.bias": 3,
          "norm.weight": 4, "norm.bias": 4, "head.weight": 4, "head.bias": 4}  # fmt: skip
RATES = {0: 6.25e-5, 1: 1.25e-4, 2: 2.5e-4, 3: 5e-4, 4: 1e-3}
DECAYING = ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "head.weight")


def test_learning_rate_and_decay_of_each_parameter_follow_the_paper():
    model = ViTForImageClassification.from_pretrained(PRETRAIN, num_labels=10)
    groups = parameter_groups(model, 1e-3, weight_decay=0.1, layer_decay=0.5)
    of = {id(p): group for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert len(of) == sum(len(group["params"]) for group in groups) == len(named)
    for name, layer in LAYERS.items():
        group = of[id(named[name])]
        assert group["layer"] == layer, name
        assert group["lr"] == pytest.approx(RATES[layer]), name
        assert group["weight_decay"] == (0.1 if name in DECAYING else 0.0), name
    model.patch_embed.requires_grad_(False)
    fewer = parameter_groups(model, 1e-3)
    assert sum(len(group["params"]) for group in fewer) == len(named) - 2


def test_recipe_has_warmup_and_cosine_decay_and_reduces_the_loss():
    torch.manual_seed(0)
    model = ViTForImageClassification.from_pretrained(PRETRAIN, num_labels=2).train()
    pixels = torch.cat([inputs()[0], inputs()[0] + 1])
    labels = torch.arange(8) // 4
    optimizer, scheduler = fine_tuning_optimizer(
        model, batch_size=8, steps_per_epoch=2, epochs=30, base_learning_rate=0.3
    )
    rates, losses = [], []
    for _ in range(60):
        rates.append(optimizer.param_groups[-1]["lr"])
        loss = model(pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    rates.append(optimizer.param_groups[-1]["lr"])
    peak = 0.3 * 8 / 256  # 5 epochs of warm-up, 25 of a cosine: its middle is at step 10 + 25
    result = [rates[step] for step in (0, 5, 10, 35, 60)]
    assert result == pytest.approx([0, peak / 2, peak, peak / 2, 0], abs=1e-9)
    assert losses[-1] < 0.2 < losses[0]


def test_fine_tuning_code_for_the_original_loads_the_state_dict():
    """That code loads the encoder by the original's names; only the decoder's are unexpected."""
    classifier = load_model(PRETRAIN, num_labels=10)
    state = load_model(PRETRAIN).state_dict()
    loading_info = classifier.load_state_dict(state, strict=False)
    assert set(loading_info.missing_keys) == {"head.weight", "head.bias"}
    assert all(name.startswith(("decoder", "mask_token")) for name in loading_info.unexpected_keys)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    script = HELPERS / "torch_ddp_worker.py"
    store = tmp_path / "store"
    workers = [
        subprocess.Popen([sys.executable, script, str(rank), store, tmp_path / "model.pth"])
        for rank in range(2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    model = ViTMAEForPreTraining.from_pretrained(PRETRAIN)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(*inputs()).loss.backward()
        optimizer.step()
    trained = load_model(tmp_path / "model.pth").state_dict()
    assert_near(trained, model.state_dict(), 1e-5)
