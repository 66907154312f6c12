"""`.keras` files: Keras loads our files, we read those of Keras, and others are refused."""

import io
import json
import zipfile

import h5py
import numpy as np
import pytest
from keras_process import run_worker

from mae_convert.checkpoint.diff import diff
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import CheckpointError, ConfigurationError, OutputError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.formats.keras_archive import CONFIG, METADATA, WEIGHTS

pytestmark = pytest.mark.usefixtures("forked_children")

CASES = {
    "pretrain": ("pretrain_tiny", "float64"),
    "encoder": ("encoder_tiny", None),
    "classify": ("finetune_cls_tiny", "float16"),
    "pooled": ("finetune_gap_tiny", None),
}
FLAGS = Flags(num_attention_heads=4, decoder_num_attention_heads=3, layer_norm_eps=1e-5)


@pytest.fixture(scope="module")
def work(case, fork_servers, tmp_path_factory):
    """Return a folder with a `.keras` file of each case, and the files that Keras saved from it."""
    folder = tmp_path_factory.mktemp("keras")
    for name, (golden, dtype) in CASES.items():
        source = open_checkpoint(case(golden).checkpoint, FLAGS)
        execute(plan_conversion(source, folder / f"{name}.keras", "keras", dtype=dtype))
    run_worker(fork_servers, "keras_archive_worker.py", "tensorflow", folder)
    return folder


@pytest.fixture
def archive(case, tmp_path):
    source = open_checkpoint(case("encoder_tiny").checkpoint, FLAGS)
    execute(plan_conversion(source, tmp_path / "m.keras", "keras"))
    return tmp_path / "m.keras"


