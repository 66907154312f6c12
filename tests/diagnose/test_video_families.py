"""Explanations of differences between video models."""

import numpy as np
import pytest
from paths import GOLDEN
from safetensors.numpy import save_file

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.families.checkpoint_options import Flags

FLAGS = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
OPTIONS = ("--num-heads", 4, "--decoder-num-heads", 3)


def changed(case, folder, edits):
    """Write a case with changed tensors, by the file's own names."""
    stored = open_checkpoint(GOLDEN / case / "checkpoint.pth", FLAGS).container.tensors
    arrays = {name: tensor.load() for name, tensor in stored.items()}
    for name, edit in edits.items():
        arrays[name] = np.ascontiguousarray(edit(arrays[name]))
    save_file(arrays, folder / "b.safetensors")
    return folder / "b.safetensors"


CHANGES = [
    ("mae_st_pretrain_tiny", "decoder_pred.weight", np.zeros_like, "decoder.prediction.weight"),
    ("prithvi_v2_tiny", "encoder.patch_embed.proj.weight", lambda a: a[:, ::-1], "patch_embedding"),
    ("videomae_pretrain_tiny", "decoder.norm.weight", lambda a: a * 1.01, "decoder.norm.weight"),
    ("prithvi_v2_tiny", "encoder.pos_embed", lambda a: np.roll(a, 1, 1), "position_embedding"),
]


@pytest.mark.usefixtures("forked_children")
@pytest.mark.parametrize(("case", "name", "edit", "suspect"), CHANGES)
def test_a_changed_tensor_is_named(command, tmp_path, case, name, edit, suspect):
    path = changed(case, tmp_path, {name: edit})
    sides = ("--framework-a", "torch", "--framework-b", "torch", "--json")
    not_in_tensors = case.startswith("videomae") or name == "encoder.pos_embed"
    size = ("--source-image-size", 32) if not_in_tensors else ()
    source = GOLDEN / case / "checkpoint.pth"
    result = command("verify", source, path, *OPTIONS, *size, *sides)
    assert result.status == 1, result.err
    assert suspect in result.json["suspects"][0]
    assert result.json["causes"]


@pytest.mark.usefixtures("forked_children")
@pytest.mark.parametrize(
    ("case", "more"),
    [
        ("mae_st_pretrain_tiny", ()),
        ("videomae_pretrain_tiny", ("--source-image-size", 32)),
        ("prithvi_v2_tl_tiny", ()),
    ],
)
def test_different_epsilon_is_detected_in_the_results(command, tmp_path, case, more):
    """Traces of one file with two epsilons: the tensors are equal."""
    source = GOLDEN / case / "checkpoint.pth"
    for number, eps in enumerate((1e-6, 1e-5)):
        result = command(
            "trace", source, tmp_path / f"{number}.safetensors", *OPTIONS, *more, "--taps",
            "--layer-norm-eps", eps, "--framework", "torch", "--dtype", "float64",
        )  # fmt: skip
        assert result.status == 0, result.err
    result = command("compare", tmp_path / "0.safetensors", tmp_path / "1.safetensors", "--json")
    assert result.status == 1
    assert any("epsilon" in cause for cause in result.json["causes"])
