"""Files of TensorFlow and Keras: weights with known names are read, others are identified."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from paths import DATA

from mae_convert.checkpoint.diff import diff
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import CheckpointError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.formats import open_container, write_file
from mae_convert.formats.tensor import LazyTensor

SHARDED = DATA / "cases" / "tf_sharded"
SAFETENSORS = DATA / "cases" / "tf_safetensors"
TF_MODEL = DATA / "golden" / "transformers_tf_pretrain_tiny"


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_container(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("path", [SHARDED, SHARDED / "tf_model.h5.index.json", SAFETENSORS])
def test_shards_and_safetensors_of_the_tensorflow_classes_are_read(path: Path) -> None:
    opened = open_checkpoint(path)
    assert (opened.layout.name, opened.task) == ("transformers-tf", "pretrain")
    assert len(opened.container.tensors) == 62
    assert opened.dropped == {}


def test_both_contain_the_same_model_as_the_single_file(tmp_path: Path) -> None:
    source = open_checkpoint(SHARDED)
    execute(plan_conversion(source, tmp_path / "model", "transformers-tf"))
    for other in (SAFETENSORS, tmp_path / "model"):
        assert diff(source, open_checkpoint(other)).same


def test_a_part_of_a_sharded_model_is_named_as_one() -> None:
    assert "is shard 2 of 7; specify its directory" in refused(
        SHARDED / "tf_model-00002-of-00007.h5"
    )


def test_index_that_does_not_match_its_shards_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(SHARDED, copy)
    index = copy / "tf_model.h5.index.json"
    config = json.loads(index.read_text())
    name, shard = next(iter(config["weight_map"].items()))
    twice = {**config["weight_map"], f"x/{name.partition('/')[2]}": "tf_model-00001-of-00007.h5"}
    index.write_text(json.dumps({**config, "weight_map": twice}))
    assert "do not belong together" in refused(copy)
    index.write_text(json.dumps(config))
    (copy / shard).unlink()
    assert f"lists {shard}, which is not in the same folder" in refused(copy)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for part in (1, 2):
        with h5py.File(tmp_path / f"tf_model-0000{part}-of-00002.h5", "w") as file:
            file.attrs["layer_names"] = [b"vit/a:0"]
            file["vit/a:0"] = np.full(3, part, np.float32)
    named = {f"scope{part}/vit/a:0": f"tf_model-0000{part}-of-00002.h5" for part in (1, 2)}
    (tmp_path / "tf_model.h5.index.json").write_text(json.dumps({"weight_map": named}))
    assert "a tensor in two shards" in refused(tmp_path)


def saved_model(folder: Path) -> Path:
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"\x08\x01")
    (folder / "variables" / "variables.index").write_bytes(b"")
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(b"")
    return folder


@pytest.mark.parametrize("inside", ["", "saved_model.pb", "variables", "variables/variables.index"])
def test_saved_model_is_refused_with_instructions(tmp_path: Path, inside: str) -> None:
    folder = saved_model(tmp_path / "saved")
    message = refused(folder / inside)
    assert message.startswith(f"{folder} is a TensorFlow SavedModel")
    assert f"tensorflow.saved_model.load({str(folder)!r}).variables" in message
    assert "numpy.savez('model.npz'" in message


@pytest.mark.parametrize("inside", ["", "checkpoint", "ckpt-12.index"])
def test_tensorflow_checkpoint_is_identified_in_the_error(tmp_path: Path, inside: str) -> None:
    for number in (9, 12):
        for part in ("index", "data-00000-of-00001"):
            (tmp_path / f"ckpt-{number}.{part}").write_bytes(b"")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-12"\n')
    message = refused(tmp_path / inside)
    assert "is a TensorFlow checkpoint" in message
    assert f"Checkpoint(model=model).restore({str(tmp_path / 'ckpt-12')!r})" in message
    assert "model.save_weights('tf_model.h5')" in message


def test_checkpoint_saved_by_keras_2_is_refused_with_instructions(tmp_path: Path) -> None:
    for part in ("index", "data-00000-of-00001"):
        (tmp_path / f"weights.{part}").write_bytes(b"")
    assert f"model.load_weights({str(tmp_path / 'weights')!r})" in refused(tmp_path)


def test_orbax_checkpoint_is_identified_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "manifest.ocdbt").write_bytes(b"")
    assert "is an Orbax (JAX) checkpoint" in refused(tmp_path)


def test_other_file_with_the_index_suffix_is_not_a_tensorflow_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "faiss.index").write_bytes(b"IxFI")
    assert "TensorFlow" not in refused(tmp_path / "faiss.index")


def test_functional_keras_model_is_identified_by_its_layers(tmp_path: Path) -> None:
    kinds = {"input": "InputLayer", "backbone": "TFViTMAEModel", "out": "Dense"}
    layers = [{"class_name": kind, "config": {"name": name}} for name, kind in kinds.items()]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        config = {"class_name": "Functional", "config": {"layers": layers}}
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.15.0"
        file["model_weights/out/out/kernel:0"] = np.zeros((2, 2), np.float32)
    message = refused(tmp_path / "x.h5")
    assert "a whole Keras model (class Functional with the layers input, backbone, out)" in message
    assert "model.get_layer('backbone').save_weights('tf_model.h5')" in message


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"config": {"layers": [1]}}', "[" * 5000])
def test_full_model_with_unreadable_configuration_is_refused(tmp_path: Path, config: str) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["model_config"] = config
        file["a"] = np.zeros(2, np.float32)
    assert "model.get_layer('NAME')" in refused(tmp_path / "x.h5")


def test_weights_of_a_functional_model_around_a_transformers_class_are_refused(
    tmp_path: Path,
) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["layer_names"] = [b"input_1", b"tf_vi_tmae_model", b"dense"]
        for layer in file.attrs["layer_names"]:
            file.create_group(layer).attrs["weight_names"] = np.array([], "S1")
    message = refused(tmp_path / "x.h5")
    assert "model.get_layer('tf_vi_tmae_model').save_weights('tf_model.h5')" in message


def test_the_state_of_an_optimizer_in_mixed_precision_is_dropped(tmp_path: Path) -> None:
    """The file is like that of Keras 3.15 for a model that was compiled under mixed_float16."""
    flags = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
    execute(plan_conversion(open_checkpoint(TF_MODEL), tmp_path / "a.weights.h5", "keras"))
    remaining = open_container(tmp_path / "a.weights.h5")
    names = [
        *(f"optimizer/vars/{number}" for number in (0, 1, 1500)),
        *(f"optimizer/inner_optimizer/vars/{number}" for number in (0, 1, 1500)),
    ]
    state = [LazyTensor(n, (2,), np.dtype("f4"), lambda: np.zeros(2, "f4")) for n in names]
    write_file(tmp_path / "b.weights.h5", "keras_h5", [*remaining.tensors.values(), *state])
    opened = open_checkpoint(tmp_path / "b.weights.h5", flags)
    assert opened.dropped == dict.fromkeys(names, "the optimizer's state")
    assert opened.tensors.keys() == open_checkpoint(TF_MODEL).tensors.keys()


LINES = """
import h5py, tensorflow
variables = []
def collect(name, item):
    if isinstance(item, h5py.Dataset):
        name = name.split("/", 1)[1].removesuffix(":0")
        variables.append(tensorflow.Variable(item[()], name=name))
h5py.File({source!r}).visititems(collect)
whole = tensorflow.train.Checkpoint(variables=variables)
tensorflow.saved_model.save(whole, {folder!r})
"""


@pytest.mark.slow
def test_the_two_lines_make_a_readable_file_of_a_saved_model(tmp_path: Path) -> None:
    folder = str(tmp_path / "saved")
    program = LINES.format(source=str(TF_MODEL / "tf_model.h5"), folder=folder)
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, capture_output=True)
    first, second = refused(tmp_path / "saved").split("`")[1:4:2]
    subprocess.run(
        [sys.executable, "-c", f"{first}\n{second}"], check=True, cwd=tmp_path, capture_output=True
    )
    flags = Flags(4, 3, 1e-6)
    assert diff(open_checkpoint(tmp_path / "model.npz", flags), open_checkpoint(TF_MODEL)).same
