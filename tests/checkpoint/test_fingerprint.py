"""The fingerprint is as specified, equal after every conversion, and different after every change.

All pairs of layouts are in test_matrix.
"""

import contextlib
import io
import json
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from paths import ROOT
from small_models import SMALL, original, target_for

from mae_convert.checkpoint.fingerprint import checkpoint_fingerprint, configuration_digest
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.changes import Geometry, with_new_head
from mae_convert.convert.execute import execute, execute_all
from mae_convert.convert.plan import plan_conversion
from mae_convert.convert.target import Packing
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.mae.family import MAE
from mae_convert.families.mae.layouts import LAYOUTS
from mae_convert.families.mae.layouts.facebook import FACEBOOK
from mae_convert.families.mae.schema import schema
from mae_convert.files.sequential import SequentialArray
from mae_convert.formats import write_file
from mae_convert.formats.tensor import LazyTensor, PassingDigest, sha256
from mae_convert.layouts.table import write_tensors
from reference_models.configuration import ViTMAEConfig

PAGE = ROOT / "docs" / "fingerprint.md"
TINY = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "image_size": 4, "patch_size": 2, "num_channels": 1, "num_labels": 3,
    "decoder_hidden_size": 4, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1,
    "decoder_intermediate_size": 8,
}  # fmt: skip


def of_file(path, **flags):
    checkpoint = open_checkpoint(path, Flags(**flags), incomplete=True)
    return checkpoint_fingerprint(checkpoint)


def test_documented_program_computes_its_test_vectors_and_our_fingerprints(tmp_path):
    page = PAGE.read_text()
    program, vectors = re.search(
        r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL
    ).groups()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(program, {})  # the text of the specification is our code
    assert printed.getvalue() == vectors
    ours = []
    for task in ("pretrain", "classify"):
        shapes = schema(ViTMAEConfig(**TINY), task)
        tensors = {}
        for part in ("encoder", "decoder", "head"):
            for i, name in enumerate(sorted(n for n in shapes if n.startswith(f"{part}."))):
                count = int(np.prod(shapes[name]))
                array = ((np.arange(count) + i) / 64).astype(np.float32).reshape(shapes[name])
                tensors[name] = LazyTensor.from_array(name, array)
        rules = FACEBOOK.table_for(task).expand(shapes)
        config = {**ViTMAEConfig(**TINY).to_dict(), "layout": "facebook", "task": task}
        path = tmp_path / f"{task}.pth"
        write_file(path, "pth", write_tensors(tensors, rules), config=config)
        fingerprint = of_file(path)
        ours += [f"{part} {digest}\n" for part, digest in fingerprint.parts.items()] + [
            f"{fingerprint}\n"
        ]
    assert "".join(ours) == vectors


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize(
    "expected",
    [
        {},
        {"dtype": "float16"},
        {"geometry": Geometry(image_size=(32, 32)), "dtype": "float64"},
        {"geometry": Geometry(in_channels=1)},
    ],
    ids=["task", "dtype", "image size and dtype", "channels"],
)
def test_conversion_record_has_the_fingerprints_of_the_files_after_lossy_steps(
    tmp_path, expected, layout
):
    if layout == "torchvision" and expected.get("geometry") == Geometry(in_channels=1):
        pytest.skip("it has three channels")
    source, target = open_checkpoint(original(tmp_path)), target_for(layout, tmp_path)
    report = execute(plan_conversion(source, target, layout, task="encoder", **expected))
    again, before = of_file(target), checkpoint_fingerprint(source)
    assert (report["fingerprint"], report["parts"]) == (str(again), dict(again.parts))
    assert report["source"]["fingerprint"] == str(before)
    assert report["source"]["parts"] == dict(before.parts)
    if target.is_dir():
        record = json.loads((target / "conversion.json").read_text())
        assert record["fingerprint"] == str(again)
        assert record["source"]["fingerprint"] == str(before)


def test_a_folded_batch_norm_and_other_containers_orders_and_shards_do_not_change_it(
    case, tmp_path
):
    source = open_checkpoint(case("linprobe_tiny").checkpoint, Flags(num_attention_heads=4))
    expected = str(checkpoint_fingerprint(source))
    plans = [
        plan_conversion(source, target_for(name, tmp_path), name) for name in ("keras", "timm")
    ]
    for plan, report in zip(plans, execute_all(plans), strict=True):
        assert str(of_file(plan.target)) == expected
        assert report["fingerprint"] == report["source"]["fingerprint"] == expected
    tensors = list(source.container.tensors.values())
    config = {**source.configuration.model.to_dict(), "task": "classify", "layout": "facebook"}
    write_file(tmp_path / "turned.npz", "npz", tensors[::-1], config=config)
    assert str(of_file(tmp_path / "turned.npz")) == expected


def test_shards_do_not_change_it(tmp_path):
    source = open_checkpoint(original(tmp_path))
    packing = Packing(max_shard_size=5000)
    report = execute(plan_conversion(source, tmp_path / "out", "transformers", packing=packing))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert str(of_file(tmp_path / "out")) == str(checkpoint_fingerprint(source))
    assert report["fingerprint"] == str(checkpoint_fingerprint(source))


