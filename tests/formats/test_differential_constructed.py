"""Files constructed so that mae-convert and the library of the format could read them differently.

mae-convert reads the same bits as the library, or refuses the file. A file that only mae-convert
reads is not an error, because a verification reports it.
"""

import collections
import io
import itertools
import json
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from pytorch_readers import Bits, by_mae_convert, by_pytorch
from safetensors import safe_open

from mae_convert.errors import CheckpointError
from mae_convert.formats import open_container
from mae_convert.formats.hdf5_reader.datasets import fletcher32

Make = Callable[[Path], Path]
FEW, MANY = 150, 6000
seeds = pytest.mark.parametrize(
    "count", [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]
)


def bits(arrays: Mapping[str, np.ndarray]) -> Bits:
    return {
        n: (str(a.dtype), a.shape, np.ascontiguousarray(a).tobytes()) for n, a in arrays.items()
    }


def by_safetensors(path: Path) -> Bits | None:
    try:
        with safe_open(path, "numpy") as file:
            return bits({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except Exception:  # the Rust code raises many types
        return None


def by_numpy(path: Path) -> Bits | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive}
        return bits({n: a.astype(a.dtype.newbyteorder("=")) for n, a in arrays.items()})
    except Exception:  # NumPy and zipfile raise many types
        return None


def by_h5py(path: Path) -> Bits | None:
    try:
        with h5py.File(path, "r") as file:
            names: list[str] = []
            file.visititems(lambda n, x: names.append(n) if isinstance(x, h5py.Dataset) else None)
            arrays = {name: file[name][()] for name in names}
        return bits({n: a.astype(a.dtype.newbyteorder("=")) for n, a in arrays.items()})
    except Exception:  # h5py raises many types
        return None


def agree(path: Path, read: Callable[[Path], Bits | None]) -> bool:
    """Require that mae-convert refuses a file, or reads the same bits as the library.

    Returns:
        Whether both read the file.
    """
    result = by_mae_convert(path)
    if result is None:
        return False
    expected = read(path)
    if expected is None:
        return False
    assert {name: expected[name] for name in result} == result
    return True


# PyTorch


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(path: Path, contents: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


class PickledCall:
    """An object that a pickle creates by a call."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


ONES, TWOS = torch.ones(2), torch.full((2,), 2.0)
HOOKS: Mapping = collections.OrderedDict()


def with_state(state: object) -> PickledCall:
    return PickledCall(torch._utils._rebuild_parameter_with_state, ONES, False, HOOKS, state)


def of_type(state: object, kind: type = torch.nn.Parameter) -> PickledCall:
    rebuild = torch._utils._rebuild_parameter
    return PickledCall(
        torch._tensor._rebuild_from_type_v2, rebuild, kind, (ONES, False, HOOKS), state
    )


def state(made: object) -> Make:
    return lambda folder: saved(folder / "x.pth", {"a": made, "b": TWOS})


def two_types(folder: Path) -> Path:
    source = saved(folder / "s.pth", {"a": ONES, "b": torch.ones(2, dtype=torch.int32)})
    name = "s/data.pkl"
    pickled = members(source)
    old, new = b"X\x01\x00\x00\x001", b"X\x01\x00\x00\x000"
    assert pickled[name].count(old) == 1
    return zipped(folder / "x.pth", {**pickled, name: pickled[name].replace(old, new)})


def concatenated(folder: Path) -> Path:
    first, second = (saved(folder / "x.pth", {"a": t}).read_bytes() for t in (ONES, TWOS))
    (folder / "x.pth").write_bytes(first + second)
    return folder / "x.pth"


def renamed_members(rename: Callable[[str], str], **more: bytes) -> Make:
    def make(folder: Path) -> Path:
        source = members(saved(folder / "s.pth", {"a": ONES}))
        return zipped(folder / "x.pth", {**{rename(n): d for n, d in source.items()}, **more})

    return make


def big_in_capitals(folder: Path) -> Path:
    source = members(saved(folder / "s.pth", {"a": ONES}))
    changed = {n.replace("byteorder", "BYTEORDER"): d for n, d in source.items()}
    return zipped(folder / "x.pth", {**changed, "s/BYTEORDER": b"big"})


def two_folders(folder: Path) -> Path:
    long = members(saved(folder / "longer.pth", {"a": ONES}))
    return zipped(folder / "x.pth", {**long, **members(saved(folder / "s.pth", {"a": TWOS}))})


def deeper_folder(folder: Path) -> Path:
    source = members(saved(folder / "s.pth", {"a": ONES}))
    deeper = {f"s/s/{name.removeprefix('s/')}": data for name, data in source.items()}
    return zipped(folder / "x.pth", {**source, **deeper})


class Program(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def program(folder: Path, *, rename: bool = True) -> Path:
    """Return a TorchScript archive that also contains valid weights in a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Program()), str(folder / "s.pt"))
    script = {n.replace("data.pkl", "DATA.PKL"): d for n, d in members(folder / "s.pt").items()}
    root = next(iter(script)).partition("/")[0]
    weights = members(saved(folder / "good.pth", {"a": ONES}))
    good = {name.replace("good/", f"{root}/good/"): data for name, data in weights.items()}
    return zipped(folder / "x.pth", {**script, **good})


