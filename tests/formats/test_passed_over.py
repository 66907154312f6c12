"""Objects in a pickle that no weight needs are skipped, and named in the report."""

import collections
import datetime
import decimal
import enum
import functools
import io
import json
import logging
import re
import sys
import types
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from paths import DATA, GOLDEN

from mae_convert.cli.main import cli
from mae_convert.errors import CheckpointError, as_option
from mae_convert.formats import open_container
from mae_convert.formats.settings import read_config_text

CASES = DATA / "cases"
LIGHTNING = CASES / "pickled_extras" / "l_omegaconf.ckpt"
EMA = CASES / "pickled_extras" / "ema_module.pth"
HEADS = ("--num-heads", "4", "--decoder-num-heads", "4")
MODEL = {"a": torch.arange(4.0).reshape(2, 2)}


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("path", "location", "name"),
    [
        (LIGHTNING, "hyper_parameters.config", "omegaconf.dictconfig.DictConfig"),
        (EMA, "ema", "timm.utils.model_ema.ModelEmaV2"),
    ],
)
def test_a_file_with_an_object_beside_the_weights_is_read_and_the_object_named(
    tmp_path: Path, path: Path, location: str, name: str
) -> None:
    report = run("inspect", path, *HEADS)
    assert (report["task"], report["tensors"]) == ("pretrain", 62)
    assert report["ignored"][location].startswith(f"an object of {name}, which no weight needs")
    run("convert", path, tmp_path / "model", "--to", "transformers", *HEADS)
    record = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert record["dropped"][location] == report["ignored"][location]
    stored, written = open_container(path).tensors, open_container(tmp_path / "model").tensors
    for old, tensor in stored.items():
        assert (written[old.removeprefix("model.")].load() == tensor.load()).all()


def test_the_settings_in_an_omegaconf_configuration_are_plain_data() -> None:
    settings = {"num_heads": 4, "lr": 0.001, "betas": [0.9, 0.95]}
    opened = open_container(LIGHTNING)
    assert opened.training_args == {"config": settings, **settings}
    assert "omegaconf.nodes.AnyNode" in opened.passed_over
    assert "omegaconf" not in sys.modules


class Settings(dict):
    """Represents the subclasses of dict in configuration libraries."""

    def __init__(self, **values: object) -> None:
        super().__init__(values)
        self.__dict__.update(values)


class Config:
    """Represents any object."""

    def __init__(self, **values: object) -> None:
        self.values = values


def placed(monkeypatch: pytest.MonkeyPatch, kind: type, dotted: str) -> type:
    """Give a class the module and name of a library's class, so that pickles contain these."""
    module, _, name = dotted.rpartition(".")
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        part = ".".join(parts[:count])
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    made = type(name, (kind,), {"__module__": module, "__qualname__": name})
    setattr(sys.modules[module], name, made)
    return made


@pytest.mark.parametrize("dotted", ["easydict.EasyDict", "yacs.config.CfgNode"])
def test_the_items_of_a_configuration_that_is_a_dict(tmp_path, monkeypatch, dotted) -> None:
    kind = placed(monkeypatch, Settings, dotted)
    value = kind(heads=12, model=kind(name="mae_vit_base_patch16"), sizes=(1, 2))
    torch.save({"model": MODEL, "args": value}, tmp_path / "x.pth")
    opened = open_container(tmp_path / "x.pth")
    expected = {"heads": 12, "model": {"name": "mae_vit_base_patch16"}, "sizes": [1, 2]}
    assert opened.training_args == expected
    assert dotted in opened.ignored["args"]


def test_an_object_of_an_unknown_class_is_left_out_of_the_arguments(tmp_path, monkeypatch) -> None:
    config = placed(monkeypatch, Config, "vendor.config.Config")(model="mae_vit_base_patch16")
    whole = {"model": MODEL, "args": {"lr": 1, "cfg": config, "list": [1, config]}}
    torch.save(whole, tmp_path / "x.pth")
    opened = open_container(tmp_path / "x.pth")
    assert opened.training_args == {"lr": 1, "list": [1]}
    assert "args.cfg" in opened.ignored
    torch.save({"model": MODEL, "args": config}, tmp_path / "x.pth")
    assert open_container(tmp_path / "x.pth").training_args is None


