"""Wrappers, prefixes and shards around a MAE do not change the model that is read."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
import transformers

from mae_convert.checkpoint.diff import diff
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.checkpoint.prefixes import LEADING, as_stored, is_readable, prefix_removals
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.convert.target import Packing
from mae_convert.errors import CheckpointError, LayoutError, OutputError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.runtime.child_files import stage
from mae_convert.runtime.loaders import numpy_arrays, pytorch_state_dict

FLAGS = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
FSDP = "_fsdp_wrapped_module."


@pytest.fixture(scope="module")
def state(case):
    return torch.load(case("pretrain_tiny").checkpoint, weights_only=True)["model"]


@pytest.fixture(scope="module")
def plain(case):
    return open_checkpoint(case("pretrain_tiny").checkpoint, FLAGS)


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def saved(path, value):
    torch.save(value, path)
    return path


def wrapped_blocks(state):
    """Return a state dict with the names of blocks that FSDP and torch.compile wrap separately."""
    return {
        f"{FSDP}_orig_mod.{name.replace('blocks.1.', f'blocks.1.{FSDP}')}": tensor
        for name, tensor in state.items()
    }


def encoder_in_a_program(state):
    """Return the state dict of a program that has encoder and decoder as separate submodules."""
    return {
        name if name.startswith(("decoder", "mask")) else f"encoder.{name}": tensor
        for name, tensor in state.items()
    }


PREFIXED = {
    "module.": (lambda state: under("module.", state), "module."),
    "model.": (lambda state: under("model.", state), "model."),
    "backbone.": (lambda state: under("backbone.", state), "backbone."),
    "encoder.": (lambda state: under("encoder.", state), "encoder."),
    "vit.": (lambda state: under("vit.", state), "vit."),
    "_orig_mod.": (lambda state: under("_orig_mod.", state), "_orig_mod."),
    "two": (lambda state: under("module._orig_mod.", state), "module._orig_mod."),
    "four": (lambda s: under("model.module.backbone.vit.", s), "model.module.backbone.vit."),
    "within": (wrapped_blocks, "_orig_mod., _fsdp_wrapped_module."),
    "a part": (encoder_in_a_program, "encoder."),
}


@pytest.mark.parametrize("name", PREFIXED)
def test_prefix_is_removed_without_changing_the_model(tmp_path, state, plain, name):
    change, message = PREFIXED[name]
    prefixed = change(state)
    opened = open_checkpoint(saved(tmp_path / "x.pth", {"model": prefixed}), FLAGS)
    assert (opened.layout.name, opened.task) == ("facebook", "pretrain")
    assert opened.prefix.in_words() == message
    assert diff(plain, opened).same


@pytest.mark.parametrize("name", PREFIXED)
def test_report_names_every_tensor_as_stored(tmp_path, state, name):
    prefixed = PREFIXED[name][0](state)
    source = open_checkpoint(saved(tmp_path / "x.pth", {"model": prefixed}), FLAGS)
    report = execute(plan_conversion(source, tmp_path / "m", "transformers", task="encoder"))
    used = {name for entry in report["tensors"].values() for name in entry["from"]}
    assert used | set(report["dropped"]) == set(prefixed)
    assert report["source"]["prefix"] == PREFIXED[name][1]
    assert report["source"]["wrapper"] == "model"
    stored = json.loads((tmp_path / "m" / "conversion.json").read_text())
    assert stored["source"] == report["source"]


@pytest.mark.parametrize("name", [n for n in PREFIXED if n not in ("within", "a part")])
def test_prefix_can_be_restored(tmp_path, state, name):
    prefixed = PREFIXED[name][0](state)
    source = open_checkpoint(saved(tmp_path / "x.pth", {"model": prefixed}), FLAGS)
    execute(plan_conversion(source, tmp_path / "m.weights.h5", "keras"))
    packing = Packing(prefix=source.prefix.in_words())
    again = open_checkpoint(tmp_path / "m.weights.h5")
    report = execute(plan_conversion(again, tmp_path / "y.pth", "facebook", packing=packing))
    back = torch.load(tmp_path / "y.pth", weights_only=True)["model"]
    assert list(back) == list(prefixed) == list(report["tensors"])
    assert all(torch.equal(back[n], tensor) for n, tensor in prefixed.items())
    assert open_checkpoint(tmp_path / "y.pth").prefix.in_words() == source.prefix.in_words()


@pytest.mark.parametrize("task", ["pretrain", "encoder", "classifier"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone.", "encoder."])
def test_names_that_only_begin_like_a_prefix_are_unchanged(golden, tmp_path, task, prefix):
    """The names of transformers contain `vit.` and `encoder.` themselves."""
    folder = golden / f"transformers_tf_{task}_tiny_v4pt"
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(under(prefix, tensors), tmp_path / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    opened = open_checkpoint(tmp_path)
    assert opened.prefix.in_words() == (prefix or None)
    assert opened.layout.name == "transformers"
    assert set(opened.container.tensors) == set(tensors)
    assert diff(open_checkpoint(folder), opened).same


def test_prefixed_names_of_other_layouts_are_read(golden, tmp_path):
    for layout in ("timm_encoder", "torchvision_classifier", "mmpretrain_pretrain"):
        path = golden / f"{layout}_tiny" / "model.safetensors"
        tensors = under("module.", safetensors.torch.load_file(path))
        safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
        opened = open_checkpoint(tmp_path / "x.safetensors", FLAGS)
        assert (opened.prefix.in_words(), opened.layout.name) == ("module.", layout.split("_")[0])


def test_mismatch_is_explained_by_names_without_the_prefix(tmp_path, state):
    short = {name: t for name, t in state.items() if name != "blocks.1.attn.qkv.bias"}
    path = saved(tmp_path / "x.pth", {"model": under("module.", short)})
    with pytest.raises(LayoutError, match=r"the prefix module\.: the nearest layout is face"):
        open_checkpoint(path, FLAGS)
    with pytest.raises(LayoutError, match=r"missing: blocks\.1\.attn\.qkv\.bias"):
        open_checkpoint(path, FLAGS)


def test_file_that_is_not_a_mae_is_refused_with_or_without_prefix(tmp_path):
    tensors = {f"module.transformer.h.{i}.ln_1.weight": torch.ones(8) for i in range(3)}
    with pytest.raises(LayoutError, match=r"without the prefix module\."):
        open_checkpoint(saved(tmp_path / "x.pth", tensors), FLAGS)


def test_removing_a_prefix_never_creates_duplicate_names():
    names = ["encoder.norm.weight", "norm.weight", "module.x", "module."]
    removed = {removal.removed for removals in prefix_removals(names) for removal in removals}
    assert not any("encoder." in prefixes for prefixes in removed)
    assert not any("module." in prefixes for prefixes in removed)  # the name would be empty


def test_candidate_prefixes_are_tried_shortest_first_and_once_each():
    levels = list(prefix_removals(["module.encoder.a", "module.b"]))
    assert [[way.removed for way in ways] for ways in levels] == [
        [("module.",)],
        [("module.", "encoder.")],
    ]
    assert levels[1][0].stored == {"a": "module.encoder.a", "b": "module.b"}
    assert as_stored(["a"]).in_words() is None
    assert list(prefix_removals(["a", "b"])) == []


def test_two_possible_prefixes_are_ambiguous(tmp_path, monkeypatch):
    def recognise(shapes, preferred, *, explain, family):
        if len({"a", "b"} & set(shapes)) != 1:
            raise LayoutError("no")
        return None, ()

    monkeypatch.setattr("mae_convert.checkpoint.extraction.recognise", recognise)
    tensors = {"module.a": torch.ones(2), "model.b": torch.ones(2)}
    with pytest.raises(
        LayoutError, match=r"after removing module\. or model\.; it is ambiguous which of these"
    ):
        open_checkpoint(saved(tmp_path / "x.pth", tensors))


def test_prefix_for_writing_must_be_readable():
    assert all(is_readable(prefix) for prefix in LEADING)
    for prefix in ("module._orig_mod.backbone.", "my.", "module.my.", "module." * 5):
        assert is_readable(prefix)
    for prefix in ("", "module", ".", "my..", ".my.", "a/b."):
        assert not is_readable(prefix)


PACKINGS = [
    (Packing(prefix="my"), "facebook", "x.pth", "would not be recognised"),
    (Packing(prefix="module."), "transformers", "m", "leave prefix= out"),
    (Packing(prefix="module."), "keras", "x.keras", "can only be added to PyTorch parameter names"),
    (Packing(pickled=True), "facebook", "x.pth", "leave them out"),
    (Packing(max_shard_size=1000), "keras", "x.weights.h5", "leave them out"),
    (Packing(pickled=True), "transformers-tf", "m", "leave bin=True out"),
]


@pytest.mark.parametrize(("packing", "layout", "name", "message"), PACKINGS)
def test_option_that_the_target_does_not_support_is_refused(
    tmp_path, plain, packing, layout, name, message
):
    with pytest.raises(OutputError, match=message):
        plan_conversion(plain, tmp_path / name, layout, packing=packing)


def test_a_tf_model_is_not_split(tmp_path, plain):
    packing = Packing(max_shard_size=50_000)
    plan = plan_conversion(plain, tmp_path / "m", "transformers-tf", packing=packing)
    with pytest.raises(OutputError, match="leave max_shard_size= out"):
        execute(plan)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("pickled", [False, True])
def test_transformers_loads_the_written_shards(tmp_path, plain, pickled):
    packing = Packing(pickled=pickled, max_shard_size=100_000)
    report = execute(plan_conversion(plain, tmp_path / "m", "transformers", packing=packing))
    parts = [path.name for path in (tmp_path / "m").iterdir() if "-of-0000" in path.name]
    assert len(parts) == 3
    model, loading = transformers.ViTMAEForPreTraining.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    ours = open_checkpoint(tmp_path / "m")
    assert diff(plain, ours).same
    assert set(report["sha256"]) == set(ours.container.tensors)
    model.save_pretrained(tmp_path / "reference", max_shard_size="100KB")
    assert (tmp_path / "reference" / "model.safetensors.index.json").is_file()
    reference = open_checkpoint(tmp_path / "reference")
    assert diff(plain, reference).same
    assert len(reference.container.files) > 2


def test_the_record_of_a_source_in_parts_has_the_hash_of_each(tmp_path, plain):
    packing = Packing(max_shard_size=100_000)
    execute(plan_conversion(plain, tmp_path / "m", "transformers", packing=packing))
    source = open_checkpoint(tmp_path / "m")
    report = execute(plan_conversion(source, tmp_path / "back.pth", "facebook"))
    names = [path.name for path in source.container.files]
    printed = subprocess.run(
        ["sha256sum", *names], cwd=tmp_path / "m", capture_output=True, text=True, check=True
    ).stdout
    assert report["source"]["files"] == {
        name: digest for digest, name in (line.split("  ") for line in printed.splitlines())
    }
    whole = subprocess.run(["sha256sum"], input=printed, capture_output=True, text=True, check=True)
    assert report["source"]["sha256"] == whole.stdout.split()[0]
    assert report["source"]["name"] == "m/model.safetensors.index.json"


def distributed(folder, value):
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(value, checkpoint_id=folder / "dcp")
    return folder / "dcp"


def other(state):
    return {name: tensor + 1 for name, tensor in state.items()}


# Each makes a checkpoint and returns the key to select.
VARIATIONS = {
    "plain": lambda folder, s: (saved(folder / "x.pth", {"model": s}), None),
    "module": lambda folder, s: (saved(folder / "x.pth", {"module": s}), None),
    "model_state": lambda folder, s: (saved(folder / "x.pth", {"model_state": s}), None),
    "deeper": lambda folder, s: (saved(folder / "x.pth", {"state": {"model": s}}), None),
    "teacher": lambda f, s: (saved(f / "x.pth", {"student": other(s), "teacher": s}), "teacher"),
    "not the first": lambda f, s: (
        saved(f / "x.pth", {"model": other(s), "state_dict": s}),
        "state_dict",
    ),
    "settings": lambda f, s: (saved(f / "x.pth", {"model": {"n": 1}, "state_dict": s}), None),
    "prefixed": lambda f, s: (saved(f / "x.bin", {"module": wrapped_blocks(s)}), None),
    "distributed": lambda f, s: (distributed(f, {"model": s, "optim": {"lr": 1}}), None),
    "distributed and prefixed": lambda f, s: (distributed(f, {"model": under("vit.", s)}), None),
}


@pytest.mark.parametrize("name", VARIATIONS)
def test_reference_model_receives_the_tensors_without_the_prefix(tmp_path, state, name):
    """A trace loads the file natively: strictly, by its own names, without a mapping table."""
    path, key = VARIATIONS[name](tmp_path, state)
    checkpoint = open_checkpoint(path, FLAGS, state_key=key)
    (tmp_path / "work").mkdir()
    staged = stage(checkpoint, "torch", tmp_path / "work")
    assert staged.loader == "facebook"
    loaded = pytorch_state_dict(staged.weights)
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[n], tensor) for n, tensor in state.items())
    # The library reads the file itself, unless it would run its pickle.
    assert (staged.converted_by is None) == ("distributed" not in name)
    assert (staged.weights.files == (str(path),)) == ("distributed" not in name)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_model_in_parts_is_staged_for_the_keras_reference(tmp_path, plain, pickled):
    packing = Packing(pickled=pickled, max_shard_size=100_000)
    execute(plan_conversion(plain, tmp_path / "m", "transformers", packing=packing))
    source = open_checkpoint(tmp_path / "m")
    staged = stage(source, "tensorflow", tmp_path)
    assert staged.loader == "transformers"
    # A process of TensorFlow cannot read PyTorch's files.
    assert (staged.converted_by is not None) == pickled
    loaded = numpy_arrays(staged.weights)
    assert loaded.keys() == source.container.tensors.keys()
    for name, tensor in source.container.tensors.items():
        assert loaded[name].load().tobytes() == tensor.load().tobytes()


def test_state_key_applies_to_the_file_that_contains_it(tmp_path, state, plain):
    path = saved(tmp_path / "x.pth", {"teacher": state, "student": other(state)})
    execute(plan_conversion(plain, tmp_path / "m", "transformers"))
    for option, expected in (("teacher", True), ("student", False)):
        a, b = (
            open_checkpoint(p, FLAGS, fill_only=True, state_key=option)
            for p in (path, tmp_path / "m")
        )
        assert diff(a, b).same is expected
    with pytest.raises(CheckpointError, match="leave state_key= out"):
        open_checkpoint(tmp_path / "m", state_key="teacher")


def test_state_key_and_prefix_on_the_command_line(command, case, state, tmp_path):
    heads = case("pretrain_tiny").heads
    student = {f"module.{name}": tensor for name, tensor in state.items()}
    path = saved(tmp_path / "x.pth", {"teacher": other(state), "student": student})
    unsaid = command("inspect", path, *heads)
    assert unsaid.status == 2
    assert unsaid.err.count("\n") == 1
    assert "--state-key teacher or --state-key student" in unsaid.err
    key = ["--state-key", "student"]
    report = command("inspect", path, "--json", *key, *heads).json
    assert (report["wrapper"], report["prefix"], report["files"]) == ("student", "module.", 1)
    shown = command("inspect", path, *key, *heads).out
    assert "under student" in shown
    assert "the prefix module. was removed" in shown
    target = tmp_path / "m"
    converted = command(
        "convert", path, target, "--to", "transformers", "--max-shard-size", "100KB", *key, *heads
    )
    assert "--prefix module. restores it" in converted.out
    assert len(list(target.glob("model-*.safetensors"))) == 3
    result = command("verify", path, target, "--require-proof", "--json", *key, *heads)
    assert (result.status, result.json["proven"]) == (0, True)


@pytest.mark.parametrize("size", ["", "0", "2", "0MB", "-1GB", "2XB", "1.5GB", "many"])
def test_invalid_shard_size_is_refused(command, case, tmp_path, size):
    pretrain = case("pretrain_tiny")
    result = command(
        "convert", pretrain.checkpoint, tmp_path / "m", "--to", "transformers", *pretrain.heads,
        "--max-shard-size", size,
    )  # fmt: skip
    assert result.status == 2
    assert "500MB or 2GB" in result.err
    assert not any(tmp_path.iterdir())


def test_a_distributed_checkpoint_is_converted_without_torch(case, state, tmp_path):
    path = distributed(tmp_path, {"model": under("module.", state)})
    code = """
import sys
from mae_convert.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
assert "torch" not in sys.modules
"""
    arguments = ["convert", path, tmp_path / "m", "--to", "transformers", "--bin"]
    command = [sys.executable, "-c", code, *arguments, *case("pretrain_tiny").heads]
    subprocess.run([os.fspath(part) for part in command], check=True, capture_output=True)
    record = json.loads((tmp_path / "m" / "conversion.json").read_text())
    assert record["source"]["container"] == "dcp"
    assert set(record["source"]["files"]) == {".metadata", "__0_0.distcp"}
    written = torch.load(tmp_path / "m" / "pytorch_model.bin", weights_only=True)
    assert np.array_equal(written["vit.layernorm.bias"], state["norm.bias"])