def with_two_ends(folder: Path) -> Path:
    path = saved(folder / "x.pth", {"a": ONES})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x05\x06")
    struct.pack_into("<I", data, at + 16, 7)
    path.write_bytes(data)
    return path


def with_comment(folder: Path) -> Path:
    path = saved(folder / "x.pth", {"a": ONES})
    data = path.read_bytes()
    path.write_bytes(data[:-2] + b"\x04\0" + b"abcd")
    return path


TORCH: dict[str, Make] = {
    "a parameter whose state has other values": state(with_state({"data": TWOS})),
    "a parameter whose slots have other values": state(with_state(({}, {"data": TWOS}))),
    "a parameter whose state has other real parts": state(with_state({"real": TWOS})),
    "a parameter with a tensor as attribute": state(with_state({"x": TWOS})),
    "a typed tensor whose state has other values": state(of_type({"data": TWOS})),
    "one storage of two types": two_types,
    "two archives, one behind the other": concatenated,
    "a byte order in capitals": big_in_capitals,
    "two folders": two_folders,
    "a folder in the folder": deeper_folder,
    "a program in capitals beside weights": program,
    "a pickle in capitals": renamed_members(lambda n: n.replace("data.pkl", "DATA.PKL")),
    "storages in capitals": renamed_members(lambda n: n.replace("/data/", "/DATA/")),
    "no folder": renamed_members(lambda n: n.removeprefix("s/")),
    "a member twice but for case": renamed_members(lambda n: n, **{"s/DATA/0": bytes(8)}),
    "a member that torch.save does not write": renamed_members(lambda n: n, **{"s/extra": b"1"}),
    "an unknown version": renamed_members(lambda n: n, **{"s/version": b"11\n"}),
    "ends that contradict each other": with_two_ends,
    "a comment": with_comment,
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", TORCH)
def test_files_that_pytorch_may_read_differently_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError):
        open_container(TORCH[name](tmp_path))


DIFFERENT = [
    "a parameter whose state has other values",
    "a typed tensor whose state has other values",
    "one storage of two types",
    "a byte order in capitals",
]


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_constructions_are_read_by_pytorch(tmp_path: Path, name: str) -> None:
    """The refused files are not just damaged: PyTorch reads them."""
    assert by_pytorch(TORCH[name](tmp_path))


@pytest.mark.parametrize("made", [
    with_state({"_is_hf_initialized": True}),
    with_state(({"tag": "x", "sizes": [1, 2]}, None)),
    of_type({"lr_scale": 0.5}),
    of_type(None),
])  # fmt: skip
def test_attributes_that_change_nothing_are_read(tmp_path: Path, made: PickledCall) -> None:
    path = state(made)(tmp_path)
    assert by_mae_convert(path) == by_pytorch(path)
    assert by_mae_convert(path)


def spans(pickled: bytes) -> list[tuple[str, int, int]]:
    """Return the opcode, begin and end of each operation of a pickle."""
    operations = [(op.name, at) for op, _, at in pickletools.genops(pickled)]
    ends = [at for _, at in operations[1:]] + [len(pickled)]
    return [(name, at, end) for (name, at), end in zip(operations, ends, strict=True)]


def with_changed_name(random: np.random.Generator, name: str) -> str:
    change = random.integers(12)
    return {0: name.upper(), 1: f"y/{name}", 2: name.partition("/")[2]}.get(int(change), name)


