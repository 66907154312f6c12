"""Gradients of the families of videos are compared under canonical names."""

import pytest
from paths import GOLDEN

from mae_convert.checkpoint.checkpoint import as_task
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.families.checkpoint_options import Flags
from mae_convert.runtime.sides import Side
from mae_convert.verify.verification import Options, verify

FLAGS = {"num_attention_heads": 4, "decoder_num_attention_heads": 3}
CASES = [
    ("prithvi_v2_tl_tiny", "pretrain"),
    ("prithvi_v2_tl_tiny", "encoder"),
    ("mae_st_pretrain_tiny", "pretrain"),
    ("mae_st_finetune_tiny", "classify"),
    ("videomae_pretrain_tiny", "pretrain"),
    ("videomae_finetune_tiny", "classify"),
]
QUICK = CASES[:1]


@pytest.mark.usefixtures("forked_children")
@pytest.mark.parametrize(
    ("case", "task"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_gradients_of_all_parameters_agree(tmp_path, case, task):
    size = {"image_size": 32} if case.startswith("videomae") else {}
    source = open_checkpoint(GOLDEN / case / "checkpoint.pth", Flags(**FLAGS, **size))
    source = as_task(source, task)
    target = tmp_path / "a.weights.h5"
    execute(plan_conversion(source, target, "keras", task=task))
    sides, options = (Side("torch"), Side("tensorflow")), Options(gradients=True)
    verdict = verify(source, open_checkpoint(target), *sides, options)
    assert verdict.passed, verdict.failed()
    compared = {c.name.removeprefix("function/grad/") for c in verdict.checks if "/grad/" in c.name}
    compared = {name for name in compared if not name.startswith("float32/")}
    # Prithvi's positions are fixed, and its factors are trained if the configuration specifies it.
    fixed = ("position_embedding", "_scale") if case.startswith("prithvi") else ()
    trained = {name for name in source.tensors if not name.endswith(fixed)}
    assert trained <= compared


@pytest.mark.usefixtures("forked_children")
def test_gradient_of_a_different_function_is_detected(tmp_path):
    """Different gradients of one parameter are detected if only gradients are compared."""
    flags = Flags(**FLAGS)
    source = open_checkpoint(GOLDEN / "mae_st_pretrain_tiny" / "checkpoint.pth", flags)
    other = open_checkpoint(
        GOLDEN / "mae_st_pretrain_tiny" / "checkpoint.pth", Flags(**FLAGS, layer_norm_eps=1e-3)
    )
    options = Options(gradients=True)
    verdict = verify(source, other, Side("torch"), Side("torch"), options)
    failed = {check.name for check in verdict.failed()}
    assert "function/grad/decoder.mask_token" in failed
