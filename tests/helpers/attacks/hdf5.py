"""HDF5 files with external references, endless structures, or false sizes."""

import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from attacks.corpus import ATTACKS, Attack, attack


def trick(name: str) -> Callable:
    """Add a file with one valid dataset that the decorated function changes."""

    def add(damage: Callable[[h5py.File], None]) -> Callable:
        def build(folder: Path) -> Path:
            with h5py.File(folder / "x.weights.h5", "w") as file:
                file["a"] = np.zeros(2, np.float32)
                damage(file)
            return folder / "x.weights.h5"

        ATTACKS.append(Attack("hdf5", name, build))
        return damage

    return add


@trick("a link to another file")
def _(file: h5py.File) -> None:
    file["b"] = h5py.ExternalLink("/etc/passwd", "/a")


@trick("a soft link in the same file")
def _(file: h5py.File) -> None:
    file["b"] = h5py.SoftLink("/a")


@trick("links that lead to each other")
def _(file: h5py.File) -> None:
    file["b"], file["c"] = h5py.SoftLink("/c"), h5py.SoftLink("/b")


@trick("a link to a missing object")
def _(file: h5py.File) -> None:
    file["b"] = h5py.SoftLink("/none")


@trick("a dataset stored in another file")
def _(file: h5py.File) -> None:
    file.create_dataset("b", (2,), "f4", external=[("/etc/passwd", 0, 8)])


@trick("a dataset made of another file")
def _(file: h5py.File) -> None:
    virtual = h5py.VirtualLayout((2,), "f4")
    virtual[:] = h5py.VirtualSource("/etc/passwd", "a", (2,))
    file.create_virtual_dataset("b", virtual)


@trick("a group in itself")
def _(file: h5py.File) -> None:
    file["g/b"] = np.zeros(2)
    file["g/again"] = file["g"]


@trick("a group in a group in itself")
def _(file: h5py.File) -> None:
    file["g/h/b"] = np.zeros(2)
    file["g/h/again"] = file["g"]


@trick("groups 1,000 deep")
def _(file: h5py.File) -> None:
    group = file
    for _ in range(1000):
        group = group.create_group("g")


@trick("20,000 names of one dataset")
def _(file: h5py.File) -> None:
    for number in range(20_000):
        file[f"n{number}"] = file["a"]


@trick("texts")
def _(file: h5py.File) -> None:
    file["b"] = "text"


@trick("references to objects")
def _(file: h5py.File) -> None:
    file.create_dataset("b", data=[file["a"].ref], dtype=h5py.ref_dtype)


@trick("references to regions")
def _(file: h5py.File) -> None:
    file.create_dataset("b", data=[file["a"].regionref[:1]], dtype=h5py.regionref_dtype)


@trick("lists of variable length")
def _(file: h5py.File) -> None:
    file.create_dataset("b", (2,), dtype=h5py.vlen_dtype(np.float32))


@trick("fields")
def _(file: h5py.File) -> None:
    file["b"] = np.zeros(2, [("a", "f4"), ("b", "i4")])


@trick("an empty dataset")
def _(file: h5py.File) -> None:
    file["b"] = h5py.Empty("f4")


@trick("2^40 numbers that were never written")
def _(file: h5py.File) -> None:
    file.create_dataset("b", (1 << 40,), "f4")


@trick("2^40 numbers in chunks that were never written")
def _(file: h5py.File) -> None:
    file.create_dataset("b", (1 << 40,), "f4", chunks=(1 << 20,))


@trick("2^20 numbers in 2^20 chunks that were never written")
def _(file: h5py.File) -> None:
    file.create_dataset("b", (1 << 20,), "f4", chunks=(1,))


@trick("one chunk of 2^24 numbers that were never written")
def _(file: h5py.File) -> None:
    file.create_dataset("b", (1 << 24,), "f4", chunks=(1 << 24,))


@trick("80 MB packed to 80 kB")
def _(file: h5py.File) -> None:
    file.create_dataset("b", data=np.zeros(20_000_000, "f4"), chunks=(1 << 20,), compression=9)


@trick("an unknown filter")
def _(file: h5py.File) -> None:
    file.create_dataset("b", data=np.zeros(100, "f4"), chunks=(10,), compression="lzf")