@pytest.mark.parametrize("legacy", [False, True])
def test_unknown_objects_in_both_pytorch_formats_are_skipped(tmp_path, monkeypatch, legacy) -> None:
    config = placed(monkeypatch, Config, "vendor.config.Config")(x=1)
    whole = {"model": MODEL, "cfg": config}
    torch.save(whole, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    opened = open_container(tmp_path / "x.pth")
    assert (opened.tensors["a"].load() == MODEL["a"].numpy()).all()
    assert opened.passed_over == ("vendor.config.Config",)


class Colour(enum.Enum):
    """Represents any enumeration."""

    RED = 1


LINEAR = torch.nn.Linear(2, 2)
REAL = {
    "a time": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
    "a duration": datetime.timedelta(1),
    "a function with arguments": functools.partial(torch.nn.LayerNorm, eps=1e-6),
    "a member of an enumeration": Colour.RED,
    "one as a key": {Colour.RED: 1, (Colour.RED, 1): 2},
    "a decimal number": decimal.Decimal("1.5"),
    "an id": uuid.uuid4(),
    "a deque": collections.deque([1]),
    "a pattern": re.compile("a"),
    "a logger": logging.getLogger("x"),
    "a generator": np.random.default_rng(1),
    "a buffer": io.BytesIO(b"a"),
    "a module": torch.nn.Sequential(LINEAR, torch.nn.GELU()),
    "a method of a module": LINEAR.forward,
    "a class": torch.nn.LayerNorm,
    "a function": torch.nn.functional.gelu,
    "an optimizer": torch.optim.AdamW(LINEAR.parameters()),
    "a data set": torch.utils.data.TensorDataset(torch.zeros(2)),
    "a sparse tensor": torch.eye(2).to_sparse(),
    "an array of objects": np.array([1, "a", None], dtype=object),
    "an array of records": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
    "a masked array": np.ma.array([1, 2], mask=[0, 1]),
    "a path in a namespace": types.SimpleNamespace(a=Colour.RED),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", REAL)
def test_real_objects_beside_the_weights(tmp_path: Path, name: str, legacy: bool) -> None:
    whole = {"model": MODEL, "args": {"lr": 1, "x": REAL[name]}}
    torch.save(whole, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    opened = open_container(tmp_path / "x.pth")
    assert (opened.tensors["a"].load() == MODEL["a"].numpy()).all()
    assert (opened.training_args or {})["lr"] == 1
    assert any(location.startswith("args.x") for location in opened.ignored)
    assert opened.passed_over
    assert "0x" not in str(opened.training_args)


@pytest.mark.filterwarnings("ignore")
def test_a_storage_of_unknown_size_in_the_old_format_is_refused_by_name(tmp_path: Path) -> None:
    quantised = torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.quint8)
    whole = {"model": MODEL, "x": quantised}
    torch.save(whole, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"torch\.QUInt8Storage"):
        open_container(tmp_path / "x.pth")


def test_requested_ema_module_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"timm.utils.model_ema.ModelEmaV2"):
        open_container(EMA, "ema")


COPIES = {
    "model_ema": "model_ema",
    "ema_model": "ema_model",
    "ema": "ema",
    "ema_state_dict": "ema_state_dict",
    "averaged_model": "averaged_model",
    "model_ema.module": "model_ema.module",
    "ema.state_dict": "ema.state_dict",
    "my model-ema": "'my model-ema'",
}


@pytest.mark.parametrize("key", COPIES)
def test_one_of_two_models_in_a_file_has_to_be_selected(tmp_path: Path, key: str) -> None:
    copy: dict = {name: tensor + 1 for name, tensor in MODEL.items()}
    for part in reversed(key.split(".")):
        copy = {part: copy}
    torch.save({"model": MODEL, "epoch": 3, **copy}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        open_container(tmp_path / "x.pth")
    sentence = caught.value.render(as_option)
    assert f"--state-key model or --state-key {COPIES[key]}" in sentence
    for key_of_model, first in (("model", 0), (key, 1)):
        opened = open_container(tmp_path / "x.pth", key_of_model)
        assert (opened.wrapper, opened.tensors["a"].load()[0, 0]) == (key_of_model, first)


def test_the_settings_of_an_average_are_not_a_second_model(tmp_path: Path) -> None:
    whole = {"model": MODEL, "ema_settings": {"decay": torch.tensor(0.99)}}
    torch.save(whole, tmp_path / "x.pth")
    assert open_container(tmp_path / "x.pth").wrapper == "model"


def test_settings_in_an_object_under_a_wrappers_name_are_not_weights(tmp_path, monkeypatch) -> None:
    config = placed(monkeypatch, Config, "vendor.config.Config")(width=3)
    torch.save({"model": config, "state_dict": MODEL}, tmp_path / "x.pth")
    assert open_container(tmp_path / "x.pth").wrapper == "state_dict"


MMENGINE = """
# a comment
model = dict(
    backbone=dict(arch=dict(embed_dims=64, num_heads=4), img_size=(64, 32), type='MAEViT'),
    head=dict(norm_pix=True, lr=-1.5, hook=partial(f)), init_cfg=None)
data = [dict(a=1), {'b': 2, 3: 4}]
found = glob('*')
"""


def test_the_text_of_a_configuration_is_parsed_and_not_run(tmp_path: Path) -> None:
    expected = {
        "model": {
            "backbone": {
                "arch": {"embed_dims": 64, "num_heads": 4},
                "img_size": [64, 32],
                "type": "MAEViT",
            },
            "head": {"norm_pix": True, "lr": -1.5},
            "init_cfg": None,
        },
        "data": [{"a": 1}, {"b": 2, "3": 4}],
    }
    assert read_config_text(MMENGINE) == expected
    meta = {"epoch": 800, "cfg": MMENGINE}
    torch.save({"state_dict": MODEL, "meta": meta}, tmp_path / "x.pth")
    read = open_container(tmp_path / "x.pth").training_args
    assert read == {"meta": {"epoch": 800, "cfg": expected}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not python (",
        "model = dict(\n",
        "import os\nmodel = dict(a=1)",
        "model = dict(a=1)\nmodel['a'] = 2",
        "model = dict(a=1)\nmodel.update(a=2)",
        "for a in b: model = dict(a=1)",
        "a = " + "(" * 5000 + ")" * 5000,
        "a = " + "-" * 50_000 + "1",
        "a = 1\0",
        "a = " + "1" * 10_000,
        "a = 1\n" * 100_000,
    ],
    ids=range(12),
)
def test_configuration_text_with_other_statements_is_ignored(text: str) -> None:
    assert read_config_text(text) is None


def test_hyper_parameters_of_lightning_and_arguments_are_one_mapping(tmp_path: Path) -> None:
    whole = {"state_dict": MODEL, "hyper_parameters": {"heads": 3, "lr": 1}, "args": {"lr": 2}}
    torch.save(whole, tmp_path / "x.ckpt")
    opened = open_container(tmp_path / "x.ckpt")
    assert opened.training_args == {"heads": 3, "lr": 2}
    assert opened.ignored == {}


@pytest.mark.slow
def test_a_file_that_pytorch_refuses_is_verified_but_not_proven(tmp_path: Path) -> None:
    golden = GOLDEN / "pretrain_tiny" / "checkpoint.pth"
    model = torch.load(golden, weights_only=True)["model"]
    torch.save({"model": model, "when": REAL["a time"]}, tmp_path / "a.pth")
    heads = ("--num-heads", "4", "--decoder-num-heads", "3")
    run("convert", tmp_path / "a.pth", tmp_path / "b.safetensors", "--to", "facebook", *heads)
    verdict = run("verify", tmp_path / "a.pth", tmp_path / "b.safetensors", *heads)
    assert (verdict["passed"], verdict["proven"]) == (True, False)
    runner = verdict["witnesses"][0]
    assert runner["native"] is False
    assert "datetime.datetime" in str(runner)
