"""The Keras models equal the original, with the variable names of the TF classes.

Keras runs in a child process (``keras_worker.py``), because TensorFlow and PyTorch cannot run
in one process; the tests check the arrays that it writes.
"""

import argparse
import json
import re

import arrays
import h5py
import numpy as np
import numpy_mae
import pytest
import torch
from arrays import FLOAT32_LIMIT, FLOAT64_LIMIT
from keras_process import BACKENDS, checks_in, run_worker
from paths import GOLDEN

from reference_models.configuration import ACTIVATIONS, ViTMAEConfig
from reference_models.pytorch import ViTForImageClassification, ViTMAEForPreTraining

WORKER = "keras_worker.py"
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 96,
    "num_labels": 10,
}
# Rectangular patches in a rectangular image, an unusual number of channels, all widths different.
ODD = {
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "intermediate_size": 44,
    "image_size": (12, 40),
    "patch_size": (4, 8),
    "num_channels": 2,
    "decoder_hidden_size": 18,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 20,
    "mask_ratio": 0.6,
    "num_labels": 7,
}
GOLDEN_JOBS = {
    # task: (weights in tf_model.h5, the original's outputs for the same weights)
    "pretrain": ("transformers_tf_pretrain_tiny", "pretrain_tiny"),
    "encoder": ("transformers_tf_encoder_tiny", "encoder_tiny"),
    "classify": ("transformers_tf_classifier_tiny", "finetune_cls_tiny"),
}
MODES = ("eager", "graph", "xla")
TOKENS = {
    "cls_token": "vit/embeddings/cls_token",
    "pos_embed": "vit/embeddings/position_embeddings",
    "mask_token": "decoder/mask_token",
    "decoder_pos_embed": "decoder/decoder_pos_embed",
}
MODULES = {
    "patch_embed.proj": "vit/embeddings/patch_embeddings/projection",
    "norm": "vit/layernorm",
    "decoder_embed": "decoder/decoder_embed",
    "decoder_norm": "decoder/decoder_norm",
    "decoder_pred": "decoder/decoder_pred",
    "fc_norm": "fc_norm",
    "head": "classifier",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.query": "attention/attention/query",
    "attn.key": "attention/attention/key",
    "attn.value": "attention/attention/value",
    "attn.proj": "attention/output/dense",
    "mlp.fc1": "intermediate/dense",
    "mlp.fc2": "output/dense",
}


def tf_name(name):
    """Return the name of a facebookresearch/mae parameter in the TF classes, q, k, v separate."""
    if name in TOKENS:
        return TOKENS[name]
    pattern = r"(?:(decoder_)?blocks\.(\d+)\.)?(.+)\.(weight|bias)"
    decoder, index, module, kind = re.fullmatch(pattern, name).groups()
    position = f"decoder/decoder_layers.{index}/" if decoder else f"vit/encoder/layer_._{index}/"
    kinds = {"weight": "gamma", "bias": "beta"} if "norm" in module else {"weight": "kernel"}
    return f"{position if index else ''}{MODULES[module]}/{kinds.get(kind, kind)}"


def tf_weights(facebook):
    """Return a facebookresearch/mae state dict with the names and orientation of the TF classes."""
    weights = {}
    for name, value in facebook.items():
        parts = ("query", "key", "value") if ".qkv." in name else ("",)
        for part, array in zip(parts, np.split(value, len(parts)), strict=True):
            axes = {2: (1, 0), 4: (2, 3, 1, 0)}.get(array.ndim, range(array.ndim))
            weights[tf_name(name.replace("qkv", part))] = array.transpose(*axes)
    return weights


def tf_file(case):
    """Return the variables of a ``tf_model.h5`` by path, the model's own name left off."""
    weights = {}

    def note(name, item):
        if isinstance(item, h5py.Dataset):
            weights[name.split("/", 2)[2].removesuffix(":0")] = item[()]

    with h5py.File(GOLDEN / case / "tf_model.h5") as file:
        file.visititems(note)
    return weights


def random_facebook_weights(config, model_class):
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in model_class(config).state_dict().items()}
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape, scale=0.3) for name, shape in shapes.items()}


def odd_inputs(**more):
    random = np.random.default_rng(1)
    return {"pixel_values": random.normal(size=(2, 2, 12, 40)), **more}


POOLINGS = {
    "token": {"global_pool": "token"},
    "avg": {"global_pool": "avg"},
    "avg_after_norm": {"global_pool": "avg", "fc_norm": False},
}