@trick("a scale and an offset")
def _(file: h5py.File) -> None:
    file.create_dataset("b", data=np.zeros(100, "i4"), chunks=(10,), scaleoffset=0)


@trick("numbers of 3 bytes")
def _(file: h5py.File) -> None:
    kind = h5py.h5t.STD_I32LE.copy()
    kind.set_precision(24)
    kind.set_size(3)
    space = h5py.h5s.create_simple((2,))
    h5py.h5d.create(file.id, b"b", kind, space)


@trick("a type with a name")
def _(file: h5py.File) -> None:
    file["kind"] = np.dtype("f4")
    file.create_dataset("b", (2,), dtype=file["kind"])


@trick("names of layers that are missing")
def _(file: h5py.File) -> None:
    file.attrs["layer_names"] = [b"none"]


@trick("names of weights outside the group")
def _(file: h5py.File) -> None:
    file.attrs["layer_names"] = [b"g"]
    file.create_group("g").attrs["weight_names"] = [b"../a"]


@trick("names of layers that are numbers")
def _(file: h5py.File) -> None:
    file.attrs["layer_names"] = np.arange(3)


@trick("names of weights that are listed twice")
def _(file: h5py.File) -> None:
    file["g/a"] = np.zeros(2)
    file.attrs["layer_names"] = [b"g", b"g"]
    file["g"].attrs["weight_names"] = [b"a"]


@trick("names that are not text")
def _(file: h5py.File) -> None:
    file.id.links.create_hard(b"\xff\xfe", file.id, b"a")


def patched(name: str, replace: Callable[[bytearray], None]) -> None:
    """Add a valid file with some of its bytes changed."""

    def build(folder: Path) -> Path:
        path = folder / "x.weights.h5"
        with h5py.File(path, "w") as file:
            file["g/a"] = np.zeros(2, np.float32)
            file["g/b"] = np.zeros((3, 5), np.float32)
        data = bytearray(path.read_bytes())
        replace(data)
        path.write_bytes(data)
        return path

    ATTACKS.append(Attack("hdf5", name, build))


def field(signature: bytes, offset: int, kind: str, value: int) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into(kind, data, data.index(signature) + offset, value)


def shape_of(extents: tuple[int, int]) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        struct.pack_into("<2Q", data, data.index(struct.pack("<2Q", 3, 5)), *extents)

    return change


def tree_of_itself(data: bytearray) -> None:
    offset = data.index(b"TREE")
    data[offset + 5] = 1  # a level above the leaves
    struct.pack_into("<Q", data, offset + 32, offset)


patched("a heap of 2^63 bytes", field(b"HEAP", 8, "<Q", 1 << 63))
patched("a heap beyond the file", field(b"HEAP", 24, "<Q", 1 << 40))
patched("a tree of 65,535 branches", field(b"TREE", 6, "<H", 0xFFFF))
patched("a tree 255 high", field(b"TREE", 5, "<B", 255))
patched("a tree in itself", tree_of_itself)
patched("a node of 65,535 names", field(b"SNOD", 6, "<H", 0xFFFF))
patched("a name beyond its heap", field(b"SNOD", 8, "<Q", 1 << 40))
patched("an object beyond the file", field(b"SNOD", 16, "<Q", 1 << 40))
patched("an object header without its signature", field(b"SNOD", 16, "<Q", 1))
patched("a root beyond the file", lambda data: struct.pack_into("<Q", data, 64, 1 << 50))
patched("addresses of 4 bytes", lambda data: struct.pack_into("<B", data, 13, 4))
patched(
    "a file whose superblock is not at its beginning",
    lambda data: struct.pack_into("<Q", data, 24, 512),
)
patched("an unknown version", lambda data: struct.pack_into("<B", data, 8, 9))
patched("a shape of 2^62", shape_of((1 << 62, 1)))
patched("a shape that overflows", shape_of((1 << 32, 1 << 32)))
patched("more numbers than the file has", shape_of((1000, 1000)))
patched("an end in its beginning", lambda data: data.__delitem__(slice(40, None)))


@attack("hdf5", "nothing but a signature")
def _(folder: Path) -> Path:
    (folder / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    return folder / "x.h5"
