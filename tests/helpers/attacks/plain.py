"""safetensors and index files, configurations and tensor names with false content."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import safetensors.numpy

from attacks.corpus import MODEL, attack, attacks, with_config


def of_header(folder: Path, case: object) -> Path:
    """Write a file with a header and a size of the data; a function creates a long header."""
    header, size = case
    if callable(header):
        header = header()
    text = header.encode() if isinstance(header, str) else header
    path = folder / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return path


def entry(name: str, shape: object, start: object, end: object, kind: str = "F32") -> str:
    return f'"{name}":{{"dtype":"{kind}","shape":[{shape}],"data_offsets":[{start},{end}]}}'


A = entry("a", 1, 0, 4)
HEADERS = {
    "a size that is not the shape's": (f"{{{entry('a', 3, 0, 8)}}}", 8),
    "a hole": (f"{{{A},{entry('b', 1, 8, 12)}}}", 12),
    "an overlap": (f"{{{entry('a', 2, 0, 8)},{entry('b', 2, 4, 12)}}}", 12),
    "two tensors at the same offset": (f"{{{A},{entry('b', 1, 0, 4)}}}", 4),
    "a rest": (f"{{{A}}}", 8),
    "an offset beyond the file": (f"{{{entry('a', 1, 1 << 40, (1 << 40) + 4)}}}", 4),
    "an offset that overflows": (f"{{{entry('a', 1, (1 << 64) - 4, 1 << 64)}}}", 4),
    "a negative offset": (f"{{{entry('a', 1, -4, 0)}}}", 0),
    "an end before its beginning": (f"{{{entry('a', 1, 4, 0)}}}", 4),
    "a name twice": (f"{{{A},{A}}}", 4),
    "a field twice": (f"{{{A[:-1]},{A[5:-1].split(',', 1)[0]}}}}}", 4),
    "metadata twice": (f'{{"__metadata__":{{}},"__metadata__":{{}},{A}}}', 4),
    "a negative extent": (f"{{{entry('a', '-1,-1', 0, 4)}}}", 4),
    "an extent of 10^30": (f"{{{entry('a', f'0,{10**30}', 0, 0)}}}", 0),
    "an extent of 10^6 digits": (f"{{{entry('a', '9' * 1_000_000, 0, 4)}}}", 4),
    "extents that overflow": (f"{{{entry('a', f'{1 << 32},{1 << 32}', 0, 0)}}}", 0),
    "a rank of 1,000": (f"{{{entry('a', ','.join('1' * 1000), 0, 4)}}}", 4),
    "an extent that is null": (f"{{{entry('a', 'null', 0, 4)}}}", 4),
    "an extent that is a fraction": (f"{{{entry('a', '1.0', 0, 4)}}}", 4),
    "an extent that is true": (f"{{{entry('a', 'true', 0, 4)}}}", 4),
    "an extent that is NaN": (f"{{{entry('a', 'NaN', 0, 4)}}}", 4),
    "a type that is not known": (f"{{{entry('a', 1, 0, 4, 'X9')}}}", 4),
    "no type": ('{"a":{"shape":[1],"data_offsets":[0,4]}}', 4),
    "metadata that are not text": ('{"__metadata__":{"a":1}}', 0),
    "brackets 100,000 deep": ("{" + '"a":[' * 100_000, 0),
    "no mapping": ("{} []", 0),
    "no tensors": ("{}", 0),
    "no text": (b"{\xff\xfe}", 0),
    "a header of 9 MB": (
        lambda: "{" + ",".join(f'"{n}":{{}}' for n in range(700_000)) + "}",
        0,
    ),
    "100,000 tensors": (
        lambda: "{" + ",".join(entry(str(n), 0, 0, 0) for n in range(100_000)) + "}",
        0,
    ),
}
attacks("safetensors", HEADERS, of_header)


def of_length(folder: Path, length: int) -> Path:
    path = folder / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{" + bytes(64))
    return path


LENGTHS = (0, 66, 1 << 20, (1 << 32) - 1, (1 << 63) - 1, (1 << 63), (1 << 64) - 1)
attacks("safetensors", {f"a header of {n} bytes": n for n in LENGTHS}, of_length)


def of_index(folder: Path, config: object) -> Path:
    """Write an index with a content or text; a function creates a long one."""
    if callable(config):
        config = config()
    path = folder / "model.safetensors.index.json"
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32)}, folder / "model.safetensors")
    (folder / ".metadata").write_bytes(b"N.")
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def index_of_name(name: object) -> dict[str, object]:
    return {"metadata": {}, "weight_map": {"a": name}}


INDEXES = {
    "a part above it": index_of_name("../model.safetensors"),
    "a part with an absolute name": index_of_name("/etc/passwd"),
    "a part in a directory": index_of_name("x/model.safetensors"),
    "a part with a zero in its name": index_of_name("model\0.safetensors"),
    "a part without a name": index_of_name(""),
    "itself as a part": index_of_name("model.safetensors.index.json"),
    "another index as a part": index_of_name("other.safetensors.index.json"),
    "a distributed checkpoint as a part": index_of_name(".metadata"),
    "its directory as a part": index_of_name("."),
    "the directory above as a part": index_of_name(".."),
    "a part that is missing": index_of_name("none.safetensors"),
    "a part that is a number": index_of_name(3),
    "a part that is a list": index_of_name(["model.safetensors"]),
    "a tensor that its part lacks": {"weight_map": {"b": "model.safetensors"}},
    "no map": {"metadata": {}},
    "an empty map": {"weight_map": {}},
    "a map that is a list": {"weight_map": []},
    "a list": [],
    "brackets 100,000 deep": "[" * 100_000,
    "no JSON": "{",
    "9 MB": lambda: '{"weight_map":{' + ",".join(f'"{n}":"a"' for n in range(900_000)) + "}}",
}
attacks("index", INDEXES, of_index)

ENORMOUS = 1 << 62
VALUES = {
    "a negative number": -1,
    "an enormous number": ENORMOUS,
    "a number of 400 digits": 10**400,
    "a fraction": 0.5,
    "a text": "twelve",
    "a list": [1, 2, 3],
    "a mapping": {"a": 1},
}
COUNTS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size",
    "patch_size", "num_channels", "decoder_hidden_size", "decoder_num_hidden_layers",
    "decoder_num_attention_heads", "decoder_intermediate_size",
)  # fmt: skip
attacks(
    "config.json",
    {f"{what} as {name}": {name: value} for name in COUNTS for what, value in VALUES.items()},
    with_config,
)
FIELDS = {
    "layer_norm_eps": (-1.0, "small", [1], float("nan"), float("inf"), {}, True),
    "mask_ratio": (-0.5, 1.0, 2, "most", [], float("nan"), {}),
    "hidden_act": (5, "eval", ["gelu"], {}, True),
    "norm_pix_loss": (3, "yes", [], {}),
    "qkv_bias": (3, "yes", [], {}),
    "hidden_dropout_prob": (-1, "a", 2, [], {}),
    "attention_probs_dropout_prob": (-1, "a", 2, [], {}),
    "initializer_range": (-1, "a", 0, [], {}),
}
attacks(
    "config.json",
    {f"{value!r} as {name}": {name: value} for name, vs in FIELDS.items() for value in vs},
    with_config,
)
attacks(
    "config.json",
    {
        "a list": "[]",
        "a number": "3",
        "no JSON": "{",
        "brackets 100,000 deep": '{"a":' + "[" * 100_000,
        "9 MB": json.dumps({"a": "a" * 9_000_000}),
        "bytes that are not text": "\udcff",
    },
    lambda folder, text: with_config(folder, "{}") if text is None else _raw(folder, text),
)
attacks(
    "preprocessor_config.json",
    {
        "image_mean of one number": {"image_mean": [0.5], "image_std": [1]},
        "image_mean of texts": {"image_mean": ["a"] * 3, "image_std": [1] * 3},
        "image_mean that is not a number": {"image_mean": [float("nan")] * 3, "image_std": [1] * 3},
        "image_std as a mapping": {"image_mean": [0.5] * 3, "image_std": {"a": 1}},
    },
    lambda folder, change: with_config(folder, change, "preprocessor_config.json"),
)
attacks(
    "conversion.json",
    {
        "steps that are a text": {"steps": "task"},
        "steps that are numbers": {"steps": [1]},
        "a step that is not named": {"steps": [{"from": 1}]},
    },
    lambda folder, change: with_config(folder, change, "conversion.json"),
)


def _raw(folder: Path, text: str) -> Path:
    path = with_config(folder, "{}")
    (path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def of_names(folder: Path, change: object) -> Path:
    """Write a valid model directory, but with other names or shapes of its tensors."""
    path = folder / "model"
    path.mkdir()
    shutil.copy(MODEL / "config.json", path)
    tensors = safetensors.numpy.load_file(MODEL / "model.safetensors")
    tensors |= change
    safetensors.numpy.save_file(tensors, path / "model.safetensors")
    return path


SMALL = np.zeros(1, np.float32)
BLOCK = "vit.encoder.layer.{}.layernorm_before.weight"
attacks(
    "names",
    {
        "block 10^9": {BLOCK.format(10**9): SMALL},
        "block 10^5000": {BLOCK.format("9" * 5000): SMALL},
        "a name of 10^6 characters": {"vit." + "a" * 1_000_000: SMALL},
        "a needed tensor's name and control characters": {
            "vit.embeddings.cls_token": SMALL,
            "vit.embeddings.cls_token\x1b[31m\n\r": SMALL,
        },
        "10,000 tensors too many": {f"a{n}": SMALL for n in range(10_000)},
        "10,000 blocks too many": {BLOCK.format(n): SMALL for n in range(20, 10_020)},
        "an empty shape": {"vit.embeddings.cls_token": np.zeros((1, 0, 32), np.float32)},
        "a scalar": {"vit.embeddings.cls_token": np.zeros((), np.float32)},
        "no numbers": {"vit.embeddings.cls_token": np.full((1, 1, 32), np.nan, np.float32)},
    },
    of_names,
)


@attack("names", "a directory that is a link to itself")
def _(folder: Path) -> Path:
    (folder / "x").symlink_to("x")
    return folder / "x"