def test_one_changed_bit_changes_only_the_fingerprint_of_its_part(tmp_path):
    source = open_checkpoint(original(tmp_path))
    before = checkpoint_fingerprint(source)
    for name in source.tensors:
        array = source.tensors[name].load().copy()
        array.reshape(-1).view(np.uint8)[-4] ^= 1
        changed = {**source.tensors, name: LazyTensor.from_array(name, array)}
        after = checkpoint_fingerprint(replace(source, tensors=changed))
        part = name.partition(".")[0]
        assert {p for p in before.parts if before.parts[p] != after.parts[p]} == {part}, name
        assert after.weights != before.weights
        assert after.configuration == before.configuration


def test_only_fields_that_change_the_function_change_the_fingerprint():
    config = ViTMAEConfig(**SMALL)

    def differs(task, **changes):
        changed = replace(config, **changes)
        return configuration_digest(MAE, changed, task) != configuration_digest(MAE, config, task)

    for task in ("pretrain", "encoder", "classify"):
        for changes in (
            {"num_attention_heads": 4},
            {"layer_norm_eps": 1e-12},
            {"hidden_act": "gelu_new"},
            {"image_size": (8, 32)},
        ):
            assert differs(task, **changes), (task, changes)
        assert not differs(task, mask_ratio=0.5, hidden_dropout_prob=0.1, initializer_range=1.0)
    for changes in (
        {"decoder_num_attention_heads": 4},
        {"norm_pix_loss": True},
        {"decoder_layer_norm_eps": 1e-5},
    ):
        assert differs("pretrain", **changes), changes
        assert not differs("classify", **changes)
    assert not differs("pretrain", decoder_layer_norm_eps=config.layer_norm_eps)
    assert differs("classify", global_pool="avg")
    tanh, swish = replace(config, hidden_act="gelu_new"), replace(config, hidden_act="swish")
    same = configuration_digest(MAE, replace(config, hidden_act="gelu_pytorch_tanh"), "encoder")
    assert configuration_digest(MAE, tanh, "encoder") == same
    assert configuration_digest(MAE, swish, "encoder") == configuration_digest(
        MAE, replace(config, hidden_act="silu"), "encoder"
    )


def test_new_head_is_in_the_fingerprint_of_the_target_only(tmp_path):
    source = open_checkpoint(original(tmp_path))
    plan = plan_conversion(with_new_head(source, 4), tmp_path / "a.pth", "facebook")
    report = execute(plan)
    assert report["source"]["fingerprint"] == str(checkpoint_fingerprint(source))
    assert report["fingerprint"] == str(of_file(tmp_path / "a.pth"))
    assert set(report["parts"]) == {"encoder", "head"}


def test_digest_is_correct_for_repeated_partial_and_out_of_order_reads():
    array = np.arange(48, dtype=np.float32).reshape(6, 8)
    tensor = LazyTensor("x", (6, 8), array.dtype, ArrayLoad((6, 8), array.dtype, array))
    for parts in (
        [(0, 6)],
        [(0, 2), (2, 6)],
        [(0, 2), (0, 6)],
        [(0, 6), (0, 3)],
        [(4, 6), (0, 4)],
        [(0, 4), (1, 6)],
        [],
    ):
        digest = PassingDigest(tensor)
        for first, last in parts:
            digest.watched.load.elements(8 * first, 8 * last)
        digest.watched.load.elements(4, 20)
        assert digest.hexdigest() == sha256(tensor), parts


@dataclass(frozen=True, eq=False)
class ArrayLoad(SequentialArray):
    array: np.ndarray

    def elements(self, start, stop):
        return self.array.reshape(-1)[start:stop]


def test_command_prints_one_json_object_and_reports_missing_fields(case, command):
    path = case("pretrain_tiny").checkpoint
    values = command("fingerprint", path, "--num-heads", 4, "--decoder-num-heads", 3, "--json").json
    assert values["fingerprint"].split(":")[2] == values["configuration"]
    assert values["assumed"]["layer_norm_eps"]["source"] == "convention of the facebook layout"
    unknown = command("fingerprint", path, "--json").json
    assert unknown["configuration"] is None
    assert unknown["missing"] == ["num_attention_heads", "decoder_num_attention_heads"]
    assert unknown["parts"] == values["parts"]
    assert values["fingerprint"].startswith(unknown["fingerprint"] + ":")
    shown = command("fingerprint", path)
    assert shown.out.splitlines()[0] == unknown["fingerprint"]
    assert "unknown: a configuration field is missing" in shown.out
    assert "specify it with --decoder-num-heads" in shown.out
    looked = command(
        "inspect", path, "--num-heads", 4, "--decoder-num-heads", 3, "--hash", "--json"
    )
    assert looked.json["fingerprint"] == values["fingerprint"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz", ".weights.h5", ".keras"])
@pytest.mark.parametrize(
    "options", [{}, {"dtype": "float16"}, {"task": "encoder"}], ids=["all", "rounded", "encoder"]
)
def test_single_file_contains_the_fingerprints_of_result_and_source(tmp_path, suffix, options):
    """Its record, written before the digests of tensors are known, contains the fingerprints."""
    source = open_checkpoint(original(tmp_path))
    target = tmp_path / f"model{suffix}"
    layout = "keras" if suffix in (".weights.h5", ".keras") else "facebook"
    report = execute(plan_conversion(source, target, layout, **options))
    written = open_checkpoint(target)
    record = written.container.conversion
    assert record["fingerprint"] == str(checkpoint_fingerprint(written)) == report["fingerprint"]
    assert record["source"]["fingerprint"] == str(checkpoint_fingerprint(source))
