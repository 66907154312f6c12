"""``repair``: faults of weights, configuration and record are undone and verified."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from mutation.models import random_tensors, write_model, write_original
from paths import GOLDEN
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mae_convert.checkpoint.fingerprint import checkpoint_fingerprint
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.changes import Geometry
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.diagnose import repair as repairing
from mae_convert.diagnose.repair import NotRepairedError, plan_repair, repair, write_repaired
from mae_convert.diagnose.tensor_repairs import FROM_A, UNDONE
from mae_convert.errors import OutputError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.files.byte_ranges import file_sha256
from mae_convert.formats.tensor import LazyTensor
from mae_convert.runtime.sides import Side
from mae_convert.verify.certificate import read_certificate

pytestmark = pytest.mark.usefixtures("forked_children")

SIDES = (Side("torch"), Side("torch"))
ATTENTION = "encoder.blocks.1.attention"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_model("pretrain", tmp_path_factory.mktemp("source"))


@pytest.fixture
def target(source, tmp_path):
    """Return a function that writes the model with changed tensors in a layout."""

    def target(change=lambda tensors: {}, layout="facebook", **fields):
        config = source.configuration.model
        tensors = random_tensors(config, "pretrain", 0, learned=False)
        tensors |= {n: np.ascontiguousarray(a) for n, a in change(tensors).items()}
        checkpoint = write_original(
            tmp_path / "b.safetensors", replace(config, **fields), "pretrain", tensors
        )
        if layout == "facebook":
            return checkpoint
        execute(plan_conversion(checkpoint, tmp_path / "b", layout))
        return open_checkpoint(tmp_path / "b")

    return target


def swapped(first, second):
    return lambda t: {first: t[second], second: t[first]}


def fused_by_heads(t):
    fused = np.stack([t[f"{ATTENTION}.{p}.weight"].reshape(3, 8, 24) for p in "qkv"], axis=1)
    return {f"{ATTENTION}.{p}.weight": fused.reshape(3, 24, 24)[i] for i, p in enumerate("qkv")}


def block_shifted(t):
    return {
        n: t[n.replace("blocks.1.", "blocks.2.") if "blocks.1." in n else
             n.replace("blocks.2.", "blocks.1.")]
        for n in t if n.startswith(("encoder.blocks.1.", "encoder.blocks.2."))
    }  # fmt: skip


def alone(name, edit):
    return lambda t: {name: edit(t[name].copy())}


def with_nan(array):
    array.flat[7] = np.nan
    return array


def half(array):
    array.reshape(-1)[array.size // 2 :] = 0
    return array


POSITIONS, KERNEL = "decoder.position_embedding", "encoder.patch_embedding.weight"
FAULTS = {
    "transposed": (alone(f"{ATTENTION}.q.weight", np.transpose), "is transposed", UNDONE),
    "swapped": (
        swapped(f"{ATTENTION}.q.bias", f"{ATTENTION}.k.bias"),
        f"B holds A's {ATTENTION}.k.bias here",
        f"copied from B's {ATTENTION}.k.bias",
    ),
    "fused by heads": (fused_by_heads, "has its values in another order", UNDONE),
    "heads reversed": (
        alone(f"{ATTENTION}.v.bias", lambda a: a.reshape(3, 8)[::-1].reshape(24)),
        "has its channels with the heads in reverse order",
        UNDONE,
    ),
    "blocks shifted": (block_shifted, "B holds A's encoder.blocks.2.norm1.weight here",
                       "copied from B's encoder.blocks.2.norm1.weight"),
    "class slot": (alone(POSITIONS, lambda a: np.roll(a, 1, axis=1)),
                   "is shifted forward by one, including the class token", UNDONE),
    "BGR": (alone(KERNEL, lambda a: a[:, ::-1]),
            "has its channels reversed (RGB and BGR)", UNDONE),
    "sign": (alone("encoder.cls_token", np.negative), "has its sign reversed", UNDONE),
    "zero": (alone(f"{ATTENTION}.k.bias", np.zeros_like), "is zero", FROM_A),
    "float16": (alone("encoder.norm.bias", lambda a: a.astype(np.float16).astype(np.float32)),
                "is rounded to float16", FROM_A),
    "half loaded": (alone("decoder.prediction.bias", half),
                    "is zero from element 96 of 192 on", FROM_A),
    "NaN": (alone("decoder.mask_token", with_nan),
            "has 1 value that is NaN or infinite (the first at index (0, 0, 7))", FROM_A),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_weights_is_named_and_undone_bit_for_bit(source, target, tmp_path, name):
    change, fault, how = FAULTS[name]
    broken = target(change)
    planned = plan_repair(source, broken)
    assert not planned.unexplained
    assert (fault, str(how)) in {(str(repair.fault), str(repair.how)) for repair in planned.repairs}
    assert {repair.name for repair in planned.repairs} == {
        name for name, tensor in broken.tensors.items()
        if tensor.load().tobytes() != source.tensors[name].load().tobytes()
    }  # fmt: skip
    write_repaired(planned, tmp_path / "out.safetensors")
    repaired = open_checkpoint(tmp_path / "out.safetensors")
    assert checkpoint_fingerprint(repaired) == checkpoint_fingerprint(source)


def test_repair_is_verified_and_reports_its_changes(source, target, tmp_path, command):
    """The command repairs weights and configuration of a model directory together."""
    broken = target(
        lambda t: {**fused_by_heads(t), "encoder.cls_token": 0 * t["encoder.cls_token"]},
        "transformers",
        layer_norm_eps=1e-12,
    )
    before = {path.name: file_sha256(path) for path in broken.path.iterdir()}
    out = tmp_path / "out"
    call = ["repair", source.path, broken.path, out, "--framework-b", "torch"]
    result = command(*call)
    assert result.status == 0, result.err
    assert "encoder.cls_token: is zero; copied from A" in result.out
    assert "layer_norm_eps is 1e-12 in B: set to 1e-06 as in A" in result.out
    assert before == {path.name: file_sha256(path) for path in broken.path.iterdir()}
    assert read_certificate(out).document["passed"]
    assert json.loads((out / "config.json").read_text())["layer_norm_eps"] == 1e-6
    record = json.loads((out / "conversion.json").read_text())
    assert len(record["repaired"]["changes"]) == 3  # q, k and v; the class token; epsilon
    assert record["repaired"]["from"]["sha256"] == before["model.safetensors"]
    assert command("lineage", source.path, out).status == 0
    assert command("verify", out).status == 0
    again = command(*call)
    assert again.status == 2
    assert "exists and is not replaced" in again.err


def test_unexplained_difference_is_repaired_only_on_request(source, target, tmp_path, command):
    broken = target(lambda t: {"encoder.norm.bias": t["encoder.norm.bias"] + np.float32(1e-3)})
    with safe_open(broken.path, "numpy") as file:
        metadata = file.metadata()
    tensors = load_file(broken.path)
    tensors["projector.weight"] = np.ones((3, 5), np.float32)  # not a part of the model
    save_file(tensors, broken.path, metadata)
    out = tmp_path / "out.safetensors"
    call = ["repair", source.path, broken.path, out]
    result = command(*call)
    assert result.status == 1
    assert (
        "no known fault explains how encoder.norm.bias of B differs from A, so it is not repaired; "
        "pass --restore to copy it from A"
    ) in " ".join(result.err.split())
    assert "--restore" in result.err
    assert not list(tmp_path.glob("out*"))
    result = command(*call, "--restore", "--json")
    assert result.status == 0, result.err
    assert result.json["left_out"] == [
        "projector.weight: part of another self-supervised objective"
    ]
    assert result.json["changes"] == [
        "encoder.norm.bias: differs, and no known fault explains it; copied from A"
    ]
    assert result.json["verdict"]["passed"]
    assert sorted(path.name for path in tmp_path.glob("out*")) == [
        "out.safetensors",
        "out.safetensors.verification.json",
        "out.safetensors.verification.safetensors",
    ]


def test_equal_models_are_not_repaired(source, target, tmp_path):
    with pytest.raises(NotRepairedError, match="there is nothing to repair"):
        repair(source, target(), tmp_path / "out.safetensors", SIDES)
    with pytest.raises(OutputError, match="exists"):
        repair(source, target(), tmp_path / "b.safetensors", SIDES)
    directory = target(layout="transformers")
    with pytest.raises(OutputError, match="is inside B"):
        repair(source, directory, directory.path / "out", SIDES)


def test_declared_changes_are_named_if_there_is_nothing_to_repair(source, tmp_path):
    changes = {"dtype": "float16", "geometry": Geometry(image_size=(64, 64))}
    execute(plan_conversion(source, tmp_path / "b", "transformers", **changes))
    words = r"changes that B's conversion record declares \(image size, dtype\).* nothing to repair"
    with pytest.raises(NotRepairedError, match=words):
        repair(source, open_checkpoint(tmp_path / "b"), tmp_path / "out", SIDES)


def test_tensors_with_the_same_fault_share_a_sentence(source, target):
    def change(t):
        names = [f"encoder.blocks.{i}.{name}" for i in (0, 1)
                 for name in ("norm1.bias", "attention.q.weight")]  # fmt: skip
        return {n: t[n].T if n.endswith("weight") else t[n] + np.float32(1e-3) for n in names}

    assert plan_repair(source, target(change)).changes == [
        "encoder.blocks.{0-1}.norm1.bias: each differs, and no known fault explains it; copied "
        "from A",
        "encoder.blocks.{0-1}.attention.q.weight: each is transposed; undone with B's own values",
    ]


def test_output_that_cannot_be_written_is_refused_with_its_name(source, target, tmp_path, command):
    b = target(alone("encoder.cls_token", np.zeros_like))
    for out, words in (
        ("none/out.pth", "its directory does not exist"),
        ("b.safetensors/out.pth", "a part of its path is a file"),
    ):
        result = command("repair", source.path, b.path, tmp_path / out)
        assert (result.status, f"{out} cannot be written: {words}" in result.err) == (
            2,
            True,
        ), result.err
        result = command("verify", source.path, b.path, "--reduce", tmp_path / out)
        assert (result.status, f"{out} cannot be written: {words}" in result.err) == (
            2,
            True,
        ), result.err


def test_repair_that_does_not_pass_verification_is_not_written(
    source, target, tmp_path, monkeypatch
):
    broken = target(alone("encoder.cls_token", np.zeros_like))
    wrong = broken.tensors["encoder.cls_token"]

    def repairs(a, b, names):
        return [replace(repair, tensor=wrong) for repair in original(a, b, names)]

    original = repairing.tensor_repairs
    monkeypatch.setattr(repairing, "tensor_repairs", repairs)
    with pytest.raises(NotRepairedError, match=r"does not pass the verification.*is zero"):
        repair(source, broken, tmp_path / "out.safetensors", SIDES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.safetensors"]


def test_undeclared_rounding_is_added_to_the_record(source, tmp_path):
    execute(plan_conversion(source, tmp_path / "half", "transformers", dtype="float16"))
    path = tmp_path / "half" / "conversion.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "steps": []}))
    planned, result = repair(source, open_checkpoint(tmp_path / "half"), tmp_path / "out", SIDES)
    assert planned.changes == [
        "the undeclared rounding of tensors to float16 is added to the record"
    ]
    assert [step["step"] for step in result.verdict.steps] == ["dtype"]
    assert open_checkpoint(tmp_path / "out").tensors["encoder.cls_token"].dtype == np.float16


def test_step_that_was_not_applied_is_removed_from_the_record(source, tmp_path):
    execute(plan_conversion(source, tmp_path / "b", "transformers"))
    path = tmp_path / "b" / "conversion.json"
    step = {"step": "dtype", "from": ["float32"], "to": "float16"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "steps": [step]}))
    planned = plan_repair(source, open_checkpoint(tmp_path / "b"))
    assert planned.changes == ["steps that were not applied are removed from the record (dtype)"]
    write_repaired(planned, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["steps"] == []


def test_fields_that_the_target_does_not_store_are_those_of_the_source(case, tmp_path):
    pretrain = GOLDEN / "pretrain_tiny" / "checkpoint.pth"
    a = open_checkpoint(pretrain, Flags(num_attention_heads=4, decoder_num_attention_heads=3))
    b = open_checkpoint(pretrain, incomplete=True)
    changes = plan_repair(a, b).changes
    assert "num_attention_heads is not stored in B: set to 4 as in A" in changes
    write_repaired(plan_repair(a, b), tmp_path / "out.pth")
    assert open_checkpoint(tmp_path / "out.pth").configuration.model.num_attention_heads == 4


def test_names_that_some_versions_cannot_load_are_rewritten(tmp_path):
    """An MAE as transformers 5.23 saves it, whose decoder version 4 loads at random."""
    folder = GOLDEN / "transformers_v5_pretrain"
    shutil.copytree(folder, tmp_path / "b")
    b = open_checkpoint(tmp_path / "b")
    execute(plan_conversion(b, tmp_path / "a.pth", "facebook"))
    planned = plan_repair(open_checkpoint(tmp_path / "a.pth"), b)
    assert len(planned.changes) == 1
    assert planned.changes[0] == (
        "not every version of the library can load the tensor names of transformers, names saved "
        "by version 5: replaced by the names of transformers, names of version 4"
    )
    write_repaired(planned, tmp_path / "out")
    names = open_checkpoint(tmp_path / "out").container.tensors
    assert "decoder.decoder_layers.0.attention.attention.query.weight" in names


@pytest.mark.parametrize("name", ["mae_st_pretrain_tiny", "videomae_finetune_tiny",
                                  "prithvi_v2_tl_tiny"])  # fmt: skip
@pytest.mark.parametrize("edit", [np.transpose, np.zeros_like], ids=["transposed", "zero"])
def test_every_tensor_of_every_family_is_repaired(case, name, edit):
    facts = case(name).facts
    flags = Flags(
        num_attention_heads=facts.get("num_heads") or facts.get("encoder_num_heads"),
        decoder_num_attention_heads=facts.get("decoder_num_heads"),
    )
    a = open_checkpoint(GOLDEN / name / "checkpoint.pth", flags)
    changed = {
        name: np.ascontiguousarray(edit(tensor.load())).reshape(tensor.shape)
        for name, tensor in a.tensors.items()
    }
    b = replace(a, tensors={n: LazyTensor.from_array(n, array) for n, array in changed.items()})
    repaired = plan_repair(a, b).repaired()
    for canonical, tensor in a.tensors.items():
        assert repaired.tensors[canonical].load().tobytes() == tensor.load().tobytes(), canonical


def test_models_of_other_shapes_and_tasks_are_refused(source, tmp_path):
    other = write_model("encoder", tmp_path)
    with pytest.raises(NotRepairedError, match="so A lacks tensors of B"):
        plan_repair(other, source)
    config = replace(source.configuration.model, num_labels=7, image_size=24)
    tensors = random_tensors(config, "pretrain", 0, learned=False)
    smaller = write_original(tmp_path / "s.safetensors", config, "pretrain", tensors)
    with pytest.raises(NotRepairedError, match=r"shape .* cannot be repaired"):
        plan_repair(source, smaller)
