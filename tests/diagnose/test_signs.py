"""Explanations from two traces or from differing tensors alone; no model is run here."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from mutation.models import SMALL, random_tensors, write_original

from mae_convert.diagnose import weight_edits
from mae_convert.diagnose.tensor_differences import describe_tensor_differences
from mae_convert.diagnose.trace_differences import describe_trace_differences
from mae_convert.diagnose.weight_edits import to_bfloat16
from mae_convert.runtime.trace import Trace
from mae_convert.verify.judge import judge
from mae_convert.verify.localise import candidate_tensors
from reference_models.configuration import ViTMAEConfig

CONFIG = ViTMAEConfig(**SMALL)
N, KEPT, WIDTH = 2, 6, 24
Q = "encoder.blocks.0.q"


def normalized(x, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


@pytest.fixture
def trace():
    """A synthetic trace of a pre-training model with the first activations of the first block."""
    rng = np.random.default_rng(0)
    noise = rng.permuted(np.tile(np.arange(16), (N, 1)), axis=1)
    restore = np.argsort(np.argsort(noise, axis=1), axis=1)
    x = rng.standard_normal((N, 1 + KEPT, WIDTH)) * rng.uniform(0.1, 3, (N, 1 + KEPT, 1))
    q = normalized(x, 1e-6) @ rng.standard_normal((WIDTH, WIDTH)) + rng.standard_normal(WIDTH)
    attention, mlp = rng.standard_normal((2, *x.shape))
    taps = {
        "encoder.embedding": x,
        Q: q,
        "encoder.blocks.0.k": rng.standard_normal(x.shape),
        "encoder.blocks.0.attention": attention,
        "encoder.blocks.0.mlp": mlp,
        "encoder.blocks.0.output": x + attention + mlp,
    }
    outputs = {
        "last_hidden_state": rng.standard_normal(x.shape),
        "logits": rng.standard_normal((N, 16, 192)),
        "reconstruction": rng.standard_normal((N, 3, 32, 32)),
    }
    exact = {f"tap/{name}": array for name, array in taps.items()} | outputs
    arrays = {f"float64/{name}": array for name, array in exact.items()}
    arrays |= {f"float32/{name}": array.astype(np.float32) for name, array in exact.items()}
    arrays |= {"mask": (restore >= KEPT).astype(np.float32), "ids_restore": restore}
    names = ("encoder.blocks.0.norm1", "encoder.blocks.0.attention.q", "encoder.norm")
    tensors = {f"{n}.{leaf}": [[1], "float32", "0"] for n in names for leaf in ("weight", "bias")}
    description = {
        "task": "pretrain", "config": CONFIG.to_dict(), "inputs": "0", "steps": [],
        "dtypes": ["float64", "float32"], "native": True, "framework": "torch", "tensors": tensors,
        "image_mean": [0, 0, 0], "image_std": [1, 1, 1],
        "checkpoint": {"name": "a", "sha256": "0"},
    }  # fmt: skip
    return Trace(description, arrays)


def with_results(trace, *, single=True, **changes):
    """Return a trace with other results in both runs; ``__`` in names means a dot."""
    arrays = dict(trace.arrays)
    for name, array in changes.items():
        key = name.replace("__", ".")
        key = f"tap/{key}" if f"float64/tap/{key}" in arrays else key
        if key in arrays:
            arrays[key] = array
            continue
        arrays[f"float64/{key}"] = array
        if single:
            arrays[f"float32/{key}"] = np.asarray(array, np.float32)
    return replace(trace, arrays=arrays)


def q_of(trace):
    return trace.arrays[f"float64/tap/{Q}"]


def report_of(a, b, first=Q):
    return " / ".join(describe_trace_differences(a, b, first))


RELATIONS = {
    "is equal to encoder.blocks.0.k in A": lambda q, t: t.arrays["float64/tap/encoder.blocks.0.k"],
    "q in B is -0.5 times": lambda q, t: -0.5 * q,
    "with the heads in reverse order": lambda q, t: q[..., weight_edits.head_orders(24, 3)[
        "with the heads in reverse order"]],
    "tokens of A in another order: 0, 2, 1": lambda q, t: q[:, [0, 2, 1, 3, 4, 5, 6]],
    "dropout of 0.2 is active": lambda q, t: np.where(
        np.random.default_rng(1).random(q.shape) < 0.2, 0, q / 0.8),
    "same vector at every token": lambda q, t: q + np.arange(24),
    "differs in channels 3, 5-7 of 24 only": lambda q, t: q + np.isin(
        np.arange(24), [3, 5, 6, 7]) * q**2,
    "differs in images 1 of 2 only": lambda q, t: q * np.array([1, 1.5])[:, None, None],
    "differs in the class token only": lambda q, t: np.concatenate(
        [q[:, :1] ** 2, q[:, 1:]], axis=1),
}  # fmt: skip


@pytest.mark.parametrize("sentence", RELATIONS)
def test_relation_between_the_results_of_both_sides_is_reported(trace, sentence):
    assert sentence in report_of(
        trace, with_results(trace, encoder__blocks__0__q=RELATIONS[sentence](q_of(trace), trace))
    )


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 1e-3, 0.0])
def test_different_epsilon_is_detected_without_weights(trace, eps):
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((WIDTH, WIDTH)), rng.standard_normal(WIDTH)
    x = trace.arrays["float64/tap/encoder.embedding"]
    a, b, other = (
        with_results(trace, encoder__blocks__0__q=normalized(x, e) @ weight.T + bias)
        for e in (1e-6, eps, 3e-6)
    )
    assert f"if A uses a layer norm epsilon of {eps:g} instead of" in report_of(a, b)
    assert "epsilon" not in report_of(a, other)
    noise = 1e-7 * rng.standard_normal(x.shape)
    assert "epsilon" not in report_of(a, with_results(trace, encoder__blocks__0__q=q_of(a) + noise))


def test_related_masks_are_reported(trace):
    mask, restore = trace.arrays["mask"], trace.arrays["ids_restore"]
    changes = {
        "kept and removed patches exchanged": {"mask": 1 - mask},
        "keeps 6 of 16 patches and B keeps 7": {"mask": (restore >= 7).astype(np.float32)},
        "is ids_shuffle instead": {"ids_restore": np.argsort(restore, axis=1)},
        "in descending order": {"ids_restore": 15 - restore},
        "A's ids_restore plus 3, modulo": {"ids_restore": (restore + 3) % 16},
    }
    for sentence, change in changes.items():
        assert sentence in report_of(trace, with_results(trace, **change), "mask"), sentence


def test_scaled_residual_sums_and_nondeterministic_runs_are_reported(trace):
    parts = [trace.arrays[f"float64/tap/encoder.blocks.0.{p}"] for p in ("attention", "mlp")]
    x = trace.arrays["float64/tap/encoder.embedding"]
    scaled = x + 0.9 * parts[0] + 0.5 * parts[1]
    for output, sentence in ((scaled, "0.9 times attention plus 0.5 times the MLP"),
                             (scaled**2, "is not the sum of the block's input")):  # fmt: skip
        b = with_results(trace, encoder__blocks__0__output=output)
        assert sentence in report_of(trace, b, "encoder.blocks.0.output")
    once = with_results(trace, single=False, encoder__blocks__0__q=q_of(trace) * 1.1)
    assert "B's two runs differ by 9.1e-02 at encoder.blocks.0.q" in report_of(trace, once)


def test_rounding_error_is_reported_in_units_of_narrower_dtypes(trace):
    arrays = dict(trace.arrays)
    low = arrays[f"float64/tap/{Q}"].astype(ml_dtypes.bfloat16).astype(np.float32)
    b = replace(trace, arrays={**arrays, f"float32/tap/{Q}": low})
    verdict = judge(trace, b)
    assert not verdict.passed
    assert "times the unit roundoff of float32" in report_of(trace, b, None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("both", [False, True])
def test_non_finite_values_on_both_sides_fail_and_are_located(trace, value, both):
    q = q_of(trace).copy()
    q[1, 3, 7] = value
    broken = with_results(trace, encoder__blocks__0__q=q)
    a, b = broken if both else trace, broken
    verdict = judge(a, b)
    assert not verdict.passed
    assert verdict.first_divergence == Q
    sentence = f"{Q} of B's float64 run has 1 value that is NaN or infinite, the first at index"
    assert f"{sentence} (1, 3, 7)" in report_of(a, b)
    assert ("of A's float64 run" in report_of(a, b)) == both


def test_non_finite_values_in_float32_only_fail_and_are_located(trace):
    arrays = {n: a.copy() for n, a in trace.arrays.items()}
    arrays["float32/logits"][0, 0, 0] = np.inf
    b = replace(trace, arrays=arrays)
    assert not judge(trace, b).passed
    assert "logits of B's float32 run has 1 value that" in report_of(trace, b, None)


def test_different_shape_fails_and_is_reported(trace):
    b = with_results(trace, logits=np.zeros((N, 17, 192)))
    verdict = judge(trace, b)
    assert verdict.first_divergence == "logits"
    assert (
        report_of(trace, b, "logits") == "logits has shape (2, 16, 192) in A and (2, 17, 192) in B"
    )


@pytest.mark.parametrize("lost", [f"float64/tap/{Q}", f"float32/tap/{Q}", "float32/logits"])
def test_a_result_that_one_side_lacks_is_a_difference(trace, lost):
    b = replace(trace, arrays={n: a for n, a in trace.arrays.items() if n != lost})
    assert any("q" in c.name or "logits" in c.name for c in judge(trace, b).failed())
    assert any("q" in c.name or "logits" in c.name for c in judge(b, trace).failed())
    if lost.startswith("float64"):
        assert report_of(trace, b) == f"{Q} is missing in B"


BLAMED = {
    "encoder.cls_token": lambda d, mask, position: np.concatenate([d[:, :1], 0 * d[:, 1:]], 1),
    "encoder.patch_embedding.bias": lambda d, mask, position: np.concatenate(
        [0 * d[:, :1], 0 * d[:, 1:] + d[0, 0]], 1),
    "encoder.position_embedding": lambda d, mask, position: np.concatenate(
        [0 * d[:, :1], position[..., None] * d[0, 0]], 1),
    "encoder.patch_embedding.weight": lambda d, mask, position: np.concatenate(
        [0 * d[:, :1], d[:, 1:]], 1),
}  # fmt: skip


@pytest.mark.parametrize("name", BLAMED)
def test_pattern_of_the_first_difference_identifies_its_tensor(trace, name):
    rng = np.random.default_rng(2)
    x = trace.arrays["float64/tap/encoder.embedding"]
    position = np.argsort(trace.arrays["ids_restore"], axis=1)[:, :KEPT] + 1.0
    difference = BLAMED[name](rng.standard_normal(x.shape), trace.arrays["mask"], position)
    b = with_results(trace, encoder__embedding=x + difference)
    names = {**trace.description["tensors"], **{n: [[1], "float32", "0"] for n in BLAMED}}
    a = replace(trace, description={**trace.description, "tensors": names})
    assert candidate_tensors("encoder.embedding", {"encoder.embedding"}, a, b)[0] == name


CHANGES = {
    "is transposed": ("encoder.blocks.1.attention.v.weight", lambda x: x.T),
    "has its channels with the heads shifted forward by one": (
        "encoder.blocks.1.attention.q.bias", lambda x: np.roll(x, 8)),
    "is transposed and rounded to float16": (
        "encoder.blocks.1.attention.v.weight", lambda x: x.T.astype(np.float16)),
    "was reshaped instead of transposed when it was read": (
        "encoder.blocks.0.mlp.fc1.weight", lambda x: x.T.reshape(x.shape)),
    "was reshaped instead of transposed when it was written": (
        "encoder.blocks.0.mlp.fc2.weight", lambda x: x.reshape(x.T.shape).T),
    "was reshaped instead of permuted when it was written": (
        "encoder.patch_embedding.weight",
        lambda x: x.reshape(x.transpose(2, 3, 1, 0).shape).transpose(3, 2, 0, 1)),
    "is shifted forward by one, including the class token": (
        "encoder.position_embedding", lambda x: np.roll(x, 1, axis=1)),
    "predicts patches arranged as (channel, row, column)": (
        "decoder.prediction.bias", lambda x: np.moveaxis(x.reshape(8, 8, 3), 2, 0).ravel()),
    "is stored as (row, column, channel) and read as (channel, row, column)": (
        "encoder.patch_embedding.weight", lambda x: x.transpose(0, 2, 3, 1).reshape(x.shape)),
    "is zero from element 12 of 24 on": (
        "encoder.norm.bias", lambda x: np.where(np.arange(24) < 12, x, 0)),
    "differs in rows 3-4 of 24 only": (
        "encoder.blocks.0.attention.k.weight",
        lambda x: x * (1 + np.isin(np.arange(24), [3, 4])[:, None] * x)),
    "is multiplied by 1.25": ("encoder.norm.weight", lambda x: x * 1.25),
    "has the constant 0.5 added": ("encoder.norm.weight", lambda x: x + 0.5),
    "1 of 24 values differ (at index (5,))": (
        "encoder.norm.weight", lambda x: np.where(np.arange(24) == 5, x * 2, x)),
    "has 2 values in B that are NaN or infinite (the first at index (1,))": (
        "encoder.norm.weight", lambda x: np.where(np.isin(np.arange(24), [1, 9]), np.nan, x)),
    "B holds A's encoder.blocks.1.norm2.weight here": ("encoder.blocks.0.norm2.weight", None),
}  # fmt: skip


@pytest.mark.parametrize("sentence", CHANGES)
def test_change_of_a_tensor_is_described_if_it_can_be_shown(tmp_path, sentence):
    tensors = random_tensors(CONFIG, "pretrain", 0, learned=True)
    a = write_original(tmp_path / "a.safetensors", CONFIG, "pretrain", tensors)
    name, change = CHANGES[sentence]
    array = tensors["encoder.blocks.1.norm2.weight"] if change is None else change(tensors[name])
    changed = {**tensors, name: np.ascontiguousarray(array, np.float32)}
    b = write_original(tmp_path / "b.safetensors", CONFIG, "pretrain", changed)
    (cause,) = describe_tensor_differences(a, b, [name])
    assert cause.startswith(f"{name}: {sentence}")


@pytest.mark.parametrize(
    ("side", "name"), [("A", "encoder.norm.weight"), ("B", "encoder.position_embedding")]
)
def test_rounding_is_reported_on_either_side(tmp_path, side, name):
    """Only rounding is reported; the class token's row of fixed positions is zero on both sides."""
    tensors = random_tensors(CONFIG, "pretrain", 0, learned=False)
    assert not tensors["encoder.position_embedding"][0, 0].any()
    coarse = {**tensors, name: tensors[name].astype(np.float16).astype(np.float32)}
    pair = (coarse, tensors) if side == "A" else (tensors, coarse)
    a, b = (
        write_original(tmp_path / f"{i}.safetensors", CONFIG, "pretrain", one)
        for i, one in enumerate(pair)
    )
    end = " in A, but not in B" if side == "A" else ""
    assert describe_tensor_differences(a, b, [name]) == [f"{name}: is rounded to float16{end}"]