def golden_jobs():
    """Yield a job, its weights and its inputs for every golden case."""
    for task, (weights_case, case) in GOLDEN_JOBS.items():
        arrays = np.load(GOLDEN / case / "golden.npz")
        inputs = {"pixel_values": arrays["imgs"]}
        if "noise" in arrays:
            inputs["noise"] = arrays["noise"]
        for dtype, modes in (("float64", MODES), ("float32", ("eager",))):
            job = {"task": task, "config": TINY, "dtype": dtype, "modes": modes}
            yield {"name": f"{task}_{dtype}", **job}, tf_file(weights_case), inputs
    with torch.serialization.safe_globals([argparse.Namespace]):
        path = GOLDEN / "finetune_gap_tiny" / "checkpoint.pth"
        state = torch.load(path, weights_only=True)["model"]
    weights = tf_weights({name: tensor.numpy() for name, tensor in state.items()})
    inputs = {"pixel_values": np.load(GOLDEN / "finetune_gap_tiny" / "golden.npz")["imgs"]}
    job = {"task": "classify", "config": {**TINY, "global_pool": "avg"}, "dtype": "float64"}
    yield {"name": "gap", **job, "modes": MODES}, weights, inputs


def odd_config(act):
    """Return a configuration with large epsilons, each of which changes the results."""
    decoder_eps = 1e-1 if act != "relu" else None
    eps = {"layer_norm_eps": 1e-2, "decoder_layer_norm_eps": decoder_eps}
    return {**ODD, "hidden_act": act, "qkv_bias": act != "gelu", **eps}


def odd_jobs():
    """Yield a job, its weights and its inputs for shapes that no other program supports."""
    job = {"dtype": "float64", "modes": ("eager",)}
    noise = np.random.default_rng(2).random((2, 15))
    for act in ACTIVATIONS:
        config = odd_config(act)
        weights = random_facebook_weights(ViTMAEConfig(**config), ViTMAEForPreTraining)
        named = {"name": f"odd_{act}", "task": "pretrain", "config": config, **job}
        yield named, tf_weights(weights), odd_inputs(noise=noise)
    for pool, fields in POOLINGS.items():
        config = {**ODD, **fields}
        weights = random_facebook_weights(ViTMAEConfig(**config), ViTForImageClassification)
        named = {"name": f"odd_{pool}", "task": "classify", "config": config, **job}
        yield named, tf_weights(weights), odd_inputs(labels=np.array([3, 6]))


@pytest.fixture(scope="module", params=BACKENDS)
def results(request, fork_servers, tmp_path_factory):
    """Run the worker on each backend that is installed; return the folder that it wrote to."""
    folder = tmp_path_factory.mktemp(request.param)
    jobs = []
    for job, weights, inputs in (*golden_jobs(), *odd_jobs()):
        np.savez(folder / f"{job['name']}.weights.npz", **weights)
        np.savez(folder / f"{job['name']}.inputs.npz", **inputs)
        files = {part: f"{job['name']}.{part}.npz" for part in ("weights", "inputs")}
        jobs.append({**job, **files})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    return run_worker(fork_servers, WORKER, request.param, folder, "quick")


def outputs(results, job, mode="eager"):
    return dict(np.load(results / f"{job}.{mode}.npz"))


def golden(case):
    return dict(np.load(GOLDEN / case / "golden.npz"))


def distance(measured, expected):
    """Return the relative L2 distance of a result that must be float64."""
    assert measured.dtype == np.float64
    return arrays.distance(measured, expected)


@pytest.mark.parametrize("mode", MODES)
def test_pretraining_equals_the_original(results, mode):
    measured, expected = outputs(results, "pretrain_float64", mode), golden("pretrain_tiny")
    names = {"logits": "pred", "taps/encoder.norm": "latent"}
    for name in ("logits", "taps/encoder.norm", "loss", "loss_norm_pix", "reconstruction"):
        golden_name = f"f64/{names.get(name, name)}"
        assert distance(measured[name], expected[golden_name]) <= FLOAT64_LIMIT, name
    for part, count in (("encoder", 3), ("decoder", 2)):
        prefix = "decoder_" if part == "decoder" else ""
        for index in range(count):
            block = measured[f"taps/{part}.blocks.{index}.output"]
            assert distance(block, expected[f"f64/tap/{prefix}blocks.{index}"]) <= FLOAT64_LIMIT
    np.testing.assert_array_equal(measured["mask"], expected["mask"])
    np.testing.assert_array_equal(measured["ids_restore"], expected["ids_restore"])


