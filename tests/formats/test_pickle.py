"""No pickle is executed: supported types become plain data, others are skipped or refused."""

import argparse
import collections
import os
import pathlib
import pickle
import shutil
import struct
import subprocess
import sys
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mae_convert.errors import CheckpointError
from mae_convert.formats import open_container

TENSOR = {"a": torch.zeros(2)}


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def with_pickle(path: Path, data: bytes) -> Path:
    """Write a zip checkpoint of one float32 storage whose pickle is `data`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/data/0", bytes(8))
        archive.writestr("x/version", b"3\n")
    return path


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_container(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


MALICIOUS = {
    "posix.system": lambda flag: Calls(os.system, f"touch {flag}"),
    "builtins.eval": lambda flag: Calls(eval, f"open({flag!r}, 'w')"),
    "builtins.exec": lambda flag: Calls(exec, f"open({flag!r}, 'w')"),
    "builtins.getattr": lambda flag: Calls(Calls(getattr, os, "mkdir"), flag),
    "shutil.copy": lambda flag: Calls(shutil.copy, __file__, flag),
    "torch.serialization.load": lambda flag: Calls(torch.serialization.load, flag),
    "pathlib.Path.touch": lambda flag: Calls(pathlib.Path.touch, Path(flag)),
    "io.open": lambda flag: Calls(open, flag, "w"),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", MALICIOUS)
def test_pickle_that_would_run_code_is_refused_by_name(
    tmp_path: Path, name: str, protocol: int
) -> None:
    flag = tmp_path / "flag"
    if name == "builtins.getattr":  # modules cannot be pickled: written by hand
        data = b"\x80\x02cbuiltins\ngetattr\nX\x02\x00\x00\x00osX\x06\x00\x00\x00system\x86R."
    else:
        if name == "pathlib.Path.touch" and protocol < 4:
            pytest.skip("protocol 2 writes this as a call of getattr")
        data = pickle.dumps({"model": MALICIOUS[name](str(flag))}, protocol=protocol)
    short = name.replace("builtins", "__builtin__") if b"__builtin__" in data else name
    assert short in refused(with_pickle(tmp_path / "x.pth", data))
    assert "run code" in refused(with_pickle(tmp_path / "x.pth", data))
    assert not flag.exists()


def history_buffer() -> type:
    """Return a class with the name of mmengine's class; its state contains its own methods."""

    class HistoryBuffer:
        def __getstate__(self) -> dict:
            return {"_log_history": np.ones(3), "statistics_methods": {"mean": HistoryBuffer.mean}}

        def mean(self) -> float:
            return 1.0

    HistoryBuffer.__module__ = "mmengine.logging.history_buffer"
    HistoryBuffer.__qualname__ = "HistoryBuffer"
    HistoryBuffer.mean.__module__ = HistoryBuffer.__module__
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    return HistoryBuffer


@pytest.mark.parametrize("legacy", [True, False])
def test_the_history_in_a_checkpoint_of_mmengine_is_inert(tmp_path, monkeypatch, legacy) -> None:
    buffer = history_buffer()
    for name in ("mmengine", "mmengine.logging", buffer.__module__):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[buffer.__module__].HistoryBuffer = buffer
    value = {"state_dict": TENSOR, "message_hub": {"log_scalars": {"loss": buffer()}}}
    torch.save(value, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    opened = open_container(tmp_path / "x.pth")
    assert list(opened.tensors) == list(TENSOR)
    assert list(opened.ignored) == ["message_hub"]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_bare_pickle_that_would_run_code(tmp_path: Path, protocol: int) -> None:
    flag = tmp_path / "flag"
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps(Calls(os.system, f"touch {flag}"), protocol=protocol))
    assert "posix.system" in refused(path)
    assert not flag.exists()


