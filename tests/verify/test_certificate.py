"""A certificate is replayed without the source, and fails when anything has changed since."""

import errno
import hashlib
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mae_convert.checkpoint.fingerprint import checkpoint_fingerprint
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import CheckpointError, ConfigurationError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.files import staging
from mae_convert.runtime import running
from mae_convert.runtime.sides import Side
from mae_convert.runtime.trace import Trace
from mae_convert.verify.certificate import (
    ARRAYS,
    DOCUMENT,
    _hashes,
    _require_unchanged,
    read_certificate,
    read_source,
    write_certificate,
)
from mae_convert.verify.judge import LARGEST_CEILING_UNITS, ceiling_units
from mae_convert.verify.replay import replay
from mae_convert.verify.verification import Verification, run_verification

pytestmark = pytest.mark.usefixtures("forked_children")


@pytest.fixture(scope="module")
def certified(run, case, tmp_path_factory):
    folder, pretrain = tmp_path_factory.mktemp("certificate"), case("pretrain_tiny")
    target = folder / "pt"
    run("convert", pretrain.checkpoint, target, "--to", "transformers", *pretrain.heads)
    # Both runners start quickly.
    sides = ["--framework-a", "torch", "--framework-b", "transformers"]
    result = run(
        "verify", pretrain.checkpoint, target, *sides, "--certify", "--require-proof",
        *pretrain.heads,
    )  # fmt: skip
    assert result.status == 0, result.out + result.err
    return target


