"""``verify --isolate``: each step of both sides is compared with the same input."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from mutation.models import random_tensors, write_model, write_original
from paths import GOLDEN

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.families.checkpoint_options import Flags
from mae_convert.runtime.sides import Side
from mae_convert.runtime.trace import Trace
from mae_convert.verify import isolation
from mae_convert.verify.summary import step_rows
from mae_convert.verify.verification import Options, run_verification

pytestmark = pytest.mark.usefixtures("forked_children")

TORCH, TENSORFLOW = Side("torch"), Side("tensorflow")
ISOLATE = Options(isolate=True)
FAULTS = {
    "encoder.blocks.0.attention.q.weight": "encoder.blocks.0",
    "encoder.blocks.2.mlp.fc2.bias": "encoder.blocks.2",
    "decoder.mask_token": "decoder.embedding",
    "decoder.blocks.1.norm1.weight": "decoder.blocks.1",
    "decoder.norm.bias": "decoder.norm",
    "decoder.prediction.weight": "logits",
}


def steps_by_name(verdict):
    return {step["step"]: step for step in verdict.isolated}


JAX = pytest.param(
    Side("jax"), marks=pytest.mark.skipif(find_spec("jax") is None, reason="needs jax"), id="jax"
)


@pytest.mark.parametrize("side", [TORCH, TENSORFLOW, JAX], ids=lambda side: side.framework)
def test_a_fault_does_not_hide_another(tmp_path, side):
    """The steps that differ are those with a changed tensor, and no others."""
    source = write_model("pretrain", tmp_path)
    config = source.configuration.model
    tensors = random_tensors(config, "pretrain", 0, learned=False)
    for name in FAULTS:
        tensors[name] = tensors[name] + np.float32(0.25)
    target = write_original(tmp_path / "faulty.safetensors", config, "pretrain", tensors)
    verdict = run_verification(source, target, TORCH, side, ISOLATE).verdict
    steps = steps_by_name(verdict)
    assert len(steps) == 10
    assert {name for name, step in steps.items() if step["at"]} == set(FAULTS.values())
    assert steps["encoder.blocks.0"]["at"] == "encoder.blocks.0.q"
    assert steps["encoder.blocks.2"]["at"] == "encoder.blocks.2.mlp"
    failed = {check.name for check in verdict.failed() if check.name.startswith("isolated/")}
    assert failed == {f"isolated/float64/{step}" for step in FAULTS.values()}
    assert "the other 4 steps agree" in verdict.causes[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "mae_st_pretrain_tiny",
        "finetune_gap_tiny",
        "finetune_cls_tiny",
        "videomae_pretrain_tiny",
        "videomae_finetune_tiny",
        "mae_st_finetune_tiny",
        "prithvi_v2_tiny",
    ],
)
def test_each_step_of_every_family_agrees_in_both_frameworks(case, tmp_path, name):
    """The inputs are not those of the run itself, so that a step that ignores them would differ."""
    facts = case(name).facts
    flags = Flags(
        num_attention_heads=facts.get("num_heads") or facts.get("encoder_num_heads"),
        decoder_num_attention_heads=facts.get("decoder_num_heads"),
        global_pool="token" if name == "finetune_cls_tiny" else None,
    )
    source = open_checkpoint(GOLDEN / name / "checkpoint.pth", flags)
    target = tmp_path / "model.weights.h5"
    execute(plan_conversion(source, target, "keras"))
    for side_a, side_b in ((TORCH, TENSORFLOW), (TENSORFLOW, TORCH)):
        verification = run_verification(source, open_checkpoint(target), side_a, side_b, ISOLATE)
        assert verification.verdict.passed, verification.verdict.failed()
        steps = steps_by_name(verification.verdict)
        stacks = ["encoder", "decoder"] if "pretrain" in name or "prithvi" in name else ["encoder"]
        assert {"logits", *(f"{stack}.blocks.0" for stack in stacks)} <= steps.keys()
        assert all(step["rounding"].keys() == {"float32"} for step in steps.values())


def test_the_library_s_own_classes_are_isolated_too(case, tmp_path, command):
    source = case("finetune_cls_tiny")
    command("convert", source.checkpoint, tmp_path / "pt", "--to", "transformers", *source.heads)
    result = command(
        "verify", source.checkpoint, tmp_path / "pt", *source.heads, "--isolate",
        "--framework-b", "transformers", "--report", tmp_path / "report.html",
        "--report", tmp_path / "report.md",
    )  # fmt: skip
    assert result.status == 0, result.out + result.err
    assert "each step with A's input" in result.out
    table = result.out[result.out.index("each step with A's input  ") :].splitlines()[:7]
    assert max(map(len, table)) <= 80
    for suffix in ("html", "md"):
        assert "encoder.blocks.2" in (tmp_path / f"report.{suffix}").read_text()


def trace(dtypes, arrays):
    description = {"dtypes": dtypes, "config": {"num_attention_heads": 2}}
    return Trace(description, arrays)


@pytest.fixture
def results():
    """A's float64 results, A's float32 steps and B's steps, all equal up to rounding."""
    rng = np.random.default_rng(0)
    names = ("encoder.embedding", "encoder.blocks.0.output", "encoder.blocks.1.output")
    exact = {name: rng.standard_normal((2, 5, 8)) for name in names}
    as64 = {f"float64/tap/{name}": array for name, array in exact.items()}
    as32 = {f"float32/tap/{name}": np.float32(array) for name, array in exact.items()}
    return (
        trace(["float64"], as64),
        trace(["float32"], as32),
        trace(["float64", "float32"], as64 | as32),
    )