@pytest.mark.parametrize("mode", MODES)
def test_encoder_equals_the_original(results, mode):
    measured, expected = outputs(results, "encoder_float64", mode), golden("encoder_tiny")
    assert distance(measured["last_hidden_state"], expected["f64/latent"]) <= FLOAT64_LIMIT
    np.testing.assert_array_equal(measured["mask"], expected["mask"])
    np.testing.assert_array_equal(measured["ids_restore"], expected["ids_restore"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("job", "case", "tap"),
    [
        ("classify_float64", "finetune_cls_tiny", "encoder.norm"),
        ("gap", "finetune_gap_tiny", "head.norm"),
    ],
)
def test_classifier_equals_the_original(results, job, case, tap, mode):
    measured, expected = outputs(results, job, mode), golden(case)
    assert distance(measured["logits"], expected["f64/logits"]) <= FLOAT64_LIMIT
    assert distance(measured[f"taps/{tap}"][:, 0], expected["f64/features"]) <= FLOAT64_LIMIT


@pytest.mark.parametrize("task", GOLDEN_JOBS)
def test_float32_equals_transformers(results, task):
    measured, expected = outputs(results, f"{task}_float32"), golden(GOLDEN_JOBS[task][0])
    for name in expected.keys() - {"imgs", "noise"}:
        value = np.reshape(measured[name], expected[name].shape)
        assert arrays.distance(value, expected[name]) <= FLOAT32_LIMIT, name
    assert measured["logits" if task != "encoder" else "last_hidden_state"].dtype == np.float32


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_unusual_sizes_and_every_activation(results, act):
    measured = outputs(results, f"odd_{act}")
    config = ViTMAEConfig(**odd_config(act))
    inputs = dict(np.load(results / f"odd_{act}.inputs.npz"))
    weights = random_facebook_weights(config, ViTMAEForPreTraining)
    expected = numpy_mae.pretrain(weights, inputs["pixel_values"], inputs["noise"], config)
    for name in ("mask", "ids_restore"):
        np.testing.assert_array_equal(measured[name], expected[name])
    for name in ("logits", "loss", "loss_norm_pix", "reconstruction"):
        assert distance(measured[name], expected[name]) <= FLOAT64_LIMIT, name
    for index, state in enumerate(expected["hidden_states"]):
        assert distance(measured[f"hidden_states.{index}"], state) <= FLOAT64_LIMIT
    for index, probabilities in enumerate(expected["attentions"]):
        assert distance(measured[f"attentions.{index}"], probabilities) <= FLOAT64_LIMIT


@pytest.mark.parametrize("pool", POOLINGS)
def test_classifier_with_unusual_sizes(results, pool):
    measured = outputs(results, f"odd_{pool}")
    config = ViTMAEConfig(**ODD, **POOLINGS[pool])
    weights = random_facebook_weights(config, ViTForImageClassification)
    logits = numpy_mae.classify(weights, odd_inputs()["pixel_values"], config)
    assert distance(measured["logits"], logits) <= FLOAT64_LIMIT
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert measured["loss"].shape == ()
    loss = -np.log(probabilities[[0, 1], [3, 6]]).mean()
    assert distance(measured["loss"], loss) <= FLOAT64_LIMIT


def test_taps_have_the_names_and_values_of_the_pytorch_model(results):
    config = ViTMAEConfig(**odd_config("relu"))
    model = ViTMAEForPreTraining(config).double().eval()
    weights = random_facebook_weights(config, ViTMAEForPreTraining)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    inputs = dict(np.load(results / "odd_relu.inputs.npz"))
    with torch.no_grad():
        pixels, noise = (torch.from_numpy(inputs[name]) for name in ("pixel_values", "noise"))
        taps = model(pixels, noise, output_taps=True).taps
    measured = outputs(results, "odd_relu")
    assert {name for name in measured if name.startswith("taps/")} == {f"taps/{t}" for t in taps}
    for name, value in taps.items():
        assert distance(measured[f"taps/{name}"], value.numpy()) <= FLOAT64_LIMIT, name


@pytest.mark.parametrize("check", checks_in(WORKER))
def test_checks_in_the_worker(results, check):
    failure = json.loads((results / "checks.json").read_text())[check]
    assert failure is None, failure


@pytest.mark.slow
@pytest.mark.parametrize("check", checks_in(WORKER, "long_check_"))
@pytest.mark.parametrize("slow_checks", [(WORKER, name) for name in BACKENDS], indirect=True)
def test_slow_checks_in_the_worker(slow_checks, check):
    assert slow_checks[check] is None, slow_checks[check]
