"""Tensors inside objects that are skipped, and harmless objects beside the weights.

Each file contains an object of an unsupported class. If the weights are inside the object, or if
the object received them as arguments and could have changed them, the file is refused. If the
object is only stored beside the weights, the weights are read unchanged.
"""

import struct
import zipfile
from pathlib import Path

from attacks.corpus import attacks, benign

CLASS = b"cvendor.objects\nThing\n"
NEW = CLASS + b")\x81"
FUNCTION = b"cvendor.objects\nmake\n"
ORDERED = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(name: str) -> bytes:
    module, _, attribute = name.partition(" ")
    return f"c{module}\n{attribute}\n".encode()


def storage(key: str, kind: str = "torch FloatStorage") -> bytes:
    return b"(" + text("storage") + named(kind) + text(key) + text("cpu") + b"K\x02tQ"


def tensor(key: str = "0", kind: str = "torch FloatStorage", inner: bytes | None = None) -> bytes:
    held = storage(key, kind) if inner is None else inner
    rebuild = named("torch._utils _rebuild_tensor_v2")
    return rebuild + b"(" + held + b"K\x00K\x02\x85K\x01\x85\x89" + ORDERED + b"tR"


def mapping(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def memoised(index: int, value: bytes) -> bytes:
    """Return the opcodes of a value that is memoized; `get(index)` refers to the same object."""
    return value + b"q" + bytes([index])


def get(index: int) -> bytes:
    return b"h" + bytes([index])


ROOT, STATE, TENSOR, STORAGE, OTHER = range(5)
WEIGHTS = memoised(STATE, b"}") + text("a") + tensor() + b"s"
"""A state dict of one tensor, [1, 2]."""


def checkpoint(model: bytes = WEIGHTS, extra: bytes | None = None, before: bytes = b"") -> bytes:
    """Return a training checkpoint: the state dict under "model", another value under "extra"."""
    beside = b"" if extra is None else text("extra") + extra + b"s"
    opened = b"\x80\x04" + before + memoised(ROOT, b"}")
    return opened + text("model") + model + b"s" + beside + b"."


def write(folder: Path, pickled: bytes) -> Path:
    path = folder / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", struct.pack("<2f", 1, 2))
        archive.writestr("x/data/1", struct.pack("<2f", 3, 4))
        archive.writestr("x/version", b"3\n")
    return path


IN_TENSOR = b"}" + text("a") + memoised(TENSOR, tensor()) + b"s"
IN_STORAGE = b"}" + text("a") + tensor(inner=memoised(STORAGE, storage("0"))) + b"s"
FROM_TYPE = named("torch._tensor _rebuild_from_type_v2")
GETATTR = named("builtins getattr")

INSIDE = {
    "items of an object": NEW + text("a") + tensor() + b"s",
    "many items of an object": NEW + b"(" + text("a") + tensor() + b"u",
    "the state of an object": NEW + mapping(a=tensor()) + b"b",
    "the slots of an object": NEW + b"N" + mapping(a=tensor()) + b"\x86b",
    "the argument of a class": CLASS + mapping(a=tensor()) + b"\x85\x81",
    "the argument of a function": FUNCTION + mapping(a=tensor()) + b"\x85R",
    "the result of a function without arguments": FUNCTION + b")R",
    "a keyword of a class": CLASS + b")" + mapping(a=tensor()) + b"\x92",
    "an object made by INST": b"(" + mapping(a=tensor()) + b"ivendor.objects\nThing\n",
    "an object made by OBJ": b"(" + CLASS + mapping(a=tensor()) + b"o",
    "an object of a subclass of OrderedDict": named("vendor.objects OrderedDict")
    + b")R("
    + text("a")
    + tensor()
    + b"u",
    "an object that copyreg makes": named("copyreg _reconstructor")
    + CLASS
    + named("builtins dict")
    + mapping(a=tensor())
    + b"\x87R",
    "the pairs of a list that an object is": named("collections OrderedDict") + NEW + b"\x85R",
    "a class instead of an object": CLASS,
    "an object that is memoized": memoised(OTHER, NEW + text("a") + tensor() + b"s")
    + b"0"
    + get(OTHER),
}
"""State dicts that are replaced by an object."""

AMONG = {
    "made by a function": FUNCTION + tensor("1") + b"\x85R",
    "made by a function of numbers": named("torch ones") + b"K\x02\x85R",
    "made sparse": named("torch._utils _rebuild_sparse_tensor") + tensor("1") + b"\x85R",
    "of a storage of an unknown type": tensor("1", "torch QInt8Storage"),
    "of a storage that a function makes": tensor(inner=FUNCTION + b")R"),
    "of an unknown subclass": FROM_TYPE
    + b"("
    + named("torch._utils _rebuild_tensor_v2")
    + CLASS
    + b"("
    + storage("1")
    + b"K\x00K\x02\x85K\x01\x85\x89"
    + ORDERED
    + b"t}tR",
    "a parameter of an object": named("torch._utils _rebuild_parameter") + NEW + b"\x89}\x87R",
    "in the items of an object": NEW + text("data") + tensor("1") + b"s",
    "in the attribute of an object": GETATTR + NEW + text("data") + b"\x86R",
}
"""A second tensor of the state dict."""

ALIASED = {
    "a function": FUNCTION + get(STATE) + b"\x85R",
    "a function whose result is discarded": b"N" + FUNCTION + get(STATE) + b"\x85R0",
    "a function, in a list": FUNCTION + b"](" + get(STATE) + b"e\x85R",
    "a function, in a tuple in a mapping": FUNCTION + mapping(x=get(STATE) + b"\x85") + b"\x85R",
    "a function, in the set of an object": FUNCTION + NEW + text("x") + get(STATE) + b"s\x85R",
    "a function, in the attributes of an OrderedDict": FUNCTION
    + ORDERED
    + mapping(x=get(STATE))
    + b"b\x85R",
    "a function, in the state of a history": FUNCTION
    + named("mmengine.logging.history_buffer HistoryBuffer")
    + b")R"
    + mapping(x=get(STATE))
    + b"b\x85R",
    "a class, as a keyword": CLASS + b")" + mapping(x=get(STATE)) + b"\x92",
    "a class by INST": b"(" + get(STATE) + b"ivendor.objects\nThing\n",
    "a class by OBJ": b"(" + CLASS + get(STATE) + b"o",
    "an object as its state": NEW + get(STATE) + b"b",
    "an object in its state": NEW + mapping(x=get(STATE)) + b"b",
    "an object in its slots": NEW + b"N" + mapping(x=get(STATE)) + b"\x86b",
    "an object as an item": NEW + text("x") + get(STATE) + b"s",
    "an object by APPEND": NEW + get(STATE) + b"a",
    "an object by APPENDS": NEW + b"(" + get(STATE) + b"e",
    "a method of the object itself": GETATTR
    + get(STATE)
    + text("update")
    + b"\x86R"
    + mapping(a=tensor("1"))
    + b"\x85R",
    "getattr": GETATTR + get(STATE) + text("pop") + b"\x86R",
    "operator.setitem": named("operator setitem") + get(STATE) + text("a") + tensor("1") + b"\x87R",
    "operator.ior": named("operator ior") + get(STATE) + mapping(a=tensor("1")) + b"\x86R",
    "dict.update": text("builtins")
    + text("dict.update")
    + b"\x93"
    + get(STATE)
    + mapping(a=tensor("1"))
    + b"\x86R",
    "collections.ChainMap": named("collections ChainMap") + get(STATE) + b"\x85R",
    "functools.reduce": named("functools reduce")
    + named("operator ior")
    + b"]("
    + get(STATE)
    + mapping(a=tensor("1"))
    + b"e\x86R",
    "a function, in what is around it": FUNCTION + get(ROOT) + b"\x85R",
    "an object, in what is around it": NEW + mapping(x=get(ROOT)) + b"b",
    "a function, in a place that is then overwritten": memoised(OTHER, b"}")
    + text("x")
    + get(STATE)
    + b"s0"
    + FUNCTION
    + get(OTHER)
    + b"\x85R0"
    + get(OTHER)
    + text("x")
    + b"Ns",
    "a function, in attributes that are then overwritten": memoised(OTHER, ORDERED)
    + mapping(x=get(STATE))
    + b"b0"
    + FUNCTION
    + get(OTHER)
    + b"\x85R0"
    + get(OTHER)
    + b"}b",
    "a call that a class cannot take": named("collections OrderedDict")
    + b")"
    + mapping(x=get(STATE))
    + b"\x92",
}
"""Further entries of a checkpoint whose state dict is an argument of a call."""

PASSED = {
    "a tensor": (IN_TENSOR, FUNCTION + get(TENSOR) + b"\x85R"),
    "a tensor of the same storage": (IN_TENSOR, FUNCTION + tensor() + b"\x85R"),
    "a tensor in an object": (IN_TENSOR, FUNCTION + NEW + get(TENSOR) + b"b\x85R"),
    "a parameter": (
        IN_TENSOR,
        FUNCTION + named("torch._utils _rebuild_parameter") + get(TENSOR) + b"\x89}\x87R\x85R",
    ),
    "a tensor's method": (IN_TENSOR, GETATTR + get(TENSOR) + text("zero_") + b"\x86R)R"),
    "a tensor by torch.Tensor.zero_": (
        IN_TENSOR,
        text("torch") + text("Tensor.zero_") + b"\x93" + get(TENSOR) + b"\x85R",
    ),
    "a storage": (IN_STORAGE, FUNCTION + get(STORAGE) + b"\x85R"),
    "a copy of the state dict": (
        WEIGHTS,
        FUNCTION + named("collections OrderedDict") + get(STATE) + b"\x85R\x85R",
    ),
    "PyTorch's own function": (
        WEIGHTS,
        FUNCTION + named("torch._utils _rebuild_tensor_v2") + b"\x85R",
    ),
}

OTHERWISE = {
    "the outermost value is an object": b"\x80\x04" + NEW + text("model") + WEIGHTS + b"s.",
    "the outermost value is an object with a state": b"\x80\x04"
    + NEW
    + mapping(model=WEIGHTS)
    + b"b.",
    "an object is a key of the state dict": checkpoint(
        b"}(" + text("a") + tensor() + NEW + tensor("1") + b"u"
    ),
    "an object in a tuple is a key of the state dict": checkpoint(
        b"}(" + text("a") + tensor() + NEW + b"\x85" + tensor("1") + b"u"
    ),
    "an object is a key beside the model": b"\x80\x04}("
    + text("model")
    + WEIGHTS
    + CLASS
    + text("model")
    + b"\x85R"
    + mapping(a=tensor("1"))
    + b"u.",
    "a state dict that is passed on before it is filled": checkpoint(
        get(STATE) + text("a") + tensor() + b"s",
        before=memoised(STATE, b"}") + b"0" + FUNCTION + get(STATE) + b"\x85R0",
    ),
    "a method of the state dict's own": checkpoint(
        ORDERED + text("a") + tensor() + b"s" + mapping(keys=NEW) + b"b"
    ),
    "a list in place of a method of the state dict": checkpoint(
        ORDERED + text("a") + tensor() + b"s" + mapping(items=b"]") + b"b"
    ),
    "a __setstate__ of the state dict's own": checkpoint(
        ORDERED + text("a") + tensor() + b"s" + mapping(__setstate__=FUNCTION) + b"b}b"
    ),
    "a __setstate__ of the arguments": checkpoint(
        extra=named("argparse Namespace") + b")R" + mapping(__setstate__=FUNCTION) + b"b}b"
    ),
    "a state for PyTorch's own function": checkpoint(
        extra=named("torch._utils _rebuild_tensor_v2") + b"N}\x86b"
    ),
    "a state for a class": checkpoint(extra=CLASS + b"N" + mapping(x=b"N") + b"\x86b"),
    "an item for a module": checkpoint(extra=named("vendor objects") + text("x") + b"Ns"),
    "an object as the name of a class": checkpoint(extra=NEW + text("x") + b"\x93"),
    "the model in an object, and weights under another key": b"\x80\x04"
    + mapping(model=NEW + mapping(a=tensor("1")) + b"b", state_dict=WEIGHTS)
    + b".",
    "the model in an object, and tensors beside it": b"\x80\x04"
    + mapping(model=NEW + mapping(a=tensor("1")) + b"b", a=tensor())
    + b".",
}

LONG = b"](" + b"M\x01\x00" * 10_000 + b"e"
ENDLESS = {
    "1,000 objects that share a list, and no weights": b"\x80\x04"
    + memoised(OTHER, LONG)
    + b"0}("
    + b"".join(text(f"k{n}") + NEW + get(OTHER) + b"b" for n in range(1_000))
    + b"u.",
    "an object under 3,000 long keys": checkpoint(
        extra=(b"}" + text("k" * 1000)) * 3_000 + NEW + b"s" * 3_000,
        model=mapping(a=tensor(), b=NEW),
    ),
}

for _title, _cases in {
    "the weights are": {name: checkpoint(model) for name, model in INSIDE.items()},
    "a tensor": {name: checkpoint(mapping(a=tensor(), b=extra)) for name, extra in AMONG.items()},
    "the state dict is passed to": {
        name: checkpoint(extra=extra) for name, extra in ALIASED.items()
    },
    "a function is passed": {
        name: checkpoint(model, extra) for name, (model, extra) in PASSED.items()
    },
    "hidden:": OTHERWISE,
    "endless:": ENDLESS,
}.items():
    attacks("pth", {f"{_title} {name}": data for name, data in _cases.items()}, write)

BESIDE = {
    "an object": NEW,
    "a class": CLASS,
    "an object with tensors of its own": NEW + mapping(weight=tensor("1")) + b"b",
    "a module that shares the tensor": NEW + mapping(_parameters=mapping(w=tensor())) + b"b",
    "an object with items": NEW + text("x") + b"K\x01s",
    "an object with a list": NEW + b"(K\x01K\x02e",
    "a function's result": FUNCTION + b"K\x01\x85R",
    "a function's result, with keywords": CLASS + b")" + mapping(x=b"K\x01") + b"\x92",
    "functools.partial": named("functools partial")
    + named("torch.nn LayerNorm")
    + b"\x85R("
    + named("torch.nn LayerNorm")
    + b"}NNtb",
    "datetime": named("datetime datetime") + b"C\x0a\x07\xe8\x01\x01\x00\x00\x00\x00\x00\x00\x85R",
    "a transform": named("torchvision.transforms Compose")
    + b")\x81"
    + mapping(transforms=b"](" + named("torchvision.transforms ToTensor") + b")\x81e")
    + b"b",
    "a member of an enumeration as a key": b"}" + named("vendor Kind") + b"K\x01\x85RK\x01s",
    "a bound method": GETATTR + NEW + text("forward") + b"\x86R",
    "a default mapping": named("collections defaultdict") + FUNCTION + b"\x85R",
    "a set of objects": b"\x8f(" + NEW + b"\x90",
    "an OrderedDict with an object in its metadata": ORDERED + mapping(_metadata=NEW) + b"b",
    "an array of objects": named("numpy.core.multiarray _reconstruct")
    + named("numpy ndarray")
    + b"K\x00\x85C\x01b\x87R(K\x01K\x01\x85"
    + named("numpy dtype")
    + text("O8")
    + b"\x89\x88\x87R(K\x03"
    + text("|")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89](NetS.".replace(b"S.", b"b"),
}
BESIDE["2,000 objects that share a list"] = (
    memoised(OTHER, LONG) + b"0](" + (NEW + get(OTHER) + b"b") * 2_000 + b"e"
)
BESIDE["an object under 3,000 long keys"] = (b"}" + text("k" * 1000)) * 3_000 + NEW + b"s" * 3_000
BESIDE_ALL = {"nothing": checkpoint(), **{n: checkpoint(extra=d) for n, d in BESIDE.items()}}
benign("pth", {f"beside the weights: {name}": data for name, data in BESIDE_ALL.items()}, write)
