"""Warnings of `inspect`: about names and dtypes, and with `--stats` also about values."""

import numpy as np
import pytest
import torch

from mae_convert.checkpoint.inspect import inspect
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.position_embeddings import position_in_words
from mae_convert.formats import LazyTensor
from reference_models.positions import sincos_position_embedding

pytestmark = pytest.mark.usefixtures("forked_children")

FLAGS = Flags(num_attention_heads=4, decoder_num_attention_heads=3)


@pytest.fixture
def state(case):
    return torch.load(case("pretrain_tiny").checkpoint, weights_only=True)["model"]


def odd(tmp_path, state, *, stats=True):
    torch.save({"model": state}, tmp_path / "x.pth")
    return inspect(open_checkpoint(tmp_path / "x.pth", FLAGS), stats=stats)["odd"]


def test_model_without_warnings_reports_only_its_position_embeddings(tmp_path, state):
    fixed = "is exactly the fixed sine-cosine embedding of 4 x 4 patches"
    assert odd(tmp_path, state) == [
        f"encoder.position_embedding {fixed}",
        f"decoder.position_embedding {fixed}",
    ]
    assert odd(tmp_path, state, stats=False) == []


def test_nan_and_infinite_values_are_counted(tmp_path, state):
    state["blocks.1.mlp.fc1.bias"][3] = float("nan")
    state["decoder_pred.weight"][:2, 0] = float("-inf")
    warnings_found = odd(tmp_path, state)
    assert "encoder.blocks.1.mlp.fc1.bias has NaN or infinity in 1 value" in warnings_found
    assert "decoder.prediction.weight has NaN or infinity in 2 values" in warnings_found


def test_all_zero_tensors_are_named(tmp_path, state):
    for name in ("mask_token", "blocks.0.attn.proj.bias", "blocks.2.attn.qkv.bias"):
        state[name].zero_()
    (line,) = [line for line in odd(tmp_path, state) if line.startswith("all values are zero")]
    assert line.startswith("all values are zero: encoder.blocks.0.attention.output.bias")
    assert line.endswith("and 1 more")  # of q, k, v, output and the mask token


def test_untrained_norms_are_named(tmp_path, state):
    state["norm.bias"].zero_()
    assert "values of an untrained model: encoder.norm.bias" in odd(tmp_path, state)
    for name, tensor in state.items():
        if "norm" in name:
            tensor.fill_(float(name.endswith("weight")))
    assert "every layer norm has weight 1 and bias 0, as in an untrained model" in odd(
        tmp_path, state
    )


def test_values_out_of_the_range_of_float16_are_named(tmp_path, state):
    state["cls_token"][0, 0, 0] = -1e6
    assert "values outside the range of float16: encoder.cls_token" in odd(tmp_path, state)


def test_prefixes_dtypes_and_unused_tensors_need_no_values(tmp_path, state, golden):
    mixed = {f"module.{name}": tensor for name, tensor in state.items()}
    mixed["module.norm.bias"] = mixed["module.norm.bias"].double()
    assert odd(tmp_path, mixed, stats=False) == [
        "the prefix module. was removed from the tensor names",
        "the tensors have several dtypes: float32, float64",
    ]
    lightly = open_checkpoint(golden / "lightly_pretrain_tiny" / "model.safetensors", FLAGS)
    (line,) = inspect(lightly)["odd"]
    assert line.startswith("1 tensor not used (backbone.mask_token): ")


FIXED = sincos_position_embedding(16, (2, 3))
POSITIONS = {
    "exact": (FIXED.astype(np.float32), "is exactly the fixed"),
    "exact in float64": (FIXED, "is exactly the fixed"),
    "stored in float16": (FIXED.astype(np.float32).astype(np.float16), "is exactly the fixed"),
    "computed in float32": (FIXED.astype(np.float32) + np.float32(3e-7), "up to rounding"),
    "halves exchanged": (
        np.concatenate([FIXED[..., 8:], FIXED[..., :8]], -1),
        "rows and columns exchanged",
    ),
    "other grid": (
        sincos_position_embedding(16, (3, 2)),
        "is the embedding of 3 x 2 patches, reshaped in row-major order to 2 x 3",
    ),
    "learned": (FIXED + 0.01, "the largest difference is 0.01"),
    "not finite": (FIXED * np.nan, "is not finite"),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_kinds_of_position_embeddings_are_distinguished(name):
    values, words = POSITIONS[name]
    tensor = LazyTensor.from_array("encoder.position_embedding", values)
    assert words in position_in_words(tensor, (2, 3))


def test_warnings_are_printed_last(command, case):
    source = case("pretrain_tiny")
    for options in ([], ["--stats"]):
        result = command("inspect", source.checkpoint, *source.heads, *options)
        assert result.status == 0, result.err
        assert ("Warnings" in result.out) == bool(options)
    assert "is exactly the fixed" in result.out.splitlines()[-1]


@pytest.mark.parametrize("normalized", [True, False])
def test_inspect_reports_how_to_reconstruct_pixels(command, case, normalized):
    source = case("pretrain_tiny")
    flag = "--norm-pix-loss" if normalized else "--no-norm-pix-loss"
    printed = command("inspect", source.checkpoint, *source.heads, flag)
    document = command("inspect", source.checkpoint, *source.heads, flag, "--json").json[
        "reconstruction"
    ]
    assert ("the standard deviation of the original patch" in document) == normalized
    assert " ".join(document.split()) in " ".join(printed.out.split())
    encoder = case("encoder_tiny")
    report = command("inspect", encoder.checkpoint, *encoder.heads, "--json").json
    assert report["reconstruction"] is None