def test_same_change_in_every_block_is_one_sentence(tmp_path):
    tensors = random_tensors(CONFIG, "pretrain", 0, learned=True)
    a = write_original(tmp_path / "a.safetensors", CONFIG, "pretrain", tensors)
    names = [f"encoder.blocks.{i}.attention.{p}.weight" for i in (0, 1, 2) for p in "qk"]
    other = {
        n: tensors[n.replace(".q.", ".?.").replace(".k.", ".q.").replace("?", "k")] for n in names
    }
    b = write_original(tmp_path / "b.safetensors", CONFIG, "pretrain", {**tensors, **other})
    assert describe_tensor_differences(a, b, names) == [
        "encoder.blocks.{0-2}.attention.q.weight: B holds A's attention.k.weight here",
        "encoder.blocks.{0-2}.attention.k.weight: B holds A's attention.q.weight here",
    ]


def test_bfloat16_is_rounded_as_ml_dtypes_does():
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    ties = (np.arange(1, 200, dtype=np.float32) + 0.5) * 2.0**-7 + 1
    for array in (values, ties, -ties, np.array([0, 1e-40, 3e38], np.float32)):
        assert np.array_equal(
            to_bfloat16(array), array.astype(ml_dtypes.bfloat16).astype(np.float32)
        )