def swapped(random: np.random.Generator, pickled: bytes) -> bytes:
    """Return a pickle in which two operations with the same opcode are exchanged."""
    by_name: dict[str, list[tuple[int, int]]] = {}
    for name, begin, end in spans(pickled):
        by_name.setdefault(name, []).append((begin, end))
    kinds = [places for places in by_name.values() if len(places) > 1]
    places = kinds[random.integers(len(kinds))]
    (a, b), (c, d) = sorted(places[i] for i in random.choice(len(places), 2, replace=False))
    return pickled[:a] + pickled[c:d] + pickled[b:c] + pickled[a:b] + pickled[d:]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@seeds
def test_recombined_members_and_pickles_are_read_as_by_pytorch_or_refused(
    tmp_path: Path, count: int
) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    states = [
        {"a": ONES, "b": TWOS},
        {"model": {"a": base, "b": base.T, "c": torch.nn.Parameter(base[1:, ::2])}, "n": 3},
        {"a": base.int(), "b": base.half(), "c": torch.nn.Linear(2, 3).state_dict()["weight"]},
    ]
    sources = [members(saved(tmp_path / "s.pth", value)) for value in states]
    random, both = np.random.default_rng(count), 0
    for _ in range(count):
        main, other = (sources[i] for i in random.integers(len(sources), size=2))
        parts = {with_changed_name(random, n): d for n, d in main.items() if random.random() > 0.02}
        if random.random() < 0.5:
            name = list(other)[random.integers(len(other))]
            parts[with_changed_name(random, name)] = other[name]
        if random.random() < 0.5 and "s/data.pkl" in parts:
            parts["s/data.pkl"] = swapped(random, parts["s/data.pkl"])
        order = random.permutation(len(parts)) if random.random() < 0.3 else range(len(parts))
        path = zipped(tmp_path / "x.pth", {n: parts[n] for n in [list(parts)[i] for i in order]})
        if random.random() < 0.05:
            path.write_bytes(path.read_bytes() * 2)
        both += agree(path, by_pytorch)
    assert both > count / 20


# safetensors

ENTRY = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
HEADERS = {
    "an offset that is a truth value": ENTRY.replace("[0,8]", "[false,8]"),
    "minus zero": ENTRY.replace("[0,8]", "[-0,8]"),
    "a field that is not a number": ENTRY[:-1] + ',"x":NaN}',
    "a field that is too large": ENTRY[:-1] + ',"x":1e999}',
    "a deeply nested field": ENTRY[:-1] + ',"x":' + "[" * 200 + "]" * 200 + "}",
    "half a character as a name": ENTRY.replace('"a"', '"\\ud800"'),
    "half a character in the metadata": '"__metadata__":{"x":"\\udc00"},' + ENTRY,
    "a name twice": f"{ENTRY},{ENTRY}",
    "a field twice": ENTRY.replace('"shape"', '"shape":[1],"shape"'),
    "metadata that are not text": '"__metadata__":{"x":1},' + ENTRY,
    "a hole": ENTRY.replace("[0,8]", "[1,9]"),
    "a shape that overflows": ENTRY.replace("[2]", "[4294967296,4294967296,2]"),
    "an unknown dtype": ENTRY.replace("F32", "F33"),
}


def safetensors_of(path: Path, header: bytes, data: bytes) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_safetensors_refuses_are_refused(tmp_path: Path, name: str) -> None:
    text = "{" + HEADERS[name] + "}"
    assert (
        by_mae_convert(safetensors_of(tmp_path / "x.safetensors", text.encode(), bytes(8))) is None
    )


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32-le", "utf-8-sig"])
def test_a_header_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    header = ("{" + ENTRY + "}").encode(encoding)
    assert by_mae_convert(safetensors_of(tmp_path / "x.safetensors", header, bytes(8))) is None


