"""Random changes of files of any format, and changes that keep lengths and checksums valid."""

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Sequence

INTERESTING = (
    0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 512, 1000, 1024, 4096, 32767,
    32768, 65535, 65536, 100_663_045, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40,
    (1 << 53) + 1, (1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
WORDS = (
    b"cos\nsystem\n", b"\x93", b"R", b"b", b"h\x00", b"q\x00", b"\x94", b"(", b"t", b"]", b"}",
    b"0", b"2", b".", b"..", b"/", b"../", b"\0", b"NaN", b"null", b"true", b"-1", b"1e999", b"[",
    b"{", b"}", b'"', b",", b":", b"9" * 30, b"__metadata__", b"layer_names", b"weight_names",
    b"blocks.9999.", b"PK\x03\x04", b"PK\x01\x02", b"OHDR", b"TREE", b"SNOD", b"HEAP", b"GCOL",
    b"FRHP", b"BTHD", b"\xff" * 8, b"model", b"state_dict", b"config", b"torch\nFloatStorage\n",
)  # fmt: skip

Mutation = Callable[[bytearray, random.Random], None]


def _flip(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _set(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] = chance.randrange(256)


def _number(data: bytearray, chance: random.Random) -> None:
    width = chance.choice((1, 2, 4, 8))
    if len(data) < width:
        return
    offset = chance.randrange(len(data) - width + 1)
    if chance.random() < 0.5:
        value = chance.choice(INTERESTING)
    else:
        old = int.from_bytes(data[offset : offset + width], "little")
        value = old + chance.choice((-8, -1, 1, 8, old))
    order = chance.choice(("little", "little", "big"))
    data[offset : offset + width] = (value % (1 << 8 * width)).to_bytes(width, order)


def _stretch(data: bytearray, chance: random.Random) -> tuple[int, int]:
    start = chance.randrange(len(data))
    return start, min(len(data), start + 1 + int(chance.expovariate(1 / 12)))


def _delete(data: bytearray, chance: random.Random) -> None:
    start, stop = _stretch(data, chance)
    del data[start:stop]


def _repeat(data: bytearray, chance: random.Random) -> None:
    start, stop = _stretch(data, chance)
    data[stop:stop] = data[start:stop] * chance.choice((1, 1, 2, 50))


def _move(data: bytearray, chance: random.Random) -> None:
    start, stop = _stretch(data, chance)
    offset = chance.randrange(len(data))
    data[offset : offset + stop - start] = data[start:stop]


def _swap(data: bytearray, chance: random.Random) -> None:
    width = min(len(data), chance.choice((1, 4, 8, 24)))
    one, other = (chance.randrange(len(data) - width + 1) for _ in range(2))
    data[one : one + width], data[other : other + width] = (
        data[other : other + width],
        data[one : one + width],
    )


def _word(data: bytearray, chance: random.Random) -> None:
    word, offset = chance.choice(WORDS), chance.randrange(len(data) + 1)
    data[offset : offset + (len(word) if chance.random() < 0.5 else 0)] = word


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


MUTATIONS: Sequence[Mutation] = (
    *(_flip, _set, _set, _number, _number, _number, _delete, _repeat, _move, _word, _word, _cut),
)


IN_PLACE: Sequence[Mutation] = (_flip, _set, _number, _number, _swap)


def spoil(data: bytes, chance: random.Random, most: int = 4) -> bytes:
    """Return the data with 1 to `most` random mutations."""
    return _spoiled(data, chance, most, MUTATIONS)


def spoil_in_place(data: bytes, chance: random.Random) -> bytes:
    """Return the data with 1 to 4 random mutations that do not change its length."""
    return _spoiled(data, chance, 4, IN_PLACE)


def spoil_places(data: bytes, chance: random.Random) -> bytes:
    """Return the data with changes to a few numbers that may be offsets or sizes."""
    offsets = [at for at in range(0, len(data) - 8, 8) if 0 < _word_at(data, at) <= len(data)]
    spoiled = bytearray(data)
    for at in chance.sample(offsets, min(len(offsets), chance.randint(1, 3))):
        other = _word_at(data, chance.choice(offsets))
        value = chance.choice((other, other, chance.choice(INTERESTING), _word_at(data, at) + 8))
        spoiled[at : at + 8] = value.to_bytes(8, "little")
    return bytes(spoiled)


def _word_at(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def _spoiled(data: bytes, chance: random.Random, most: int, mutations: Sequence[Mutation]) -> bytes:
    spoiled = bytearray(data)
    for _ in range(chance.randint(1, most)):
        if spoiled:
            chance.choice(mutations)(spoiled, chance)
    return bytes(spoiled)


def spoil_in_zip(data: bytes, chance: random.Random) -> bytes:
    """Return a valid zip archive with one of its records corrupted, removed or renamed."""
    records = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist():
            records[entry.filename] = archive.read(entry)
    heads = [name for name in records if not name.rpartition("/")[2].isdigit()]
    name = chance.choice(heads if heads and chance.random() < 0.8 else list(records))
    what = chance.random()
    if what < 0.9:
        records[name] = spoil(records[name], chance) if records[name] else b"x"
    elif what < 0.95:
        del records[name]
    else:
        records[spoil(name.encode(), chance, 1).decode("latin-1").strip("/")] = records.pop(name)
    stream = io.BytesIO()
    kind = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for record, content in records.items():
            archive.writestr(record or "x", content)
    return stream.getvalue()


def spoil_header(data: bytes, chance: random.Random) -> bytes:
    """Return a safetensors file with a corrupted header, whose stored length is correct."""
    (length,) = struct.unpack("<Q", data[:8])
    spoil_text = _spoil_json if chance.random() < 0.5 else spoil
    header = spoil_text(data[8 : 8 + length], chance)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def spoil_description(data: bytes, chance: random.Random) -> bytes:
    """Return a trace whose description, a JSON text in the header, is corrupted."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    spoiled = spoil_json(header["__metadata__"]["trace"].encode(), chance)
    header["__metadata__"]["trace"] = spoiled.decode("utf-8", "replace")
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def spoil_shapes(data: bytes, chance: random.Random) -> bytes:
    """Return a safetensors file whose header is valid, but with changed names, shapes or dtypes."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    for name in chance.sample(names, min(len(names), chance.randint(1, 3))):
        entry, what = header[name], chance.random()
        if what < 0.3:
            header[chance.choice(names) + chance.choice(("", "x", "/0"))] = header.pop(name)
        elif what < 0.6:
            entry["shape"] = [*entry["shape"], 1] if what < 0.45 else entry["shape"][::-1]
        elif what < 0.8:
            entry["shape"], entry["data_offsets"] = [0], [entry["data_offsets"][0]] * 2
        else:
            entry["dtype"] = chance.choice(("F32", "I32", "U32", "F64", "I64", "BF16", "F16"))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def spoil_json(data: bytes, chance: random.Random) -> bytes:
    """Return a JSON text with one of its values or names replaced, or with corrupted bytes."""
    return _spoil_json(data, chance) if chance.random() < 0.7 else spoil(data, chance)


VALUES = (
    None, True, -1, 0, 1, 1 << 62, 1 << 64, 10**30, 0.5, float("nan"), float("inf"), "", "a",
    "..", "/etc/passwd", [], {}, [1, 2], [[[]]], {"a": 1}, "9" * 5000, "\ud800", "a" * 2000,
)  # fmt: skip


def _spoil_json(data: bytes, chance: random.Random) -> bytes:
    value = json.loads(data)
    slots: list[tuple[dict | list, object]] = []

    def visit(item: object) -> None:
        if isinstance(item, dict | list):
            for key in item if isinstance(item, dict) else range(len(item)):
                slots.append((item, key))
                visit(item[key])

    visit(value)
    if not slots:
        return spoil(data, chance)
    holder, key = chance.choice(slots)
    if isinstance(holder, dict) and chance.random() < 0.3:
        holder[str(chance.choice(VALUES))] = holder.pop(key)
    elif chance.random() < 0.2:
        del holder[key]
    else:
        holder[key] = chance.choice(VALUES)
    return json.dumps(value).encode()