def test_a_step_that_is_computed_in_lower_precision_is_named(results):
    exact, rounded, isolated = results
    name = "float32/tap/encoder.blocks.1.output"
    coarse = isolated.arrays[name].astype(np.float16).astype(np.float32)
    for side in ("A", "B"):
        changed = replace(isolated if side == "B" else rounded)
        changed = replace(changed, arrays={**changed.arrays, name: coarse})
        given = (exact, rounded, changed) if side == "B" else (exact, changed, isolated)
        steps = list(isolation.steps(*given))
        failed = [check.name for check in isolation.checks(steps) if not check.passed]
        assert failed == [f"isolated/float32/{side}/encoder.blocks.1"]
        errors = f"the rounding errors of {side} are too large in encoder.blocks.1"
        assert errors in next(isolation.in_words(steps))


def test_non_finite_values_fail(results):
    exact, rounded, isolated = results
    for dtype in ("float64", "float32"):
        name = f"{dtype}/tap/encoder.blocks.0.output"
        array = isolated.arrays[name].copy()
        array[0, 0, 0] = np.nan
        broken = replace(isolated, arrays={**isolated.arrays, name: array})
        failed = {
            check.name
            for check in isolation.checks(list(isolation.steps(exact, rounded, broken)))
            if not check.passed
        }
        assert f"isolated/{dtype}" in "".join(failed)
        assert all("encoder.blocks.0" in name for name in failed)


def test_steps_with_non_finite_inputs_are_not_called_different(results):
    exact, rounded, isolated = (
        replace(t, arrays={n: a * np.nan if "blocks" in n else a for n, a in t.arrays.items()})
        for t in results
    )
    steps = list(isolation.steps(exact, rounded, isolated))
    assert sum(not check.passed for check in isolation.checks(steps)) == 6
    assert list(isolation.in_words(steps)) == [
        "A's own results are NaN or infinite in encoder.blocks.0, encoder.blocks.1, so it cannot "
        "be determined whether B computes the same there"
    ]
    rows = step_rows([step.plain() for step in steps])[1]
    assert [word for _, word in rows] == ["ok", "NOT FINITE", "NOT FINITE"]


def test_without_the_source_it_is_refused(command, certified):
    result = command("verify", certified, "--isolate")
    assert result.status == 2
    assert "pass the source too" in result.err