@seeds
def test_recombined_headers_are_read_as_by_safetensors_or_refused(
    tmp_path: Path, count: int
) -> None:
    random, both = np.random.default_rng(count), 0

    def one(*choices: str) -> str:
        return choices[0] if random.random() < 0.7 else choices[random.integers(len(choices))]

    data = np.random.default_rng(0).bytes(24)
    for _ in range(count):
        parts = []
        for number, begin in enumerate((0, 8, 16)[: random.integers(1, 4)]):
            dtype = one('"F32"', '"I64"', '"BF16"', '"BOOL"', '"f32"', "1")
            shape = one(
                "[2]", "[2,1]", "[1,2]", "[0]", "[]", "[1]", "[8]", "[-2]", "[2.0]", "[true]"
            )
            ends = one(
                f"{begin},{begin + 8}", f"{begin}.0,{begin + 8}", f"0,{begin + 8}", "0,8",
                f"{begin},{begin + 4}", f"{begin},{begin}",
            )  # fmt: skip
            fields = [f'"dtype":{dtype}', f'"shape":{shape}', f'"data_offsets":[{ends}]']
            fields += [one("", '"x":0', '"dtype":"F32"', '"x":null')]
            name = one(
                f'"{number}"', '"0"', '"\\u00e9"', '"é"', '""', '"\\udc00"', '"__metadata__"'
            )
            parts.append(f"{name}:{{{','.join(filter(None, random.permutation(fields)))}}}")
        parts += [one("", '"__metadata__":{"format":"pt"}', '"__metadata__":{"x":1}',
                      '"__metadata__":null', '"__metadata__":{}')]  # fmt: skip
        text = "{" + ",".join(filter(None, random.permutation(parts))) + "}"
        text += one("", " ", "\n  ", "\0", "x", ",")
        size = int(one(str(8 * sum(p.startswith('"') for p in parts)), "8", "16", "24"))
        path = safetensors_of(tmp_path / "x.safetensors", text.encode(), data[:size])
        both += agree(path, by_safetensors)
    assert both > count / 20


# NumPy


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("names", [("w", "w.npy"), ("w.npy", "w"), ("w.npy", "w.npy.npy")])
def test_duplicate_array_name_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    contents = {name: npy(np.full(2, n, "f4")) for n, name in enumerate(names)}
    path = zipped(tmp_path / "x.npz", contents)
    assert by_numpy(path)
    with pytest.raises(CheckpointError, match="NumPy reads the first"):
        open_container(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@seeds
def test_recombined_arrays_are_read_as_by_numpy_or_refused(tmp_path: Path, count: int) -> None:
    random, both = np.random.default_rng(count), 0
    base = np.arange(12, dtype="f4").reshape(3, 4)
    arrays = [npy(a) for a in (base, base.T, base.astype(">f8"), base.astype("i2"), base[0, 0])]
    names = ["w.npy", "v.npy", "w", "w.npy.npy", "W.npy", "a/w.npy", ".npy", "__config__.npy"]
    old = [b"False", b"True", b"(3, 4)", b"(4, 3)", b"(12,)", b"<f4", b">f4", b"\x01\0", b"\x03\0"]
    for _ in range(count):
        chosen = random.choice(names, random.integers(1, 4), replace=False)
        contents = {}
        for name in chosen:
            data = arrays[random.integers(len(arrays))]
            if random.random() < 0.3:
                before, after = (old[i] for i in random.integers(len(old), size=2))
                data = data.replace(before, after.ljust(len(before))[: len(before)], 1)
            contents[name] = data
        both += agree(zipped(tmp_path / "x.npz", contents), by_numpy)
    assert both > count / 20


# HDF5

FLOAT32 = bytes.fromhex("11201f0004000000000020001708001 77f000000".replace(" ", ""))


def hdf5(folder: Path, **settings: object) -> Path:
    with h5py.File(folder / "x.weights.h5", "w") as file:
        file.create_dataset("w", data=np.arange(1, 65, dtype="f4").reshape(8, 8), **settings)
        file.create_dataset("v", data=np.full(64, 3, "f4"))
    return folder / "x.weights.h5"


def replaced(old: bytes, new: bytes) -> Make:
    def make(folder: Path) -> Path:
        path = hdf5(folder)
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))
        return path

    return make


def two_layouts(folder: Path) -> Path:
    """Return a file whose first dataset has a second layout message instead of an empty message."""
    path = hdf5(folder)
    data = bytearray(path.read_bytes())
    layouts = [at for at in range(0, len(data) - 24, 8) if data[at : at + 4] == b"\x08\0\x18\0"]
    first, second = (bytes(data[at : at + 32]) for at in layouts)
    at = layouts[0] + 32
    while data[at : at + 2] != b"\0\0":  # find the message that fills the rest of the header
        at += 8 + struct.unpack_from("<H", data, at + 2)[0]
    (left,) = struct.unpack_from("<H", data, at + 2)
    data[at : at + 32] = second
    struct.pack_into("<HHI", data, at + 32, 0, left - 32, 0)
    # Add one to the number of messages in the object header.
    head = max(h for h in range(0, layouts[0], 8) if data[h : h + 2] == b"\x01\0" and data[h + 4])
    struct.pack_into("<H", data, head + 2, struct.unpack_from("<H", data, head + 2)[0] + 1)
    assert first != second
    path.write_bytes(data)
    return path


