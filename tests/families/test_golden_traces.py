"""``trace`` of the golden cases of all video families equals the results of the original programs.

Every array of the golden files is compared by a test: those in float64 and the masks here, except
``target``, which no trace has and tests/reference_models compares; those in float32, of which only
the small ones are kept, by their rounding error here.
"""

import importlib.util
import json

import numpy as np
import pytest
from arrays import FLOAT64_LIMIT, distance
from family_cases import CASES, WHOLE, expectations, golden
from paths import GOLDEN

from mae_convert.runtime.trace import Trace

INPUTS = {"videos": "pixel_values"}
NAMES_OF_INPUTS = ("videos", "noise", "temporal_coords", "location_coords")
NOT_TRACED = ("target",)
QUICK = ("prithvi_v2_tl_tiny",)  # whose runs of TensorFlow are among the quick tests
RUNS = [
    pytest.param(
        case,
        framework,
        marks=()
        if framework == "torch" or (framework == "tensorflow" and case in QUICK)
        else pytest.mark.slow,
    )
    for case in CASES
    for framework in ("torch", "tensorflow", "jax")
    if importlib.util.find_spec(framework)
]
UNIT_ROUNDOFF = 2.0**-24


def options(case):
    facts = json.loads((GOLDEN / case / "case.json").read_text())
    heads = facts.get("num_heads") or facts["encoder_num_heads"]
    decoder = facts.get("decoder_num_heads")
    of_pretraining = ("--decoder-num-heads", decoder, "--mask-ratio", facts.get("mask_ratio"))
    return (
        *("--num-heads", heads),
        *(of_pretraining if decoder else ()),
        *(("--source-image-size", facts["img_size"]) if case.startswith("videomae") else ()),
    )


def traced(command, case, folder, framework, *more):
    arrays = golden(case)
    given = {INPUTS.get(n, n): arrays[n] for n in NAMES_OF_INPUTS if n in arrays}
    np.savez(folder / "in.npz", **given)
    result = command(
        "trace", GOLDEN / case / "checkpoint.pth", folder / "out.safetensors", *options(case),
        "--framework", framework, "--inputs", folder / "in.npz", "--taps", "--overwrite", *more,
    )  # fmt: skip
    assert result.status == 0, result.err
    return Trace.load(folder / "out.safetensors")


@pytest.mark.parametrize(("case", "framework"), RUNS)
def test_all_results_equal_those_of_the_original_programs(command, tmp_path, case, framework):
    trace = traced(command, case, tmp_path, framework)
    exact, rounded = trace.results("float64"), trace.results("float32")
    limit = 1e-12 if framework == "torch" else FLOAT64_LIMIT
    arrays = golden(case)
    compared = set()
    for name, value in expectations(case).items():
        if name in NOT_TRACED:
            continue
        if name in ("mask", "ids_restore"):
            np.testing.assert_array_equal(trace.arrays[name], value)
        else:
            result = exact[name.removeprefix("taps/")]
            assert result.dtype == np.float64
            assert distance(result, value) <= limit, name
    results = {"latent": "last_hidden_state", "pred": "logits"}
    for stored in arrays:
        kind, _, name = stored.partition("/")
        ours = results.get(name, name)
        if kind not in ("f32", "f64") or ours not in rounded:
            continue
        compared.add(stored)
        if kind == "f32":
            reference = distance(arrays[stored], arrays[f"f64/{name}"])
            own = distance(rounded[ours], arrays[f"f64/{name}"])
            assert own <= 8 * max(reference, 16 * UNIT_ROUNDOFF), name
        else:
            assert distance(exact[ours], arrays[stored]) <= limit, name
    rest = {n for n in arrays if n not in compared and "/tap/" not in n}
    rest -= {*NAMES_OF_INPUTS, "mask", "ids_restore"}
    assert {n.partition("/")[2] for n in rest} <= {*NOT_TRACED, "features_unmasked"}


@pytest.mark.parametrize(
    ("case", "framework"),
    [
        pytest.param(*run.values, marks=() if run.values[1] == "torch" else pytest.mark.slow)
        for run in RUNS
        if run.values[0].startswith("prithvi")
    ],
)
def test_features_without_a_mask_equal_the_original(command, tmp_path, case, framework):
    trace = traced(command, case, tmp_path, framework, "--task", "encoder", "--mask-ratio", 0)
    arrays, limit = golden(case), 1e-12 if framework == "torch" else FLOAT64_LIMIT
    result = trace.results("float64")["last_hidden_state"]
    order = np.argsort(arrays["noise"], axis=1) + 1  # the noise shuffles the patches
    shuffled = np.take_along_axis(arrays["f64/features_unmasked"][:, 1:], order[..., None] - 1, 1)
    assert distance(result[:, :1], arrays["f64/features_unmasked"][:, :1]) <= limit
    assert distance(result[:, 1:], shuffled) <= limit


@pytest.mark.parametrize("case", WHOLE)
def test_the_encoder_of_a_pretraining_model_is_run_alone(command, tmp_path, case):
    trace = traced(command, case, tmp_path, "torch", "--task", "encoder")
    assert (
        distance(trace.results("float64")["last_hidden_state"], golden(case)["f64/latent"]) <= 1e-12
    )
