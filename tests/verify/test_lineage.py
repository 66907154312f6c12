"""Lineage: weights and encoders are compared, declared steps recomputed, records reported."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from small_models import original

from mae_convert.checkpoint.fingerprint import TensorDigest
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.cli.output.lineage import counts_in_words, differing_tensors
from mae_convert.convert.changes import Geometry
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.formats import write_file
from mae_convert.formats.tensor import LazyTensor
from mae_convert.verify.lineage import DifferingTensor


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A pre-training model, and directories that were converted from it."""
    folder = tmp_path_factory.mktemp("lineage")
    source = open_checkpoint(original(folder))
    for name, layout, expected in (
        ("same", "transformers", {}),
        ("encoder", "timm", {"task": "encoder"}),
        ("half", "timm", {"task": "encoder", "dtype": "float16"}),
        ("small", "transformers", {"geometry": Geometry(image_size=(24, 24))}),
    ):
        execute(plan_conversion(source, folder / name, layout, **expected))
    return folder


@pytest.fixture
def lineage(command):
    """Run the command and return its JSON; its exit status is checked against ``related``."""

    def run(a, b, *options):
        result = command("lineage", a, b, *options, "--json")
        assert result.status in (0, 1), result.err
        assert result.json["related"] == (result.status == 0)
        shown = command("lineage", a, b, *options)
        assert (shown.status, shown.out.splitlines()[0]) == (
            result.status,
            result.json["sentence"],
        )
        return result.json

    return run


def changed(path, target, name, change):
    """Write the file of a directory again, with a tensor changed; the record is unchanged."""
    shutil.copytree(path, target)
    opened = open_checkpoint(path).container
    tensors = {n: t.load().copy() for n, t in opened.tensors.items()}
    tensors[name] = change(tensors[name])
    write_file(
        target / "model.safetensors",
        "safetensors",
        [LazyTensor.from_array(n, array) for n, array in tensors.items()],
        overwrite=True,
    )
    return target


@pytest.mark.parametrize(
    ("b", "relation", "steps"),
    [
        ("same", "same weights", []),
        ("encoder", "same encoder", []),
        ("half", "derived", ["task", "dtype"]),
        ("small", "derived", ["image_size"]),
    ],
)
def test_conversion_is_recognised_in_both_directions(models, lineage, b, relation, steps):
    for pair in ((models / "original.pth", models / b), (models / b, models / "same")):
        lineage_result = lineage(*pair)
        assert lineage_result["relation"] == relation
        assert [step["step"] for step in lineage_result["steps"]] == steps
        assert lineage_result["recomputed"] == (True if steps else None)
        assert lineage_result["equal"] > 30


def test_declared_steps_are_not_trusted_without_recomputation(models, lineage, tmp_path):
    def one_more_bit(array):
        array.reshape(-1).view(np.uint8)[0] ^= 1
        return array

    name = "blocks.1.mlp.fc1.bias"
    target = changed(models / "half", tmp_path / "b", name, one_more_bit)
    lineage_result = lineage(models / "original.pth", target)
    assert lineage_result["relation"] == "unrelated"
    assert not lineage_result["related"]
    other = changed(models / "encoder", tmp_path / "c", name, one_more_bit)
    lineage_result = lineage(models / "original.pth", other)
    assert lineage_result["relation"] == "partly the same"
    of_encoder = [t["name"] for t in lineage_result["tensors"] if t["name"].startswith("encoder.")]
    assert of_encoder == ["encoder.blocks.1.mlp.fc1.bias"]


def test_the_same_weights_with_other_heads_are_not_the_same_model(models, lineage, tmp_path):
    target = shutil.copytree(models / "same", tmp_path / "b")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))
    (target / "conversion.json").unlink()
    tensors = list(open_checkpoint(models / "same").container.tensors.values())
    write_file(target / "model.safetensors", "safetensors", tensors, overwrite=True)
    lineage_result = lineage(models / "same", target)
    assert (lineage_result["relation"], lineage_result["related"]) == ("same weights", False)
    assert lineage_result["configuration"] == {"num_attention_heads": {"a": 3, "b": 4}}


def test_other_weights_are_unrelated_and_every_tensor_is_named(models, lineage, tmp_path):
    source = open_checkpoint(models / "original.pth")
    tensors = [
        LazyTensor.from_array(name, t.load() + np.float32(1))
        for name, t in source.container.tensors.items()
    ]
    config = source.configuration.model.to_dict()
    write_file(tmp_path / "other.pth", "pth", tensors, config=config)
    lineage_result = lineage(models / "original.pth", tmp_path / "other.pth")
    assert (lineage_result["relation"], lineage_result["equal"]) == ("unrelated", 0)
    assert [t["name"] for t in lineage_result["tensors"]] == list(source.tensors)