def test_a_bare_pickle_of_numpy_arrays_names_its_types(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": np.zeros(2)}, protocol=2))
    assert "_reconstruct, numpy.dtype, numpy.ndarray" in refused(tmp_path / "x.pkl")


def test_pickled_model_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
    message = refused(tmp_path / "x.pth")
    assert "torch.nn.modules.linear.Linear" in message
    assert "model.state_dict()" in message


def test_object_arrays_are_skipped_unless_an_element_runs_code(tmp_path: Path) -> None:
    array = np.array([Calls(os.system, "true")], dtype=object)
    torch.save({"model": TENSOR, "args": {"a": array}}, tmp_path / "x.pth")
    assert "posix.system" in refused(tmp_path / "x.pth")
    arrays = {"a": np.array(["a"], dtype=object), "b": np.array(["2024"], dtype="M8[s]")}
    torch.save({"model": TENSOR, "args": {**arrays, "c": 1}}, tmp_path / "x.pth")
    opened = open_container(tmp_path / "x.pth")
    assert opened.training_args == {"c": 1}
    assert {"args.a", "args.b"} < set(opened.ignored)


def test_a_name_is_shown_without_its_control_characters(tmp_path: Path) -> None:
    data = b"\x80\x04\x8c\x05\x1b[31m\x8c\x01x\x93."
    assert "\\x1b[31m.x" in refused(with_pickle(tmp_path / "x.pth", data))


INERT = {
    "text": "text",
    "number": 3,
    "large": 1 << 70,
    "half": 0.5,
    "truth": True,
    "nothing": None,
    "items": [1, [2, "three"], {"four": 5}],
    "floats": np.arange(4.0).reshape(2, 2),
    "columns": np.asfortranarray(np.arange(4).reshape(2, 2)),
    "big_endian": np.arange(3, dtype=">i2"),
    "names": np.array(["a", "bc"]),
    "scalar": np.float32(0.25),
    "flag": np.bool_(True),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", [argparse.Namespace, types.SimpleNamespace, dict])
def test_arguments_become_plain_data(tmp_path: Path, kind: Callable, protocol: int) -> None:
    whole = {"model": TENSOR, "args": kind(**INERT)}
    torch.save(whole, tmp_path / "x.pth", pickle_protocol=protocol)
    arguments = open_container(tmp_path / "x.pth").training_args
    assert arguments is not None
    assert list(arguments) == list(INERT)
    for name, value in INERT.items():
        expected = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        assert arguments[name] == expected
        assert type(arguments[name]) is type(expected)


DESCRIBED: dict[str, tuple[Any, Any]] = {
    "path": (pathlib.PurePosixPath("/a/b"), "/a/b"),
    "windows": (pathlib.PureWindowsPath("c:/a"), "c:\\a"),
    "tuple": ((1, 2), [1, 2]),
    "set": ({3}, [3]),
    "frozen": (frozenset({3}), [3]),
    "size": (torch.Size([1, 2]), [1, 2]),
    "dtype": (torch.float16, "torch.float16"),
    "numpy dtype": (np.dtype("f4"), "float32"),
    "device": (torch.device("cuda", 1), "cuda:1"),
    "type": (float, "float"),
    "range": (range(3), "range(0, 3)"),
    "slice": (slice(1, 2), "slice(1, 2, None)"),
    "complex": (1 + 2j, "(1+2j)"),
    "bytes": (b"ab", "b'ab'"),
    "ordered": (collections.OrderedDict(a=1), {"a": 1}),
    "default": (collections.defaultdict(int, a=1), {"a": 1}),
    "counter": (collections.Counter("aab"), {"a": 2, "b": 1}),
    "tensor": (torch.zeros(2, 3), "a tensor of shape (2, 3)"),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", DESCRIBED)
def test_inert_types_are_converted_to_json_types(tmp_path: Path, name: str, protocol: int) -> None:
    value, expected = DESCRIBED[name]
    whole = {"model": TENSOR, "args": {name: value}}
    torch.save(whole, tmp_path / "x.pth", pickle_protocol=protocol)
    assert open_container(tmp_path / "x.pth").training_args == {name: expected}


def test_state_dict_with_metadata_is_read(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "x.pth")
    assert list(open_container(tmp_path / "x.pth").tensors) == ["weight", "bias"]


def tensor_pickle(
    shape: str, strides: str, *, offset: int = 0, key: str = "0", count: int = 2
) -> bytes:
    """Return a text pickle of one tensor over a storage of `count` float32."""
    storage = f"(S'storage'\nctorch\nFloatStorage\nS'{key}'\nS'cpu'\nI{count}\ntQ"
    integers = [
        f"({''.join(f'I{n}' + chr(10) for n in part.split())}t" for part in (shape, strides)
    ]
    rebuilt = f"ctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n{''.join(integers)}I00\nNtR"
    return f"\x80\x02(dS'a'\n{rebuilt}s.".encode("latin-1")


def test_tensor_pickle_without_damage_is_read(tmp_path: Path) -> None:
    opened = open_container(with_pickle(tmp_path / "x.pth", tensor_pickle("2", "1")))
    np.testing.assert_array_equal(opened.tensors["a"].load(), np.zeros(2, np.float32), strict=True)


LYING_TENSORS = {
    "too many": {"shape": "3", "strides": "1"},
    "beyond by stride": {"shape": "2", "strides": "2"},
    "beyond by offset": {"shape": "2", "strides": "1", "offset": 1},
    "negative offset": {"shape": "1", "strides": "1", "offset": -1},
    "negative stride": {"shape": "2", "strides": "-1", "offset": 1},
    "negative extent": {"shape": "-1 -2", "strides": "1 1"},
    "fewer strides": {"shape": "1 2", "strides": "1"},
    "endless by stride 0": {"shape": "100000 100000", "strides": "0 0"},
    "endless and empty": {"shape": f"0 {10**30}", "strides": "1 1"},
    "endless rank": {"shape": "1 " * 100, "strides": "1 " * 100},
    "a storage of another size": {"shape": "2", "strides": "1", "count": 3},
    "a missing storage": {"shape": "2", "strides": "1", "key": "7"},
    "a storage outside": {"shape": "2", "strides": "1", "key": "../data.pkl"},
}


@pytest.mark.parametrize("name", LYING_TENSORS)
def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path, name: str) -> None:
    path = with_pickle(tmp_path / "x.pth", tensor_pickle(**LYING_TENSORS[name]))
    with pytest.raises(CheckpointError):
        open_container(path)


def nested_twice(depth: int) -> bytes:
    """Return nested lists, each with the next list twice: 2^depth leaves in a few bytes."""
    return b"]" + b"(22e".join([b""] * depth)


BOMBS = {
    "set of a range": b"cbuiltins\nset\n(cbuiltins\nrange\n(I1000000000000\ntRtR.",
    "size of a range": b"ctorch\nSize\n(cbuiltins\nrange\n(I1000000000000\ntRtR.",
    "many bytes": b"cbuiltins\nbytearray\n(I1000000000000\ntR.",
    "many elements": b"cnumpy\ndtype\n(S'(1000000000,)f8'\ntR.",
    "a deep key": b"}" + b"(" * 0 + b"N" + b"2\x86" * 200 + b"Ns.",
    "a large memo index": b"Nr\xff\xff\xff\xff.",
    "a large integer": b"\x8b" + struct.pack("<I", 2000) + b"\x7f" * 2000 + b".",
    "a long string": b"X\xff\xff\xff\xff.",
    "a long text of digits": b"I" + b"9" * 10_000 + b"\n.",
    "marks only": b"(" * 1000 + b".",
    "an empty stack": b"\x86R.",
    "a call of nothing": b"N)R.",
    "a state for a class": b"ctorch\nSize\n}S'x'\nI1\nsb.",
    "a state for a tuple": b")}b.",
    "an item of a tuple": b")Na.",
    "an odd mapping": b"}(Nu.",
    "a name that is not text": b")N\x93.",
    "an extension": b"\x82\x01.",
    "a buffer": b"\x97.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_malformed_pickle_is_refused(tmp_path: Path, name: str) -> None:
    started = time.monotonic()
    with pytest.raises(CheckpointError):
        open_container(with_pickle(tmp_path / "x.pth", b"\x80\x02" + BOMBS[name]))
    assert time.monotonic() - started < 1


def test_exponentially_nested_value_is_not_expanded(tmp_path: Path) -> None:
    doubling = [0]
    for _ in range(100):
        doubling = [doubling, doubling]
    endless: dict = {}
    endless["again"] = endless
    whole = {"model": TENSOR, "args": {"a": doubling}, "config": endless}
    torch.save(whole, tmp_path / "x.pth")
    opened = open_container(tmp_path / "x.pth")
    assert opened.training_args is None
    assert opened.config is None
    assert opened.ignored == {"args": "1 setting", "config": "empty"}


def test_names_that_are_not_text_are_refused(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(2)}, tmp_path / "x.pth")
    assert "tensor names that are not text" in refused(tmp_path / "x.pth")


def test_nothing_of_a_refused_pickle_is_imported(tmp_path: Path) -> None:
    path = with_pickle(tmp_path / "x.pth", b"\x80\x02cantigravity\nfly\n.")
    program = (
        "import sys\nfrom mae_convert.formats import open_container\n"
        f"try: open_container({str(path)!r})\nexcept Exception as error: print(error)\n"
        "print('antigravity' in sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "antigravity.fly" in process.stdout
    assert process.stdout.endswith("False\n")
