"""The PyTorch models equal the original, and load its state dicts unchanged."""

import argparse
import dataclasses
import json

import numpy as np
import numpy_mae
import pytest
import torch
from arrays import FLOAT32_LIMIT, FLOAT64_LIMIT, distance
from paths import GOLDEN
from torch import nn

from reference_models.configuration import ACTIVATIONS
from reference_models.pytorch import (
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
)

TINY = ViTMAEConfig(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=128,
    image_size=32,
    patch_size=8,
    decoder_hidden_size=24,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=3,
    decoder_intermediate_size=96,
    num_labels=10,
)
# Rectangular patches in a rectangular image, an unusual number of channels, all widths different.
ODD = ViTMAEConfig(
    hidden_size=30,
    num_hidden_layers=2,
    num_attention_heads=5,
    intermediate_size=44,
    image_size=(12, 40),
    patch_size=(4, 8),
    num_channels=2,
    decoder_hidden_size=18,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=20,
    mask_ratio=0.6,
    num_labels=7,
)
MODELS = {
    "pretrain": ViTMAEForPreTraining,
    "encoder": ViTMAEModel,
    "classify": ViTForImageClassification,
}


def golden(case):
    return dict(np.load(GOLDEN / case / "golden.npz"))


def checkpoint(case):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(GOLDEN / case / "checkpoint.pth", weights_only=True)["model"]


def load(case, task, config=TINY, dtype=torch.float64):
    model = MODELS[task](config)
    model.load_state_dict(checkpoint(case), strict=True)
    return model.to(dtype).eval()


def inputs(case, dtype=torch.float64):
    arrays = golden(case)
    pixels = torch.from_numpy(arrays["imgs"]).to(dtype)
    return (pixels, torch.from_numpy(arrays["noise"])) if "noise" in arrays else (pixels,)