@pytest.fixture
def copy(certified, tmp_path):
    shutil.copytree(certified, tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def test_the_arrays_of_a_certificate_are_not_weights(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="contains no weights"):
        open_checkpoint(copy)
    (copy / ARRAYS).rename(copy / f"mae.pth.{ARRAYS}")  # the name beside a file
    with pytest.raises(CheckpointError, match="contains no weights"):
        open_checkpoint(copy)


def test_a_directory_without_write_permission_is_reported_before_the_runs(
    command, copy, monkeypatch
):
    def refuse(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(staging, "_make", refuse)
    result = command("verify", copy, copy, "--certify")
    assert result.status == 2
    assert f"{copy / DOCUMENT} cannot be written: permission is denied" in result.err


def test_certificate_records_what_was_verified(certified):
    document = json.loads((certified / DOCUMENT).read_text())
    assert (document["passed"], document["proven"]) == (True, True)
    assert document["source"]["name"] == "checkpoint.pth"
    assert set(document["files"]) == {
        "model.safetensors", "config.json", "preprocessor_config.json", "conversion.json",
    }  # fmt: skip
    assert str(certified.parent) not in (certified / DOCUMENT).read_text()
    assert not read_certificate(certified).changed_files()


def test_it_is_replayed_elsewhere_without_the_source(command, copy):
    result = command("verify", copy, "--json")
    assert result.status == 0, result.out + result.err
    names = {check["name"] for check in result.json["checks"]}
    assert {"function/logits", "function/loss", "float32/A/logits", "float32/B/logits"} <= names
    verdict = result.json
    assert (verdict["passed"], verdict["proven"], verdict["replayed"]) == (True, False, True)


def test_certificate_without_the_source_is_not_a_proof(command, copy):
    """The author of a certificate can put B's own weights into it under A's name and hash."""
    result = command("verify", copy, "--framework-a", "torch", "--require-proof")
    assert result.status == 1
    assert "NOT PROVEN" in result.out
    assert "verify B against its source" in " ".join(result.out.split())
    result = command("verify", copy, "--framework-a", "torch")
    assert result.status == 0
    words = " ".join(result.out.split())
    assert "B still computes the certified results; the source was not available" in words


def changed_weight(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def changed_field(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_norm_eps": 1e-5}))


def changed_figures(folder):
    data = bytearray((folder / ARRAYS).read_bytes())
    data[-3] ^= 64
    (folder / ARRAYS).write_bytes(data)


def no_weights(folder):
    (folder / "model.safetensors").unlink()


CHANGES = {
    "model.safetensors": changed_weight,
    "config.json": changed_field,
    ARRAYS: changed_figures,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_has_changed_since_fails_and_is_named(command, copy, name):
    CHANGES[name](copy)
    result = command("verify", copy, "--json", "--framework-a", "torch")
    assert result.status == 1
    assert f"file/{name}" in {c["name"] for c in result.json["checks"] if not c["passed"]}


def test_missing_file_fails_and_is_named(command, copy):
    no_weights(copy)
    result = command("verify", copy, "--json")
    assert result.status == 1
    assert [c["name"] for c in result.json["checks"]] == ["file/model.safetensors"]


def edited(folder, change):
    document = json.loads((folder / DOCUMENT).read_text())
    change(document)
    (folder / DOCUMENT).write_text(json.dumps(document))


EDITS = {
    "certificate/checks": lambda d: d["checks"][3].update(passed=False),
    "certificate/limits": lambda d: d["limits"].update(function=1.0),
    "certificate/steps": lambda d: d["steps"].append(
        {"step": "dtype", "from": ["float32"], "to": "bfloat16"}
    ),
    "file/config.json": lambda d: d["files"].pop("config.json"),
}


@pytest.mark.parametrize("name", EDITS)
def test_certificate_with_inconsistent_content_fails(command, copy, name):
    edited(copy, EDITS[name])
    result = command("verify", copy, "--json", "--framework-a", "torch")
    assert result.status == 1, result.err
    assert [c["name"] for c in result.json["checks"] if not c["passed"]] == [name]


DAMAGE = {
    "checks": lambda d: d.update(checks=[]),
    "layer_norm_eps": lambda d: d["source_trace"]["config"].update(layer_norm_eps="x"),
    "control characters": lambda d: d["source_trace"]["checkpoint"].update(name="\x1b[2J"),
    "checks[3].passed": lambda d: d["checks"][3].update(passed="yes"),
    "checks[3]": lambda d: d["checks"].__setitem__(3, None),
    "source": lambda d: d.update(source=[]),
    "source must contain": lambda d: d["source"].pop("sha256"),
    "'../stolen' is not the name": lambda d: d["files"].update({"../stolen": "0" * 64}),
    "'/etc/passwd' is not the name": lambda d: d["files"].update({"/etc/passwd": "0" * 64}),
    "files.config.json": lambda d: d["files"].update({"config.json": 7}),
    "limits.function": lambda d: d["limits"].update(function="inf"),
    "steps[0] must contain": lambda d: d.update(steps=[{"step": "dtype", "to": "float16"}]),
    "tensors": lambda d: d["source_trace"].update(tensors={}),
    "encoder.cls_token": lambda d: d["source_trace"]["tensors"].pop("encoder.cls_token"),
    "not belong to a run of the trace": lambda d: d["source_trace"].update(dtypes=["float32"]),
    "own_errors": lambda d: d["source_trace"].update(own_errors={"float32": {"logits": -1}}),
    "ceiling_units": lambda d: d["source_trace"].update(ceiling_units=True),
    "num_hidden_layers": lambda d: d["source_trace"]["config"].update(num_hidden_layers=10**9),
    "the stored inputs are not": lambda d: d.update(inputs="0" * 64),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_certificate_that_is_damaged_is_refused(command, copy, message):
    edited(copy, DAMAGE[message])
    result = command("verify", copy, "--framework-a", "torch")
    assert (result.status, result.err.count("\n"), message in result.err) == (2, 1, True), (
        result.err
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[]", "must be object"),
        (b'{"format": 1, "format": 1}', "twice"),
        (b'{"format": NaN}', "NaN"),
        (b'{"format": 1e999}', "too large"),
        (b'{"format": ' + b"9" * 5000 + b"}", "integer with 5000 digits"),
        (b'{"format": ' + b"[" * 900 + b"]" * 900 + b"}", "nested"),
        (b"[" * 200_000, "nested"),
        (b'{"format": "\\ud800"}', "surrogate"),
        (b'\xff\xfe{"format": 1}', "UTF-8"),
        (b"", "empty"),
        (b" " * (5 << 20), "bytes"),
    ],
)
def test_a_text_that_is_not_plain_json_is_refused(command, copy, text, message):
    (copy / DOCUMENT).write_bytes(text)
    result = command("verify", copy)
    assert (result.status, result.err.count("\n"), message in result.err) == (2, 1, True), (
        result.err
    )


def changed_arrays(folder, change):
    """Change the arrays, and write the hash of the new file into the certificate."""
    arrays = {name: array.copy() for name, array in load_file(folder / ARRAYS).items()}
    change(arrays)
    save_file(arrays, folder / ARRAYS)
    digest = hashlib.sha256((folder / ARRAYS).read_bytes()).hexdigest()
    edited(folder, lambda d: d.update(arrays=digest))


ARRAY_DAMAGE = {
    "lacks logits": lambda a: a.pop("float64/logits"),
    "contains no noise": lambda a: a.pop("inputs/noise"),
    "float64/logits has shape (0, ": lambda a: a.update(
        {"float64/logits": a["float64/logits"][:0]}
    ),
    "float64/logits has shape": lambda a: a.update({"float64/logits": a["float64/logits"][0]}),
    "float64/logits has the dtype float32": lambda a: a.update(
        {"float64/logits": a["float64/logits"].astype(np.float32)}
    ),
    "float64/odd is not a result": lambda a: a.update({"float64/odd": a["float64/logits"]}),
    "1 and 2": lambda a: a.update(mask=a["mask"][:1].copy()),
    "mask has shape": lambda a: a.update(mask=a["mask"][..., None].copy()),
    "NaN": lambda a: a["inputs/noise"].fill(np.nan),
}


@pytest.mark.parametrize("message", ARRAY_DAMAGE)
def test_arrays_that_are_not_those_of_a_run_are_refused(command, copy, message):
    changed_arrays(copy, ARRAY_DAMAGE[message])
    result = command("verify", copy, "--framework-a", "torch")
    assert (result.status, result.err.count("\n"), message in result.err) == (2, 1, True), (
        result.err
    )


def test_higher_ceiling_in_a_certificate_does_not_widen_the_limits(copy):
    edited(copy, lambda d: d["source_trace"].update(ceiling_units=1e9))
    assert ceiling_units(read_source(read_certificate(copy))[0]) == LARGEST_CEILING_UNITS


def test_replay_reports_omitted_checks(command, copy):
    result = command("verify", copy, "--framework-a", "torch")
    assert result.status == 0
    assert "not compared: intermediate activations" in result.out


def test_preprocessing_added_after_certification_is_detected(command, copy):
    edited(copy, lambda d: d["files"].pop("preprocessor_config.json"))
    result = command("verify", copy, "--framework-a", "torch")
    assert (result.status, "preprocessor_config.json" in result.out) == (1, True)


def test_missing_or_damaged_certificate_is_reported_in_one_sentence(command, copy):
    (copy / DOCUMENT).write_text('{"format": 1}')
    result = command("verify", copy)
    assert (result.status, result.err.count("\n")) == (2, 1)
    (copy / DOCUMENT).unlink()
    result = command("verify", copy)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "--certify" in result.err


def test_failed_verification_is_not_certified(command, case, copy, tmp_path):
    (copy / DOCUMENT).unlink()
    changed_weight(copy)
    pretrain = case("pretrain_tiny")
    sides = ["--framework-a", "torch", "--framework-b", "transformers"]
    result = command("verify", pretrain.checkpoint, copy, *sides, "--certify", *pretrain.heads)
    assert result.status == 1
    assert not (copy / DOCUMENT).exists()


def test_certified_directory_can_be_converted_again(command, case, copy):
    pretrain = case("pretrain_tiny")
    again = ["convert", pretrain.checkpoint, copy, "--to", "transformers", *pretrain.heads]
    assert command(*again, "--overwrite").status == 0
    assert not (copy / DOCUMENT).exists()


def test_a_single_file_has_its_certificate_beside_it(command, case, tmp_path):
    source = case("encoder_tiny")
    target = tmp_path / "encoder.safetensors"
    command("convert", source.checkpoint, target, "--to", "facebook", *source.heads)
    sides = ["--framework-a", "torch", "--framework-b", "torch"]
    result = command("verify", source.checkpoint, target, *sides, "--certify", *source.heads)
    assert result.status == 0, result.err
    assert (tmp_path / "encoder.safetensors.verification.json").is_file()
    assert command("verify", target, *sides[:2]).status == 0


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--gradients",), "repeats the runs that the certificate records"),
        (("--against", "timm"), "repeats the runs that the certificate records"),
        (("--framework-b", "torch"), "repeats the runs that the certificate records"),
        (("--dtype", "float16"), "the certificate has no float16 run"),
    ],
)
def test_unsupported_replay_options_are_refused(command, certified, option, words):
    result = command("verify", certified, *option)
    assert (result.status, words in result.err) == (2, True), result.err


@pytest.fixture
def pair(case, tmp_path):
    """A source, and a file whose names PyTorch reads natively, so that its child opens the file."""
    source = case("encoder_tiny")
    flags = Flags(num_attention_heads=source.facts["num_heads"])
    opened = open_checkpoint(source.checkpoint, flags)
    (tmp_path / "b").mkdir()
    execute(plan_conversion(opened, tmp_path / "b" / "model.safetensors", "facebook"))
    return opened, open_checkpoint(tmp_path / "b" / "model.safetensors")


def meanwhile(monkeypatch, action):
    """Call a function after all files were read and before the child processes open them."""
    start, actions = running._worker, [action]

    def later(*arguments):
        while actions:
            actions.pop()()
        return start(*arguments)

    monkeypatch.setattr(running, "_worker", later)


def other_bytes(path):
    data = bytearray(path.read_bytes())
    data[-2] ^= 64
    return bytes(data)


def test_weights_that_are_replaced_while_they_are_verified_are_not_certified(pair, monkeypatch):
    """The opened files are run and verified; files that replaced them get no certificate."""
    source, target = pair
    path = target.container.weights_file

    def replace_it():
        new = path.with_name("new")
        new.write_bytes(other_bytes(path))
        new.replace(path)

    before = hashlib.sha256(path.read_bytes()).hexdigest()
    meanwhile(monkeypatch, replace_it)
    verification = run_verification(source, target, Side("torch"), Side("torch"))
    assert verification.verdict.passed
    assert verification.traces[1].description["checkpoint"]["sha256"] == before
    with pytest.raises(CheckpointError, match="is not the file that was verified"):
        write_certificate(verification, target)
    assert not [p.name for p in path.parent.iterdir() if "verification" in p.name]


def test_weights_that_are_written_to_while_they_are_verified_are_refused(pair, monkeypatch):
    source, target = pair
    path = target.container.weights_file
    meanwhile(monkeypatch, lambda: path.write_bytes(other_bytes(path)))
    with pytest.raises(CheckpointError, match="was changed while it was being read"):
        run_verification(source, target, Side("torch"), Side("torch"))


def test_a_configuration_that_is_replaced_after_it_was_read_is_not_certified(copy):
    target = open_checkpoint(copy)
    verification = Verification(None, {}, (None, Trace(
        {"checkpoint": {"sha256": read_certificate(copy).document["target"]["sha256"]}}, {}
    )))  # fmt: skip
    assert _hashes(verification, target) == read_certificate(copy).document["files"]
    changed = json.loads((copy / "config.json").read_text()) | {"layer_norm_eps": 1e-5}
    (copy / "new").write_text(json.dumps(changed))
    (copy / "new").replace(copy / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json is not the file that was verified"):
        _require_unchanged(_hashes(verification, target), copy)


@pytest.mark.parametrize("name", ["processor_config.json", "modeling.py"])
def test_later_file_that_affects_a_library_is_detected(copy, name):
    assert not read_certificate(copy).failed_checks_of_files(open_checkpoint(copy))
    (copy / "README.md").write_text("a card")
    assert not read_certificate(copy).failed_checks_of_files(open_checkpoint(copy))
    (copy / name).write_text("{}")
    failed = read_certificate(copy).failed_checks_of_files(open_checkpoint(copy))
    assert [check.name for check in failed] == [f"file/{name}"]


def test_later_adapter_is_refused(copy):
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"contains adapter_config"):
        open_checkpoint(copy)


def test_both_fingerprints_are_in_the_certificate_and_replaying_it_checks_the_target(copy):
    document = json.loads((copy / "verification.json").read_text())
    expected = str(checkpoint_fingerprint(open_checkpoint(copy)))
    assert document["target"]["fingerprint"] == document["source"]["fingerprint"] == expected
    assert document["source_trace"]["fingerprint"] == expected
    other = f"mae1:{'0' * 64}:{expected.split(':')[2]}"
    changed = document | {"target": document["target"] | {"fingerprint": other}}
    (copy / "verification.json").write_text(json.dumps(changed))
    verdict = replay(copy, Side("torch")).verdict
    assert not verdict.passed
    assert "certificate/fingerprint" in [check.name for check in verdict.failed()]
    trace = document["source_trace"] | {"fingerprint": other}
    (copy / "verification.json").write_text(json.dumps(document | {"source_trace": trace}))
    with pytest.raises(CheckpointError, match="fingerprint does not match its tensors"):
        replay(copy, Side("torch"))
