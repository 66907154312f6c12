"""The Keras models of the video families equal the original programs and the PyTorch models.

Keras runs in a child process (``family_worker.py``), because TensorFlow and PyTorch cannot run
in one process; the tests check the arrays that it writes.
"""

import json

import numpy as np
import pytest
import torch
from arrays import FLOAT64_LIMIT, distance
from family_cases import CASES, WHOLE, configuration, expectations, inputs, keras_weights
from family_models import VIDEO, checkpoint, random_inputs, random_model, results
from keras_process import BACKENDS, checks_in, run_worker

WORKER = "family_worker.py"
RUNS = [*((case, "eager") for case in CASES), *((case, "graph") for case in WHOLE)]
# Options that no golden case has, run on random weights: name: (family, task, fields).
OPTIONS = {
    "videomae_scaled": ("videomae", "pretrain", {"layer_scale_init_value": 0.5}),
    "videomae_without_biases": ("videomae", "pretrain", {"qkv_bias": False}),
    "videomae_epsilons": (
        "videomae",
        "pretrain",
        {"layer_norm_eps": 0.1, "decoder_layer_norm_eps": 0.2, "final_layer_norm_eps": 0.3},
    ),
    "videomae_encoder": ("videomae", "encoder", {"use_mean_pooling": False}),
    "videomae_encoder_without_norm": ("videomae", "encoder", {}),
    "videomae_first_token": ("videomae", "classify", {"use_mean_pooling": False}),
    "mae_st_joint": ("mae_st", "pretrain", {"sep_pos_embed": False, "pred_t_dim": 2}),
    "mae_st_joint_without_class": (
        "mae_st",
        "pretrain",
        {"sep_pos_embed": False, "cls_embed": False, "qkv_bias": False},
    ),
    "mae_st_without_class": ("mae_st", "pretrain", {"cls_embed": False}),
    "mae_st_epsilons": (
        "mae_st",
        "pretrain",
        {"layer_norm_eps": 0.1, "decoder_layer_norm_eps": 0.2},
    ),
    "mae_st_encoder": ("mae_st", "encoder", {}),
    "mae_st_classifier_without_class": ("mae_st", "classify", {"cls_embed": False}),
    "prithvi_epsilons": (
        "prithvi",
        "pretrain",
        {"layer_norm_eps": 0.1, "decoder_layer_norm_eps": 0.2, "norm_pix_loss": True},
    ),
    "prithvi_time_in_the_encoder": (
        "prithvi",
        "encoder",
        {"coords_encoding": ["time"], "decoder_hidden_size": 12},
    ),
    "prithvi_location": (
        "prithvi",
        "pretrain",
        {
            "coords_encoding": ["location"],
            "num_frames": 1,
            "tubelet_size": 1,
            "decoder_hidden_size": 12,
        },
    ),
    "videomae_mean": ("videomae", "classify", {"final_layer_norm_eps": 0.3}),
}


def option_model(name):
    family, task, fields = OPTIONS[name]
    return random_model(family, task, {**VIDEO, **fields})


def option_inputs(model, task):
    pixels, noise = random_inputs(model.config)
    model_inputs = {"pixel_values": pixels}
    if task != "classify":
        model_inputs["noise"] = noise
    if getattr(model.config, "encodes_time", False):
        times = [[2020.0 + frame, 40.0 * frame] for frame in range(model.config.num_frames)]
        model_inputs["temporal_coords"] = torch.tensor([times, times[::-1]])
    if getattr(model.config, "encodes_location", False):
        model_inputs["location_coords"] = torch.tensor([[-33.9, 18.4], [46.2, 6.1]])
    return model_inputs


def jobs():
    """Yield a job, its weights and its inputs."""
    for case, (family, task) in CASES.items():
        state = {name: tensor.numpy() for name, tensor in checkpoint(case).items()}
        modes = [mode for other, mode in RUNS if other == case]
        job = {"family": family, "task": task, "config": configuration(case), "modes": modes}
        yield {"name": case, **job}, keras_weights(family, state), inputs(case)
    for name, (family, task, fields) in OPTIONS.items():
        model = option_model(name)
        state = {n: tensor.numpy() for n, tensor in model.state_dict().items()}
        model_inputs = {n: tensor.numpy() for n, tensor in option_inputs(model, task).items()}
        config = {**VIDEO, **fields}
        job = {"family": family, "task": task, "config": config, "modes": ("eager",)}
        yield {"name": name, **job}, keras_weights(family, state), model_inputs


@pytest.fixture(scope="module", params=BACKENDS)
def folder(request, fork_servers, tmp_path_factory):
    """Run the worker on each backend that is installed; return the folder that it wrote to."""
    folder, listed = tmp_path_factory.mktemp(request.param), []
    for job, weights, model_inputs in jobs():
        np.savez(folder / f"{job['name']}.weights.npz", **weights)
        np.savez(folder / f"{job['name']}.inputs.npz", **model_inputs)
        listed.append(job)
    (folder / "jobs.json").write_text(json.dumps(listed))
    return run_worker(fork_servers, WORKER, request.param, folder, "quick")


def compare(measured, expected):
    for name, value in expected.items():
        if name in ("mask", "ids_restore"):
            np.testing.assert_array_equal(measured[name], value)
        else:
            assert measured[name].dtype == np.float64, name
            assert distance(measured[name], value) <= FLOAT64_LIMIT, name


@pytest.mark.parametrize(("case", "mode"), RUNS)
def test_everything_equals_the_original(folder, case, mode):
    compare(dict(np.load(folder / f"{case}.{mode}.npz")), expectations(case))


@pytest.mark.parametrize("name", OPTIONS)
def test_options_equal_the_pytorch_model(folder, name):
    model = option_model(name)
    model_inputs = option_inputs(model, OPTIONS[name][1])
    with torch.no_grad():
        expected = results(model, model_inputs)
    del expected["taps"]
    measured = dict(np.load(folder / f"{name}.eager.npz"))
    assert {n for n in measured if n.startswith("taps/")} == {
        n for n in expected if n.startswith("taps/")
    }
    compare(measured, {n: value.numpy() for n, value in expected.items()})


@pytest.mark.parametrize("check", checks_in(WORKER))
def test_checks_in_the_worker(folder, check):
    failure = json.loads((folder / "checks.json").read_text())[check]
    assert failure is None, failure


@pytest.mark.slow
@pytest.mark.parametrize("check", checks_in(WORKER, "long_check_"))
@pytest.mark.parametrize("slow_checks", [(WORKER, name) for name in BACKENDS], indirect=True)
def test_slow_checks_in_the_worker(slow_checks, check):
    assert slow_checks[check] is None, slow_checks[check]