def random_model(task, config, seed=0):
    """Return a float64 model whose parameters, including norms and biases, are random."""
    generator = torch.Generator().manual_seed(seed)
    model = MODELS[task](config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def random_inputs(config, images=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (images, config.num_channels, *config.image_hw)
    pixels = torch.randn(shape, generator=generator, dtype=torch.float64)
    return pixels, torch.rand(images, config.num_patches, generator=generator)


def weights_of(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


# --- against the original ---


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_pretraining_equals_the_original(dtype, limit):
    expected = golden("pretrain_tiny")
    bits = "f64" if dtype == torch.float64 else "f32"
    model, (pixels, noise) = (
        load("pretrain_tiny", "pretrain", dtype=dtype),
        inputs("pretrain_tiny", dtype),
    )
    with torch.no_grad():
        output = model(pixels, noise, output_taps=True)
        loss_norm_pix = model.forward_loss(pixels, output.logits, output.mask, norm_pix_loss=True)
        reconstruction = model.reconstruct(pixels, output.logits)
    measured = {
        "latent": output.taps["encoder.norm"],
        "pred": output.logits,
        "loss": output.loss,
        "loss_norm_pix": loss_norm_pix,
        "reconstruction": reconstruction,
    }
    for name, value in measured.items():
        assert value.dtype == dtype
        assert distance(value, expected[f"{bits}/{name}"]) <= limit, name
    np.testing.assert_array_equal(output.mask, expected["mask"])
    np.testing.assert_array_equal(output.ids_restore, expected["ids_restore"])


def test_every_block_equals_the_original():
    expected = golden("pretrain_tiny")
    with torch.no_grad():
        output = load("pretrain_tiny", "pretrain")(*inputs("pretrain_tiny"), output_taps=True)
    for index in range(3):
        tap = output.taps[f"encoder.blocks.{index}.output"]
        assert distance(tap, expected[f"f64/tap/blocks.{index}"]) <= FLOAT64_LIMIT
    for index in range(2):
        tap = output.taps[f"decoder.blocks.{index}.output"]
        assert distance(tap, expected[f"f64/tap/decoder_blocks.{index}"]) <= FLOAT64_LIMIT


def test_encoder_equals_the_original():
    expected = golden("encoder_tiny")
    with torch.no_grad():
        output = load("encoder_tiny", "encoder")(*inputs("encoder_tiny"))
    assert distance(output.last_hidden_state, expected["f64/latent"]) <= FLOAT64_LIMIT
    np.testing.assert_array_equal(output.mask, expected["mask"])
    np.testing.assert_array_equal(output.ids_restore, expected["ids_restore"])


@pytest.mark.parametrize(
    ("case", "pool", "tap"),
    [
        ("finetune_gap_tiny", "avg", "head.norm"),
        ("finetune_cls_tiny", "token", "encoder.norm"),
    ],
)
def test_classifier_equals_the_original(case, pool, tap):
    expected = golden(case)
    model = load(case, "classify", dataclasses.replace(TINY, global_pool=pool))
    with torch.no_grad():
        output = model(*inputs(case), output_taps=True)
    assert output.loss is None
    assert distance(output.logits, expected["f64/logits"]) <= FLOAT64_LIMIT
    assert distance(output.taps[tap][:, 0], expected["f64/features"]) <= FLOAT64_LIMIT


def test_tiny_names_and_order_equal_the_original():
    for case, task, pool in (
        ("pretrain_tiny", "pretrain", "token"),
        ("encoder_tiny", "encoder", "token"),
        ("finetune_gap_tiny", "classify", "avg"),
        ("finetune_cls_tiny", "classify", "token"),
    ):
        model = MODELS[task](dataclasses.replace(TINY, global_pool=pool))
        assert list(model.state_dict()) == list(checkpoint(case))


@pytest.mark.parametrize(
    ("size", "width", "depth", "heads", "patch"),
    [("base", 768, 12, 12, 16), ("large", 1024, 24, 16, 16), ("huge", 1280, 32, 16, 14)],
)
@pytest.mark.parametrize(
    ("kind", "task"),
    [("visualize", "pretrain"), ("pretrain", "encoder"), ("finetuned", "classify")],
)
def test_official_names_shapes_and_order(kind, task, size, width, depth, heads, patch):
    config = ViTMAEConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=patch,
        global_pool="avg",
    )
    with torch.device("meta"):
        state = MODELS[task](config).state_dict()
    official = json.loads((GOLDEN / "keys" / f"facebook_mae_{kind}_vit_{size}.json").read_text())
    assert [(name, list(tensor.shape)) for name, tensor in state.items()] == list(official.items())


def test_initial_positions_equal_the_original():
    for name in ("pos_embed", "decoder_pos_embed"):
        fresh = ViTMAEForPreTraining(TINY).state_dict()[name]
        assert torch.equal(fresh, checkpoint("pretrain_tiny")[name])


# --- against transformers ---


@pytest.mark.parametrize("task", ["pretrain", "encoder"])
def test_float32_equals_transformers_tensorflow(task):
    expected = golden(f"transformers_tf_{task}_tiny")
    model = load(f"{task}_tiny", task, dtype=torch.float32)
    with torch.no_grad():
        output = model(
            *inputs(f"{task}_tiny", torch.float32),
            output_hidden_states=True,
            output_attentions=True,
        )
    outputs = ("logits",) if task == "pretrain" else ("last_hidden_state",)
    for name in (*outputs, "mask", "ids_restore"):
        assert distance(getattr(output, name), expected[name]) <= FLOAT32_LIMIT
    assert (len(output.hidden_states), len(output.attentions)) == (4, 3)
    for index, value in enumerate(output.hidden_states):
        assert distance(value, expected[f"hidden_states.{index}"]) <= FLOAT32_LIMIT
    for index, value in enumerate(output.attentions):
        assert distance(value, expected[f"attentions.{index}"]) <= FLOAT32_LIMIT
    if task == "pretrain":
        assert distance(output.loss.reshape(1), expected["loss"]) <= FLOAT32_LIMIT


def test_float32_classifier_equals_transformers_tensorflow():
    expected = golden("transformers_tf_classifier_tiny")
    model = load("finetune_cls_tiny", "classify", dtype=torch.float32)
    with torch.no_grad():
        output = model(*inputs("finetune_cls_tiny", torch.float32))
    assert distance(output.logits, expected["logits"]) <= FLOAT32_LIMIT


# --- against NumPy: shapes that no other program supports ---


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_unusual_sizes_and_every_activation(act):
    # Large epsilons, each of which changes the results; encoder and decoder have different ones.
    eps = {"layer_norm_eps": 1e-2, "decoder_layer_norm_eps": 1e-1 if act != "relu" else None}
    config = dataclasses.replace(ODD, hidden_act=act, qkv_bias=act != "gelu", **eps)
    model, (pixels, noise) = random_model("pretrain", config), random_inputs(config)
    assert ("blocks.0.attn.qkv.bias" in model.state_dict()) == config.qkv_bias
    with torch.no_grad():
        output = model(
            pixels, noise, output_hidden_states=True, output_attentions=True, output_taps=True
        )
    expected = numpy_mae.pretrain(weights_of(model), pixels.numpy(), noise.numpy(), config)
    np.testing.assert_array_equal(output.mask, expected["mask"])
    np.testing.assert_array_equal(output.ids_restore, expected["ids_restore"])
    assert distance(output.taps["encoder.norm"], expected["latent"]) <= FLOAT64_LIMIT
    assert distance(output.logits, expected["logits"]) <= FLOAT64_LIMIT
    assert distance(output.loss, expected["loss"]) <= FLOAT64_LIMIT
    for ours, reference in zip(output.hidden_states, expected["hidden_states"], strict=True):
        assert distance(ours, reference) <= FLOAT64_LIMIT
    for ours, reference in zip(output.attentions, expected["attentions"], strict=True):
        assert distance(ours, reference) <= FLOAT64_LIMIT
    assert distance(model.unpatchify(output.logits), expected["reconstruction"]) <= FLOAT64_LIMIT


def test_norm_pix_loss_is_a_field_and_an_argument():
    model, (pixels, noise) = random_model("pretrain", ODD), random_inputs(ODD)
    normalized = random_model("pretrain", dataclasses.replace(ODD, norm_pix_loss=True))
    expected = numpy_mae.pretrain(weights_of(model), pixels.numpy(), noise.numpy(), ODD)
    with torch.no_grad():
        plain, other = model(pixels, noise), normalized(pixels, noise)
        requested = model.forward_loss(pixels, plain.logits, plain.mask, norm_pix_loss=True)
    assert plain.loss.shape == other.loss.shape == ()
    assert distance(plain.loss, expected["loss"]) <= FLOAT64_LIMIT
    assert distance(other.loss, expected["loss_norm_pix"]) <= FLOAT64_LIMIT
    assert torch.equal(requested, other.loss)


@pytest.mark.parametrize(
    ("pool", "fc_norm"), [("token", None), ("avg", None), ("avg", True), ("avg", False)]
)
def test_classifier_with_unusual_sizes(pool, fc_norm):
    config = dataclasses.replace(ODD, global_pool=pool, fc_norm=fc_norm)
    model, (pixels, _) = random_model("classify", config), random_inputs(config)
    labels = torch.tensor([3, 6])
    with torch.no_grad():
        output = model(pixels, labels)
    logits = numpy_mae.classify(weights_of(model), pixels.numpy(), config)
    assert distance(output.logits, logits) <= FLOAT64_LIMIT
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert output.loss.shape == ()
    assert distance(output.loss, -np.log(probabilities[[0, 1], labels]).mean()) <= FLOAT64_LIMIT


# --- patches and masks ---


def test_unpatchify_inverts_patchify():
    model, (pixels, _) = random_model("pretrain", ODD), random_inputs(ODD)
    patches = model.patchify(pixels)
    np.testing.assert_array_equal(patches, numpy_mae.patchify(pixels.numpy(), ODD))
    assert torch.equal(model.unpatchify(patches), pixels)


def test_reconstruct_puts_normalized_patches_back():
    config = dataclasses.replace(ODD, norm_pix_loss=True)
    model, (pixels, noise) = random_model("pretrain", config), random_inputs(config)
    patches = numpy_mae.patchify(pixels.numpy(), config)
    deviation = np.sqrt(patches.var(-1, keepdims=True, ddof=1) + 1e-6)
    perfect = torch.from_numpy((patches - patches.mean(-1, keepdims=True)) / deviation)
    assert distance(model.reconstruct(pixels, perfect), pixels) <= FLOAT64_LIMIT

    with torch.no_grad():
        output = model(pixels, noise)
    plain = model.patchify(model.reconstruct(pixels, output.logits))
    pasted = model.patchify(model.reconstruct(pixels, output.logits, output.mask))
    visible = output.mask == 0
    assert torch.equal(pasted[visible], model.patchify(pixels)[visible])
    assert torch.equal(pasted[~visible], plain[~visible])


def test_without_noise_a_mask_is_sampled():
    model, (pixels, _) = random_model("pretrain", ODD), random_inputs(ODD, images=8)
    torch.manual_seed(0)
    first, second = model(pixels).mask, model(pixels).mask
    assert first.sum(1).tolist() == [ODD.num_patches - ODD.num_kept] * 8
    assert len(torch.unique(first, dim=0)) > 1
    assert not torch.equal(first, second)


def test_equal_noise_keeps_the_first_patches():
    model, (pixels, noise) = random_model("encoder", ODD), random_inputs(ODD)
    output = model(pixels, torch.zeros_like(noise))
    assert output.ids_restore.tolist() == [list(range(ODD.num_patches))] * 2
    assert output.mask[0].tolist() == [0.0] * 6 + [1.0] * 9


def test_nothing_masked_keeps_the_order_of_the_noise():
    config = dataclasses.replace(ODD, mask_ratio=0.0)
    model, (pixels, noise) = random_model("pretrain", config), random_inputs(config)
    in_order = torch.arange(config.num_patches).expand(2, -1).double()
    with torch.no_grad():
        shuffled = model(pixels, noise, output_taps=True)
        straight = model(pixels, in_order, output_taps=True)
    assert shuffled.loss is None
    assert not shuffled.mask.any()
    indices = shuffled.ids_restore[..., None] + 1
    restored = shuffled.taps["encoder.norm"].take_along_dim(indices, dim=1)
    assert distance(restored, straight.taps["encoder.norm"][:, 1:]) <= FLOAT64_LIMIT
    assert distance(shuffled.logits, straight.logits) <= FLOAT64_LIMIT


def test_masked_pixels_do_not_reach_the_encoder():
    model, (pixels, noise) = random_model("pretrain", ODD), random_inputs(ODD)
    before = model(pixels, noise)
    changed = model.patchify(pixels)
    changed[before.mask == 1] = float("nan")
    assert torch.equal(model(model.unpatchify(changed), noise).logits, before.logits)


def test_wrong_shapes_are_refused():
    model, (pixels, noise) = random_model("pretrain", ODD), random_inputs(ODD)
    for wrong in (pixels[:, :1], pixels[..., :-8], pixels[0], pixels.transpose(2, 3)):
        with pytest.raises(ValueError, match=r"pixel_values must have shape \(N, 2, 12, 40\)"):
            model(wrong, noise)
    with pytest.raises(ValueError, match=r"noise must have shape \(2, 15\)"):
        model(pixels, noise[:1])
    with pytest.raises(ValueError, match=r"patches must have shape \(N, 15, 64\)"):
        model.unpatchify(model.patchify(pixels)[:, 1:])


# --- taps ---


def test_taps_contain_the_documented_activations():
    model, (pixels, noise) = random_model("pretrain", ODD), random_inputs(ODD)
    with torch.no_grad():
        output = model(pixels, noise, output_hidden_states=True, output_taps=True)
        taps, block = output.taps, model.blocks[1]
        normed = block.norm1(taps["encoder.blocks.0.output"])
        expected = dict(zip("qkv", block.attn.qkv(normed).chunk(3, dim=-1), strict=True))
        between = taps["encoder.blocks.0.output"] + taps["encoder.blocks.1.attention"]
    parts = ("q", "k", "v", "attention", "mlp", "output")
    depths = {"encoder": 2, "decoder": 1}
    assert list(taps) == [
        name
        for stack, depth in depths.items()
        for name in (
            f"{stack}.embedding",
            *(f"{stack}.blocks.{index}.{part}" for index in range(depth) for part in parts),
            f"{stack}.norm",
        )
    ]
    for name, value in taps.items():
        visible = (ODD.num_kept, 30) if name.startswith("encoder") else (ODD.num_patches, 18)
        assert value.shape == (2, 1 + visible[0], visible[1]), name
    for part, value in expected.items():
        assert torch.equal(taps[f"encoder.blocks.1.{part}"], value)
    assert torch.equal(taps["encoder.blocks.1.output"], between + taps["encoder.blocks.1.mlp"])
    states = [taps["encoder.embedding"]] + [taps[f"encoder.blocks.{n}.output"] for n in (0, 1)]
    assert all(map(torch.equal, output.hidden_states, states))


def test_only_requested_outputs_are_returned():
    for task in MODELS:
        pixels, noise = random_inputs(ODD)
        output = random_model(task, ODD)(*((pixels,) if task == "classify" else (pixels, noise)))
        assert (output.hidden_states, output.attentions, output.taps) == (None, None, None)


def test_requesting_outputs_does_not_change_the_result():
    for task in MODELS:
        pixels, noise = random_inputs(ODD)
        arguments = (pixels,) if task == "classify" else (pixels, noise)
        model, index = random_model(task, ODD), 0 if task == "encoder" else 1
        plain = model(*arguments)[index]
        requested = model(*arguments, output_hidden_states=True, output_taps=True)[index]
        assert distance(requested, plain) <= FLOAT64_LIMIT
        requested = model(*arguments, output_attentions=True)[index]
        assert distance(requested, plain) <= FLOAT64_LIMIT


# --- compiled, trained ---


@pytest.mark.parametrize("task", MODELS)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_without_graph_breaks(task, backend):
    torch._dynamo.reset()
    model, (pixels, noise) = random_model(task, ODD), random_inputs(ODD)
    arguments = (pixels,) if task == "classify" else (pixels, noise)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for flags in ({}, {"output_taps": True, "output_attentions": True}):
        with torch.no_grad():
            plain, fast = model(*arguments, **flags), compiled(*arguments, **flags)
        for ours, reference in zip(leaves(fast), leaves(plain), strict=True):
            assert distance(ours, reference) <= FLOAT64_LIMIT


def leaves(output):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if leaf is not None]


@pytest.mark.parametrize(
    ("task", "fixed"),
    [
        ("pretrain", {"pos_embed", "decoder_pos_embed"}),
        ("encoder", {"pos_embed"}),
        ("classify", set()),
    ],
)
def test_gradients_reach_every_trained_parameter(task, fixed):
    model, (pixels, noise) = MODELS[task](ODD).double(), random_inputs(ODD)
    if task == "classify":
        value = model(pixels, torch.tensor([0, 1])).loss
    elif task == "pretrain":
        value = model(pixels, noise).loss
    else:
        value = model(pixels, noise).last_hidden_state.square().sum()
    value.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert {name for name, gradient in gradients.items() if gradient is None} == fixed
    assert all(gradients[name].isfinite().all() for name in gradients.keys() - fixed)


@pytest.mark.parametrize("attentions", [False, True])
@pytest.mark.parametrize("field", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_is_active_in_training_only(field, attentions):
    config = dataclasses.replace(ODD, **{field: 0.3})
    model, (pixels, noise) = random_model("pretrain", config), random_inputs(config)
    without = random_model("pretrain", ODD)(pixels, noise, output_attentions=attentions).logits
    evaluated = model(pixels, noise, output_attentions=attentions).logits
    assert distance(evaluated, without) <= FLOAT64_LIMIT
    model.train()
    first, second = (model(pixels, noise, output_attentions=attentions).logits for _ in range(2))
    assert not torch.equal(first, second)


def test_a_few_steps_lower_the_loss():
    torch.manual_seed(0)
    model, (pixels, noise) = ViTMAEForPreTraining(ODD).double(), random_inputs(ODD)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = model(pixels, noise).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_initial_values_follow_the_paper():
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, initializer_range=0.5, hidden_size=256)
    model = ViTMAEForPreTraining(config)
    assert 0.4 < model.cls_token.std() < 0.6
    assert 0.3 < model.mask_token.std() < 0.7
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = (6 / (len(module.weight) + module.weight[0].numel())) ** 0.5
            assert 0.95 * bound < module.weight.abs().max() <= bound
            assert not module.bias.any()
    assert ViTForImageClassification(config).pos_embed.requires_grad