def test_tensors_of_one_side_only_are_not_counted_as_differing():
    digest = TensorDigest((1,), "float32", "0" * 64)
    tensors = [
        DifferingTensor("encoder.norm.bias", digest, replace(digest, sha256="1" * 64)),
        DifferingTensor("decoder.norm.bias", digest, None),
        DifferingTensor("head.bias", None, digest),
        DifferingTensor("head.weight", None, digest),
    ]
    text = "1 is bit-identical, 1 differs, 1 is only in A, 2 are only in B"
    assert counts_in_words(1, tensors) == text
    shown = io.StringIO()
    Console(file=shown, width=80).print(differing_tensors(tensors, 80))
    assert (
        "encoder.norm.bias    float32 1 000000000000    float32 1 111111111111" in shown.getvalue()
    )
    shown = io.StringIO()
    Console(file=shown, width=60).print(differing_tensors(tensors, 60))
    assert shown.getvalue().splitlines()[:3] == [
        "encoder.norm.bias",
        "  in A  float32 1 000000000000",
        "  in B  float32 1 111111111111",
    ]


def test_models_of_two_families_are_described_as_such(models, lineage, case):
    found = lineage(models / "same", case("prithvi_v2_tiny").checkpoint)
    assert found["configuration"] == {"family": {"a": "mae", "b": "prithvi"}}
    assert (found["related"], found["not_compared"]) == (False, [])


def test_records_are_sufficient_and_the_result_reports_their_use(models, lineage, tmp_path):
    for b, relation in (("same", "same weights"), ("half", "derived"), ("small", "derived")):
        (tmp_path / b).mkdir()
        shutil.copy(models / b / "conversion.json", tmp_path / b)
        for record in (tmp_path / b, tmp_path / b / "conversion.json"):
            lineage_result = lineage(models / "original.pth", record)
            assert lineage_result["relation"] == relation
            assert lineage_result["recomputed"] is (None if b == "same" else False)
            assert "according to the record" in lineage_result["sentence"]
            assert "were not read" in lineage_result["rests_on"][1]
    lineage_result = lineage(tmp_path / "same", tmp_path / "small")
    assert (lineage_result["relation"], lineage_result["recomputed"]) == ("derived", False)
    lineage_result = lineage(tmp_path / "half", tmp_path / "small")
    assert (lineage_result["relation"], lineage_result["parts"]) == (
        "unrelated",
        ["encoder", "decoder"],
    )
    # Records in single files contain fingerprints of sources, but not the digests of their parts.
    first = open_checkpoint(models / "original.pth")
    execute(plan_conversion(first, tmp_path / "first.pth", "facebook", task="encoder"))
    first = open_checkpoint(tmp_path / "first.pth")
    execute(plan_conversion(first, tmp_path / "second", "timm", dtype="float16"))
    for source, steps in (("original.pth", ["task", "dtype"]), ("first.pth", ["dtype"])):
        folder = models if source == "original.pth" else tmp_path
        found = lineage(folder / source, tmp_path / "second" / "conversion.json")
        assert (found["relation"], [s["step"] for s in found["steps"]]) == ("derived", steps)
    # The checkpoint with a record was converted from one of which only a record is available.
    assert lineage(tmp_path / "same", models / "half")["relation"] == "derived"


def test_certificate_is_sufficient(certified, case, lineage, tmp_path):
    source, target = case("pretrain_tiny").checkpoint, certified
    shutil.copy(target / "verification.json", tmp_path / "verification.json")
    for certificate in (tmp_path, tmp_path / "verification.json"):
        lineage_result = lineage(source, certificate)
        assert lineage_result["relation"] == "same weights"
        assert "according to the record" in lineage_result["sentence"]
    assert lineage(tmp_path, target)["relation"] == "same weights"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fingerprint": "mae1:" + "0" * 64}, "not match its digests"),
        ({"parts": {"tail": "0" * 64}}, "not match its digests"),
        ({"parts": {"encoder": "\x1b[31m"}}, "not match its digests"),
        ({"parts": 3}, "must be object"),
        ({"configuration": "é"}, "not match its digests"),
        ({"fingerprint": None}, "must be string"),
        ("no fingerprint", "has no fingerprint"),
        ([], "neither a certificate nor"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(models, command, tmp_path, change, words):
    record = json.loads((models / "same" / "conversion.json").read_text())
    if change == "no fingerprint":
        del record["fingerprint"]
    else:
        record = record | change if isinstance(change, dict) else change
    (tmp_path / "record.json").write_text(json.dumps(record))
    result = command("lineage", models / "original.pth", tmp_path / "record.json")
    assert (result.status, result.out) == (2, "")
    assert words in result.err
    assert result.err.count("\n") == 1
    assert "\x1b" not in result.err


def test_a_certificate_that_did_not_pass_shows_no_relation(certified, case, command, tmp_path):
    source, target = case("pretrain_tiny").checkpoint, certified
    document = json.loads((target / "verification.json").read_text()) | {"passed": False}
    (tmp_path / "verification.json").write_text(json.dumps(document))
    result = command("lineage", source, tmp_path)
    assert result.status == 2
    assert "failed verification" in result.err
