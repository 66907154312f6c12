"""Malicious zip archives: bombs, overlaps, path traversal, contradictory headers of a record."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from attacks.corpus import ENCODER, attack, attacks, with_pickle
from attacks.pickled import of_tensor

GOOD = of_tensor("2", "1")
LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def good(folder: Path) -> tuple[Path, bytearray]:
    """Write a valid checkpoint, and return its path and its bytes."""
    path = with_pickle(folder, GOOD)
    return path, bytearray(path.read_bytes())


def damaged(change: Callable[[bytearray], object]) -> Callable[[Path, object], Path]:
    def make(folder: Path) -> Path:
        path, data = good(folder)
        change(data)
        path.write_bytes(data)
        return path

    return make


def at(signature: bytes, number: int, offset: int, kind: str, value: int) -> Callable:
    """Return a change of one field of the `number`-th header with a signature."""

    def change(data: bytearray) -> None:
        central_offset = -1
        for _ in range(number + 1):
            central_offset = data.index(signature, central_offset + 1)
        struct.pack_into(kind, data, central_offset + offset, value)

    return change


# The offsets of the fields in each header.
FIELDS = {
    "a record that is encrypted": at(CENTRAL, 1, 8, "<H", 1),
    "a record that is encrypted by its own header": at(LOCAL, 1, 6, "<H", 1),
    "a record packed by bzip2": at(CENTRAL, 1, 10, "<H", 12),
    "a record with an unknown compression": at(CENTRAL, 1, 10, "<H", 99),
    "a record that is compressed according to one header only": at(LOCAL, 1, 8, "<H", 8),
    "a record of 4 GB": at(CENTRAL, 1, 24, "<I", 0xFFFFFFF0),
    "a record of 4 GB, packed to as much": at(CENTRAL, 1, 20, "<I", 0xFFFFFFF0),
    "a record beyond the file": at(CENTRAL, 1, 42, "<I", 0xFFFFFF),
    "a record in the midst of another": at(CENTRAL, 1, 42, "<I", 40),
    "a record with another name in its own header": at(LOCAL, 1, 30, "<B", ord("y")),
    "a record with a long field": at(LOCAL, 1, 28, "<H", 0xFFFF),
    "a directory of 4 GB": at(END, 0, 12, "<I", 0xFFFFFFF0),
    "a directory beyond the file": at(END, 0, 16, "<I", 0xFFFFFFF0),
    "no end": lambda data: data.__delitem__(slice(-22, None)),
}
for _name, _change in FIELDS.items():
    attack("pth", _name)(damaged(_change))


def renamed(folder: Path, name: str) -> Path:
    path = with_pickle(folder, GOOD)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    return path


attacks(
    "pth",
    {
        "a record with an absolute name": "/etc/passwd",
        "a record with a name that reaches out": "../../.bashrc",
        "a record with a name that reaches out within": "x/../../y",
        "a record with a name of another system": "C:\\Windows\\x",
        "a record with a name that reaches out on another system": "..\\..\\x",
    },
    renamed,
)


@attack("pth", "two records with the same name")
def _(folder: Path) -> Path:
    path = folder / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", GOOD)
        archive.writestr("x/data/1", bytes(8))
        archive.writestr("x/data/0", bytes(8))
        archive.writestr("x/version", b"3\n")
    path.write_bytes(path.read_bytes().replace(b"x/data/1", b"x/data/0"))
    return path


@attack("pth", "two records in one place")
def _(folder: Path) -> Path:
    path, data = good(folder)
    first = data.index(CENTRAL)
    entry = data[first : data.index(CENTRAL, first + 1)]
    copy = entry.replace(b"data.pkl", b"data.pkm")
    end = data.index(END)
    data[end:end] = copy
    end = data.index(END)
    for offset, more in ((8, 1), (10, 1), (12, len(copy))):
        kind = "<I" if offset == 12 else "<H"
        (old,) = struct.unpack_from(kind, data, end + offset)
        struct.pack_into(kind, data, end + offset, old + more)
    path.write_bytes(data)
    return path


def packed(folder: Path, records: dict[str, bytes], name: str = "x.pth") -> Path:
    records = {**records, "x/version": b"3\n"}
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for record, data in records.items():
            archive.writestr(record, data)
    return folder / name


@attack("pth", "a storage of 80 MB packed to 80 kB")
def _(folder: Path) -> Path:
    count = 20_000_000
    pickled = of_tensor(str(count), "1", count=count)
    return packed(folder, {"x/data.pkl": pickled, "x/data/0": bytes(4 * count)})


@attack("pth", "a pickle of 80 MB packed to 80 kB")
def _(folder: Path) -> Path:
    return packed(folder, {"x/data.pkl": b"\x80\x02" + b"N" * 80_000_000, "x/data/0": bytes(8)})


@attack("pth", "a record that is shorter than its header states")
def _(folder: Path) -> Path:
    path = packed(folder, {"x/data.pkl": of_tensor("2", "1"), "x/data/0": b"12345678"})
    data = bytearray(path.read_bytes())
    place = data.index(zlib.compress(b"12345678", 9)[2:-4])
    data[place : place + 2] = b"\x03\x00"  # an end at once
    path.write_bytes(data)
    return path


@attack("pth", "a TorchScript program")
def _(folder: Path) -> Path:
    return packed(folder, {"x/data.pkl": GOOD, "x/constants.pkl": b"N.", "x/code/x.py": b"1"})


def npz(folder: Path, array: bytes, name: str = "a.npy", pack: bool = False) -> Path:
    kind = zipfile.ZIP_DEFLATED if pack else zipfile.ZIP_STORED
    with zipfile.ZipFile(folder / "x.npz", "w", kind) as archive:
        archive.writestr(name, array)
    return folder / "x.npz"


def npy(head: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = head.encode("latin-1")
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + data


def head_of(descr: str = "'<f4'", order: str = "False", shape: str = "(2,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def array_of_objects() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{}], dtype=object), allow_pickle=True)
    return stream.getvalue()


EIGHT = bytes(8)
attacks(
    "npz",
    {
        "an array of objects": array_of_objects(),
        "a pickle in the place of an array": b"\x80\x04cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
        "a header with a call": npy("__import__('os').system('touch PWNED')\n", EIGHT),
        "a header with a call in a field": npy(head_of(shape="(open('PWNED', 'w'),)"), EIGHT),
        "a header with a multiplication": npy(head_of(shape="(2,) * 10**9"), EIGHT),
        "a head 3,000 deep": npy("(" * 3000 + ")" * 3000, EIGHT),
        "a head of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + EIGHT,
        "a head without fields": npy("{}\n", EIGHT),
        "a header that is not a mapping": npy("3\n", EIGHT),
        "a type of fields": npy(head_of(descr="[('a', '<f4'), ('b', '|O')]"), EIGHT),
        "a type of objects": npy(head_of(descr="'|O'"), EIGHT),
        "a dtype with a call": npy(head_of(descr="'os.system'"), EIGHT),
        "elements of 10^9 bytes": npy(head_of(descr="'<U999999999'"), EIGHT),
        "a shape of 2^62": npy(head_of(shape=f"({1 << 62},)"), EIGHT),
        "a negative shape": npy(head_of(shape="(-2,)"), EIGHT),
        "a shape that overflows": npy(head_of(shape=f"({1 << 32}, {1 << 32})"), EIGHT),
        "a shape that is not a tuple": npy(head_of(shape="2"), EIGHT),
        "a shape with fractions": npy(head_of(shape="(2.0,)"), EIGHT),
        "more numbers than the file has": npy(head_of(shape="(3,)"), EIGHT),
        "fewer numbers than the file has": npy(head_of(shape="(1,)"), EIGHT),
        "no array": b"",
    },
    npz,
)


@attack("npz", "an array of 80 MB packed to 80 kB")
def _(folder: Path) -> Path:
    count = 20_000_000
    return npz(folder, npy(head_of(shape=f"({count},)"), bytes(4 * count)), pack=True)


@attack("npz", "a name that reaches out")
def _(folder: Path) -> Path:
    return npz(folder, npy(head_of(), EIGHT), name="../../a.npy")


@attack(".keras", "a layer that is a program")
def _(folder: Path) -> Path:
    code = {"class_name": "Lambda", "config": {"function": ["4wEAAAAAAAAA", None, None]}}
    config = {"module": "keras", "class_name": "Sequential", "config": {"layers": [code]}}
    return packed(
        folder,
        {
            "config.json": json.dumps(config).encode(),
            "metadata.json": b"{}",
            "model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(64),
        },
        "x.keras",
    )


@attack(".keras", "a module that is imported")
def _(folder: Path) -> Path:
    config = {"module": "os", "class_name": "system", "config": {"command": "touch PWNED"}}
    return packed(
        folder,
        {"config.json": json.dumps(config).encode(), "model.weights.h5": ENCODER.read_bytes()},
        "x.keras",
    )
