"""Libraries' own classes as runners, other modes, other masks: always the same function."""

import numpy as np
import pytest
from arrays import FLOAT64_LIMIT, distance
from safetensors.numpy import load_file

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import MaeConvertError, MissingRequirementError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.runtime.inputs import InputChoice
from mae_convert.runtime.sides import Side, choose_side
from mae_convert.verify.verification import Options, run_verification, verify

pytestmark = pytest.mark.usefixtures("forked_children")

FLAGS = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
TORCH, TENSORFLOW = Side("torch"), Side("tensorflow")


@pytest.fixture(scope="module")
def work(run, case, tmp_path_factory):
    folder, pretrain = tmp_path_factory.mktemp("witnesses"), case("pretrain_tiny")
    more = ["--to", f"transformers-tf={folder / 'tf'}"]
    run(
        "convert", pretrain.checkpoint, folder / "pt", "--to", "transformers", *more,
        *pretrain.heads,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def source(case):
    return open_checkpoint(case("pretrain_tiny").checkpoint, FLAGS)


def test_transformers_classes_are_a_further_runner(source, work):
    """The classes load the directory themselves; all activations, losses and gradients agree."""
    target = open_checkpoint(work / "pt")
    options = Options(against=(Side("transformers"),), gradients=True)
    verification = run_verification(source, target, TORCH, TORCH, options)
    assert verification.verdict.passed, verification.verdict.failed()
    names = {check.name for check in verification.verdict.checks}
    for result in ("loss_norm_pix", "reconstruction", "encoder.blocks.1.v", "decoder.norm",
                   "grad/decoder.blocks.0.attention.k.weight"):  # fmt: skip
        assert f"against transformers/function/{result}" in names
    assert [w["side"] for w in verification.verdict.witnesses] == ["A", "B", "against transformers"]


def test_directory_that_only_the_library_reads_differently_is_detected(source, work, tmp_path):
    """The runner uses the directory's own config.json, independent of our reader."""
    import json
    import shutil

    shutil.copytree(work / "pt", tmp_path / "pt")
    path = tmp_path / "pt" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_norm_eps": 1e-3}))
    target = open_checkpoint(tmp_path / "pt")
    options = Options(dtypes=("float64",), against=(Side("transformers"),))
    verdict = verify(source, target, TORCH, TORCH, options)
    failed = {check.name for check in verdict.failed()}
    assert {"function/logits", "against transformers/function/logits"} <= failed


@pytest.mark.parametrize(
    "name", ["finetune_cls_tiny", pytest.param("encoder_tiny", marks=pytest.mark.slow)]
)
def test_every_task_has_transformers_as_a_runner(case, tmp_path, command, name):
    source = case(name)
    command("convert", source.checkpoint, tmp_path / "pt", "--to", "transformers", *source.heads)
    result = command(
        "verify", source.checkpoint, tmp_path / "pt", "--framework-b", "transformers",
        "--require-proof", "--json", *source.heads,
    )  # fmt: skip
    assert result.status == 0, result.out + result.err
    assert result.json["witnesses"][1]["framework"] == "transformers"


@pytest.mark.parametrize("name", ["encoder_tiny", "finetune_gap_tiny", "finetune_cls_tiny"])
def test_timm_model_is_a_runner(case, tmp_path, command, name):
    """This runs only if timm is installed, which requires a CUDA build of PyTorch."""
    pytest.importorskip("timm")
    source = case(name)
    command("convert", source.checkpoint, tmp_path / "timm", "--to", "timm", *source.heads)
    result = command(
        "verify", source.checkpoint, tmp_path / "timm", "--framework-b", "timm",
        "--require-proof", "--gradients", "--json", *source.heads,
    )  # fmt: skip
    assert result.status == 0, result.out + result.err


@pytest.fixture
def bare_python(tmp_path):
    """An interpreter without a framework."""
    path = tmp_path / "python"
    path.write_text('#!/bin/sh\necho \'["torch", "timm"]\'\n')
    path.chmod(0o755)
    return path


def test_missing_runner_is_named_and_no_verdict_is_given(command, case, work, bare_python):
    pretrain = case("pretrain_tiny")
    result = command(
        "verify", pretrain.checkpoint, work / "pt", "--against", f"timm={bare_python}",
        *pretrain.heads,
    )  # fmt: skip
    assert (result.status, result.out) == (3, "")
    assert "pip install timm" in result.err
    result = command(
        "verify", pretrain.checkpoint, work / "pt", "--against", "mxnet", *pretrain.heads
    )
    assert result.status == 2


def test_missing_framework_and_invalid_interpreter_are_named(source, bare_python):
    with pytest.raises(MissingRequirementError, match="torch is not installed in"):
        choose_side(source, Side("torch", python=str(bare_python)))
    with pytest.raises(MaeConvertError, match="not a Python interpreter"):
        choose_side(source, Side("torch", python="/bin/cat"))


def test_further_runner_runs_the_target_if_it_has_already_run_the_source(source, work):
    target = open_checkpoint(work / "tf")
    options = Options(dtypes=("float64",), against=(Side("torch"),))
    verification = run_verification(source, target, TORCH, TORCH, options)
    assert verification.verdict.passed
    assert verification.verdict.witnesses[2]["checkpoint"]["name"] == str(work / "tf")


@pytest.mark.parametrize(
    "mode",
    [
        "compiled",
        pytest.param("xla", marks=pytest.mark.slow),
        pytest.param("train", marks=pytest.mark.slow),
    ],
)
def test_tensorflow_is_the_same_function_in_every_mode(source, work, mode):
    target = open_checkpoint(work / "tf")
    side = Side("tensorflow", mode=mode)
    verdict = verify(source, target, TORCH, side, Options(gradients=mode == "xla"))
    assert verdict.passed, verdict.failed()
    assert verdict.witnesses[1]["mode"] == mode


def test_training_mode_of_pytorch_is_the_same_function(source, work):
    target = open_checkpoint(work / "pt")
    verdict = verify(source, target, Side("torch", mode="train"), TORCH)
    assert verdict.passed, verdict.failed()


@pytest.mark.slow
def test_compiled_model_is_the_same_function(source, work):
    target = open_checkpoint(work / "pt")
    options = Options(gradients=True)
    verdict = verify(source, target, Side("torch", mode="compiled"), TORCH, options)
    assert verdict.passed, verdict.failed()


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_other_mask_ratios_are_compared_too(source, work, ratio):
    target = open_checkpoint(work / "pt")
    options = Options(InputChoice(batch=1), dtypes=("float64",), mask_ratio=ratio)
    verdict = verify(source, target, TORCH, TORCH, options)
    assert verdict.passed, verdict.failed()
    names = {check.name for check in verdict.checks}
    assert ("function/loss" in names) == (ratio > 0)


def test_gradients_equal_the_original_under_canonical_names(command, case, tmp_path):
    import torch

    from reference_models.configuration import ViTMAEConfig
    from reference_models.pytorch import ViTMAEForPreTraining

    pretrain, out = case("pretrain_tiny"), tmp_path / "trace.safetensors"
    golden = pretrain.arrays
    np.savez(tmp_path / "in.npz", pixel_values=golden["imgs"], noise=golden["noise"])
    command(
        "trace", pretrain.checkpoint, out, "--inputs", tmp_path / "in.npz", "--gradients",
        "--dtype", "float64", *pretrain.heads,
    )  # fmt: skip
    trace = load_file(out)
    config = open_checkpoint(pretrain.checkpoint, FLAGS).configuration.model
    model = ViTMAEForPreTraining(ViTMAEConfig.from_dict(config.to_dict()))
    model.load_state_dict(torch.load(pretrain.checkpoint, weights_only=True)["model"])
    model.double()
    pixels, noise = (torch.from_numpy(golden[name]) for name in ("imgs", "noise"))
    model(pixels.double(), noise).loss.backward()
    fused = model.blocks[1].attn.qkv.weight.grad.numpy()
    for part, expected in zip("qkv", np.split(fused, 3), strict=True):
        ours = trace[f"float64/grad/encoder.blocks.1.attention.{part}.weight"]
        assert distance(ours, expected) < FLOAT64_LIMIT
    assert "float64/grad/encoder.position_embedding" not in trace  # this parameter is not trained


def test_blocked_gradient_is_detected_although_the_outputs_agree(source):
    """The forward passes are equal, but the target's mask token gets no gradient."""
    from mae_convert.runtime.running import Run, run_together
    from mae_convert.verify import judge
    from mae_convert.verify.verification import common_request

    inputs, request = common_request(source, Options(gradients=True), unmasked=False)
    (trace,) = run_together([Run(source, TORCH, request)], inputs)
    name = "float64/grad/decoder.mask_token"
    arrays = {**trace.arrays, name: trace.arrays[name] * 0}
    verdict = judge.judge(trace, type(trace)(trace.description, arrays))
    assert {check.name.split("/", 1)[1].removeprefix("B/") for check in verdict.failed()} == {
        "grad/decoder.mask_token"
    }
    assert verdict.first_divergence == "grad/decoder.mask_token"


def test_images_are_prepared_by_the_preprocessing_of_the_source(command, case, work, tmp_path):
    from PIL import Image

    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    out = tmp_path / "trace.safetensors"
    result = command("trace", work / "pt", out, "--images", tmp_path, "--dtype", "float64")
    assert result.status == 0, result.err
    assert load_file(out)["mask"].shape[0] == 3
    result = command("verify", work / "pt", work / "pt", "--images", work / "nothing")
    assert result.status == 2
    assert "does not exist" in result.err


def test_traces_that_apply_the_declared_steps_compare_as_verify_does(command, case, work, tmp_path):
    """The machine with the source has only the conversion record and the weights of the target."""
    pretrain = case("pretrain_tiny")
    command("convert", work / "tf", tmp_path / "half", "--to", "transformers", "--dtype", "float16",
        "--image-size", "48")  # fmt: skip
    command("trace", pretrain.checkpoint, tmp_path / "a.safetensors", "--taps", "--as-converted",
        tmp_path / "half", *pretrain.heads)  # fmt: skip
    command(
        "trace", tmp_path / "half", tmp_path / "b.safetensors", "--taps", "--framework", "torch"
    )
    result = command("compare", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert result.status == 0, result.out + result.err


def test_dead_child_process_is_reported_with_its_cause(source, work):
    from mae_convert.errors import MaeConvertError

    target = open_checkpoint(work / "pt")
    with pytest.raises(MaeConvertError, match="TF32 exists on CUDA devices only"):
        verify(source, target, TORCH, TORCH, Options(dtypes=("tf32",)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "tf32", "float16", "bfloat16"])
def test_a_gpu_computes_the_same_function(source, work, dtype):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    target = open_checkpoint(work / "pt")
    side = Side("torch", device="cuda")
    verdict = verify(source, target, side, side, Options(dtypes=(dtype,)))
    assert verdict.passed, verdict.failed()