def members(path):
    with zipfile.ZipFile(path) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def packed(path, contents, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as opened:
        for name, data in contents.items():
            opened.writestr(name, data)
    return path


def with_config(path, **changes):
    """Write an archive again with fields of the model's configuration changed."""
    contents = members(path)
    config = json.loads(contents[CONFIG])
    config["config"]["config"] |= changes
    return packed(path, {**contents, CONFIG: json.dumps(config)})


@pytest.mark.parametrize("name", CASES)
class TestKerasItself:
    def test_every_variable_has_the_bits_of_the_source(self, work, name):
        with np.load(work / f"{name}.npz") as archive:
            loaded = dict(archive)
        with h5py.File(io.BytesIO(members(work / f"{name}.keras")[WEIGHTS])) as file:
            paths = []
            file.visititems(lambda n, item: paths.append(n) if hasattr(item, "dtype") else None)
            stored = [file[path][()] for path in paths]
        dtype = CASES[name][1] or "float32"
        assert {array.dtype for array in loaded.values()} == {np.dtype(dtype)}
        assert sorted(a.tobytes() for a in loaded.values()) == sorted(a.tobytes() for a in stored)

    def test_configuration_equals_that_of_keras_exactly(self, work, name):
        ours, reference = (members(work / f"{p}{name}.keras") for p in ("", "again-"))
        assert list(ours) == list(reference) == [METADATA, CONFIG, WEIGHTS]
        assert ours[CONFIG] == reference[CONFIG]
        assert json.loads(ours[METADATA]).keys() <= json.loads(reference[METADATA]).keys()

    def test_file_saved_by_keras_is_the_same_model(self, work, name):
        ours, reference = (open_checkpoint(work / f"{p}{name}.keras") for p in ("", "again-"))
        assert (
            reference.configuration.sources["layer_norm_eps"]
            == f"config.json of again-{name}.keras"
        )
        assert reference.configuration.model.layer_norm_eps == 1e-5
        difference = diff(ours, reference)
        assert difference.same, difference

    def test_original_is_restored_bit_for_bit(self, case, work, tmp_path, name):
        source = open_checkpoint(work / f"{name}.keras")
        assert source.container.kind == "keras_archive"
        execute(plan_conversion(source, tmp_path / "back.pth", "facebook"))
        golden, dtype = CASES[name]
        before = open_checkpoint(case(golden).checkpoint, FLAGS)
        for canonical, tensor in open_checkpoint(tmp_path / "back.pth").tensors.items():
            expected = before.tensors[canonical].load().astype(dtype or "float32")
            assert tensor.load().tobytes() == expected.tobytes(), canonical


@pytest.mark.parametrize("suffix", ["keras", "weights.h5"])
def test_the_state_of_an_optimizer_is_dropped(command, work, suffix):
    trained = open_checkpoint(work / f"trained.{suffix}", FLAGS)
    assert set(trained.dropped.values()) == {"the optimizer's state"}
    assert len(trained.dropped) > len(trained.rules)
    assert diff(open_checkpoint(work / "pretrain.keras", FLAGS), trained).equal == 94
    if suffix == "keras":
        assert trained.container.ignored == {"compile_config": "training settings"}


def test_conversion_is_proven_with_both_sides_read_natively(command, case, work):
    source = case("finetune_gap_tiny")
    result = command(
        "verify", source.checkpoint, work / "pooled.keras", *source.heads,
        "--layer-norm-eps", 1e-5, "--require-proof", "--json",
    )  # fmt: skip
    assert result.status == 0, result.out + result.err
    assert result.json["proven"]


def test_changed_configuration_is_detected(archive):
    with_config(archive, hidden_act="relu")
    with pytest.raises(
        ConfigurationError,
        match="json is relu, but gelu in the metadata of the weights",
    ):
        open_checkpoint(archive)


def test_the_same_model_makes_the_same_file(case, archive, tmp_path):
    source = open_checkpoint(case("encoder_tiny").checkpoint, FLAGS)
    execute(plan_conversion(source, tmp_path / "n.keras", "keras"))
    assert (tmp_path / "n.keras").read_bytes() == archive.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.keras", "n.keras"]


def test_mixed_dtypes_use_a_model_dtype_that_represents_all(case, tmp_path):
    from dataclasses import replace

    from mae_convert.formats import LazyTensor

    source = open_checkpoint(case("encoder_tiny").checkpoint, FLAGS)
    wide = source.tensors["encoder.norm.bias"]
    wide = LazyTensor.from_array(wide.name, wide.load().astype(np.float64))
    source = replace(source, tensors={**source.tensors, wide.name: wide})
    execute(plan_conversion(source, tmp_path / "m.keras", "keras"))
    config = json.loads(members(tmp_path / "m.keras")[CONFIG])
    assert config["config"]["dtype"]["config"] == {"name": "float64"}


def foreign(contents):
    config = {**json.loads(contents[CONFIG]), "registered_name": "acme>Transformer"}
    return {**contents, CONFIG: json.dumps({**config, "class_name": "Transformer"})}


DAMAGED = {
    "no configuration": (lambda c: {n: c[n] for n in (METADATA, WEIGHTS)}, "without config.json"),
    "no weights": (lambda c: {n: c[n] for n in (METADATA, CONFIG)}, "without model.weights.h5"),
    "weights as npz": (
        lambda c: {METADATA: c[METADATA], CONFIG: c[CONFIG], "model.weights.npz": b""},
        "without model.weights.h5",
    ),
    "another's model": (foreign, "class Transformer, .*save_weights"),
    "a lambda": (
        lambda c: {**c, CONFIG: json.dumps({"class_name": "Lambda", "config": {"function": "os"}})},
        "class Lambda",
    ),
    "no JSON": (lambda c: {**c, CONFIG: b"{"}, "config.json is not JSON"),
    "a list": (lambda c: {**c, CONFIG: b"[]"}, "class None"),
    "deep JSON": (lambda c: {**c, CONFIG: b"[" * 100_000}, "config.json is not JSON"),
    "a path upwards": (lambda c: {**c, "../../etc/passwd": b"x"}, "would be outside the archive"),
    "an absolute path": (lambda c: {**c, "/etc/passwd": b"x"}, "would be outside the archive"),
    "a Windows path": (lambda c: {**c, "C:\\x": b"x"}, "would be outside the archive"),
    "weights cut short": (lambda c: {**c, WEIGHTS: c[WEIGHTS][:5000]}, "truncated or corrupt"),
    "weights that are not HDF5": (lambda c: {**c, WEIGHTS: b"x" * 5000}, "truncated or corrupt"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_archive_is_refused_in_one_sentence(command, archive, name):
    damage, message = DAMAGED[name]
    packed(archive, damage(members(archive)))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(archive)
    result = command("inspect", archive)
    assert (result.status, result.out) == (2, "")
    assert len(result.err.strip().splitlines()) == 1


@pytest.mark.parametrize("what", ["weights", "configuration"])
def test_decompression_bomb_is_not_unpacked(archive, what):
    contents = members(archive)
    bomb = {"weights": WEIGHTS, "configuration": CONFIG}[what]
    contents[bomb] = b'{"a":' + b" " * (1 << 25)
    packed(archive, contents, zipfile.ZIP_DEFLATED)
    assert archive.stat().st_size < 1 << 20
    message = "compressed" if what == "weights" else "would have 33554437 bytes"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(archive)


def test_directory_with_one_archive_is_read_as_that_archive(archive):
    assert open_checkpoint(archive.parent).layout.name == "keras"


def test_an_archive_that_was_unpacked_is_the_same_model(archive, tmp_path):
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "unpacked")
    packed_model, unpacked = open_checkpoint(archive), open_checkpoint(tmp_path / "unpacked")
    assert diff(packed_model, unpacked).same
    assert unpacked.configuration.model == packed_model.configuration.model
    assert unpacked.configuration.sources["layer_norm_eps"] == "config.json"


@pytest.mark.parametrize("damage", [None, [], {"config": 3}, {}])
def test_malformed_configuration_is_refused_in_one_sentence(archive, damage):
    contents = members(archive)
    config = {**json.loads(contents[CONFIG]), "config": damage}
    packed(archive, {**contents, CONFIG: json.dumps(config)})
    with pytest.raises(ConfigurationError, match=r"has no entry config\.config"):
        open_checkpoint(archive)


def test_full_disk_leaves_no_file(case, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    source = open_checkpoint(case("encoder_tiny").checkpoint, FLAGS)
    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(OutputError, match="no space left"):
        execute(plan_conversion(source, tmp_path / "m.keras", "keras"))
    assert list(tmp_path.iterdir()) == []