def wrong_checksum(folder: Path) -> Path:
    path = hdf5(folder, chunks=(4, 4), fletcher32=True)
    data = bytearray(path.read_bytes())
    at = data.index(np.arange(1, 5, dtype="f4").tobytes())
    data[at + 3] ^= 1
    path.write_bytes(data)
    return path


HDF5: dict[str, Make] = {
    "another bias": replaced(FLOAT32, FLOAT32[:-4] + b"\x7e\0\0\0"),
    "a mantissa with its first bit": replaced(FLOAT32, FLOAT32[:1] + b"\0" + FLOAT32[2:]),
    "a sign bit at another position": replaced(FLOAT32, FLOAT32[:2] + b"\x1e" + FLOAT32[3:]),
    "a VAX byte order": replaced(FLOAT32, FLOAT32[:1] + b"\x61" + FLOAT32[2:]),
    "two layouts": two_layouts,
    "a wrong checksum": wrong_checksum,
}


@pytest.mark.parametrize("name", HDF5)
def test_files_that_hdf5_reads_differently_are_refused(tmp_path: Path, name: str) -> None:
    assert by_mae_convert(HDF5[name](tmp_path)) is None


def test_a_second_layout_is_read_by_hdf5(tmp_path: Path) -> None:
    """The HDF5 library reads the constructed file, so the file is not just damaged."""
    read = by_h5py(two_layouts(tmp_path))
    assert read is not None
    assert set(read) == {"v", "w"}


@pytest.mark.parametrize("size", [1, 2, 3, 64, 65, 721, 4096])
def test_the_checksum_of_chunks_is_that_of_hdf5(tmp_path: Path, size: int) -> None:
    random = np.random.default_rng(size)
    for data in (random.bytes(size), bytes(size), b"\xff" * size):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            values = np.frombuffer(data, "u1")
            made = file.create_dataset("w", data=values, chunks=(size,), fletcher32=True)
            stored = made.id.read_direct_chunk((0,))[1]
        assert fletcher32(data).to_bytes(4, "little") == stored[-4:]


def structures(folder: Path) -> Iterator[bytes]:
    """Yield files with both formats of groups, and contiguous, chunked and compressed datasets."""
    for libver, settings in itertools.product(
        ("earliest", "v110"),
        ({}, {"chunks": (4, 4), "compression": "gzip", "shuffle": True, "fletcher32": True}),
    ):
        with h5py.File(folder / "s.h5", "w", libver=libver) as file:
            for name, kind in (("layers/a", "f4"), ("layers/b", ">f8"), ("c", "i2")):
                values = np.arange(64).reshape(8, 8).astype(kind)
                file.create_dataset(name, data=values, **settings)
            file.attrs["note"] = "text"
        yield (folder / "s.h5").read_bytes()


@seeds
def test_recombined_hdf5_structures_are_read_as_by_h5py_or_refused(
    tmp_path: Path, count: int
) -> None:
    random, both, path = np.random.default_rng(count), 0, tmp_path / "x.h5"
    sources = list(structures(tmp_path))
    for _ in range(count):
        source = sources[random.integers(len(sources))]
        data = bytearray(source)
        for _ in range(random.integers(1, 4)):
            # Eight bytes from one offset to another: addresses, message headers, types.
            there, here = 8 * random.integers(len(source) // 8, size=2)
            if random.random() < 0.5:
                data[there : there + 8] = source[here : here + 8]
            else:
                data[there + random.integers(8)] = random.integers(256)
        path.write_bytes(data)
        both += agree(path, by_h5py)
    assert both > count / 20


def test_shard_with_a_state_key_is_refused(tmp_path: Path) -> None:
    """transformers reads the tensors at the top level of each shard."""
    saved(tmp_path / "pytorch_model-00001-of-00001.bin", {"b": TWOS, "model": {"a": ONES}})
    index = {"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="under the key model"):
        open_container(tmp_path)


def test_an_index_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    first, second = (f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2))
    saved(tmp_path / first, {"a": ONES})
    saved(tmp_path / second, {"a": TWOS})
    text = f'{{"weight_map": {{"a": "{first}", "a": "{second}"}}}}'
    (tmp_path / "pytorch_model.bin.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="twice"):
        open_container(tmp_path)
